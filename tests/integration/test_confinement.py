"""What a program may do to its worker, and what then becomes of the device."""

import os
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from cadenza.v1.program_pb2 import Program
from cadenza.v1.result_pb2 import JobResult
from cadenza_server.execution import DeviceSpec, RunReport
from cadenza_server.execution.confinement import FILES_MAX, PROCESSOR_SLACK_SECONDS
from cadenza_server.model.words import RunOutcome

from tests.integration.test_workers import Stand, counts_of, ghz, sampler, with_device

PLUGINS = Path(__file__).parents[1] / "plugins"
MEMORY = 256 * 2**20

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems cannot confine a process so")


def asking(request: str) -> bytes:
    program = Program()
    program.sampler.pubs.add().circuit.openqasm3 = request
    return program.SerializeToString()


async def ask(stand: Stand, request: str, *, limit: float = 60.0) -> RunReport:
    stand.run(asking(request), limit=limit)
    return await stand.report()


async def is_well(stand: Stand) -> None:
    """The device takes the next run."""
    assert (await ask(stand, "nothing")).outcome is RunOutcome.SUCCEEDED


def answers(report: RunReport) -> dict[str, float]:
    assert report.outcome is RunOutcome.SUCCEEDED, report.detail
    assert report.result is not None
    return dict(JobResult.FromString(report.result).metadata)  # type: ignore[arg-type]


@pytest.fixture
def with_unruly(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Stand], Awaitable[None]]], None]:
    monkeypatch.syspath_prepend(str(PLUGINS))
    monkeypatch.setenv("PYTHONPATH", str(PLUGINS) + os.pathsep + os.environ.get("PYTHONPATH", ""))
    return lambda scenario: with_device(scenario, DeviceSpec(kind="unruly", memory_bytes_max=MEMORY))


With = Callable[[Callable[[Stand], Awaitable[None]]], None]


def test_a_circuit_too_large_for_the_workers_memory_fails_alone_and_says_so() -> None:
    async def scenario(stand: Stand) -> None:
        pid = stand.pid
        stand.run(sampler(ghz(26)))
        report = await stand.report()
        assert report.outcome is RunOutcome.EXECUTION_ERROR
        assert "Insufficient memory" in report.detail
        assert "256M" in report.detail
        stand.run(sampler(ghz(2)), attempt=2)
        assert counts_of(await stand.report())
        assert stand.pid == pid

    with_device(scenario, DeviceSpec(method="statevector", memory_bytes_max=MEMORY))


def test_a_program_gets_the_memory_that_it_may_take_and_no_more(with_unruly: With) -> None:
    async def scenario(stand: Stand) -> None:
        pid = stand.pid
        assert answers(await ask(stand, f"allocate {MEMORY // 2}")) == {"size": MEMORY // 2}
        report = await ask(stand, f"allocate {2 * MEMORY}")
        assert report.outcome is RunOutcome.EXECUTION_ERROR
        assert "needs more memory" in report.detail
        await is_well(stand)
        assert stand.pid == pid

    with_unruly(scenario)


def test_a_worker_that_is_left_with_too_little_memory_is_replaced_between_two_runs(with_unruly: With) -> None:
    async def scenario(stand: Stand) -> None:
        await stand.until_spare_is_warm()
        pid = stand.pid
        assert (await ask(stand, f"keep {MEMORY // 4}")).outcome is RunOutcome.SUCCEEDED
        assert stand.pid == pid
        assert (await ask(stand, f"keep {MEMORY // 2}")).outcome is RunOutcome.SUCCEEDED
        await is_well(stand)
        assert stand.pid != pid
        assert stand.device.workers_lost == 0
        assert stand.readiness == [True]  # the spare took over

    with_unruly(scenario)


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ("abort", "killed by signal SIGABRT; the simulator crashed"),
        ("abort terminate called after throwing an instance of 'std::bad_alloc'", "for want of memory, of which a pro"),
        ("abort memory allocation of 8589934592 bytes failed", "may take 0.25 GiB"),
        ("signal SIGSEGV", "killed by signal SIGSEGV; the simulator crashed"),
        ("signal SIGXCPU", "more processor time than its limit"),
    ],
)
def test_a_crash_loses_its_own_run_only_and_the_report_says_why(
    request_: str, said: str, with_unruly: With, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(stand: Stand) -> None:
        await stand.until_spare_is_warm()
        report = await ask(stand, request_)
        assert report.outcome is RunOutcome.WORKER_LOST
        assert said in report.detail
        assert stand.readiness == [True]  # the spare took over
        await is_well(stand)

    with_unruly(scenario)
    if request_.startswith("abort "):
        assert request_.removeprefix("abort ") in caplog.text


def test_a_hang_ends_at_the_limit(with_unruly: With) -> None:
    async def scenario(stand: Stand) -> None:
        await stand.until_spare_is_warm()
        report = await ask(stand, "hang", limit=0.2)
        assert report.outcome is RunOutcome.RAN_TOO_LONG
        assert "its limit of 0.2 s" in report.detail
        await is_well(stand)

    with_unruly(scenario)


def test_files_dumps_and_processor_time_are_limited(with_unruly: With) -> None:
    async def scenario(stand: Stand) -> None:
        assert 0 < answers(await ask(stand, "open"))["opened"] < FILES_MAX
        limits = answers(await ask(stand, "limits RLIMIT_CORE RLIMIT_CPU", limit=7.0))
        assert limits["RLIMIT_CORE"] == 0
        # what it took so far is less than some seconds
        assert 7 + PROCESSOR_SLACK_SECONDS <= limits["RLIMIT_CPU"] <= 7 + PROCESSOR_SLACK_SECONDS + 60

    with_unruly(scenario)


def can_cut_network() -> bool:
    code = "import sys; from cadenza_server.execution.confinement import cut_network; sys.exit(cut_network() != '')"
    return subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


@pytest.mark.parametrize("network", [False, True])
def test_a_worker_has_no_network_unless_it_was_given_one(
    network: bool, with_unruly: With, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(stand: Stand) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            report = await ask(stand, f"connect 127.0.0.1:{listener.getsockname()[1]}")
        if network or not can_cut_network():
            assert answers(report) == {"connected": True}
            assert network or "it keeps its network" in caplog.text
        else:
            assert report.outcome is RunOutcome.EXECUTION_ERROR
            assert "unreachable" in report.detail
            assert "confined" not in caplog.text

    with_device(scenario, DeviceSpec(kind="unruly", network=network))


def test_a_worker_that_cannot_be_confined_runs_and_the_log_says_so(
    with_unruly: With, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "from cadenza_server.execution import confinement\n"
        "confinement.cut_network = lambda: 'the system refuses it (for a test)'\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ['PYTHONPATH']}")

    async def scenario(stand: Stand) -> None:
        await is_well(stand)
        await stand.until_spare_is_warm()
        assert caplog.text.count("less confined: it keeps its network: the system refuses it (for a test)") == 1

    with_unruly(scenario)

"""Real worker processes and real Aer."""

import asyncio
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from cadenza.arrays import bit_array_from_message
from cadenza.v1.device_pb2 import DEVICE_STATE_OFFLINE, DEVICE_STATE_UNSPECIFIED, DeviceProperties
from cadenza.v1.program_pb2 import Program
from cadenza.v1.result_pb2 import JobResult
from cadenza_server.execution import Assignment, Device, DeviceSpec, RunReport
from cadenza_server.execution import device as device_module
from cadenza_server.model.words import RunOutcome
from qiskit import QuantumCircuit, qpy
from qiskit.primitives import BitArray

SECOND = 1_000_000_000
WAIT_SECONDS = 60.0


def written(circuit: QuantumCircuit) -> bytes:
    stream = io.BytesIO()
    qpy.dump(circuit, stream)
    return stream.getvalue()


def ghz(num_qubits: int) -> QuantumCircuit:
    circuit = QuantumCircuit(num_qubits)
    circuit.h(0)
    for qubit in range(1, num_qubits):
        circuit.cx(0, qubit)
    circuit.measure_all()
    return circuit


def sampler(circuit: QuantumCircuit, shots: int = 1000) -> bytes:
    program = Program()
    program.sampler.default_shots = shots
    program.sampler.options.seed = 11
    program.sampler.pubs.add().circuit.qpy = written(circuit)
    return program.SerializeToString()


def endless() -> bytes:
    """Many random layers on many qubits: minutes of work."""
    circuit = QuantumCircuit(25)
    for layer in range(200):
        for qubit in range(25):
            circuit.rx(0.1 + layer, qubit)
            circuit.cx(qubit, (qubit + 1) % 25)
    circuit.measure_all()
    return sampler(circuit)


class Stand:
    """A device whose reports and readiness are kept."""

    def __init__(self, spec: DeviceSpec) -> None:
        self.reports: asyncio.Queue[RunReport] = asyncio.Queue()
        self.readiness: list[bool] = []
        self.changed = asyncio.Event()
        self.device = Device("aer", spec, report=self.reports.put_nowait, ready=self._note)

    def _note(self, name: str, ready: bool) -> None:
        assert name == "aer"
        self.readiness.append(ready)
        self.changed.set()

    def run(
        self, program: bytes, *, job: str = "job-1", attempt: int = 1, limit: float = 60.0, least: float = 0.0
    ) -> None:
        self.device.run(
            Assignment(
                job=job,
                attempt=attempt,
                program=program,
                limit_ns=int(limit * SECOND),
                min_duration_ns=int(least * SECOND),
            )
        )

    async def report(self) -> RunReport:
        return await asyncio.wait_for(self.reports.get(), WAIT_SECONDS)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Poll what the device does not tell."""
        deadline = time.monotonic() + WAIT_SECONDS
        while not condition():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)

    async def until_spare_is_warm(self) -> None:
        await self.until(lambda: self.device.has_spare)

    @property
    def pid(self) -> int:
        assert self.device._active is not None
        assert self.device._active.process is not None
        return self.device._active.process.pid


def with_device(scenario: Callable[[Stand], Awaitable[None]], spec: DeviceSpec | None = None) -> None:
    async def play() -> None:
        stand = Stand(spec or DeviceSpec())
        await stand.device.start()
        try:
            await scenario(stand)
        finally:
            await stand.device.stop()
        assert stand.reports.empty()

    asyncio.run(play())


def counts_of(report: RunReport) -> dict[str, int]:
    assert report.outcome is RunOutcome.SUCCEEDED, report.detail
    assert report.result is not None
    (field,) = JobResult.FromString(report.result).pubs[0].fields
    return BitArray(*bit_array_from_message(field.bits)).get_counts()  # type: ignore[no-any-return]


def test_a_ghz_state_sent_as_qpy_is_counted() -> None:
    async def scenario(stand: Stand) -> None:
        assert stand.readiness == [True]
        stand.run(sampler(ghz(2)))
        counts = counts_of(await stand.report())
        assert set(counts) == {"00", "11"}
        assert sum(counts.values()) == 1000
        assert abs(counts["00"] - 500) < 100  # 6 standard deviations
        # the same seed gives the same bits, on whichever worker
        stand.run(sampler(ghz(2)), attempt=2)
        assert counts_of(await stand.report()) == counts
        assert stand.device.description.num_qubits == 27
        assert "cx" in stand.device.description.basis_gates

    with_device(scenario)


def test_a_worker_that_is_killed_is_reported_and_its_spare_takes_over() -> None:
    async def scenario(stand: Stand) -> None:
        await stand.until_spare_is_warm()
        stand.run(endless())
        os.kill(stand.pid, signal.SIGKILL)
        report = await stand.report()
        assert (report.job, report.attempt, report.outcome) == ("job-1", 1, RunOutcome.WORKER_LOST)
        assert "SIGKILL" in report.detail
        assert stand.readiness == [True]
        stand.run(sampler(ghz(2)), attempt=2)
        assert counts_of(await stand.report())
        await stand.until_spare_is_warm()

    with_device(scenario)


def test_a_worker_that_sends_garbage_is_killed_and_the_report_says_so() -> None:
    async def scenario(stand: Stand) -> None:
        stand.run(endless())
        assert stand.device._active is not None
        stand.device._active.data_received(b"\xff" * 64)
        report = await stand.report()
        assert report.outcome is RunOutcome.WORKER_LOST
        assert "garbage" in report.detail
        assert "memory" not in report.detail  # it is us who killed it

    with_device(scenario)


def test_readiness_that_changes_while_a_run_is_stopped_is_told_as_it_is_in_the_end() -> None:
    async def scenario(stand: Stand) -> None:
        await stand.until_spare_is_warm()
        device = stand.device
        spare, device._spare = device._spare, None
        assert spare is not None
        stand.run(endless())
        device.stop_run("job-1", 1)  # no spare: not ready
        device._promote(spare)  # one has become warm within the same turn of the loop
        await asyncio.sleep(0)
        assert stand.readiness[-1] is True

    with_device(scenario)


def test_without_a_warm_spare_the_device_is_not_ready_until_one_is() -> None:
    async def scenario(stand: Stand) -> None:
        await stand.until_spare_is_warm()
        for _ in range(2):
            os.kill(stand.pid, signal.SIGKILL)
            killed = stand.device._active
            await stand.until(lambda killed=killed: stand.device._active is not killed)  # type: ignore[misc]
        assert stand.readiness == [True, False]
        await stand.until(lambda: len(stand.readiness) == 3)
        assert stand.readiness == [True, False, True]
        stand.run(sampler(ghz(2)))
        assert counts_of(await stand.report())

    with_device(scenario)


def test_a_run_that_reaches_its_limit_is_stopped_and_reported() -> None:
    async def scenario(stand: Stand) -> None:
        await stand.until_spare_is_warm()
        busy = stand.pid
        stand.run(endless(), limit=0.3)
        report = await stand.report()
        assert report.outcome is RunOutcome.RAN_TOO_LONG
        assert "0.3 s" in report.detail
        assert stand.pid != busy
        stand.run(sampler(ghz(2)), job="job-2")
        assert (await stand.report()).job == "job-2"

    with_device(scenario)


def test_a_stopped_run_is_not_reported_and_the_next_one_starts_at_once() -> None:
    async def scenario(stand: Stand) -> None:
        await stand.until_spare_is_warm()
        stand.run(endless())
        stand.device.stop_run("job-1", 7)  # another attempt: not this run
        stand.device.stop_run("job-1", 1)
        stand.run(sampler(ghz(2)), job="job-2")
        report = await stand.report()
        assert report.job == "job-2"
        assert counts_of(report)
        assert stand.readiness == [True]

    with_device(scenario)


def test_the_next_spare_waits_until_the_one_that_took_over_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(stand: Stand) -> None:
        await stand.until_spare_is_warm()
        device = stand.device
        monkeypatch.setattr(device_module, "TAKE_OVER_SECONDS", 3600.0)
        stand.run(endless())
        device.stop_run("job-1", 1)
        stand.run(sampler(ghz(2)), attempt=2)
        assert counts_of(await stand.report())
        assert not device.has_spare
        assert not device._starting
        assert device._launched == 2
        os.kill(stand.pid, signal.SIGKILL)  # nobody can take over: nothing is waited for
        await stand.until(lambda: stand.readiness == [True, False, True])
        await stand.until_spare_is_warm()
        monkeypatch.setattr(device_module, "TAKE_OVER_SECONDS", 0.01)
        os.kill(stand.pid, signal.SIGKILL)
        await stand.until(lambda: device._launched == 5)

    with_device(scenario)


def test_stopping_the_last_warm_worker_calls_back_only_after_it_returned() -> None:
    async def scenario(stand: Stand) -> None:
        await stand.until_spare_is_warm()
        for attempt in (1, 2):
            stand.run(endless(), attempt=attempt)
            stand.device.stop_run("job-1", attempt)
        assert stand.readiness == [True]
        # no worker is warm: the run waits for one
        stand.run(sampler(ghz(2)), attempt=3)
        assert (await stand.report()).attempt == 3
        assert stand.readiness == [True, False, True]

    with_device(scenario)


def test_a_program_that_is_wrong_fails_and_the_worker_lives_on() -> None:
    async def scenario(stand: Stand) -> None:
        pid = stand.pid
        program = Program()
        program.sampler.pubs.add().circuit.openqasm3 = 'OPENQASM 3.0;\ninclude "stdgates.inc";\nqubit[2] q;\nhh q[0];\n'
        for attempt, payload in enumerate((program.SerializeToString(), b"\xff\xff", b"")):
            stand.run(payload, attempt=attempt)
            report = await stand.report()
            assert report.outcome is RunOutcome.EXECUTION_ERROR
            assert report.result is None
            if attempt == 0:
                assert "line 4" in report.detail
                assert "'hh' is not defined" in report.detail
        stand.run(sampler(ghz(2)), attempt=9)
        assert counts_of(await stand.report())
        assert stand.pid == pid

    with_device(scenario)


def test_a_worker_that_sends_garbage_is_lost() -> None:
    async def scenario(stand: Stand) -> None:
        await stand.until_spare_is_warm()
        stand.run(endless())
        worker = stand.device._active
        assert worker is not None
        worker.data_received(b"\x09garbage")
        assert (await stand.report()).outcome is RunOutcome.WORKER_LOST

    with_device(scenario)


def test_a_run_keeps_the_device_for_its_least_duration() -> None:
    async def scenario(stand: Stand) -> None:
        pid = stand.pid
        start = time.monotonic()
        stand.run(sampler(ghz(2)), least=0.4, limit=0.4)
        assert (await stand.report()).outcome is RunOutcome.SUCCEEDED
        assert time.monotonic() - start >= 0.4
        # one whose limit comes first reaches it, and an idle worker is not killed for that
        stand.run(sampler(ghz(2)), attempt=2, least=60, limit=0.3)
        assert (await stand.report()).outcome is RunOutcome.RAN_TOO_LONG
        # one that waits can be stopped
        stand.run(sampler(ghz(2)), attempt=3, least=60)
        await stand.until(lambda: stand.device._run is not None and stand.device._run.hold is not None)
        stand.device.stop_run("job-1", 3)
        assert stand.pid == pid

    with_device(scenario)


def test_a_worker_that_cannot_start_is_tried_again_later(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\nexit 3\n")
    broken.chmod(0o755)
    good = sys.executable
    monkeypatch.setattr(device_module, "BACK_OFF_SECONDS", (0.0, 0.05))

    async def play() -> None:
        monkeypatch.setattr(sys, "executable", str(broken))
        stand = Stand(DeviceSpec())
        await stand.device.start()
        assert stand.readiness == []
        assert "exited with code 3" in caplog.text
        assert stand.device.description.state == DEVICE_STATE_OFFLINE
        assert "did not start" in stand.device.description.detail
        monkeypatch.setattr(sys, "executable", good)
        await asyncio.wait_for(stand.changed.wait(), WAIT_SECONDS)
        stand.run(sampler(ghz(2)))
        assert counts_of(await stand.report())
        assert stand.device.description.state == DEVICE_STATE_UNSPECIFIED
        await stand.device.stop()

    asyncio.run(play())


def test_workers_end_with_their_device_and_ignore_ctrl_c() -> None:
    async def scenario(stand: Stand) -> None:
        os.kill(stand.pid, signal.SIGINT)
        assert os.getsid(stand.pid) != os.getsid(0)
        stand.run(sampler(ghz(2)))
        assert counts_of(await stand.report())
        pids.append(stand.pid)

    pids: list[int] = []
    with_device(scenario)
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


SERVER = """
import asyncio, sys
from cadenza_server.execution import Device, DeviceSpec

async def main():
    device = Device("aer", DeviceSpec(), report=print, ready=lambda name, ready: None)
    await device.start()
    print(device._active.process.pid, flush=True)
    await asyncio.sleep(3600)

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
def test_workers_end_when_the_server_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        worker = Path("/proc") / server.stdout.readline().strip()
        assert worker.exists()
        server.kill()
    deadline = time.monotonic() + WAIT_SECONDS
    while worker.exists() and "State:\tZ" not in (worker / "status").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_device_with_its_own_coupling_and_basis_runs_and_calibrates() -> None:
    async def scenario(stand: Stand) -> None:
        assert stand.device.description.noisy
        assert {(pair.first, pair.second) for pair in stand.device.description.coupling_map} == {
            (0, 1),
            (1, 0),
            (1, 2),
            (2, 1),
        }
        stand.run(sampler(ghz(3)))
        counts = counts_of(await stand.report())
        assert counts["000"] + counts["111"] > 950
        program = Program()
        program.calibration.options.seed = 3
        stand.run(program.SerializeToString(), attempt=2)
        report = await stand.report()
        assert report.outcome is RunOutcome.SUCCEEDED, report.detail
        assert report.properties is not None
        properties = DeviceProperties.FromString(report.properties)
        errors = [gate.error for gate in properties.gates if gate.gate == "cz"]
        assert len(errors) == 4
        assert all(1e-4 < error < 2e-2 for error in errors)

    spec = DeviceSpec(
        kind="generic", num_qubits=3, coupling=((0, 1), (1, 2)), basis_gates=("cz", "id", "rz", "sx", "x")
    )
    with_device(scenario, spec)

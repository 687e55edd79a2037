"""A wall clock that jumps while a server is up: nothing follows it, neither clocks of sessions nor recorded times."""

import asyncio
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import cadenza_server
import pytest
from cadenza.v1 import job_pb2, program_pb2
from cadenza_server import clock
from cadenza_server.clock import SystemClock
from cadenza_server.engine import DevicePlan, Engine, JobContent, TimeOrderedIds
from cadenza_server.execution.runs import RunReport
from cadenza_server.model.commands import Caller, CreateSession, SubmitJob
from cadenza_server.model.settings import PROFILES, SECOND
from cadenza_server.model.words import RunOutcome
from cadenza_server.store.views import ProgramKind

from tests.crash.disk import Disk, SimulatedStore
from tests.crash.kills import PLUGINS
from tests.crash.test_disks import Client
from tests.crash.virtual_loop import VirtualLoop
from tests.crash.workers import SimulatedDevice
from tests.running_server import running

CONFIG = '[devices.sim]\nkind = "noop"\nnum_qubits = 2\nlimit = "5s"\noptions = { seconds = 0.05 }\n'
DAY = 86_400
HOUR_NS = 3600 * 10**9
JUMPING_CLOCK = """
import os, time

_time_ns = time.time_ns

def time_ns():
    with open(os.environ["WALL_CLOCK_JUMP"]) as file:
        return _time_ns() + int(file.read() or 0) * 10**9

time.time_ns = time_ns
time.time = lambda: time_ns() / 1e9
"""
"""Loaded by each process of the server at its start."""


def test_only_the_clock_reads_the_wall_clock() -> None:
    """And devices, that write down when they measured; and the command line, that tells people how long ago it was."""
    package = Path(cadenza_server.__file__).parent
    readers = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if any(word in path.read_text() for word in ("time.time(", "time_ns()", "datetime.now(", "utcnow("))
    }
    assert {path for path in readers if not path.startswith("cli/")} == {"clock.py", "execution/executor.py"}


@pytest.mark.parametrize("jump_s", [DAY, -DAY])
def test_a_wall_clock_that_jumps_changes_nothing_while_the_server_is_up(tmp_path: Path, jump_s: int) -> None:
    (tmp_path / "sitecustomize.py").write_text(JUMPING_CLOCK)
    jump = tmp_path / "jump"
    jump.write_text("0")
    path = os.pathsep.join([str(tmp_path), str(PLUGINS), os.environ.get("PYTHONPATH", "")])
    environment = {"PYTHONPATH": path, "WALL_CLOCK_JUMP": str(jump)}
    with running(tmp_path, CONFIG, environment=environment) as server, Client(server.address) as client:
        before = client.wait(client.submit("before").job_id)
        jump.write_text(str(jump_s))
        began = time.monotonic()
        names = [client.submit(f"after-{number}").job_id for number in range(5)]
        jobs = [client.wait(name) for name in names]
        assert time.monotonic() - began < 30  # timers go on
        assert {job.state for job in jobs} == {job_pb2.JOB_STATE_SUCCEEDED}
        times = [before.end_time.ToNanoseconds()]
        for job in jobs:
            times += [job.create_time.ToNanoseconds(), job.end_time.ToNanoseconds()]
        assert max(times) - min(times) < HOUR_NS
        assert all(time >= times[0] for time in times)
        ends = [job.end_time.ToNanoseconds() for job in jobs]
        assert ends == sorted(ends)
        assert server.stop() == 0
    # At the next start the wall clock is believed if it went on; if it went back, time stands where it was.
    with running(tmp_path, CONFIG, environment=environment) as server, Client(server.address) as client:
        again = client.wait(client.submit("again").job_id)
        assert again.create_time.ToNanoseconds() >= max(times)
        assert (again.create_time.ToNanoseconds() - max(times) > HOUR_NS) == (jump_s > 0)
        assert client.names() == {"before", *names, "again"}


class Hands:
    """Stands for the module `time` as the server's clock reads it: monotonic time is the loop's, and the wall clock is
    that and a jump."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self.jump_ns = 0

    def monotonic_ns(self) -> int:
        return self._loop.now_ns

    def time_ns(self) -> int:
        return self._loop.now_ns + self.jump_ns


async def live_with_sessions(loop: VirtualLoop, disk: Disk, hands: Hands, jumps_ns: Sequence[int]) -> None:
    """Sessions that have jobs, are idle, become inactive, go on and expire, while the wall clock jumps."""
    source = random.Random(1)
    settings = replace(PROFILES["runtime-2023"], max_time=200 * SECOND, unused_ttl=40 * SECOND)

    def build(report: Callable[[RunReport], None], ready: Callable[[str, bool], None]) -> SimulatedDevice:
        return SimulatedDevice("sim", loop, random.Random(1), lambda _: False, report, ready)

    system_clock = SystemClock()
    engine = Engine(
        store=SimulatedStore(disk, loop, source, {}),
        devices={"sim": DevicePlan(settings=settings, profile="simulated", build=build)},
        clock=system_clock,
        ids=TimeOrderedIds(system_clock, random.Random(1)),
    )
    await engine.start()
    caller = Caller("lab/ann")
    program = program_pb2.Program()
    program.sampler.pubs.add().circuit.openqasm3 = f"OPENQASM 3.0; {2 * SECOND} {RunOutcome.SUCCEEDED} job"
    content = JobContent(program=program.SerializeToString(), program_kind=ProgramKind.SAMPLER)

    async def submit(session: str | None, device: str | None = "sim") -> None:
        await engine.submit([SubmitJob(job="", caller=caller, device=device, session=session)], [content])

    for name in ("lives", "unused"):
        ttl = 30 * SECOND if name == "lives" else None
        await engine.execute(CreateSession(session=name, device="sim", caller=caller, interactive_ttl=ttl))
    jumps = iter(jumps_ns)
    for pause in (0, 5, 20, 31, 1, 29, 50, 90):
        hands.jump_ns = next(jumps, hands.jump_ns)
        await asyncio.sleep(pause)
        view = await engine.get_session("lives")
        await submit("lives" if view.accepting_jobs else None)
        await submit(None)
    await asyncio.sleep(60)
    await engine.stop(0)


def history(disk: Disk) -> list[tuple[object, ...]]:
    """All that was written down, with its times."""
    tables = ("events", "runs", "sessions", "jobs", "usage")
    return [row for table in tables for row in disk.raw.execute(f"SELECT * FROM {table}").fetchall()]


@pytest.mark.parametrize("size_s", [DAY, -DAY, 45])
def test_a_wall_clock_that_jumps_changes_no_time_of_a_session(monkeypatch: pytest.MonkeyPatch, size_s: int) -> None:
    def live(jumps_ns: Sequence[int]) -> list[tuple[object, ...]]:
        loop, disk = VirtualLoop(1_000_000 * SECOND), Disk(random.Random(1))
        hands = Hands(loop)
        monkeypatch.setattr(clock, "time", hands)
        asyncio.set_event_loop(loop)
        try:
            loop.run_until_complete(live_with_sessions(loop, disk, hands, jumps_ns))
            assert disk.check().is_sound
            return history(disk)
        finally:
            loop.bury()
            disk.close()

    steady = live([])
    kinds = {str(row) for row in steady}
    assert any("INACTIVE" in kind for kind in kinds)
    assert any("EXPIRED" in kind or "MAX_TIME" in kind for kind in kinds)
    for first in range(8):
        assert live([0] * first + [size_s * SECOND]) == steady
    assert live([size_s * SECOND * sign for sign in (1, -1, 2, -2, 0, 3, -3, 1)]) == steady

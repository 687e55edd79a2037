"""How long one event about very many jobs stops everything else: `python -m tests.benchmarks.store.stall [--jobs N]`.

A session with 100,000 queued jobs is cancelled, expires (under both profiles), or comes to its cache deadline. Figures:
the longest time for which the event loop, and with it the engine, the one that decides and writes, does nothing else;
and the longest that a submission which comes meanwhile waits for its answer, as its commit waits for the one that tells
the store about those jobs.
"""

import argparse
import asyncio
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from cadenza_server.app import tune_process
from cadenza_server.clock import SystemClock
from cadenza_server.engine import DevicePlan, Engine, JobContent, ProgramKind, TimeOrderedIds
from cadenza_server.execution.runs import Assignment, RunReport
from cadenza_server.model.commands import Caller, CancelSession, CreateSession, SubmitJob
from cadenza_server.model.settings import RUNTIME_2023, RUNTIME_2024, SECOND, DeviceSettings
from cadenza_server.model.words import JobClass, SessionState
from cadenza_server.store import Store

OWNER = Caller("lab/alice")
OTHER = Caller("lab/bob")
CONTENT = JobContent(program=b"x" * 300, program_kind=ProgramKind.SAMPLER)
CALL = 1000


class EndlessDevice:
    """Ready when it is told so; what it runs never ends."""

    def __init__(self, ready: Callable[[str, bool], None]) -> None:
        self._ready = ready

    async def start(self) -> None:
        self._ready("aer", False)

    def begin(self) -> None:
        self._ready("aer", True)

    def run(self, assignment: Assignment) -> None:
        """It goes on."""

    def stop_run(self, job: str, attempt: int) -> None:
        """It was nothing."""

    async def stop(self) -> None:
        """Nothing to stop."""


async def measure(folder: Path, what: str, settings: DeviceSettings, jobs: int) -> None:
    """Print the stalls of one case."""
    settings = replace(settings, session_cache_ttl=2 * SECOND)
    max_time = (60 if what == "cancel" else 2) * SECOND
    device: EndlessDevice

    def build(report: Callable[[RunReport], None], ready: Callable[[str, bool], None]) -> EndlessDevice:
        nonlocal device
        device = EndlessDevice(ready)
        return device

    clock = SystemClock()
    engine = Engine(
        store=Store(folder),
        devices={"aer": DevicePlan(settings=settings, profile="runtime-2023", build=build)},
        clock=clock,
        ids=TimeOrderedIds(clock, random.Random(0)),
    )
    await engine.start()
    await engine.execute(CreateSession(session="s", caller=OWNER, device="aer", max_time=max_time))
    job = SubmitJob(job="", caller=OWNER, session="s", job_class=JobClass.SESSION)
    for _ in range(jobs // CALL):
        await engine.submit_many([job] * CALL, [CONTENT] * CALL)
    device.begin()  # the session is active now, and its time runs
    await asyncio.sleep(0.5)
    turns: list[float] = []
    waits: list[float] = []

    async def turn() -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0)
            turns.append(time.perf_counter() - before)

    async def submit() -> None:
        while True:
            before = time.perf_counter()
            await engine.submit([SubmitJob(job="", caller=OTHER, device="aer")], [CONTENT])
            waits.append(time.perf_counter() - before)

    if what == "cache deadline":
        await asyncio.sleep(2.5)
    tasks = [asyncio.create_task(turn()), asyncio.create_task(submit())]
    if what == "cancel":
        await asyncio.sleep(0.2)
        await engine.execute(CancelSession(session="s", caller=OWNER))
    await asyncio.sleep(2.5)
    for task in tasks:
        task.cancel()
    view = await engine.get_session("s")
    expected = SessionState.DRAINING if what == "cancel" else SessionState.CLOSED
    assert view.state is expected, view.state
    if settings.on_expiry.value == "FAIR_SHARE" and what == "expiry":
        assert view.job_counts.queued == jobs - 1
    else:
        assert view.job_counts.queued == 0, view.job_counts
    await engine.stop(0)
    turns.sort()
    waits.sort()
    print(
        f"{what} of a session with {jobs:,} queued jobs, on_expiry = {settings.on_expiry}: the writer stands still for "
        f"{turns[-1] * 1e3:.0f} ms at most (then {turns[-2] * 1e3:.0f}); a submission meanwhile waits "
        f"{waits[-1] * 1e3:.0f} ms at most (p50 {waits[len(waits) // 2] * 1e3:.1f})",
        flush=True,
    )


async def main() -> None:
    """Measure everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=100_000)
    arguments = parser.parse_args()
    tune_process()
    cases = (
        ("cancel", RUNTIME_2023),
        ("expiry", RUNTIME_2023),
        ("expiry", RUNTIME_2024),
        ("cache deadline", RUNTIME_2023),
    )
    with tempfile.TemporaryDirectory() as name:
        for i, (what, settings) in enumerate(cases):
            await measure(Path(name) / str(i), what, settings, arguments.jobs)


if __name__ == "__main__":
    asyncio.run(main())

"""Durable submits against raw sqlite3: `python tests/benchmarks/store/submit.py [--jobs N] [--rounds N]`.

For each payload size, alternating rounds of (a) raw `executemany` of the same rows into a plain table of the same
columns, without indexes, one commit of `synchronous=FULL` a call, and (b) `Engine.submit` of the same jobs, one caller
and several. The figure is the median of the rounds' ratios. Also: this disk's fdatasync, one job a call with 1 and 16
callers, and the gap between the end of a run and the start of the next on a device that runs nothing (a notice of the
end on the event loop to the call of `Device.run`).
"""

import argparse
import asyncio
import gc
import os
import random
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from cadenza_server.app import tune_process
from cadenza_server.clock import SystemClock
from cadenza_server.engine import DevicePlan, Engine, JobContent, ProgramKind, TimeOrderedIds
from cadenza_server.execution.runs import Assignment, RunReport
from cadenza_server.model.commands import Caller, CancelSession, CreateSession, SubmitJob
from cadenza_server.model.settings import RUNTIME_2023
from cadenza_server.model.words import JobClass, RunOutcome
from cadenza_server.store import Store
from cadenza_server.store.batch import INSERT_JOB
from cadenza_server.store.schema import jobs as jobs_table

CALLER = Caller("lab/alice")


class BenchDevice:
    """Runs nothing: it is never ready, or ends every run on the next turn of the loop."""

    def __init__(
        self, report: Callable[[RunReport], None], ready: Callable[[str, bool], None], *, instant: bool
    ) -> None:
        self._report = report
        self._ready = ready
        self._instant = instant
        self._ended = 0
        self.gaps: list[int] = []

    async def start(self) -> None:
        self._ready("aer", self._instant)

    def run(self, assignment: Assignment) -> None:
        if self._ended:
            self.gaps.append(time.perf_counter_ns() - self._ended)
        asyncio.get_running_loop().call_later(0.002, self._end, assignment)

    def _end(self, run: Assignment) -> None:
        self._ended = time.perf_counter_ns()
        self._report(
            RunReport(device="aer", job=run.job, attempt=run.attempt, outcome=RunOutcome.SUCCEEDED, result=b"x" * 200)
        )

    def stop_run(self, job: str, attempt: int) -> None:
        """Nothing runs."""

    async def stop(self) -> None:
        """Nothing runs."""


class Bench:
    """One engine on a new store."""

    def __init__(self, folder: Path, *, instant: bool = False) -> None:
        clock = SystemClock()
        self.device: BenchDevice

        def build(report: Callable[[RunReport], None], ready: Callable[[str, bool], None]) -> BenchDevice:
            self.device = BenchDevice(report, ready, instant=instant)
            return self.device

        self.engine = Engine(
            store=Store(folder),
            devices={"aer": DevicePlan(settings=RUNTIME_2023, profile="runtime-2023", build=build)},
            clock=clock,
            ids=TimeOrderedIds(clock, random.Random(0)),
        )


async def submit_in_calls(engine: Engine, content: JobContent, jobs: int, a_call: int, callers: int) -> float:
    """Submit `jobs` jobs; seconds. All callers are one user."""
    left = jobs // a_call
    job = SubmitJob(job="", caller=CALLER, device="aer")
    commands, contents = [job] * a_call, [content] * a_call

    async def call() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await engine.submit_many(commands, contents)

    begin = time.perf_counter()
    await asyncio.gather(*(call() for _ in range(callers)))
    return time.perf_counter() - begin


def raw_rows(path: Path, program: bytes, jobs: int, a_call: int) -> float:
    """Write the same rows with the driver alone; seconds."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    columns = [column.name for column in jobs_table.columns]
    connection.execute(f"CREATE TABLE jobs (seq INTEGER PRIMARY KEY, {', '.join(columns[1:])})")
    row = (
        *("lab/alice", "aer", None, "FAIR_SHARE", "SAMPLER", 0, False, 10**9, None, 10_800 * 10**9, 0, None),
        *(time.time_ns(), None, 0, None, None, program, bytes(24)),
    )
    rows = [(i + 1, f"job-{i:026}", *row) for i in range(jobs)]
    begin = time.perf_counter()
    for i in range(0, jobs, a_call):
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(INSERT_JOB, rows[i : i + a_call])
        connection.execute("COMMIT")
    seconds = time.perf_counter() - begin
    connection.close()
    return seconds


def fdatasync_us(folder: Path) -> float:
    """Median of writing and syncing 4 KiB at the end of a file, in microseconds."""
    file = os.open(folder / "sync", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    times = []
    for _ in range(200):
        begin = time.perf_counter()
        os.write(file, b"\0" * 4096)
        os.fdatasync(file)
        times.append(time.perf_counter() - begin)
    os.close(file)
    return statistics.median(times) * 1e6


async def compare(folder: Path, size: int, jobs: int, rounds: int, a_call: int) -> None:
    """Print what one payload size comes to."""
    program = random.Random(1).randbytes(size)
    content = JobContent(program=program, program_kind=ProgramKind.SAMPLER)
    figures: dict[str, list[float]] = {"raw": [], "1 caller": [], "4 callers": []}
    for number in range(rounds):
        gc.collect()
        raw = await asyncio.to_thread(raw_rows, folder / f"raw-{size}-{number}.db", program, jobs, a_call)
        figures["raw"].append(jobs / raw)
        for name, callers in (("1 caller", 1), ("4 callers", 4)):
            bench = Bench(folder / f"{size}-{number}-{callers}")
            await bench.engine.start()
            figures[name].append(jobs / await submit_in_calls(bench.engine, content, jobs, a_call, callers))
            await bench.engine.stop(0)
    base = figures["raw"]
    line = [f"{size} B in calls of {a_call}: raw {statistics.median(base):,.0f}/s"]
    for name in ("1 caller", "4 callers"):
        ratio = statistics.median(ours / raw for ours, raw in zip(figures[name], base, strict=True))
        line.append(f"{name} {statistics.median(figures[name]):,.0f}/s, ratio {ratio:.2f}")
    print("; ".join(line), flush=True)


async def unary(folder: Path, callers: int, calls: int) -> None:
    """Print rate and latency of one job a call."""
    bench = Bench(folder / f"unary-{callers}")
    await bench.engine.start()
    content = JobContent(program=b"x" * 300, program_kind=ProgramKind.SAMPLER)
    job = SubmitJob(job="", caller=CALLER, device="aer")
    times: list[float] = []

    async def call() -> None:
        for _ in range(calls // callers):
            begin = time.perf_counter()
            await bench.engine.submit([job], [content])
            times.append(time.perf_counter() - begin)

    begin = time.perf_counter()
    await asyncio.gather(*(call() for _ in range(callers)))
    seconds = time.perf_counter() - begin
    await bench.engine.stop(0)
    times.sort()
    print(
        f"one job a call, {callers} callers: {len(times) / seconds:,.0f}/s, p50 {times[len(times) // 2] * 1e3:.2f} ms, "
        f"p99 {times[int(len(times) * 0.99)] * 1e3:.2f} ms",
        flush=True,
    )


async def gap(folder: Path, jobs: int) -> None:
    """Print the gap between runs of queued session jobs."""
    bench = Bench(folder / "gap", instant=True)
    await bench.engine.start()
    content = JobContent(program=b"x" * 300, program_kind=ProgramKind.SAMPLER)
    await bench.engine.execute(CreateSession(session="s", caller=CALLER, device="aer"))
    job = SubmitJob(job="", caller=CALLER, session="s", job_class=JobClass.SESSION)
    for _ in range(jobs // 100):
        views = await bench.engine.submit([job] * 100, [content] * 100)
    async for _ in bench.engine.watch_job(views[-1].job):
        pass
    await bench.engine.stop(0)
    gaps = sorted(bench.device.gaps)
    print(
        f"gap between {len(gaps) + 1} runs of a session: p50 {gaps[len(gaps) // 2] / 1e3:.0f} us, "
        f"p99 {gaps[int(len(gaps) * 0.99)] / 1e3:.0f} us",
        flush=True,
    )


async def restart(folder: Path, jobs: int) -> None:
    """Print how long a start takes with many queued jobs, and how long the loop stands still as their session ends."""
    bench = Bench(folder / "restart")
    await bench.engine.start()
    content = JobContent(program=b"x" * 300, program_kind=ProgramKind.SAMPLER)
    await bench.engine.execute(CreateSession(session="s", caller=CALLER, device="aer"))
    job = SubmitJob(job="", caller=CALLER, session="s", job_class=JobClass.SESSION)
    for _ in range(jobs // 1000):
        await bench.engine.submit_many([job] * 1000, [content] * 1000)
    await bench.engine.stop(0)
    bench = Bench(folder / "restart")
    begin = time.perf_counter()
    await bench.engine.start()
    started = time.perf_counter() - begin
    stalls: list[float] = []

    async def tick() -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0)
            stalls.append(time.perf_counter() - before)

    ticking = asyncio.create_task(tick())
    begin = time.perf_counter()
    await bench.engine.execute(CancelSession(session="s", caller=CALLER))
    ended = time.perf_counter() - begin
    ticking.cancel()
    await bench.engine.stop(0)
    print(
        f"{jobs:,} queued jobs of one session: start {started:.2f} s; cancel of the session {ended * 1e3:.0f} ms, "
        f"longest stall of the event loop {max(stalls) * 1e3:.0f} ms",
        flush=True,
    )


async def main() -> None:
    """Measure everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=20_000, help="jobs of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=None, help="where the stores are made")
    arguments = parser.parse_args()
    tune_process()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        print(f"fdatasync of 4 KiB: p50 {fdatasync_us(folder):.0f} us", flush=True)
        for size in (300, 2000):
            await compare(folder, size, arguments.jobs, arguments.rounds, 100)
        for callers in (1, 16, 64):
            await unary(folder, callers, 4000)
        await gap(folder, 1000)
        await restart(folder, 100_000)


if __name__ == "__main__":
    asyncio.run(main())

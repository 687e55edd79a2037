"""Measures a whole server over real sockets: `python tests/benchmarks/server/run.py [--quick] [--write]`.

What is compared runs alternately in this run; figures are medians. `--write` puts them under this benchmark's heading
in RESULTS.md. The server is a process of its own, this one is the client; both share the machine.
"""

import argparse
import asyncio
import io
import json
import os
import platform
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
from cadenza import CadenzaService, SamplerV2, Session
from cadenza.v1 import job_pb2, job_service_pb2, job_service_pb2_grpc, session_service_pb2, session_service_pb2_grpc
from cadenza_server.store.batch import INSERT_JOB
from cadenza_server.store.schema import jobs as jobs_table
from qiskit import QuantumCircuit, qpy
from qiskit_aer import AerSimulator
from sqlalchemy import create_engine

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[2]))
from tests.benchmarks.results import write_section  # noqa: E402  (the tree is no package of the environment)

HEADING = "## Server: calls, latency, gap"
USER = (("cadenza-user", "bench"),)
CALLERS = 16
MANY_CALLERS = 64
SHOTS = 1_000
BLOCK = 25
WORKLOAD_BYTES = 24
"""What the predictor knows a job by."""


@contextmanager
def serving(folder: Path) -> Iterator[dict[str, str]]:
    """The address of a server that has a bare echo, too."""
    process = subprocess.Popen(
        [sys.executable, str(HERE / "with_echo.py"), str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield json.loads(process.stdout.readline())
    finally:
        process.stdin.close()
        process.wait(30)


def ghz() -> QuantumCircuit:
    circuit = QuantumCircuit(2)
    circuit.h(0)
    circuit.cx(0, 1)
    circuit.measure_all()
    return circuit


def payload(size: int = 0) -> bytes:
    """A GHZ circuit as QPY, filled up to about `size` bytes by its metadata."""
    circuit = ghz()
    buffer = io.BytesIO()
    qpy.dump(circuit, buffer)
    missing = size - len(buffer.getvalue())
    if missing > 0:
        circuit.metadata = {"note": "x" * max(0, missing - len('{"note": ""}') + len("{}"))}
        buffer = io.BytesIO()
        qpy.dump(circuit, buffer)
    return buffer.getvalue()


def spec(content: bytes, **fields: Any) -> job_pb2.JobSpec:
    job = job_pb2.JobSpec(**fields)
    job.program.sampler.pubs.add(shots=SHOTS).circuit.qpy = content
    return job


def distinct(size: int, count: int = 100) -> list[job_pb2.JobSpec]:
    """Jobs, no two alike: the server checks once what jobs of a call have in common."""
    content = payload(size)
    jobs = [spec(content, device="held") for _ in range(count)]
    for number, job in enumerate(jobs):
        job.program.sampler.pubs[0].shots = SHOTS + number
    return jobs


def fdatasync_ms(folder: Path, count: int) -> list[float]:
    """Appending 4 KiB to a file and having it on disk."""
    times = []
    with (folder / "sync").open("ab", buffering=0) as file:
        for _ in range(count):
            file.write(bytes(4096))
            begin = time.perf_counter()
            os.fdatasync(file.fileno())
            times.append((time.perf_counter() - begin) * 1e3)
    return times


async def hold(address: str) -> None:
    """Have `held` held by a session, so that other jobs for it wait and nothing runs while calls are measured."""
    async with grpc.aio.insecure_channel(address) as channel:
        sessions = session_service_pb2_grpc.SessionServiceStub(channel)
        jobs = job_service_pb2_grpc.JobServiceStub(channel)
        request = session_service_pb2.CreateSessionRequest(device="held")
        session = (await sessions.CreateSession(request, metadata=USER)).session.session_id
        submit = job_service_pb2.SubmitJobRequest(job=spec(payload(), session_id=session))
        job = (await jobs.SubmitJob(submit, metadata=USER)).job.job_id
        async for _ in jobs.WatchJob(job_service_pb2.WatchJobRequest(job_id=job), metadata=USER):
            pass


async def rate(call: Callable[[], Awaitable[object]], seconds: float, callers: int) -> float:
    """Calls a second of so many callers, each of which waits for its answer."""
    done, end = 0, time.perf_counter() + seconds

    async def caller() -> None:
        nonlocal done
        while time.perf_counter() < end:
            await call()
            done += 1

    begin = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(callers)))
    return done / (time.perf_counter() - begin)


async def measure_calls(addresses: dict[str, str], folder: Path, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Unary submits and bare echoes, calls of 100 jobs and the same rows written by sqlite3 alone, all alternately."""
    found: dict[str, list[float]] = defaultdict(list)
    async with grpc.aio.insecure_channel(addresses["cadenza"]) as channel:
        jobs = job_service_pb2_grpc.JobServiceStub(channel)
        one = job_service_pb2.SubmitJobRequest(job=spec(payload(), device="held"))
        raw = one.SerializeToString()
        echo: Any = channel.unary_unary("/bench.Echo/Echo")
        many = {
            name: job_service_pb2.SubmitJobsRequest(jobs=distinct(size, count))
            for name, size, count in (("hundreds", 0, 100), ("thousands", 0, 1_000), ("hundreds of 2 KB", 2_048, 100))
        }
        for _ in range(rounds):
            for name, callers in (("", CALLERS), (" of many", MANY_CALLERS)):
                found["echo" + name].append(await rate(lambda: echo(raw, metadata=USER), seconds, callers))
                submits = await rate(lambda: jobs.SubmitJob(one, metadata=USER), seconds, callers)
                found["submit" + name].append(submits)
            for name, request in many.items():
                calls = await rate(partial(jobs.SubmitJobs, request, metadata=USER), seconds, 4)
                found[name].append(len(request.jobs) * calls)
            found["raw"].append(raw_rows(folder, 300, seconds))
            found["raw of 2 KB"].append(raw_rows(folder, 2_048, seconds))
            found["bare"].append(raw_rows(folder, 300, seconds, bare=True))
    return found


def raw_rows(folder: Path, size: int, seconds: float, *, bare: bool = False) -> float:
    """Rows a second of sqlite3's `executemany` alone in commits of 100, WAL and synchronous FULL: the rows that the
    server writes for such jobs, into the server's table; `bare`: into one without its indexes."""
    path = folder / f"raw{time.monotonic_ns()}.db"
    engine = create_engine(f"sqlite:///{path}")
    jobs_table.create(engine)
    engine.dispose()
    with sqlite3.connect(path, isolation_level=None) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        for index in jobs_table.indexes if bare else ():
            connection.execute(f"DROP INDEX {index.name}")
        row = (
            *("bench", "held", None, "FAIR_SHARE", "SAMPLER", 0, False, 10**9, None, 10_800 * 10**9, 0, None),
            *(time.time_ns(), None, 0, None, None, bytes(size), bytes(WORKLOAD_BYTES)),
        )
        count, spent = 0, 0.0
        while spent < seconds:
            rows = [(number, f"job-{number:026}", *row) for number in range(count, count + 100)]
            begin = time.perf_counter()
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(INSERT_JOB, rows)
            connection.execute("COMMIT")
            spent += time.perf_counter() - begin
            count += 100
        return count / spent


def measure_latency(address: str, folder: Path, rounds: int) -> dict[str, list[float]]:
    """Milliseconds from a client's circuit to its counts: in a session, and by Aer alone in this process; and of an
    `fdatasync`.

    They take turns in blocks, as Aer's threads go on spinning for a while after each of its runs in this process.
    """
    found: dict[str, list[float]] = {"session job": [], "Aer alone": [], "fdatasync": []}
    simulator = AerSimulator()
    circuit = ghz()
    service = CadenzaService(address, user="bench")
    with Session(service.backend("sim")) as session:
        sampler = SamplerV2(mode=session)
        for block in range(rounds // BLOCK + 1):
            sessions, alone = [], []
            for _ in range(BLOCK):
                begin = time.perf_counter()
                counts = sampler.run([circuit], shots=SHOTS).result()[0].data.meas.get_counts()
                sessions.append((time.perf_counter() - begin) * 1e3)
                assert sum(counts.values()) == SHOTS
            for _ in range(BLOCK):
                begin = time.perf_counter()
                simulator.run(circuit, shots=SHOTS).result().get_counts()
                alone.append((time.perf_counter() - begin) * 1e3)
            if block:
                found["session job"] += sessions
                found["Aer alone"] += alone
                found["fdatasync"] += fdatasync_ms(folder, 10)
    return found


def measure_gaps(addresses: dict[str, str], count: int) -> list[float]:
    """Milliseconds that the worker stood idle between one session job and the next, which is queued.

    Measured by the worker itself (see timed_worker.py), from having the outcome of a run to having the next run: what
    is not the worker's own parsing, transpiling and executing counts, and nothing that the server does is left out.
    """
    asyncio.run(run_in_a_session(addresses["cadenza"], count))
    # The first of them came to a device that had nothing to do.
    return [int(line) / 1e6 for line in Path(addresses["idle"]).read_text().split()][1 - count :]


async def run_in_a_session(address: str, count: int) -> None:
    """Queue so many jobs at once, and wait until they have run."""
    async with grpc.aio.insecure_channel(address) as channel:
        sessions = session_service_pb2_grpc.SessionServiceStub(channel)
        jobs = job_service_pb2_grpc.JobServiceStub(channel)
        request = session_service_pb2.CreateSessionRequest(device="sim")
        session = (await sessions.CreateSession(request, metadata=USER)).session.session_id
        many = job_service_pb2.SubmitJobsRequest(jobs=[spec(payload(), session_id=session)] * count)
        ids = [job.job_id for job in (await jobs.SubmitJobs(many, metadata=USER)).jobs]
        async for _ in jobs.WatchJob(job_service_pb2.WatchJobRequest(job_id=ids[-1]), metadata=USER):
            pass
        close = session_service_pb2.CloseSessionRequest(session_id=session)
        await sessions.CloseSession(close, metadata=USER)


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def report(rounds: int, seconds: float, latencies: int, gaps: int) -> str:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with serving(folder / "data") as addresses:
            asyncio.run(hold(addresses["cadenza"]))
            latency = measure_latency(addresses["cadenza"], folder, latencies)
            gap = measure_gaps(addresses, gaps)
            calls = asyncio.run(measure_calls(addresses, folder, rounds, seconds))
    median = {name: statistics.median(values) for name, values in {**calls, **latency}.items()}
    sync, disk = latency["fdatasync"], median["fdatasync"]
    allowed = median["Aer alone"] + 2 * disk + 2

    def share(part: str, whole: str) -> float:
        return statistics.median(a / b for a, b in zip(calls[part], calls[whole], strict=True))

    size = len(payload())
    urgent = os.sched_getscheduler(0) in (os.SCHED_RR, os.SCHED_FIFO)
    lines = [
        f"Command: `{'chrt -r 5 ' if urgent else ''}python tests/benchmarks/server/run.py --write`. "
        f"Measured {time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC on {os.cpu_count()} cores "
        f"({platform.machine()}), Python {platform.python_version()}, grpcio {grpc.__version__}; load average "
        f"{os.getloadavg()[0]:.1f}"
        + (" by other work, which this run went before as it had real-time priority." if urgent else "."),
        "",
        "| what | figure | asked |",
        "|---|---|---|",
        f"| `fdatasync` of 4 KiB on this disk, p50 / p99 | {disk:.3f} / {percentile(sync, 0.99):.3f} ms | |",
        f"| bare echo, {CALLERS} callers | {median['echo']:,.0f} calls/s | |",
        f"| durable `SubmitJob`, {CALLERS} callers ({size} bytes of QPY) | {median['submit']:,.0f} calls/s | |",
        f"| the same, of the bare echo | {share('submit', 'echo'):.2f} | at least 0.6 |",
        f"| the same with {MANY_CALLERS} callers ({median['submit of many']:,.0f} of {median['echo of many']:,.0f}) "
        f"| {share('submit of many', 'echo of many'):.2f} | at least 0.6 |",
        f"| `SubmitJobs` of 100 ({size} bytes of QPY each), 4 callers | {median['hundreds']:,.0f} jobs/s | |",
        f"| sqlite3's `executemany` alone, the same rows and table, 300 bytes, commits of 100 | {median['raw']:,.0f} "
        "rows/s | |",
        f"| the calls, of that | {share('hundreds', 'raw'):.2f} | at least 0.5 |",
        f"| the same, `SubmitJobs` of 1,000 ({median['thousands']:,.0f} jobs/s) | {share('thousands', 'raw'):.2f} "
        "| at least 0.5 |",
        f"| the calls, of `executemany` into a table without indexes ({median['bare']:,.0f} rows/s) | "
        f"{share('hundreds', 'bare'):.2f} | |",
        f"| `SubmitJobs` of 100 of 2 KB | {median['hundreds of 2 KB']:,.0f} jobs/s | |",
        f"| the same, of sqlite3 alone at 2 KB ({median['raw of 2 KB']:,.0f} rows/s) | "
        f"{share('hundreds of 2 KB', 'raw of 2 KB'):.2f} | |",
        f"| client to counts, 2-qubit GHZ as a session job, p50 | {median['session job']:.2f} ms | "
        f"at most {allowed:.2f} ms |",
        f"| the same, p99 | {percentile(latency['session job'], 0.99):.2f} ms | |",
        f"| Aer's own `run` of it in the client, p50 | {median['Aer alone']:.2f} ms | |",
        f"| gap on the device between queued session jobs, p50 | {statistics.median(gap):.2f} ms | at most 1 ms |",
        f"| the same, p99 | {percentile(gap, 0.99):.2f} ms | at most 5 ms |",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the time, for a first look")
    parser.add_argument("--write", action="store_true", help="put the figures into RESULTS.md")
    options = parser.parse_args()
    text = report(3, 0.5, 50, 100) if options.quick else report(7, 1.3, 300, 500)
    print(text)
    if options.write:
        write_section(HEADING, text)


if __name__ == "__main__":
    main()

"""Measures a server whose queue is long: `python tests/benchmarks/scale/run.py [--jobs 1000000] [--data FOLDER]`.

Fills the store of a real server over its socket with jobs of 2 KB, by calls of many (`--call`, 1,000) from 4 callers,
while 16 more submit one job a call, 4 read lists and a second device runs what it is given; asks how late the event
loop was meanwhile. Then kills the server, starts it again, and asks how long that takes and what memory it has.
With `--data` the store is kept, and what it holds already is not submitted again.
"""

import argparse
import asyncio
import contextlib
import io
import itertools
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from cadenza.v1 import job_pb2, job_service_pb2, job_service_pb2_grpc, session_service_pb2, session_service_pb2_grpc
from qiskit import QuantumCircuit, qpy

USERS = 1_000
PROGRAM_BYTES = 2_048
CONFIG = """
[server]
operators = ["bench"]
[limits]
queued_jobs_max = 100000000
queued_jobs_per_user_max = 100000000
[devices.sim]
[devices.held]
num_qubits = 4
"""


class Running:
    """A server process. `started`: seconds until it said that it listens; `answered`: until it answered a call."""

    def __init__(self, folder: Path) -> None:
        (folder / "cadenza.toml").write_text(CONFIG)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._metrics = free.getsockname()[1]
        command = [sys.executable, "-m", "cadenza_server", "serve", "--listen", "127.0.0.1:0"]
        command += ["--data-dir", str(folder / "data"), "--config", str(folder / "cadenza.toml")]
        command += ["--metrics", f"127.0.0.1:{self._metrics}"]
        began = time.perf_counter()
        with (folder / "server.log").open("a") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("listening on "), (line, (folder / "server.log").read_text()[-2_000:])
        self.started = time.perf_counter() - began
        self.address = line.split()[2]
        with grpc.insecure_channel(self.address) as channel:
            request = job_service_pb2.ListJobsRequest(page_size=1)
            job_service_pb2_grpc.JobServiceStub(channel).ListJobs(request, metadata=(("cadenza-user", "u/0"),))
        self.answered = time.perf_counter() - began

    def memory(self, key: str = "VmRSS") -> float:
        """MB of the server's own process. `VmHWM`: the most it ever had."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024 / 1e6

    def writer_memory(self) -> float:
        """MB of the process that writes the store, as far as it shares them with nobody."""
        threads = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        for child in [child for thread in threads for child in thread.read_text().split()]:
            if b"commit" in Path(f"/proc/{child}/cmdline").read_bytes():
                lines = Path(f"/proc/{child}/smaps_rollup").read_text().splitlines()
                private = [int(line.split()[1]) for line in lines if line.startswith("Private")]
                return sum(private) * 1024 / 1e6
        return 0.0

    def lags(self) -> dict[float, float]:
        """How often the event loop was no later than so many seconds."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._metrics}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        head = 'cadenza_event_loop_lag_seconds_bucket{le="'
        found = (line.removeprefix(head).split('"} ') for line in lines if line.startswith(head))
        return {float(bound): float(count) for bound, count in found}


@contextmanager
def serving(folder: Path) -> Iterator[Running]:
    """A server that is killed in the end."""
    server = Running(folder)
    try:
        yield server
    finally:
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()


def program(size: int) -> bytes:
    """A circuit as QPY of about so many bytes."""
    circuit = QuantumCircuit(2)
    circuit.h(0)
    circuit.cx(0, 1)
    circuit.measure_all()
    circuit.metadata = {"note": "x" * max(0, size - 700)}
    buffer = io.BytesIO()
    qpy.dump(circuit, buffer)
    return buffer.getvalue()


def spec(shots: int, **fields: Any) -> job_pb2.JobSpec:
    job = job_pb2.JobSpec(**fields)
    job.program.sampler.pubs.add(shots=shots).circuit.qpy = PROGRAM
    return job


PROGRAM = program(PROGRAM_BYTES)


def metadata(number: int) -> tuple[tuple[str, str], ...]:
    return (("cadenza-user", f"lab{number % 40}/user{number % USERS}"),)


async def fill(address: str, count: int, call: int) -> tuple[float, int]:
    """Submit so many jobs beside other load; seconds, and the calls of one job among the load."""
    specs = [spec(1_000 + number, device="held") for number in range(call)]
    single = 0
    async with grpc.aio.insecure_channel(address) as channel:
        jobs = job_service_pb2_grpc.JobServiceStub(channel)
        sessions = session_service_pb2_grpc.SessionServiceStub(channel)
        # A session holds `held` for the time of the filling, so that nothing runs there.
        hold = session_service_pb2.CreateSessionRequest(device="held")
        session = (await sessions.CreateSession(hold, metadata=metadata(0))).session.session_id
        first = job_service_pb2.SubmitJobRequest(job=spec(10, session_id=session))
        await jobs.SubmitJob(first, metadata=metadata(0))
        numbers = iter(range(0, count, call))

        async def many() -> None:
            for number in numbers:
                request = job_service_pb2.SubmitJobsRequest(
                    jobs=specs[: min(call, count - number)], request_id=f"{time.time_ns()}-{number}"
                )
                await jobs.SubmitJobs(request, metadata=metadata(number // call))

        async def one(caller: int) -> None:
            nonlocal single
            for number in itertools.count():
                request = job_service_pb2.SubmitJobRequest(job=spec(10 + number, device="sim"))
                await jobs.SubmitJob(request, metadata=metadata(caller))
                single += 1
                await asyncio.sleep(0.05)

        async def read(caller: int) -> None:
            while True:
                await jobs.ListJobs(job_service_pb2.ListJobsRequest(page_size=100), metadata=metadata(caller))
                await asyncio.sleep(0.05)

        others = [asyncio.create_task(one(number)) for number in range(16)]
        others += [asyncio.create_task(read(number)) for number in range(4)]
        began = time.perf_counter()
        await asyncio.gather(*(many() for _ in range(4)))
        took = time.perf_counter() - began
        for task in others:
            task.cancel()
        for result in await asyncio.gather(*others, return_exceptions=True):
            assert isinstance(result, asyncio.CancelledError), result
    return took, single


def queued(folder: Path) -> int:
    """How many jobs the store of a dead server holds for `held`."""
    if not (folder / "data" / "cadenza.db").exists():
        return 0
    with contextlib.closing(sqlite3.connect(folder / "data" / "cadenza.db")) as store:
        query = "SELECT count(*) FROM jobs WHERE end_time IS NULL AND device = 'held'"
        return int(store.execute(query).fetchone()[0])


def quantile(lags: dict[float, float], share: float) -> float:
    """The least bound in seconds that so many of the measurements do not exceed."""
    wanted = share * max(lags.values())
    return min(bound for bound, count in lags.items() if count >= wanted)


def measure(folder: Path, count: int, starts: int, call: int) -> dict[str, float]:
    """The figures."""
    figures: dict[str, float] = {}
    missing = count - queued(folder)
    if missing > 0:
        with serving(folder) as server:
            figures["MB of the server, empty"] = server.memory()
            took, single = asyncio.run(fill(server.address, missing, call))
            lags = server.lags()
            figures["jobs a second while it was filled"] = missing / took
            figures["calls of one job a second beside it"] = single / took
            figures["event loop's lag, p50 at most ms"] = quantile(lags, 0.5) * 1e3
            figures["event loop's lag, p99 at most ms"] = quantile(lags, 0.99) * 1e3
            figures["event loop's lag, p99.9 at most ms"] = quantile(lags, 0.999) * 1e3
            figures["measurements of the lag"] = max(lags.values())
            figures["MB of the server, filled"] = server.memory()
            figures["MB of the server, most while filled"] = server.memory("VmHWM")
            figures["MB of the process that writes"] = server.writer_memory()
            print(json.dumps(lags), file=sys.stderr)
    figures["jobs in the store"] = queued(folder)
    took_all = []
    for _ in range(starts):
        with serving(folder) as server:
            took_all.append((server.answered, server.started))
            figures["MB of the server, started again"] = server.memory()
            figures["MB of the server, most while it started"] = server.memory("VmHWM")
    figures["s from kill -9's restart to the first answer"] = sorted(took_all)[len(took_all) // 2][0]
    figures["s to `listening on`"] = sorted(took_all)[len(took_all) // 2][1]
    return figures


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--call", type=int, default=1_000, help="so many jobs a call")
    parser.add_argument("--starts", type=int, default=3, help="the median of so many counts")
    parser.add_argument("--data", type=Path)
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = arguments.data or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        figures = measure(folder, arguments.jobs, arguments.starts, arguments.call)
    print(f"{os.cpu_count()} cores\n\n| what | figure |\n|---|---:|")
    for name, value in figures.items():
        print(f"| {name} | {value:,.2f} |" if value < 100 else f"| {name} | {value:,.0f} |")


if __name__ == "__main__":
    main()

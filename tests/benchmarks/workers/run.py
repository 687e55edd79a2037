"""How soon a device is back after its worker was killed, and after a run was cancelled.

    python tests/benchmarks/workers/run.py [--kills 25] [--kind aer] [--write]

Real workers, without engine and gRPC. A run that takes minutes is started and, 2 s after the last such event, its
worker is killed with SIGKILL from outside (by turns: the run is stopped, as a cancel does it). Measured, from the
signal or the call on: until the device has told of the loss and hands the next run to its spare, and until the
result of that run, two qubits and 100 shots, is there. Then a burst: kills without any pause, each as soon as the
device has a worker again.
"""

import argparse
import asyncio
import math
import os
import platform
import signal
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from cadenza.v1.program_pb2 import Program
from cadenza_server.execution import Assignment, Device, DeviceSpec, RunReport
from cadenza_server.model.words import RunOutcome

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
from tests.benchmarks.results import write_section

APART_SECONDS = 2.0
BURST = 6
LIMIT_NS = 600_000_000_000
TITLE = "## Workers: back after a kill or a cancel"

SHORT = 'OPENQASM 3.0;\ninclude "stdgates.inc";\nqubit[2] q;\nbit[2] c;\nh q[0];\ncx q[0], q[1];\nc = measure q;\n'


def long() -> str:
    """Many layers on many qubits: minutes of work."""
    lines = ['OPENQASM 3.0;\ninclude "stdgates.inc";\nqubit[24] q;\nbit[24] c;']
    lines += [f"h q[{qubit}];\ncx q[{qubit}], q[{(qubit + 1) % 24}];" for _ in range(100) for qubit in range(24)]
    return "\n".join([*lines, "c = measure q;\n"])


def sampler(text: str) -> bytes:
    program = Program()
    program.sampler.default_shots = 100
    program.sampler.options.method = "statevector"
    program.sampler.pubs.add().circuit.openqasm3 = text
    return program.SerializeToString()


class Bench:
    """A device, and what it reported last."""

    def __init__(self, spec: DeviceSpec) -> None:
        self.reports: asyncio.Queue[RunReport] = asyncio.Queue()
        self.device = Device("bench", spec, report=self.reports.put_nowait, ready=lambda name, ready: None)
        self.attempt = 0

    def run(self, program: bytes) -> None:
        self.attempt += 1
        self.device.run(Assignment(job="job", attempt=self.attempt, program=program, limit_ns=LIMIT_NS))

    async def succeed(self, program: bytes) -> None:
        self.run(program)
        report = await self.reports.get()
        assert report.outcome is RunOutcome.SUCCEEDED, report.detail

    async def spare(self) -> None:
        while not self.device.has_spare:  # noqa: ASYNC110 - it does not tell
            await asyncio.sleep(0.02)

    async def kill(self, program: bytes, following: bytes) -> tuple[float, float]:
        """Milliseconds until the loss is told, and until the next run's result."""
        self.run(program)
        await asyncio.sleep(0.2)
        active = self.device._active
        assert active is not None
        assert active.process is not None
        start = time.perf_counter()
        os.kill(active.process.pid, signal.SIGKILL)
        report = await self.reports.get()
        assert report.outcome is RunOutcome.WORKER_LOST, report
        told = time.perf_counter()
        await self.succeed(following)
        return (told - start) * 1e3, (time.perf_counter() - start) * 1e3

    async def cancel(self, program: bytes, following: bytes) -> tuple[float, float]:
        """Milliseconds until the device takes the next run, and until its result."""
        self.run(program)
        await asyncio.sleep(0.2)
        start = time.perf_counter()
        self.device.stop_run("job", self.attempt)
        self.run(following)
        taken = time.perf_counter()
        report = await self.reports.get()
        assert report.outcome is RunOutcome.SUCCEEDED, report.detail
        return (taken - start) * 1e3, (time.perf_counter() - start) * 1e3


async def measure(kind: str, kills: int) -> list[str]:
    bench = Bench(DeviceSpec(kind=kind))
    program, following = sampler(long()), sampler(SHORT)
    begin = time.perf_counter()
    await bench.device.start()
    cold = time.perf_counter() - begin
    await bench.spare()
    await bench.succeed(following)
    alone = []
    for _ in range(20):
        start = time.perf_counter()
        await bench.succeed(following)
        alone.append((time.perf_counter() - start) * 1e3)
    killed: list[tuple[float, float]] = []
    cancelled: list[tuple[float, float]] = []
    missing = 0
    for number in range(2 * kills):
        begin = time.perf_counter()
        missing += not bench.device.has_spare
        if number % 2:
            cancelled.append(await bench.cancel(program, following))
        else:
            killed.append(await bench.kill(program, following))
        await asyncio.sleep(max(0.0, APART_SECONDS - (time.perf_counter() - begin)))
    await bench.spare()
    burst = [await bench.kill(program, following) for _ in range(BURST)]
    await bench.device.stop()
    return [
        f"| `{kind}`: start of the first worker, cold | {cold:.2f} s | |",
        f"| `{kind}`: the next run alone, p50 | {quantile(alone, 0.5):.1f} ms | |",
        f"| `{kind}`: a worker killed, until the loss is told and the next run handed on, p50 / p99 / slowest "
        f"of {kills} | {summary([told for told, _ in killed])} | p99 at most 50 ms |",
        f"| `{kind}`: the same, until the next run's result | {summary([end for _, end in killed])} | |",
        f"| `{kind}`: a run cancelled, until a warm worker has taken up the next | "
        f"{summary([taken for taken, _ in cancelled])} | p99 at most 15 ms |",
        f"| `{kind}`: the same, until that one's result | {summary([end for _, end in cancelled])} | |",
        f"| `{kind}`: of these {2 * kills} events {APART_SECONDS:g} s apart, without a warm spare | {missing} | |",
        f"| `{kind}`: burst of {BURST} kills without a pause, until the next result, each | "
        f"{', '.join(f'{end:,.0f}' for _, end in burst)} ms | |",
    ]


def quantile(values: Sequence[float], fraction: float) -> float:
    return sorted(values)[min(len(values) - 1, int(fraction * len(values)))]


def summary(values: Sequence[float]) -> str:
    """The median, the least value that 99 of 100 do not exceed, and the largest."""
    p99 = sorted(values)[math.ceil(0.99 * len(values)) - 1]
    return f"{quantile(values, 0.5):.1f} / {p99:.1f} / {max(values):.1f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--kind", action="append", choices=("aer", "generic"))
    parser.add_argument("--write", action="store_true", help="replace the section in RESULTS.md")
    options = parser.parse_args()
    lines = [line for kind in options.kind or ("aer",) for line in asyncio.run(measure(kind, options.kills))]
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    head = [
        f"Command: `python {' '.join(['tests/benchmarks/workers/run.py', *sys.argv[1:]])}`. Measured {now} on "
        f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}.",
        "",
        "| what | figure | asked |",
        "|---|---|---|",
    ]
    text = "\n".join([*head, *lines]) + "\n"
    print(text)
    if options.write:
        write_section(TITLE, text)


if __name__ == "__main__":
    main()

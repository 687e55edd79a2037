"""Measures what a durable unary submit costs the server's processor beside a bare echo:
`python -m tests.benchmarks.server.cpu [--profile FILE] [--write]`.

The same server answers both (see with_echo.py), in turns; 16 callers in this process wait for their answers. Processor
time is the kernel's account (user and system) of the server's process with all its threads, and of the process that
writes to the disk for it. `--profile FILE`: the stacks of the server's main thread during submits, sampled by py-spy
(`pip install py-spy`), in its raw format; the shares of the functions are printed below the table.
"""

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
from cadenza.v1 import job_service_pb2, job_service_pb2_grpc

from tests.benchmarks.results import write_section
from tests.benchmarks.server import run

HEADING = "## Server: processor time of a submit"
TICK_S = 1 / os.sysconf("SC_CLK_TCK")
SHOWN = 25
LOOP = "BaseEventLoop._run_once (asyncio/base_events.py)"


def spent_s(process: int) -> float:
    """Processor seconds of a process and its threads."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK_S


def find_writer(server: int) -> int:
    """The process that writes to the disk for the server."""
    for task in Path(f"/proc/{server}/task").iterdir():
        for child in (task / "children").read_text().split():
            if b"commit_process" in Path(f"/proc/{child}/cmdline").read_bytes():
                return int(child)
    raise RuntimeError("the server has no process that writes")


async def cost(call: Callable[[], Awaitable[object]], seconds: float, processes: list[int]) -> list[float]:
    """Microseconds of each process a call; the last is calls a second."""
    before = [spent_s(process) for process in processes]
    begin = time.perf_counter()
    rate = await run.rate(call, seconds, run.CALLERS)
    calls = rate * (time.perf_counter() - begin)
    return [(spent_s(each) - old) * 1e6 / calls for each, old in zip(processes, before, strict=True)] + [rate]


async def measure(
    address: str, processes: list[int], rounds: int, seconds: float, profile: Path | None
) -> dict[str, list[list[float]]]:
    """Echoes and submits in turns."""
    found: dict[str, list[list[float]]] = {"echo": [], "submit": []}
    async with grpc.aio.insecure_channel(address) as channel:
        jobs = job_service_pb2_grpc.JobServiceStub(channel)
        one = job_service_pb2.SubmitJobRequest(job=run.spec(run.payload(), device="held"))
        raw = one.SerializeToString()
        echo: Any = channel.unary_unary("/bench.Echo/Echo")
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "echo": lambda: echo(raw, metadata=run.USER),
            "submit": lambda: jobs.SubmitJob(one, metadata=run.USER),
        }
        for call in calls.values():
            await cost(call, 0.5, processes)
        for _ in range(rounds):
            for name, call in calls.items():
                found[name].append(await cost(call, seconds, processes))
        if profile is not None:
            length = max(1, round(3 * seconds))
            sampler = await asyncio.create_subprocess_exec(
                *("py-spy", "record", "--pid", str(processes[0]), "--duration", str(length)),
                *("--rate", "400", "--format", "raw", "--output", str(profile)),
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
            )
            await cost(calls["submit"], length + 1, processes)
            await asyncio.wait_for(sampler.wait(), 60)
    return found


def describe_profile(profile: Path) -> list[str]:
    """The functions in which most samples of the loop's thread were while it worked, on top of the stack and anywhere
    in it. What gRPC's core and its Cython layer do has no frame: it counts for asyncio's `Handle._run` itself."""
    own: Counter[str] = Counter()
    whole: Counter[str] = Counter()
    total = 0
    for line in profile.read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        # frames read `name (file:line)`: lines of one function count together
        frames = [frame.rpartition(":")[0] + ")" for frame in stack.split(";") if ":" in frame]
        if LOOP not in frames or frames[-1].startswith("EpollSelector.select"):
            continue
        total += int(count)
        own[frames[-1]] += int(count)
        for frame in set(frames[frames.index(LOOP) + 1 :]):
            whole[frame] += int(count)
    if not total:
        return ["py-spy gave no samples: it may need to be root."]
    lines = ["| function (file) | itself | with what it calls |", "|---|---:|---:|"]
    lines += [f"| `{frame}` | {own[frame] / total:.1%} | {n / total:.1%} |" for frame, n in whole.most_common(SHOWN)]
    return lines


def report(rounds: int, seconds: float, profile: Path | None) -> str:
    """Measure, and say it."""
    with tempfile.TemporaryDirectory() as name, run.serving(Path(name) / "data") as addresses:
        asyncio.run(run.hold(addresses["cadenza"]))
        server = int(addresses["process"])
        processes = [server, find_writer(server)]
        found = asyncio.run(measure(addresses["cadenza"], processes, rounds, seconds, profile))
    echo, submit = ([statistics.median(each) for each in zip(*found[name], strict=True)] for name in ("echo", "submit"))
    pairs = list(zip(found["submit"], found["echo"], strict=True))
    alone = statistics.median(a[0] / b[0] for a, b in pairs)
    both = statistics.median((a[0] + a[1]) / b[0] for a, b in pairs)
    lines = [
        f"Command: `python -m tests.benchmarks.server.cpu --write`. Measured "
        f"{time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC on {os.cpu_count()} cores; load average "
        f"{os.getloadavg()[0]:.1f}. {rounds} turns of {seconds:g} s each, {run.CALLERS} callers, medians.",
        "",
        "| processor time a call | echo | durable `SubmitJob` | of the echo | asked |",
        "|---|---:|---:|---:|---:|",
        f"| the server's process | {echo[0]:.0f} us | {submit[0]:.0f} us | {alone:.2f} | at most 1.5 |",
        f"| with the process that writes | {echo[0]:.0f} us | {submit[0] + submit[1]:.0f} us | {both:.2f} | |",
        f"| calls a second | {echo[2]:,.0f} | {submit[2]:,.0f} | {submit[2] / echo[2]:.2f} | |",
    ]
    if profile is not None:
        lines += ["", *describe_profile(profile)]
    return "\n".join(lines) + "\n"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each turn")
    parser.add_argument("--profile", type=Path, help="sample the server with py-spy, into this file")
    parser.add_argument("--write", action="store_true", help="put the figures into RESULTS.md")
    options = parser.parse_args()
    text = report(options.rounds, options.seconds, options.profile)
    print(text)
    if options.write:
        write_section(HEADING, text)


if __name__ == "__main__":
    main()

"""Finds the knee with 10,000 users, 1,000 open sessions, 100 watches, 24 queued jobs each, and measures at its half:
`python -m tests.benchmarks.load.run [--p99 100] [--searches 3] [--write]`.

The scenario is `ten-thousand-users` of cadenza-loadtest, 8 s a step. One search depends on what the machine does in its
few steps, so there are several (`--searches`, 3), and the knee is the median of theirs. The server's device is busy
with one job for the whole time (as it would be with jobs that take a device's time), so that what is queued stays
queued. A knee is the highest rate of unary submits whose p99 stays within `--p99`; the target is p99 at half of it.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from cadenza import Client
from cadenza.v1 import job_pb2
from cadenza_loadtest.connection import Connection
from cadenza_loadtest.knee import Step, choose_median, find_knee, judge_step
from cadenza_loadtest.report import Report
from cadenza_loadtest.run import Setup, run_tests
from cadenza_loadtest.scenario import load

from tests.benchmarks.results import write_section
from tests.benchmarks.server.run import fdatasync_ms, percentile
from tests.running_server import running

HEADING = "## Load: ten thousand users"
PLUGINS = Path(__file__).parents[2] / "plugins"
CONFIGURATION = '[devices.busy]\nkind = "unruly"\n'
STEP_S = 8.0
TARGET_MS = 20.0


def measure(address: str, p99_ms: float, searches: int) -> tuple[list[Step], list[Step | None], Step | None]:
    """All steps, what each search found, and the test at half of their median (None: there is no knee)."""
    scenario = replace(load("ten-thousand-users"), duration_s=STEP_S)
    names = [traffic.name for traffic in scenario.traffic]
    steps: list[Step] = []

    def use(test: Callable[[float], Report]) -> tuple[list[Step], list[Step | None], Step | None]:
        found = [find_knee(test, names, p99_ms, steps.append) for _ in range(searches)]
        knee = choose_median(found)
        if knee is None:
            return steps, found, None
        return steps, found, judge_step(test(knee.factor / 2), names, p99_ms, knee.factor / 2)

    setup = Setup(Connection(address), address, cleanup=False)
    return run_tests(scenario, setup, lambda _: None, use)


def occupy(address: str) -> None:
    """Give the device a job for an hour."""
    job = job_pb2.JobSpec(device="busy")
    job.program.sampler.pubs.add().circuit.openqasm3 = "OPENQASM 3.0; // sleep 3600"
    with Client(address, user="busy", token="", tls=False) as client:
        client.submit_job_spec(job)


def report(p99_ms: float, searches: int) -> str:
    """Measure, and say it."""
    path = os.pathsep.join([str(PLUGINS), os.environ.get("PYTHONPATH", "")])
    with tempfile.TemporaryDirectory() as name:
        sync = fdatasync_ms(Path(name), 200)
        with running(Path(name) / "server", CONFIGURATION, environment={"PYTHONPATH": path}) as server:
            occupy(server.address)
            steps, found, half = measure(server.address, p99_ms, searches)
    knee = choose_median(found)
    lines = [
        f"Command: `python -m tests.benchmarks.load.run --p99 {p99_ms:g} --searches {searches} --write`. Measured "
        f"{time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC on {os.cpu_count()} cores, which the server shares with "
        f"one process that sends; `fdatasync` of 4 KiB p50 {percentile(sync, 0.5):.2f}, p99 "
        f"{percentile(sync, 0.99):.2f} ms; load average {os.getloadavg()[0]:.1f}.",
        "",
        "| | submits/s | p99 of submit | asked |",
        "|---|---:|---:|---:|",
        *(f"| step | {step.submits_per_s:,.0f} | {step.p99_ms:.1f} ms | |" for step in steps),
    ]
    lines += [
        f"| knee of a search | {step.submits_per_s:,.0f} | {step.p99_ms:.1f} ms | |" if step else "| no knee | | | |"
        for step in found
    ]
    if knee is not None and half is not None:
        lines += [
            f"| **knee** (p99 within {p99_ms:g} ms), the median | {knee.submits_per_s:,.0f} | {knee.p99_ms:.1f} ms | |",
            f"| **half the knee** | {half.submits_per_s:,.0f} | {half.p99_ms:.1f} ms | under {TARGET_MS:g} ms |",
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--p99", type=float, default=100.0, help="milliseconds that the knee holds")
    parser.add_argument("--searches", type=int, default=3, help="how many searches the knee is the median of")
    parser.add_argument("--write", action="store_true", help="put the figures into RESULTS.md")
    options = parser.parse_args()
    text = report(options.p99, options.searches)
    print(text)
    if options.write:
        write_section(HEADING, text)


if __name__ == "__main__":
    main()

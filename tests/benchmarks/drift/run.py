"""Shows what sessions are for: `python tests/benchmarks/drift/run.py [--write]`; about a minute and a half.

A characterisation, the same circuit many times, on a device that drifts, under a real server whose queue eight other
users keep full: as single jobs, which fair share scatters over the time, and in a session, which has the device to
itself. Halfway through, an operator calibrates. What is compared is the spread of the results: the probability that all
qubits come back to 0. The device drifts in 15 seconds as much as others do in an hour, its drift is chosen by a seed,
and a job's sampling error is that of its shots. `--write` puts the numbers under this benchmark's heading in RESULTS.md
and the figure into the documentation.
"""

import argparse
import itertools
import os
import platform
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from cadenza import CadenzaService, Client, SamplerV2, Session
from qiskit import QuantumCircuit

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
sys.path.insert(0, str(ROOT))
from tests.benchmarks.results import write_section  # noqa: E402  (the tree is no package of the environment)
from tests.running_server import running  # noqa: E402

FIGURE = ROOT / "server" / "cadenza_server" / "docs" / "drift.svg"
HEADING = "## Drift: what sessions are for"
JOBS = 40
SHOTS = 20_000
LAYERS = 12
CROWD = 8
CROWD_JOB_S = 0.1
WAIT_S = 120.0
CONFIG = """
[server]
operators = ["rani"]
[devices.drifting]
kind = "generic"
num_qubits = 5
coupling = "line"
seed = 7
drift = 0.4
drift_time = "15s"
calibration_duration = "3s"
"""


@dataclass(frozen=True)
class Point:
    """One job: when it started, in seconds since the first, the share of shots that came back to 0, its epoch."""

    start_s: float
    survival: float
    epoch: int


def echo() -> QuantumCircuit:
    """Gates that undo each other: without errors, all qubits come back to 0."""
    circuit = QuantumCircuit(5)
    for _ in range(LAYERS):
        for first in (0, 2):
            circuit.cx(first, first + 1)
        circuit.barrier()
        for first in (0, 2):
            circuit.cx(first, first + 1)
        circuit.barrier()
    circuit.measure_all()
    return circuit


def read(job: Any) -> tuple[datetime, float, int]:
    result = job.result(WAIT_S)
    counts = result[0].data.meas.get_counts()
    shown = job.metrics()["timestamps"]["running"]
    start = shown if isinstance(shown, datetime) else datetime.fromisoformat(shown)
    return start, counts.get("00000", 0) / SHOTS, result.metadata["execution"]["epoch"]


def points(jobs: Sequence[Any]) -> list[Point]:
    found = [read(job) for job in jobs]
    return [Point((start - found[0][0]).total_seconds(), survival, epoch) for start, survival, epoch in found]


def crowd(address: str, user: str, repeated: int, stop: threading.Event) -> None:
    """Two jobs in the queue at any time, until it is told to stop."""
    circuit = echo()
    with CadenzaService(address, user=user) as service:
        sampler = SamplerV2(mode=service.backend("drifting"))
        waiting = [sampler.run([circuit] * repeated, shots=SHOTS) for _ in range(2)]
        while not stop.is_set():
            waiting.pop(0).wait_for_final_state(WAIT_S)
            waiting.append(sampler.run([circuit] * repeated, shots=SHOTS))
        for job in waiting:
            job.cancel()


def calibrate(address: str) -> None:
    with Client(address, user="rani") as rani:
        rani.submit_calibration("drifting")


def measure(address: str) -> tuple[list[Point], list[Point]]:
    """(scattered, in a session)."""
    circuit = echo()
    stop = threading.Event()
    with CadenzaService(address, user="lab/ada") as service:
        backend = service.backend("drifting")
        sampler = SamplerV2(mode=backend)
        sampler.run([circuit], shots=SHOTS).result(WAIT_S)
        took = statistics.median(
            sampler.run([circuit], shots=SHOTS).result(WAIT_S).metadata["execution"]["execute_s"] for _ in range(5)
        )
        repeated = max(1, round(CROWD_JOB_S / took))
        print(f"a job takes {took * 1e3:.0f} ms; one of the crowd's {repeated} times as long", flush=True)
        others = [
            threading.Thread(target=crowd, args=(address, f"lab/other{number}", repeated, stop), daemon=True)
            for number in range(CROWD)
        ]
        for other in others:
            other.start()
        try:
            jobs = [sampler.run([circuit], shots=SHOTS) for _ in range(JOBS)]
            jobs[JOBS // 2].wait_for_final_state(WAIT_S)
            calibrate(address)
            scattered = points(jobs)
            with Session(backend) as session:
                inside = SamplerV2(mode=session)
                together = points([inside.run([circuit], shots=SHOTS) for _ in range(JOBS)])
        finally:
            stop.set()
            for other in others:
                other.join(WAIT_S)
    return scattered, together


def spread(found: Sequence[Point]) -> float:
    return statistics.stdev(point.survival for point in found)


def sampling_error(found: Sequence[Point]) -> float:
    mean = statistics.mean(point.survival for point in found)
    return float(np.sqrt(mean * (1 - mean) / SHOTS))


def describe(name: str, found: Sequence[Point]) -> str:
    values = [point.survival for point in found]
    epochs = len({point.epoch for point in found})
    return (
        f"| {name} | {found[-1].start_s:.1f} s | {epochs} | {statistics.mean(values):.4f} | {spread(found):.4f} | "
        f"{max(values) - min(values):.4f} | {spread(found) / sampling_error(found):.1f} |"
    )


def report(scattered: Sequence[Point], together: Sequence[Point]) -> str:
    lines = [
        f"Command: `python tests/benchmarks/drift/run.py --write`. Measured "
        f"{time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC on {os.cpu_count()} cores ({platform.machine()}), "
        f"Python {platform.python_version()}; a real server, {CROWD} other users who keep the queue full.",
        "",
        f"| {JOBS} jobs of the same circuit, {SHOTS:,} shots each | from first to last | epochs | mean | "
        "standard deviation | range | of the sampling error alone |",
        "|---|---:|---:|---:|---:|---:|---:|",
        describe("scattered by fair share, a calibration in between", scattered),
        describe("in a session", together),
        "",
        f"Scattered, results spread {spread(scattered) / spread(together):.1f} times as wide as in a session, where "
        f"their spread is {spread(together) / sampling_error(together):.1f} times what the shots alone make.",
        "The device drifts on purpose fast, in 15 s: figure in `server/cadenza_server/docs/drift.svg`.",
    ]
    return "\n".join(lines) + "\n"


def draw(scattered: Sequence[Point], together: Sequence[Point]) -> None:
    """Both series over time, one above the other, with the same axes, into `FIGURE`."""
    figure, rows = plt.subplots(2, sharex=True, sharey=True, figsize=(8, 5), layout="constrained")
    series = (("scattered by fair share", scattered, "#b4431f"), ("in a session", together, "#1f5fb4"))
    for axes, (name, found, colour) in zip(rows, series, strict=True):
        axes.scatter([point.start_s for point in found], [point.survival for point in found], s=12, color=colour)
        axes.set_title(f"{name}: standard deviation {spread(found):.4f}", loc="left")
        axes.set_ylabel("share of shots back at 0")
        for before, after in itertools.pairwise(found):
            if after.epoch != before.epoch:
                axes.axvline((before.start_s + after.start_s) / 2, color="#888888", linestyle="--", label="calibration")
                axes.legend()
    rows[-1].set_xlabel("seconds")
    figure.savefig(FIGURE, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the figures into RESULTS.md and the documentation")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, running(Path(folder), CONFIG) as server:
        scattered, together = measure(server.address)
    text = report(scattered, together)
    print(text)
    if options.write:
        write_section(HEADING, text)
        draw(scattered, together)


if __name__ == "__main__":
    main()

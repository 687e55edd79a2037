"""Measures Cadenza beside its peers: `python -m tests.benchmarks.peers.run [--peers cadenza,celery] [--write]`.

Each peer runs with one worker, in its recommended configuration and, where it has one, in its durable one; see `how` in
each adapter. The same work for all: jobs that do nothing and 2-qubit GHZ jobs of 1,000 shots, 2 KB each. Needs
`pip install -e . 'celery[redis]' rq 'distributed' 'ray' hyperqueue temporalio`, redis-server and slurm-wlm from the
system's packages, and the program `temporal` (see temporal_peer.py); what is missing is named in the table. Takes about
fifteen minutes.
"""

import argparse
import itertools
import json
import math
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from tests.benchmarks.results import write_section

ROOT = Path(__file__).parents[3]
HEADING = "## Beside its peers"
PEERS = ("cadenza", "temporal", "celery", "rq", "slurm", "hyperqueue", "dask", "ray")
PARTS = ("rates", "greed", "10", "1000", "100000")
FIGURE = ROOT / "tests/benchmarks/peers/peers.svg"
COLUMNS = 4
TIMEOUT_S = {"100000": 420}
"""How long a part may take; 120 for the others."""


def measure(peer: str, part: str) -> dict[str, Any]:
    """One part of one peer, in a process and a session of its own, so that nothing outlives it."""
    timeout_s = TIMEOUT_S.get(part, 120)
    command = [sys.executable, "-m", "tests.benchmarks.peers.measure", peer, part]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        output, errors = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        output, errors = "", f"not done within {timeout_s} s"
    finally:
        subprocess.run(["pkill", "-KILL", "-s", str(process.pid)], check=False)
        process.wait()
    lines = [line for line in output.splitlines() if line.startswith("{")]
    if lines:
        found: dict[str, Any] = json.loads(lines[-1])
        return found
    return {"absent": errors.strip().splitlines()[-1] if errors.strip() else "it ended without an answer"}


def number(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "-"
    if math.isinf(value):
        return "not within 10 s"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def make_table(found: dict[str, dict[str, float]], durable: dict[str, bool]) -> list[str]:
    rows = list(dict.fromkeys(name for figures in found.values() for name in figures))
    header = [f"{peer}{'' if durable[peer] else ' (in memory)'}" for peer in found]
    lines = ["| | " + " | ".join(header) + " |", "|---|" + "---:|" * len(found)]
    cells = {row: " | ".join(number(figures.get(row)) for figures in found.values()) for row in rows}
    return lines + [f"| {row} | {cells[row]} |" for row in rows]


def draw(found: dict[str, dict[str, float]], durable: dict[str, bool]) -> None:
    """Each measure on a logarithmic scale of its own, a row for each peer, into `FIGURE`."""
    rows = list(dict.fromkeys(name for figures in found.values() for name in figures))
    peers = list(found)
    height = math.ceil(len(rows) / COLUMNS)
    figure, places = plt.subplots(height, COLUMNS, sharey=True, figsize=(13, 2 * height), layout="constrained")
    for row, axes in itertools.zip_longest(rows, places.flat):
        if row is None:
            axes.axis("off")
            continue
        values = [found[peer].get(row, math.nan) for peer in peers]
        known = [value for value in values if math.isfinite(value)]
        left, right = min(known) / 2, max(known) * 20  # with room for the numbers
        axes.set_title(row, loc="left", fontsize=9)
        axes.set_xscale("log")
        axes.set_xlim(left, right)
        for place, (peer, value) in enumerate(zip(peers, values, strict=True)):
            colour = "#b4431f" if peer == "cadenza" else "#1f5fb4"
            measured = math.isfinite(value)
            if measured:
                axes.scatter(value, place, s=24, edgecolors=colour, facecolors=colour if durable[peer] else "white")
            x = value if measured else left
            axes.annotate(number(value), (x, place), xytext=(6, 0), textcoords="offset points", va="center", fontsize=7)
        axes.set_yticks(range(len(peers)), peers, fontsize=8)
        axes.set_ylim(len(peers) - 0.4, -0.6)
        axes.tick_params(axis="x", labelsize=7)
        axes.minorticks_off()
        axes.grid(axis="y", linewidth=0.4)
    figure.suptitle(
        "One worker each. Of what is per second more is better, of all else less. Empty dots: in memory only.",
        fontsize=9,
    )
    # text as text, and the same names each time
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": HEADING}):
        figure.savefig(FIGURE, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--peers", default=",".join(PEERS), help="which, by comma")
    parser.add_argument("--parts", default=",".join(PARTS), help="rates, greed, numbers of queued jobs")
    parser.add_argument("--write", action="store_true", help="put the table into RESULTS.md, and draw it")
    options = parser.parse_args()
    found: dict[str, dict[str, float]] = {}
    durable: dict[str, bool] = {}
    notes = []
    for peer in options.peers.split(","):
        # one after the other: they must not meet
        for part in options.parts.split(","):
            print(f"{peer}: {part}", file=sys.stderr, flush=True)
            answer = measure(peer, part)
            if "absent" in answer:
                notes.append(f"- {peer}, {part}: not measured: {answer['absent']}")
                continue
            if peer not in found:
                found[peer], durable[peer] = {}, answer["durable"]
                notes.append(f"- {peer} {answer['version']}: {answer['how']}")
            found[peer].update(answer["found"])
    lines = [
        "Command: `python -m tests.benchmarks.peers.run --write`. Measured "
        f"{time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC on {os.cpu_count()} cores ({platform.machine()}), "
        f"Python {platform.python_version()}, one worker each; load average at the end {os.getloadavg()[0]:.1f}.",
        "",
        *make_table(found, durable),
        "",
        *notes,
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if options.write:
        draw(found, durable)
        write_section(HEADING, text)


if __name__ == "__main__":
    main()

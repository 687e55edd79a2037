"""Measures a peer and prints what it found as a line of JSON: `python -m tests.benchmarks.peers.measure NAME PART`."""

import argparse
import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks.peers.peer import AbsentError, Peer
from tests.benchmarks.peers.work import make_payload

MANY = {"nothing": 1_000, "ghz": 200}
SINGLE = 500
GREEDY = 1_000
LIGHT = 15
CAP_S = 10.0
"""A job that has not begun after this long is not waited for."""


def load_peers() -> dict[str, Callable[[], Peer]]:
    """All peers by name. What they need is imported when they start."""
    from tests.benchmarks.peers.cadenza_peer import Cadenza
    from tests.benchmarks.peers.cluster_peers import HyperQueue, Slurm
    from tests.benchmarks.peers.memory_peers import Dask, Ray
    from tests.benchmarks.peers.redis_peers import Celery, Rq
    from tests.benchmarks.peers.temporal_peer import Temporal

    return {peer.name: peer for peer in (Cadenza, Temporal, Celery, Rq, Slurm, HyperQueue, Dask, Ray)}


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def measure_rates(peer: Peer, before: int) -> dict[str, float]:
    """Submissions and jobs a second, from submit to result one at a time, and memory beyond `before`."""
    found = {}
    for kind, many in MANY.items():
        count = max(5, round(many * peer.scale[kind]))
        begin = time.perf_counter()
        handles = peer.submit(kind, count, "many")
        accepted = time.perf_counter()
        peer.finish(handles)
        found[f"{kind}: accepted/s"] = count / (accepted - begin)
        found[f"{kind}: ended/s"] = count / (time.perf_counter() - begin)
        times = []
        for _ in range(max(5, round(SINGLE * peer.scale["single"]))):
            begin = time.perf_counter()
            peer.finish(peer.submit(kind, 1, "single"))
            times.append((time.perf_counter() - begin) * 1e3)
        found[f"{kind}: one at a time p50 ms"] = statistics.median(times)
        found[f"{kind}: one at a time p99 ms"] = percentile(times, 0.99)
    found["memory MiB"] = (tree_memory() - before) / 2**20
    return found


def measure_behind(peer: Peer, queued: int) -> dict[str, float]:
    """Seconds from the submission of a new user's job to its start, right after another's so many."""
    name = f"behind {queued}: start s"
    if queued > peer.queue_max:
        return {name: float("nan")}
    peer.submit("nothing", queued, "many")
    begin = time.time_ns()
    started: list[int] = []
    handles = peer.submit("nothing", 1, "new")
    waiting = threading.Thread(target=lambda: started.extend(peer.finish(handles)), daemon=True)
    waiting.start()
    waiting.join(CAP_S)
    return {name: (started[-1] - begin) / 1e9 if started else float("inf")}


def measure_greed(peer: Peer) -> dict[str, float]:
    """Milliseconds that a light user's GHZ jobs wait, one every 0.2 s, beside nobody and beside a user with many."""
    found = {}
    for beside in ("nobody", "a greedy user"):
        if beside != "nobody":
            peer.submit("ghz", max(10, round(GREEDY * peer.scale["ghz"])), "greedy")
        waits: list[float] = []
        threads = []

        def one() -> None:
            begin = time.time_ns()
            started = peer.finish(peer.submit("ghz", 1, "light"))
            waits.append((started[-1] - begin) / 1e6)  # noqa: B023

        end = time.monotonic() + CAP_S
        for _ in range(LIGHT):
            thread = threading.Thread(target=one, daemon=True)
            thread.start()
            threads.append(thread)
            time.sleep(0.2)
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))
        waits += [float("inf")] * (LIGHT - len(waits))
        found[f"light beside {beside}: wait p50 ms"] = statistics.median(waits)
        found[f"light beside {beside}: wait max ms"] = max(waits)
    return found


def tree_memory() -> int:
    """Resident bytes of this process and all that it started (in proportion, where pages are shared)."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    total, waiting = 0, [os.getpid()]
    while waiting:
        process = waiting.pop()
        waiting += children.get(process, ())
        try:
            text = Path(f"/proc/{process}/smaps_rollup").read_text()
        except OSError:
            continue
        total += next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Pss:"))
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer")
    parser.add_argument("part", help="rates, greed, or a number of queued jobs")
    options = parser.parse_args()
    peer = load_peers()[options.peer]()
    about = {"durable": peer.durable, "how": peer.how}
    make_payload("ghz")
    try:
        version, before = peer.version(), tree_memory()
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            peer.start(Path(folder))
            try:
                if options.part == "rates":
                    found = measure_rates(peer, before)
                elif options.part == "greed":
                    found = measure_greed(peer)
                else:
                    found = measure_behind(peer, int(options.part))
            finally:
                peer.stop()
    except AbsentError as error:
        print(json.dumps({"absent": str(error)}), flush=True)
    else:
        print(json.dumps({**about, "version": version, "found": found}), flush=True)
    # what still waits for a job of a peer that has been stopped
    os._exit(0)


if __name__ == "__main__":
    main()

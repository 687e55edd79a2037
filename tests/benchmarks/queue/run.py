"""Measures the queue: `python tests/benchmarks/queue/run.py [--quick]`.

A cycle is pick + start + finish + push on one device whose queue keeps its size. It is compared with pop + push on a
std::priority_queue of as many 16-byte pairs, with heapq on as many of the same pairs, and with what a Python program
would do for the same job: heaps of accounts and of each account's users, a deque of jobs each, and the same charges
(but no handles, priorities, windows, sessions or other devices). All run alternately in this process; figures are
medians of processor time.
Needs Cython and a C and C++ compiler: what drives the queue from C is built in a temporary folder.
"""

import argparse
import heapq
import importlib.util
import math
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from array import array
from collections import deque
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
SECOND = 10**9
SAME_USER = 2**32 - 1


BUILD = """
import sys
from Cython.Build import cythonize
from setuptools import Extension, setup
root = sys.argv.pop()
drive = Extension("drive", ["drive.pyx"], language="c++", extra_compile_args=["-O2"])
setup(name="drive", ext_modules=cythonize([drive], include_path=[root], quiet=True))
"""


def build(folder: Path) -> ModuleType:
    """Compile `drive.pyx` in `folder` and import it."""
    (folder / "drive.pyx").write_text((HERE / "drive.pyx").read_text())
    command = [sys.executable, "-c", BUILD, "-q", "build_ext", "--inplace", str(ROOT)]
    subprocess.run(command, cwd=folder, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    spec = importlib.util.spec_from_file_location("drive", next(folder.glob("drive*.so")))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Workload:
    """A queue of `size` jobs: ten a user, a hundred users an account (ten, of a hundred users), uneven usage."""

    def __init__(self, size: int, chance: random.Random) -> None:
        from _fastqueue import Queue

        self.chance = chance
        self.queue = Queue(7 * 86400 * SECOND)
        self.now = 1_700_000_000 * SECOND
        self.seq = size
        before = self.queue.memory_bytes()
        self.queue.add_device()
        user_count = size // 10
        accounts = [self.queue.add_node(0) for _ in range(max(10, user_count // 100))]
        self.users = [self.queue.add_node(accounts[i % len(accounts)]) for i in range(user_count)]
        chance.shuffle(self.users)
        self.owner = array("I", [0]) * (size + size // 8 + 1000)  # by handle
        for seq in range(size):
            user = self.users[seq % user_count]
            self.owner[self.queue.push(0, user, seq, 0, self.estimate())] = user
        for user in self.users:
            self.queue.charge(user, self.now, chance.randrange(1, 20 * SECOND))
        self.bytes = self.queue.memory_bytes() - before

    def estimate(self) -> int:
        return self.chance.randrange(SECOND // 2, 2 * SECOND)

    def cycles(self, drive: ModuleType, count: int, window: int = -1, others: bool = False) -> tuple[float, float]:
        """(ns a cycle, part of the picks that found nothing), driven from C."""
        estimates = array("q", (self.estimate() for _ in range(count)))
        lengths = array("q", (self.chance.randrange(SECOND // 4, 2 * SECOND) for _ in range(count)))
        users = array("I", (self.chance.choice(self.users) if others else SAME_USER for _ in range(count)))
        took, self.now, nothing = drive.cycle(self.queue, self.now, self.seq, estimates, lengths, users, window)
        self.seq += count
        return took / count * 1e9, nothing / count

    def cycles_from_python(self, count: int) -> float:
        """Ns a cycle, driven from Python by a caller who keeps whose job each handle is (with the loop around it)."""
        estimates = array("q", (self.estimate() for _ in range(count)))
        pick, start, finish, push = self.queue.pick, self.queue.start, self.queue.finish, self.queue.push
        owner, now, seq = self.owner, self.now, self.seq
        began = time.process_time()
        for estimate in estimates:
            job = pick(0, now)
            start(job, now)
            now += 1_100_000_000
            finish(0, now)
            user = owner[job]
            job = push(0, user, seq, 0, estimate)
            owner[job] = user
            seq += 1
        took = time.process_time() - began
        self.now, self.seq = now, seq
        return took / count * 1e9


def heapq_cycles(heap: list[tuple[float, int]], chance: random.Random, count: int) -> float:
    """Ns for heappop + heappush of a pair of usage and seq, as the std::priority_queue does it."""
    steps = [chance.random() for _ in range(count)]
    pop, push, seq = heapq.heappop, heapq.heappush, len(heap)
    began = time.process_time()
    for step in steps:
        usage, _ = pop(heap)
        push(heap, (usage + step, seq))
        seq += 1
    return (time.process_time() - began) / count * 1e9


class Member:
    """A user or an account of `PlainTree`."""

    __slots__ = ("flight", "jobs", "settled", "shares", "users")

    def __init__(self) -> None:
        self.settled = self.flight = 0.0
        self.shares = 1.0
        self.users: list[tuple[float, int, Member]] = []  # an account's; the seq is that of the user's first job
        self.jobs: deque[tuple[int, int]] = deque()  # a user's: seq, estimate


class PlainTree:
    """Fair share on one device in Python over heapq, with accounts, users and jobs as in `Workload`."""

    def __init__(self, size: int, chance: random.Random) -> None:
        self.chance = chance
        self.half_life = 7 * 86400 * SECOND
        self.k = self.half_life / 1e9 / math.log(2)
        self.now = 1_700_000_000 * SECOND
        self.exponent = self.now // self.half_life
        self.seq = size
        user_count = size // 10
        accounts = [Member() for _ in range(max(10, user_count // 100))]
        for i in range(user_count):
            account, user = accounts[i % len(accounts)], Member()
            user.jobs.extend((seq, self.estimate()) for seq in range(i, size, user_count))
            user.settled = chance.random() * 20
            account.settled += user.settled
            account.users.append((user.settled, i, user))
        for account in accounts:
            heapq.heapify(account.users)
        self.accounts = [(account.settled, account.users[0][1], account) for account in accounts]
        heapq.heapify(self.accounts)

    def estimate(self) -> int:
        return self.chance.randrange(SECOND // 2, 2 * SECOND)

    def cycles(self, count: int) -> float:
        """Ns for pick, start, finish and push."""
        steps = [(self.estimate(), self.chance.randrange(SECOND // 4, 2 * SECOND)) for _ in range(count)]
        accounts, half_life, k, now, seq = self.accounts, self.half_life, self.k, self.now, self.seq
        exp2, expm1, replace = math.exp2, math.expm1, heapq.heapreplace
        began = time.process_time()
        for new, length in steps:
            account = accounts[0][2]
            user = account.users[0][2]
            _, estimate = user.jobs.popleft()
            n, rest = divmod(now, half_life)
            rate = math.ldexp(k * exp2(rest / half_life), n - self.exponent)
            charge = rate * expm1(estimate / 1e9 / k)
            user.flight += charge
            account.flight += charge
            now += length
            cost = rate * expm1(length / 1e9 / k)
            user.flight -= charge
            account.flight -= charge
            user.settled += cost
            account.settled += cost
            user.jobs.append((seq, new))
            replace(account.users, ((user.settled + user.flight) / user.shares, user.jobs[0][0], user))
            replace(accounts, ((account.settled + account.flight) / account.shares, account.users[0][1], account))
            seq += 1
        took = time.process_time() - began
        self.now, self.seq = now, seq
        return took / count * 1e9


def machine() -> str:
    """One line about where this ran."""
    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        cpu = f"{len(names)} x {names[0]}"
    except (OSError, IndexError):
        pass
    compiler = subprocess.run(["c++", "--version"], capture_output=True, text=True, check=False).stdout.split("\n")[0]
    return f"{cpu}; {compiler}; Python {platform.python_version()}"


def measure(drive: ModuleType, size: int, runs: int, count: int) -> dict[str, float]:
    """All figures at one size, in ns (but for the last rows)."""
    chance = random.Random(size)
    work = Workload(size, chance)
    standard = drive.StandardQueue(size)
    heap = [(chance.random(), i) for i in range(size)]
    heapq.heapify(heap)
    python_count = max(count // 8, 1000)
    figures: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        figures.setdefault(name, []).append(value)

    from_python = Workload(size, chance)  # one of its own: its caller has to know whose job each handle is
    plain = PlainTree(size, chance)
    # So that the usage is where it stays; shared by every later run.
    work.cycles(drive, size)
    standard.cycle(size)
    from_python.cycles_from_python(size)
    plain.cycles(size // 4)
    heapq_cycles(heap, chance, size)
    for _ in range(runs):
        note("std::priority_queue pop + push", standard.cycle(count) / count * 1e9)
        note("cycle from C", work.cycles(drive, count)[0])
        note("cycle from C, another user submits", work.cycles(drive, count, others=True)[0])
        took, nothing = work.cycles(drive, count, window=0)
        assert nothing == 1
        note("cycle from C, after a pick before a window that nothing fits", took)
        took, nothing = work.cycles(drive, count, window=SECOND * 6 // 10)
        note("cycle from C, before a window that one job in 15 fits", took)
        note("  part of the picks that found nothing", nothing)
        note("pick alone", drive.picks(work.queue, work.now, 10_000) / 10_000 * 1e9)
        note("cycle from Python", from_python.cycles_from_python(python_count))
        note("heapq pop + push", heapq_cycles(heap, chance, python_count))
        note("the same law in Python over heapq", plain.cycles(python_count))
    single = min(size // 20, 20_000)
    work = Workload(size, chance)
    work.cycles_from_python(size)
    for _ in range(runs):
        queued = work_jobs(work)
        cancelled = array("I", chance.sample(queued, single))
        note("cancel", drive.cancels(work.queue, cancelled) / single * 1e9)
        owners = [work.owner[job] for job in cancelled]
        refill(work, owners)
        took, work.now = drive.runs(work.queue, work.now, single)
        note("pick + start + finish", took / single * 1e9)
        refill(work, [chance.choice(work.users) for _ in range(single)])
    note("bytes a job and its tenth of a user", work.bytes / size)
    return {name: statistics.median(values) for name, values in figures.items()}


def work_jobs(work: Workload) -> list[int]:
    """Handles that are queued now: the queue itself says so."""
    queued = []
    for job in range(len(work.owner)):
        try:
            work.queue.set_priority(job, 0)
        except ValueError:
            continue
        queued.append(job)
    return queued


def refill(work: Workload, users: list[int]) -> None:
    """Push a job for each."""
    for user in users:
        job = work.queue.push(0, user, work.seq, 0, work.estimate())
        work.owner[job] = user
        work.seq += 1


def stalls(size: int) -> dict[str, float]:
    """Milliseconds to release and to drop a session's jobs."""
    from _fastqueue import Queue

    figures: dict[str, float] = {}
    for batch in (False, True):
        for call in ("release_jobs", "drop_jobs"):
            took = []
            for run in range(5):
                chance = random.Random(run)
                queue = Queue(7 * 86400 * SECOND)
                queue.add_device()
                session = queue.add_session(0, queue.add_node(0), batch)
                for seq in range(size):
                    queue.push_session(session, seq, 0, chance.randrange(1, SECOND), seq == 0)
                queue.activate(session)
                act: Any = getattr(queue, call)
                began = time.process_time()
                act(session)
                took.append((time.process_time() - began) * 1e3)
            figures[f"{call} of {size:,} jobs, {'batch' if batch else 'dedicated'}"] = statistics.median(took)
    return figures


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="three runs and no million")
    quick = parser.parse_args().quick
    runs = 3 if quick else 9
    sizes = (1_000, 100_000) if quick else (1_000, 100_000, 1_000_000)
    with tempfile.TemporaryDirectory() as folder:
        drive = build(Path(folder))
        print(machine())
        print(f"Medians of {runs} alternating runs, ns of processor time.\n")
        tables = {size: measure(drive, size, runs, 100_000) for size in sizes}
    print("| | " + " | ".join(f"{size:,} jobs" for size in sizes) + " |")
    print("|---|" + "---:|" * len(sizes))
    for name in tables[sizes[0]]:
        digits = 2 if "part" in name else 1 if "bytes" in name else 0
        print(f"| {name} | " + " | ".join(f"{tables[size][name]:.{digits}f}" for size in sizes) + " |")
    ratios = {
        "cycle from C / priority_queue": ("cycle from C", "std::priority_queue pop + push"),
        "with a window that nothing fits / priority_queue": (
            "cycle from C, after a pick before a window that nothing fits",
            "std::priority_queue pop + push",
        ),
        "cycle from Python / priority_queue": ("cycle from Python", "std::priority_queue pop + push"),
        "heapq / cycle from C": ("heapq pop + push", "cycle from C"),
        "the same law over heapq / cycle from C": ("the same law in Python over heapq", "cycle from C"),
        "cancel / (pick + start + finish)": ("cancel", "pick + start + finish"),
    }
    for name, (over, under) in ratios.items():
        print(f"| **{name}** | " + " | ".join(f"{tables[s][over] / tables[s][under]:.2f}" for s in sizes) + " |")
    print()
    for name, figure in stalls(100_000).items():
        print(f"{name}: {figure:.1f} ms")


if __name__ == "__main__":
    main()

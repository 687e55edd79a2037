"""How long a simulation takes: `python tests/benchmarks/simulation/run.py [year] [events]`.

`year`: year.yaml beside this file, about 1,000,000 jobs of 1,000 users in 50 accounts on 8 devices, with all figures.
`events`: a scenario of 200,000 written events, read, run and printed as JSON. Each runs in a process of its own.
"""

import resource
import subprocess
import sys
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from time import perf_counter

YEAR = Path(__file__).with_name("year.yaml")
EVENTS = 200_000


def write_events(path: Path) -> None:
    """Write jobs of 1,000 users in 50 accounts for two devices, some of them in sessions."""
    random = Random("200,000 events")
    lines = ["name: many written events", "devices: {north: {}, south: {}}", "events:"]
    at = 0.0
    session = ""
    for i in range(EVENTS):
        at += random.expovariate(1 / 4)
        user = random.randrange(1000)
        if i % 100 == 0:
            session = f"s{i}"
            lines.append(
                f"  - {{at: {at:.3f}, create_session: {session}, user: lab{user % 50}/u{user}, device: north}}"
            )
        elif i % 10 == 1:
            lines.append(f"  - {{at: {at:.3f}, submit: j{i}, session: {session}, run: {random.uniform(1, 5):.3f}}}")
        else:
            device = random.choice(("north", "south"))
            run = f"{random.uniform(1, 10):.3f}, estimate: {random.uniform(1, 10):.3f}"
            lines.append(
                f"  - {{at: {at:.3f}, submit: j{i}, user: lab{user % 50}/u{user}, device: {device}, run: {run}}}"
            )
    path.write_text("\n".join(lines) + "\n")


def measure(what: str, *arguments: str, out: Path) -> None:
    """Run the command, and print how long it took and the most memory that it had."""
    before = perf_counter()
    with out.open("w") as file:
        subprocess.run([sys.executable, "-m", "cadenza_server", "simulate", *arguments], stdout=file, check=True)
    took = perf_counter() - before
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = used.ru_utime + used.ru_stime
    print(f"{what}: {took:.1f} s ({processor:.1f} s of processor time), {used.ru_maxrss / 1024:.0f} MiB", flush=True)


def main() -> None:
    """Print the figures."""
    wanted = sys.argv[1:] or ["year", "events"]
    if len(wanted) > 1:
        for each in wanted:
            subprocess.run([sys.executable, __file__, each], check=True)
        return
    with TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        if wanted == ["year"]:
            measure("one year", "--compare", str(YEAR), out=out)
            print(out.read_text())
        else:
            file = Path(folder) / "events.yaml"
            write_events(file)
            measure(f"{EVENTS:,} written events", "--json", str(file), out=out)
            print(f"{out.stat().st_size:,} bytes of JSON")


if __name__ == "__main__":
    main()

"""Plays the checks of `checks.yaml` with every client whose toolchain is here, and prints one table.

    python -m tests.conformance.run [--only go,node] [--markdown FILE]

It starts five servers of its own, builds each client with its ecosystem's tool, and runs its `conformance` program and
its example `sweep`.
A client whose toolchain is missing is reported as not run. The exit code is 1 if a check failed or a build did.
"""

import argparse
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from tests.conformance.servers import read_checks, read_mistakes, served, write_plan

CLIENTS_FOLDER = Path(__file__).resolve().parents[2] / "clients"
ROOT = CLIENTS_FOLDER.parent
BUILD_SECONDS_MAX = 1800.0
RUN_SECONDS_MAX = 60.0


@dataclass(frozen=True)
class Client:
    """How the client of one language is built and run. `tools`: the programs that it needs on the path."""

    name: str
    folder: Path
    tools: tuple[str, ...]
    fetch: tuple[str, ...]
    """Gets what it depends on from its registry; may be empty."""
    build: tuple[tuple[str, ...], ...]
    conformance: tuple[str, ...]
    """The command; the file with the checks is added to it."""
    sweep: tuple[str, ...]
    """The example's command; the target and a device are added to it."""

    def missing_tools(self) -> list[str]:
        """Those that are not on the path."""
        return [tool for tool in self.tools if shutil.which(tool) is None]


def _client(name: str, tools: str, fetch: str, build: Iterable[str], conformance: str, sweep: str) -> Client:
    commands = tuple(tuple(command.split()) for command in build)
    return Client(
        name,
        CLIENTS_FOLDER / name,
        tuple(tools.split()),
        tuple(fetch.split()),
        commands,
        tuple(conformance.split()),
        tuple(sweep.split()),
    )


_INTERPRETER = (sys.executable, "-m", "tests.conformance.interpreter")
_SWEEP = (sys.executable, str(CLIENTS_FOLDER / "python/examples/sweep.py"))

CLIENTS = (
    Client("python", ROOT, (), (), (), _INTERPRETER, _SWEEP),
    Client("python-asyncio", ROOT, (), (), (), (*_INTERPRETER, "--asyncio"), (*_SWEEP, "--asyncio")),
    _client(
        "go",
        "go",
        "go mod download",
        ["go generate ./...", "go build -o build/ ./cmd/conformance ./examples/sweep"],
        "build/conformance",
        "build/sweep",
    ),
    _client(
        "node",
        "node npm",
        "npm ci --no-fund --no-audit --prefer-offline",
        ["npm run build"],
        "node build/src/conformance.js",
        "node build/examples/sweep.js",
    ),
    _client(
        "rust",
        "cargo",
        "cargo fetch",
        ["cargo build --examples"],
        "target/debug/examples/conformance",
        "target/debug/examples/sweep",
    ),
    _client(
        "java",
        "java mvn",
        "",
        ["mvn -q -B package"],
        "java -cp target/classes:target/lib/* cadenza.conformance.Conformance",
        "java -cp target/classes:target/lib/* cadenza.examples.Sweep",
    ),
    _client(
        "cpp",
        "cmake g++ protoc grpc_cpp_plugin",
        "",
        ["cmake -S . -B build -DCMAKE_BUILD_TYPE=Release", "cmake --build build"],
        "build/conformance",
        "build/sweep",
    ),
)
"""In the order of the table."""


@dataclass
class Outcome:
    """What came of a client. `problems` by check, empty if it passed; `not_run` says why there are none."""

    client: str
    not_run: str = ""
    build_s: float = 0.0
    run_s: float = 0.0
    problems: dict[str, str] = field(default_factory=dict)
    unseen: list[str] = field(default_factory=list)
    example: str = ""
    """What is wrong with the example; empty if nothing."""

    @property
    def failed(self) -> list[str]:
        """What failed, with what was wrong: checks, mistakes that were not seen, the example."""
        failed = [f"{check}: {problem}" for check, problem in self.problems.items() if problem]
        failed += [f"did not see the mistake {name!r}" for name in self.unseen]
        return failed + ([f"the example: {self.example}"] if self.example else [])


class FetchError(Exception):
    """What a client depends on could not be had from its registry."""


class BuildError(Exception):
    """A client could not be built; holds the end of what the tool said."""


def build(client: Client) -> None:
    """Build a client. Raises `FetchError` or `BuildError`."""
    for command in (client.fetch, *client.build):
        if not command:
            continue
        done = subprocess.run(
            command,
            cwd=client.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=BUILD_SECONDS_MAX,
        )
        if done.returncode:
            kind = FetchError if command == client.fetch else BuildError
            raise kind(f"{client.name}: {' '.join(command)} failed\n{done.stdout[-3000:]}")


def play(client: Client, plan: Path) -> dict[str, str]:
    """Play the checks of `plan` with a client that is built; by check what was wrong, empty if nothing.

    A check that the client did not report is a failure, too.
    """
    with subprocess.Popen(
        [*client.conformance, str(plan)],
        cwd=client.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            stdout, stderr = process.communicate(timeout=RUN_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            stdout, stderr = process.communicate()
            stderr += f"stopped after {RUN_SECONDS_MAX} s"
    found: dict[str, str] = {}
    for line in stdout.splitlines():
        if line.startswith("{"):
            answer = json.loads(line)
            found[answer["check"]] = "" if answer["passed"] else answer["problem"] or "failed"
    names = [check["name"] for check in json.loads(plan.read_text())["checks"]]
    silent = f"not reported (exit code {process.returncode}) {stderr[-1500:]}"
    return {name: found.get(name, silent) for name in names}


def judge(client: Client, folder: Path, places: dict[str, str]) -> tuple[dict[str, str], list[str]]:
    """Play the checks, and then those that are wrong on purpose, with a client that is built.

    By check what was wrong, empty if nothing; and the mistakes that the client did not see.
    """
    now = datetime.now(UTC)
    problems = play(client, write_plan(folder / f"{client.name}.json", client.name, places, now))
    mistakes = write_plan(folder / f"{client.name}-mistakes.json", f"{client.name}-m", places, now, read_mistakes())
    seen = play(client, mistakes)
    return problems, [name for name, problem in seen.items() if not problem or problem.startswith("not reported")]


def play_example(client: Client, places: dict[str, str]) -> str:
    """Run a client's `sweep`, and once with a device that is none; what was wrong, empty if nothing."""
    environment = {**os.environ, "CADENZA_USER": "sweep"}
    environment.pop("CADENZA_TOKEN", None)
    swept, refused = (
        subprocess.run(
            [*client.sweep, places["target"], device],
            cwd=client.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=RUN_SECONDS_MAX,
            check=False,
        )
        for device in ("sim", "nowhere")
    )
    said = f"{swept.stdout}{swept.stderr}"
    found = re.findall(r"^theta (\S+) +energy (\S+)$", swept.stdout, re.MULTILINE)
    angles = [step * math.pi / 4 for step in range(5)]
    due = [(math.cos(angle) + math.sin(angle)) / 2 for angle in angles]
    if swept.returncode or len(found) != len(due) or "counts at pi/2" not in swept.stdout:
        return said
    if any(abs(float(energy) - value) > 1e-5 for (_, energy), value in zip(found, due, strict=True)):
        return f"wrong energies: {said}"
    if refused.returncode != 1 or not re.search(r"there is no device \W?nowhere", refused.stderr):
        return f"a device that is none: {refused.stdout}{refused.stderr}"
    return ""


def run(clients: Sequence[Client], say: Callable[[str], None]) -> list[Outcome]:
    """Build and play them all, one after the other."""
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="cadenza-conformance-") as name, served(Path(name) / "servers") as places:
        for client in clients:
            outcome = Outcome(client.name)
            outcomes.append(outcome)
            if missing := client.missing_tools():
                outcome.not_run = f"{', '.join(missing)} not found"
                say(f"{client.name}: not run, {outcome.not_run}")
                continue
            say(f"{client.name}: building")
            began = time.monotonic()
            try:
                build(client)
            except (FetchError, BuildError) as error:
                say(str(error))
                outcome.problems = {check["name"]: "not built" for check in read_checks()["checks"]}
                continue
            outcome.build_s = time.monotonic() - began
            began = time.monotonic()
            outcome.problems, outcome.unseen = judge(client, Path(name), places)
            outcome.run_s = time.monotonic() - began
            outcome.example = play_example(client, places)
            for failure in outcome.failed:
                say(f"{client.name}: FAILED {failure}")
    return outcomes


def make_table(outcomes: Sequence[Outcome]) -> str:
    """One row a check, one column a client, in Markdown."""
    rows = [["check", *(outcome.client for outcome in outcomes)]]
    for check in read_checks()["checks"]:
        name = check["name"]
        rows.append([name, *(_word(outcome, name) for outcome in outcomes)])
    rows.append(["**passed**", *(_sum(outcome) for outcome in outcomes)])
    count = len(read_mistakes())
    unseen = ["not run" if not outcome.run_s else f"{count - len(outcome.unseen)} of {count}" for outcome in outcomes]
    rows.append(["**mistakes seen**", *unseen])
    examples = ["not run" if not outcome.run_s else "FAILED" if outcome.example else "pass" for outcome in outcomes]
    rows.append(["**the example `sweep`**", *examples])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def _word(outcome: Outcome, check: str) -> str:
    if outcome.not_run:
        return "not run"
    return "FAILED" if outcome.problems[check] else "pass"


def _sum(outcome: Outcome) -> str:
    if outcome.not_run:
        return f"not run: {outcome.not_run}"
    passed = sum(not problem for problem in outcome.problems.values())
    return f"{passed} of {len(outcome.problems)}"


def main() -> int:
    """Run the command line; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="clients, with commas; default all: " + ",".join(c.name for c in CLIENTS))
    parser.add_argument("--markdown", type=Path, help="write the table to this file, too")
    arguments = parser.parse_args()
    wanted = arguments.only.split(",") if arguments.only else [client.name for client in CLIENTS]
    if unknown := set(wanted) - {client.name for client in CLIENTS}:
        parser.error(f"there is no client {', '.join(sorted(unknown))}")
    outcomes = run(
        [client for client in CLIENTS if client.name in wanted], lambda line: print(line, file=sys.stderr, flush=True)
    )
    table = make_table(outcomes)
    print(table)
    if arguments.markdown:
        arguments.markdown.write_text(table + "\n")
    return 1 if any(outcome.failed for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())

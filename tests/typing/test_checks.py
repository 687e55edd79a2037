"""The tools that read the code run as tests: a finding of any of them is a failure that shows what it found."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent

TYPED = ["server", "clients/python", "clients/loadtest", "_fastqueue", "tests", "proto"]

CHECKS = {
    "ruff finds nothing": ["ruff", "check", "."],
    "the code is formatted": ["ruff", "format", "--check", "."],
    "mypy strict finds nothing": ["mypy", *TYPED],
    "imports run downward": ["lint-imports", "--no-cache"],
    "the contract is linted": ["buf", "lint", "proto"],
}


def run(command: list[str]) -> None:
    program = BIN / command[0]
    executable = str(program) if program.exists() else shutil.which(command[0])
    assert executable, f"{command[0]} is not installed: pip install -e '.[test]'"
    done = subprocess.run([executable, *command[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("name", CHECKS)
def test_that(name: str) -> None:
    run(CHECKS[name])


def test_that_the_stub_of_the_queue_says_what_is_compiled() -> None:
    run([sys.executable, "-m", "mypy.stubtest", "_fastqueue._queue"])

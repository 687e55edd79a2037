"""A real server is killed under load, and everything that it acknowledged is accounted for."""

import sys
from pathlib import Path

import pytest

from tests.crash import kills
from tests.simulation.seeds import seed_of

KILLS = 10


@pytest.mark.skipif(sys.platform != "linux", reason="finds the process that writes in /proc")
def test_a_server_that_is_killed_under_load_loses_nothing_that_it_acknowledged(tmp_path: Path) -> None:
    print(f"again: python -m tests.crash.kills --kills {KILLS} --seed {seed_of(0)}")
    print(kills.run(tmp_path, KILLS, seed_of(0)))

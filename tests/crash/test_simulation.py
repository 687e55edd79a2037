"""The engine on a simulated disk with simulated workers, dying at any step: what is told stays true.

`tests.crash.world` says what is checked. More of them by hand: `python -m tests.crash.simulation --minutes 60`.
"""

import logging
from collections.abc import Iterator

import pytest

from tests.crash.simulation import replay
from tests.crash.world import World, run_seed_to_its_end
from tests.simulation.seeds import seed_of

SEEDS = 200
SEEDS_A_TEST = 20
LIVES = 3
STEPS_MAX = 600


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)  # it says a thousand times that the disk failed
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("first", range(0, SEEDS, SEEDS_A_TEST))
def test_whatever_dies_what_was_told_stays_true(first: int) -> None:
    for piece in range(first, first + SEEDS_A_TEST):
        seed = seed_of(piece)
        print(f"again: {replay(seed, LIVES, STEPS_MAX)}")
        assert run_seed_to_its_end(seed, LIVES, STEPS_MAX).lives == LIVES + 1


def test_a_seed_is_the_same_each_time() -> None:
    first, second = (run_seed_to_its_end(seed_of(0), LIVES, STEPS_MAX) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("loss", ["DELETE FROM jobs WHERE seq = 1", "UPDATE results SET result = x'00'"])
def test_a_disk_that_loses_what_was_acknowledged_is_noticed(loss: str) -> None:
    for piece in range(100):  # not in every world does the first life leave what this loses
        world = World(seed_of(piece), LIVES, STEPS_MAX)
        world._live(None)
        world._check_disk()
        if world._disk.raw.execute(loss).rowcount:
            break
        world._disk.close()
    else:
        pytest.fail("no world has anything to lose")
    with pytest.raises(AssertionError):
        world._check_disk()
    world._disk.close()

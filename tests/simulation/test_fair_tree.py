"""Every fair-share pick, held against a Fair Tree sort from scratch in 40 digits, with the order within each user."""

from collections import Counter

import pytest
from cadenza_server.model.settings import SECOND

from tests.simulation.audit import Audit
from tests.simulation.seeds import seed_of
from tests.simulation.service import play, random_service, service_of_equals


def audit(seeds: list[int], *, jobs: int = 150, devices: int = 3, windows: bool = True) -> Counter[str]:
    """Audit random services; how often what was met."""
    met: Counter[str] = Counter()
    for seed in seeds:
        service = random_service(seed, jobs=jobs, devices=devices, reservations=windows)
        met += Audit(service).follow(play(service).instants).met
    return met


@pytest.mark.parametrize("piece", range(6))
def test_the_chosen_user_is_first_in_a_sort_from_scratch(piece: int) -> None:
    met = audit([seed_of(4 * piece + i) for i in range(4)], devices=1 + piece % 4)
    assert met["compared"] > 100


def test_after_thousands_of_half_lives_it_still_is() -> None:
    """What is stored is renormalised between the bursts, and what is old is compared with what is new."""
    met: Counter[str] = Counter()
    half_life = 20 * SECOND
    for piece in range(4):
        service = random_service(seed_of(piece), half_life=half_life, pause=450 * half_life, calibration=False)
        met += Audit(service).follow(play(service).instants).met
    assert met["compared"] > 100


@pytest.mark.parametrize("piece", range(3))
def test_who_was_charged_alike_comes_in_the_order_of_seq(piece: int) -> None:
    met: Counter[str] = Counter()
    for i in range(5):
        service = service_of_equals(seed_of(5 * piece + i))
        met += Audit(service).follow(play(service).instants).met
    assert met["tie, not charged"] > 25
    assert met["tie, charged"] > 5


def test_within_a_user_and_a_priority_the_first_in_is_the_first_out() -> None:
    """No windows here, and many jobs on one device: nothing excuses another order but batches and first jobs."""
    met = audit([seed_of(100 + i) for i in range(4)], jobs=250, devices=1, windows=False)
    assert met["in order"] > 100

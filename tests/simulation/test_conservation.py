"""What is settled is what devices did: all runs but lost ones, and what dedicated sessions held; no calibration."""

from collections import defaultdict

import pytest
from mpmath import mp, mpf

from tests.simulation.audit import DIGITS, Audit
from tests.simulation.seeds import seed_of
from tests.simulation.service import Service, play, random_service

NEAR = 1e-12


def settled_usage(service: Service) -> tuple[Audit, dict[str, mpf]]:
    """Play a service; its audit, and what the scheduler has settled by path, as it says itself (the root is "")."""
    played = play(service)
    audit = Audit(service).follow(played.instants)
    with mp.workdps(DIGITS):
        nodes = played.scheduler.state().nodes
        return audit, {node.path: mpf(node.settled) * mpf(2) ** node.exponent for node in nodes}


@pytest.mark.parametrize("piece", range(4))
def test_charged_is_what_was_run_and_held(piece: int) -> None:
    """Nanosecond by nanosecond, with who had which device when worked out from sessions and runs alone."""
    held = lost = calibrated = 0
    for i in range(4):
        audit, _ = settled_usage(random_service(seed_of(4 * piece + i), devices=1 + i))
        assert audit.charged == audit.ran + audit.held
        held += audit.met["held"]
        lost += audit.met["lost"]
        calibrated += audit.met["calibrated"]
    assert held > 0
    assert lost > 0
    assert calibrated > 0


@pytest.mark.parametrize("piece", range(4))
def test_settled_usage_is_the_sum_of_the_exact_costs_of_what_was_charged(piece: int) -> None:
    audit, settled = settled_usage(random_service(seed_of(piece)))
    assert settled.keys() == {"", *audit.nodes}
    for path, usage in settled.items():
        assert abs(usage - audit.node(path).settled) <= NEAR * usage, path


@pytest.mark.parametrize("piece", range(4))
def test_usage_of_an_account_is_the_sum_of_its_childrens(piece: int) -> None:
    _, settled = settled_usage(random_service(seed_of(piece)))
    sums: dict[str, mpf] = defaultdict(mpf)
    with mp.workdps(DIGITS):
        for path, usage in settled.items():
            if path:
                sums[path.rpartition("/")[0]] += usage
    assert {"", "lab", "uni", "lab/deep"} <= sums.keys()
    for path, usage in sums.items():
        assert abs(usage - settled[path]) <= NEAR * usage, path
    assert settled[""] > 0

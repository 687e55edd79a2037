"""How far siblings can be apart: never more than one run, or what they were apart before, decayed."""

import math
import random

import pytest
from cadenza_server.model.settings import SECOND

from tests.simulation.backlog import Backlog
from tests.simulation.seeds import seed_of

USERS = ("a", "b", "c", "lab/d", "lab/e", "lab/f", "uni/g", "uni/h")
ROUNDING = 1e-9


def siblings(usage: dict[str, tuple[float, float]]) -> dict[str, dict[str, tuple[float, float]]]:
    """Children by account."""
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for path, each in usage.items():
        found.setdefault(path.rpartition("/")[0], {})[path] = each
    return found


def gap(children: dict[str, tuple[float, float]]) -> float:
    """The largest |u_i/w_i - u_j/w_j| / g(now) among siblings."""
    normalised = [usage / shares for usage, shares in children.values()]
    return max(normalised) - min(normalised)


@pytest.mark.parametrize("piece", range(4))
@pytest.mark.parametrize("devices", [1, 4, 16])
def test_backlogged_siblings_are_never_further_apart_than_one_run_or_what_they_were(devices: int, piece: int) -> None:
    rng = random.Random(seed_of(piece))
    half_life = rng.choice((100, 2_000, 50_000)) * SECOND
    longest = rng.randint(2, 20) * SECOND
    paths = (*USERS, "lab", "uni")
    backlog = Backlog(
        devices,
        half_life,
        {path: rng.choice((0.5, 1.0, 2.0, rng.uniform(0.3, 4.0))) for path in paths},
        lambda rng: longest if rng.random() < 0.2 else rng.randint(longest // 20, longest),
        rng,
    )
    early = ("a", "lab/d")
    backlog.join(*early)
    for _ in range(rng.choice((0, 5, 150))):
        backlog.step()
    backlog.join(*USERS[1:3], *USERS[4:])
    old_at = backlog.now
    before = {path: (0.0, backlog.shares[path]) for path in paths} | backlog.usage()
    old = {account: gap(children) for account, children in siblings(before).items()}
    k = half_life / SECOND / math.log(2)
    one_run = k * math.expm1(longest / SECOND / k)
    worst: dict[str, float] = {}
    for _ in range(1200):
        backlog.step()
        for account, children in siblings(backlog.usage()).items():
            decayed = old[account] * 2.0 ** ((old_at - backlog.now) / half_life)
            bound = max(decayed, one_run / min(shares for _, shares in children.values()))
            now = gap(children)
            assert now <= bound * (1 + ROUNDING), f"{now} > {bound} in {account!r} at {backlog.now}"
            worst[account] = max(worst.get(account, 0.0), now / bound)
    assert set(worst) == {"", "lab", "uni"}
    assert max(worst.values()) > 0.5, "nothing came near the bound: the test would see nothing"

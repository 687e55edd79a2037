"""How long somebody waits who has had much: not longer than others need to catch up, and one job each.

A user of weight w who held the fraction f of m devices (decayed, as usage is) has u = f m H / ln 2. Others of weight W
that have had nothing, and have all m devices from then on, have caught up after H log2(1 + f W / w) at the latest. Then
everyone but one of them may have just started one more job, and the last of these has to end.
"""

import math
import random

import pytest
from cadenza_server.model.settings import SECOND

from tests.simulation.backlog import Backlog
from tests.simulation.seeds import seed_of


def fraction_held(backlog: Backlog, user: str) -> float:
    """The user's share of the capacity, decayed as usage is."""
    usage, _ = backlog.usage()[user]
    return usage / (backlog.devices * backlog.half_life / SECOND / math.log(2))


def wait_of(backlog: Backlog, user: str, others: list[str]) -> tuple[int, float]:
    """Let all others leave, and `others` come, who have had nothing: how long the user waits then for a run, and what
    fraction it held when it began to wait."""
    for other in [other for other in backlog.joined if other != user]:
        backlog.leave(other)
    backlog.join(*others)
    joined = backlog.now
    backlog.apply(backlog.take_wanted())
    held = fraction_held(backlog, user)
    while True:
        mine = [(start, end) for start, end, of in backlog.runs if of == user]
        later = [start for start, _ in mine if start > joined]
        if later:
            since = max(joined, *(end for start, end in mine if start <= joined))
            return later[0] - since, held * 2.0 ** ((joined - since) / backlog.half_life)
        backlog.step()


def some_backlog(rng: random.Random, others: list[str]) -> tuple[Backlog, int]:
    """A flat tree in which `x` has run for a while, mostly, and the longest job."""
    half_life = rng.choice((100, 3_000)) * SECOND
    longest = int(half_life * rng.choice((0.002, 0.01, 0.05)))
    shares = {user: rng.choice((1.0, rng.uniform(0.3, 4.0))) for user in ("x", *others)}
    alike = rng.random() < 0.4
    devices = rng.choice((1, 1, 2, 4, 16))
    backlog = Backlog(
        devices,
        half_life,
        shares,
        lambda rng: longest if alike else rng.randint(longest // 10, longest),
        rng,
    )
    backlog.join("x", *[f"gone{i}" for i in range(rng.choice((0, 0, 1, 3)))])
    for _ in range(min(600, round(rng.choice((0.2, 1, 4)) * half_life / longest * devices))):
        backlog.step()
    return backlog, longest


@pytest.mark.parametrize("piece", range(12))
def test_with_one_other_the_wait_is_log2_of_what_was_held_and_one_job(piece: int) -> None:
    rng = random.Random(seed_of(piece))
    backlog, longest = some_backlog(rng, ["other"])
    wait, held = wait_of(backlog, "x", ["other"])
    weight = backlog.shares["other"] / backlog.shares["x"]
    assert wait <= backlog.half_life * math.log2(1 + held * weight) + longest + 1


@pytest.mark.parametrize("piece", range(12))
def test_with_many_others_it_is_one_job_of_each_on_all_devices(piece: int) -> None:
    rng = random.Random(seed_of(piece))
    others = [f"o{i}" for i in range(rng.randint(2, 10))]
    backlog, longest = some_backlog(rng, others)
    wait, held = wait_of(backlog, "x", others)
    weight = sum(backlog.shares[other] for other in others) / backlog.shares["x"]
    ahead = (len(others) - 1) * math.expm1(longest / backlog.half_life * math.log(2)) / backlog.devices
    spread = -backlog.half_life * math.log2(1 - ahead)
    """(n - 1) / m jobs, if they are short."""
    assert wait <= backlog.half_life * math.log2(1 + held * weight) + spread + longest + 1


def test_the_wait_is_near_its_bound_and_one_job_is_not_enough_for_many_others() -> None:
    """`x` has run one job and a half: so each of 7 others runs two jobs, and half a job of each is beyond the bound."""
    lengths = iter((10, 5))
    half_life = 10**7 * SECOND
    backlog = Backlog(1, half_life, {}, lambda _: next(lengths, 10) * SECOND, random.Random(0))
    backlog.join("x")
    backlog.step()
    backlog.step()
    wait, held = wait_of(backlog, "x", [f"o{i}" for i in range(7)])
    bound = half_life * math.log2(1 + held * 7) / SECOND
    assert bound == pytest.approx(105, rel=1e-3)
    assert wait == 140 * SECOND

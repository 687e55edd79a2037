"""When what is sent: drawn before the test begins, from the scenario's seed, and moved by nothing that happens."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from cadenza_loadtest.scenario import Scenario, Traffic


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation of a traffic."""

    at_s: float
    traffic: int
    """Its place in the scenario's list."""
    user: int
    followed: bool
    """Whether the result of a single job is waited for."""


def make_plan(scenario: Scenario, factor: float = 1.0) -> list[Operation]:
    """All operations in order of time. `factor` multiplies every rate and count."""
    operations: list[Operation] = []
    for number, traffic in enumerate(scenario.traffic):
        # a stream of its own each: another traffic in the file moves none of these
        draw = random.Random(f"{scenario.seed}/{traffic.name}")
        first, last = traffic.users
        operations.extend(
            Operation(at, number, draw.randint(first, last), draw.random() < traffic.follow)
            for at in draw_times(traffic, scenario.duration_s, factor, draw)
        )
    return sorted(operations, key=lambda operation: operation.at_s)


def draw_times(traffic: Traffic, duration_s: float, factor: float, draw: random.Random) -> Iterator[float]:
    """Seconds at which the operations of a traffic begin: a Poisson process of its rate, or its bursts."""
    if traffic.count:
        at = 0.0
        while at < duration_s:
            yield from [at] * max(1, round(traffic.count * factor))
            at += traffic.every_s
        return
    # a process of the highest rate, thinned out to the rate of the moment (Lewis and Shedler, 1979)
    highest = factor * max(rate for _, rate in traffic.rate)
    at = draw.expovariate(highest)
    while at < duration_s:
        if draw.random() * highest < factor * rate_at(traffic.rate, at):
            yield at
        at += draw.expovariate(highest)


def rate_at(points: Sequence[tuple[float, float]], at_s: float) -> float:
    """The rate at a moment, on straight lines between the points."""
    for (begin, before), (end, after) in pairwise(points):
        if begin <= at_s < end:
            return before + (after - before) * (at_s - begin) / (end - begin)
    return points[-1][1]

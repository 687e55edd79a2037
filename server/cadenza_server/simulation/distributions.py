"""Distributions of lengths and counts in a workload, each as its quantile function.

A value takes exactly one number of a stream of uniform ones: so the n-th job of a generator has the same luck whatever
the distribution, and two files that differ in one number differ in what it says alone.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final, Protocol

from cadenza_server.simulation.tree import List, Scalar, ScenarioError, Table, Tree
from cadenza_server.simulation.values import read_number, refuse, show

MILLISECOND: Final = 1_000_000
"""Nanoseconds. All that a workload draws is whole milliseconds, as a written scenario could have it."""
SECONDS_MAX: Final = 1_000_000_000.0
"""No length is longer: 31 years."""
COUNT_MAX: Final = 1_000_000
"""No count is larger."""

_SPREAD_MAX: Final = 10.0
_SHAPE_MIN: Final = 0.1
_LEAST: Final = 2.0**-54

normal_quantile: Final = NormalDist().inv_cdf


class Distribution(Protocol):
    """A distribution of numbers that are not negative."""

    def quantile(self, u: float) -> float:
        """Return the value that a part `u` in [0, 1) of all lie below."""


@dataclass(frozen=True, slots=True)
class Constant:
    """Always the same."""

    value: float

    def quantile(self, u: float) -> float:  # noqa: ARG002
        """Return the value."""
        return self.value


@dataclass(frozen=True, slots=True)
class Exponential:
    """Exponential with a mean."""

    mean: float

    def quantile(self, u: float) -> float:
        """Return the value that a part `u` lies below."""
        return -self.mean * math.log1p(-u)


@dataclass(frozen=True, slots=True)
class Uniform:
    """All between two values alike."""

    least: float
    most: float

    def quantile(self, u: float) -> float:
        """Return the value that a part `u` lies below."""
        return self.least + u * (self.most - self.least)


@dataclass(frozen=True, slots=True)
class LogNormal:
    """Its logarithm is normal, with the standard deviation `spread`."""

    median: float
    spread: float

    def quantile(self, u: float) -> float:
        """Return the value that a part `u` lies below."""
        return self.median * math.exp(self.spread * normal_quantile(u or _LEAST))


@dataclass(frozen=True, slots=True)
class Pareto:
    """A heavy tail: P(X > x) = (least / x) ** shape."""

    least: float
    shape: float

    def quantile(self, u: float) -> float:
        """Return the value that a part `u` lies below."""
        return float(self.least * (1.0 - u) ** (-1.0 / self.shape))


@dataclass(frozen=True, slots=True)
class Mix:
    """One of several, by weight. `upto`: the sums of the weights, the last one 1."""

    upto: tuple[float, ...]
    parts: tuple[Distribution, ...]

    def quantile(self, u: float) -> float:
        """Return a value of the part that `u` falls into; not a quantile of the whole, but as likely."""
        below = 0.0
        for upto, part in zip(self.upto, self.parts, strict=True):
            if u < upto:
                return part.quantile(min((u - below) / (upto - below), 1.0 - 2.0**-53))
            below = upto
        raise AssertionError(f"{u} is not below 1")


def draw_length(distribution: Distribution, u: float) -> int:
    """Return nanoseconds, in whole milliseconds, 0 or more."""
    return round(min(distribution.quantile(u), SECONDS_MAX) * 1000.0) * MILLISECOND


def draw_count(distribution: Distribution, u: float) -> int:
    """Return the nearest whole number, 1 or more."""
    return max(1, round(min(distribution.quantile(u), COUNT_MAX)))


def read_distribution(tree: Tree) -> Distribution:
    """Read a number, or a mapping with one of the names of `KINDS`. Raises `ScenarioError` if it is neither."""
    if isinstance(tree, Scalar):
        return Constant(_read(tree, "the value", 0.0, SECONDS_MAX))
    if not isinstance(tree, Table) or len(tree.entries) != 1:
        refuse(tree, f"a distribution is a number, or a mapping with one of {', '.join(KINDS)}, not {show(tree)}")
    [(kind, value)] = tree.entries.items()
    if kind not in KINDS:
        raise ScenarioError(tree.lines[kind], f"a distribution is one of {', '.join(KINDS)}, not {kind!r}")
    return KINDS[kind](value)


def _read(tree: Tree, what: str, least: float, most: float) -> float:
    value = read_number(tree)
    if not least <= value <= most:
        refuse(tree, f"{what} is {least:g} to {most:g}, not {show(tree)}")
    return value


def _pair(tree: Tree, what: str) -> tuple[Tree, Tree]:
    if not isinstance(tree, List) or len(tree.items) != 2:
        refuse(tree, f"expected a list of two, {what}")
    return tree.items[0], tree.items[1]


def _exponential(tree: Tree) -> Exponential:
    return Exponential(_read(tree, "the mean", 0.0, SECONDS_MAX))


def _uniform(tree: Tree) -> Uniform:
    least, most = _pair(tree, "[least, most]")
    read = Uniform(_read(least, "the least", 0.0, SECONDS_MAX), _read(most, "the most", 0.0, SECONDS_MAX))
    if read.most < read.least:
        refuse(most, "the most is no less than the least")
    return read


def _lognormal(tree: Tree) -> LogNormal:
    median, spread = _pair(tree, "[median, standard deviation of the logarithm]")
    return LogNormal(
        _read(median, "the median", 0.0, SECONDS_MAX), _read(spread, "the standard deviation", 0.0, _SPREAD_MAX)
    )


def _pareto(tree: Tree) -> Pareto:
    least, shape = _pair(tree, "[least, shape]")
    return Pareto(_read(least, "the least", 0.0, SECONDS_MAX), _read(shape, "the shape", _SHAPE_MIN, 1000.0))


def _mix(tree: Tree) -> Mix:
    if not isinstance(tree, List) or not tree.items:
        refuse(tree, "a mix is a list of [weight, distribution]")
    weights, parts = [], []
    for item in tree.items:
        weight, part = _pair(item, "[weight, distribution]")
        weights.append(_read(weight, "a weight", 0.0, SECONDS_MAX))
        parts.append(read_distribution(part))
        if not weights[-1]:
            refuse(weight, "a weight is positive")
    total = math.fsum(weights)
    upto = [math.fsum(weights[: i + 1]) / total for i in range(len(weights))]
    return Mix((*upto[:-1], 1.0), tuple(parts))


KINDS: Final[Mapping[str, Callable[[Tree], Distribution]]] = {
    "exponential": _exponential,
    "uniform": _uniform,
    "lognormal": _lognormal,
    "pareto": _pareto,
    "mix": _mix,
}
"""The names, and how what stands there is read."""

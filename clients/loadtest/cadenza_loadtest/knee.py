"""The highest rates that a server bears: all rates of a scenario are raised together until its latency gives way."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cadenza_loadtest.report import Report


@dataclass(frozen=True, slots=True)
class Step:
    """A test at some multiple of the scenario's rates."""

    factor: float
    submits_per_s: float
    p99_ms: float
    errors: float
    held: bool


def find_knee(
    test: Callable[[float], Report],
    names: list[str],
    limit_ms: float,
    tell: Callable[[Step], None],
    *,
    start: float = 1.0,
    halvings: int = 3,
) -> Step | None:
    """Double the rates until the p99 of submission exceeds `limit_ms` or something fails, then halve the gap.

    `names`: the traffics that count. `start`: the multiple of the scenario's rates to begin with. Returns the highest
    step that held; None: not even the first does.
    """

    def take(factor: float) -> Step:
        step = judge_step(test(factor), names, limit_ms, factor)
        tell(step)
        return step

    best: Step | None = None
    factor = start
    while (step := take(factor)).held:
        best, factor = step, factor * 2
    if best is None:
        return None
    low, high = best.factor, factor
    for _ in range(halvings):
        middle = (low + high) / 2
        if (step := take(middle)).held:
            best, low = step, middle
        else:
            high = middle
    return best


def choose_median(found: Sequence[Step | None]) -> Step | None:
    """Of what several searches found the one in the middle, the lower of two. None, no knee, is below all others.

    One search depends on what the machine does during its few steps.
    """
    return sorted(found, key=lambda step: step.factor if step else 0.0)[(len(found) - 1) // 2]


def judge_step(report: Report, names: list[str], limit_ms: float, factor: float) -> Step:
    """Whether a test held: every traffic's p99 within the limit, no errors, nothing unfinished or unsent."""
    figures = report.figures
    p99 = max((figures.get(f"{name}_submit_p99_ms", float("inf")) for name in names), default=float("inf"))
    errors = figures["error_fraction"] + figures["unsent"]
    rate = sum(figures[f"{name}_done_per_s"] for name in names)
    return Step(factor, rate, p99, errors, p99 <= limit_ms and errors == 0)

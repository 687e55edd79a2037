"""What a test found: figures by name, the objectives, and the lines over time that are drawn."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from cadenza_loadtest.measurement import Measurement
from cadenza_loadtest.observer import JobRecord, Observation
from cadenza_loadtest.scenario import Objective, Scenario, ScenarioError

PERCENTILES: Final = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p999": 99.9, "max": 100.0}

_LATENCIES: Final[Mapping[str, Sequence[str]]] = {
    "job": ("submit", "result"),
    "jobs": ("submit",),
    "batch": ("submit",),
    "session": ("open", "submit", "iteration", "session"),
}
"""What is measured of each kind of traffic."""

_TALLIES: Final = ("sent", "done", "errors", "unfinished", "unsent")
"""What is counted of each."""

_COUNTS: Final = frozenset(
    {
        "error_fraction",
        "unsent",
        "unfinished_operations",
        "jobs_recorded",
        "jobs_ended",
        "jobs_failed",
        "jobs_ended_per_s",
        "queue_depth_max",
        "queue_depth_mean",
        "share_gap_max",
    }
)
"""The figures that every report may have, beside latencies and waiting times."""

LAG_LIMIT_MS: Final = 20.0
"""A generator that is later than this at the 99th percentile measured itself."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether an objective was met."""

    figure: str
    asked: str
    found: float | None
    met: bool


@dataclass(frozen=True, slots=True)
class Report:
    """A test's outcome. As JSON it holds all that its pages show."""

    scenario: str
    description: str
    time: str
    """UTC, ISO 8601."""
    server: str
    seed: int
    factor: float
    processes: int
    duration_s: float
    figures: dict[str, float]
    errors: dict[str, int]
    verdicts: list[Verdict]
    remarks: list[str]
    series: dict[str, list[list[float]]] = field(default_factory=dict)
    """By name: [second, value], in order."""
    accounts: dict[str, list[float]] = field(default_factory=dict)
    """By account: the fraction of the use that its shares ask for, and the one it had."""

    @property
    def met(self) -> bool:
        """Whether all objectives were met."""
        return all(verdict.met for verdict in self.verdicts)

    def to_json(self) -> str:
        """The whole of it."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def read(cls, path: Path) -> "Report":
        """A report from its JSON. Raises `ValueError` if the file holds none."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{**content, "verdicts": [Verdict(**one) for one in content["verdicts"]]})
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path}: it is no report of this tool: {error}") from error


def make_report(
    scenario: Scenario,
    measured: Measurement,
    seen: Observation,
    *,
    time: str,
    server: str,
    factor: float,
    processes: int,
) -> Report:
    """Put together what the clients measured and what the server recorded."""
    figures = dict(_client_figures(measured, scenario))
    figures.update(_server_figures(seen, scenario.duration_s))
    remarks = [seen.trouble] if seen.trouble else []
    if seen.jobs_cut:
        remarks.append(f"only the first {len(seen.jobs)} jobs were read back; figures of waiting are of those")
    lag = figures.get("generator_lag_p99_ms", 0.0)
    if lag > LAG_LIMIT_MS:
        remarks.append(
            f"the generator itself was late by {lag:.0f} ms (p99), which is in every latency: "
            "use more processes, or another machine"
        )
    shares = {path: shares for path, (shares, _) in seen.accounts.items()}
    charged = {path: max(0.0, used) for path, (_, used) in seen.accounts.items()}
    accounts = {}
    if sum(charged.values()) > 0 and sum(shares.values()) > 0:
        accounts = {
            path: [shares[path] / sum(shares.values()), charged[path] / sum(charged.values())] for path in shares
        }
        figures["share_gap_max"] = max(abs(due - used) for due, used in accounts.values())
    failed = Counter(f"failed job: {job.trouble}" for job in seen.jobs if job.trouble)
    return Report(
        scenario=scenario.name,
        description=scenario.description,
        time=time,
        server=server,
        seed=scenario.seed,
        factor=factor,
        processes=processes,
        duration_s=scenario.duration_s,
        figures={name: round(value, 4) for name, value in figures.items() if math.isfinite(value)},
        errors=dict((measured.errors + failed).most_common()),
        verdicts=[judge(objective, figures) for objective in scenario.objectives],
        remarks=remarks,
        series=_make_series(measured, seen, scenario),
        accounts=accounts,
    )


def check_objectives(scenario: Scenario) -> None:
    """Raises `ScenarioError` if an objective is about a figure that no report of this scenario can have."""
    possible = {*_COUNTS, *_latency_names("generator_lag")}
    for traffic in scenario.traffic:
        possible.add(f"{traffic.name}_done_per_s")
        possible.update(f"{traffic.name}_{what}" for what in _TALLIES)
        for what in _LATENCIES[traffic.kind]:
            possible.update(_latency_names(f"{traffic.name}_{what}"))
    for job_class in ("calibration", "session", "fair_share"):
        possible.update(f"wait_{job_class}_{label}_s" for label in PERCENTILES)
    for objective in scenario.objectives:
        if objective.figure not in possible and not objective.figure.startswith("utilisation_"):
            near = get_close_matches(objective.figure, possible, 1)
            hint = f": do you mean {near[0]}?" if near else ": see the README's list of figures"
            raise ScenarioError(f"objectives.{objective.figure} is no figure of this scenario{hint}")


def _latency_names(name: str) -> list[str]:
    return [f"{name}_{label}_ms" for label in PERCENTILES]


def judge(objective: Objective, figures: Mapping[str, float]) -> Verdict:
    """A figure that is missing misses its objective."""
    found = figures.get(objective.figure)
    if found is not None and not math.isfinite(found):
        found = None
    asked = " and ".join(
        f"{word} {bound:g}"
        for word, bound in (("at least", objective.at_least), ("at most", objective.at_most))
        if bound is not None
    )
    met = (
        found is not None
        and (objective.at_most is None or found <= objective.at_most)
        and (objective.at_least is None or found >= objective.at_least)
    )
    return Verdict(objective.figure, asked, found, met)


def _client_figures(measured: Measurement, scenario: Scenario) -> Iterable[tuple[str, float]]:
    for name, histogram in measured.latencies.items():
        for label, percentile in PERCENTILES.items():
            yield f"{name}_{label}_ms", histogram.get_value_at_percentile(percentile) / 1e3
    counts = measured.counts
    for traffic in scenario.traffic:
        for what in _TALLIES:
            yield f"{traffic.name}_{what}", float(counts[f"{traffic.name}_{what}"])
        yield f"{traffic.name}_done_per_s", counts[f"{traffic.name}_done"] / scenario.duration_s
    sent = sum(counts[f"{traffic.name}_sent"] for traffic in scenario.traffic)
    errors = sum(counts[f"{traffic.name}_errors"] for traffic in scenario.traffic)
    unfinished = sum(counts[f"{traffic.name}_unfinished"] for traffic in scenario.traffic)
    # who still waits at the end was not served: a server that answers nothing must not look as one that never fails
    yield "error_fraction", (errors + unfinished) / sent if sent else 0.0
    yield "unsent", float(sum(counts[f"{traffic.name}_unsent"] for traffic in scenario.traffic))
    yield "unfinished_operations", float(unfinished)


def _server_figures(seen: Observation, duration_s: float) -> Iterable[tuple[str, float]]:
    if not seen.jobs:
        return
    ended = [job for job in seen.jobs if job.end_s is not None]
    yield "jobs_recorded", float(len(seen.jobs))
    yield "jobs_ended", float(len(ended))
    yield "jobs_failed", float(sum(1 for job in ended if job.state == "failed"))
    inside = [job for job in ended if 0 <= (job.end_s or 0.0) < duration_s]
    yield "jobs_ended_per_s", len(inside) / duration_s
    for job_class in sorted({job.job_class for job in seen.jobs}):
        waits = sorted(job.start_s - job.create_s for job in _of(seen.jobs, job_class) if job.start_s is not None)
        for label, percentile in PERCENTILES.items():
            yield f"wait_{job_class}_{label}_s", _percentile(waits, percentile)
    for device in sorted({job.device for job in seen.jobs}):
        busy = sum(
            max(0.0, min(job.end_s, duration_s) - max(job.start_s, 0.0))
            for job in seen.jobs
            if job.device == device and job.start_s is not None and job.end_s is not None
        )
        yield f"utilisation_{device}", busy / duration_s
    depths = [sum(sample.queued.values()) for sample in seen.samples]
    if depths:
        yield "queue_depth_max", float(max(depths))
        yield "queue_depth_mean", fmean(depths)


def _of(jobs: Iterable[JobRecord], job_class: str) -> Iterable[JobRecord]:
    return (job for job in jobs if job.job_class == job_class)


def _percentile(ordered: Sequence[float], percentile: float) -> float:
    """The smallest value that at least so many percent do not exceed."""
    if not ordered:
        return math.nan
    return ordered[max(0, math.ceil(percentile / 100 * len(ordered)) - 1)]


def _make_series(measured: Measurement, seen: Observation, scenario: Scenario) -> dict[str, list[list[float]]]:
    series: dict[str, list[list[float]]] = {}
    for name, by_second in sorted(measured.seconds.items()):
        for label in ("p50", "p99", "max"):
            series[f"latency {name} {label}"] = [
                [float(second), _percentile(sorted(values), PERCENTILES[label]) / 1e3]
                for second, values in sorted(by_second.items())
            ]
        series[f"rate {name}"] = [[float(second), float(len(values))] for second, values in sorted(by_second.items())]
    for job_class in ("calibration", "session", "fair share"):
        series[f"queued {job_class}"] = [
            [round(sample.at_s, 3), float(sample.queued[job_class])] for sample in seen.samples
        ]
    for device in sorted({job.device for job in seen.jobs}):
        series[f"utilisation {device}"] = _utilisation(
            [job for job in seen.jobs if job.device == device], scenario.duration_s
        )
    return series


def _utilisation(jobs: Sequence[JobRecord], duration_s: float) -> list[list[float]]:
    """The busy part of each second."""
    busy = [0.0] * math.ceil(duration_s)
    for job in jobs:
        if job.start_s is None or job.end_s is None:
            continue
        begin, end = max(job.start_s, 0.0), min(job.end_s, duration_s)
        for second in range(int(begin), math.ceil(end)):
            busy[second] += max(0.0, min(end, second + 1) - max(begin, second))
    return [[float(second), round(part, 4)] for second, part in enumerate(busy)]


def format_report(report: Report) -> str:
    """The report for a terminal."""
    lines = [f"{report.scenario}: {report.description}".rstrip(": ")]
    scale = f", rates x {report.factor:g}" if report.factor != 1 else ""
    lines.append(
        f"{report.time} on {report.server}, {report.duration_s:g} s, seed {report.seed}, "
        f"{report.processes} process{'es' if report.processes > 1 else ''}{scale}"
    )
    lines += ["", "figure                                    value", "-" * 50]
    lines += [f"{name:<40} {_number(value):>10}" for name, value in report.figures.items()]
    if report.accounts:
        lines += ["", "account                                due      used", "-" * 50]
        lines += [f"{path:<34} {due:>8.1%} {used:>8.1%}" for path, (due, used) in report.accounts.items()]
    if report.errors:
        lines += ["", "errors", "-" * 50]
        lines += [f"{name:<40} {count:>10}" for name, count in report.errors.items()]
    if report.verdicts:
        lines += ["", "objectives", "-" * 50]
        for verdict in report.verdicts:
            found = "not measured" if verdict.found is None else _number(verdict.found)
            lines.append(f"{'met   ' if verdict.met else 'MISSED'}  {verdict.figure} {verdict.asked}: {found}")
    lines += [f"note: {remark}" for remark in report.remarks]
    return "\n".join(lines)


def compare_reports(before: Report, after: Report) -> str:
    """Every figure of two reports, side by side, with the ratio of the second to the first."""
    lines = [f"{'figure':<40} {'before':>12} {'after':>12} {'ratio':>8}", "-" * 75]
    for name in dict.fromkeys([*before.figures, *after.figures]):
        old, new = before.figures.get(name), after.figures.get(name)
        ratio = f"{new / old:.2f}" if old and new is not None else ""
        cells = ["-" if value is None else _number(value) for value in (old, new)]
        lines.append(f"{name:<40} {cells[0]:>12} {cells[1]:>12} {ratio:>8}")
    if before.scenario != after.scenario or before.factor != after.factor or before.seed != after.seed:
        lines.append("note: the two are not of the same scenario, seed and rates")
    return "\n".join(lines)


def _number(value: Any) -> str:
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) < 1e15 else f"{value:,.3f}"

"""What came of a scenario: the output format of tests/scenarios/README.md, and how it is compared with `expect`."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cadenza_server.model.words import CloseReason, JobReason, JobState, SessionState
from cadenza_server.simulation.expectation import Entry, Expectation


def to_seconds(time: int) -> float:
    """Return nanoseconds as the nearest double of seconds."""
    return time / 1_000_000_000


@dataclass(slots=True)
class Ran:
    """A run, in nanoseconds. `user`: None for a calibration. `outcome`: the job's final state, WORKER_LOST, or RUNNING
    with no end."""

    job: str
    user: str | None
    device: str
    start: int
    epoch: int
    end: int | None = None
    outcome: str = "RUNNING"


@dataclass(frozen=True, slots=True)
class SessionStep:
    """A session came to a state, at an instant in nanoseconds."""

    at: int
    state: SessionState
    reason: CloseReason | None = None


@dataclass(frozen=True, slots=True)
class WindowStep:
    """A reservation's window opened or closed, at an instant in nanoseconds."""

    at: int
    device: str
    holder: str
    opened: bool


@dataclass(frozen=True, slots=True)
class Rejected:
    """A command was refused, at an instant in nanoseconds. `event`: the name that it gives; `message`: why."""

    at: int
    event: str
    code: str
    message: str


@dataclass(slots=True)
class SimulationOutcome:
    """All that came of a scenario. `charged`: nanoseconds settled on each user. `windows` are for people only."""

    runs: list[Ran] = field(default_factory=list)
    jobs: dict[str, tuple[JobState, JobReason | None]] = field(default_factory=dict)
    sessions: dict[str, list[SessionStep]] = field(default_factory=dict)
    charged: dict[str, int] = field(default_factory=dict)
    rejected: list[Rejected] = field(default_factory=list)
    windows: list[WindowStep] = field(default_factory=list)

    def as_output(self) -> dict[str, Any]:
        """Return the output as JSON's values."""
        return {
            "runs": [_run_entry(run) for run in self.runs],
            "jobs": {name: {"state": state, "reason": reason} for name, (state, reason) in self.jobs.items()},
            "sessions": {name: [_step_entry(step) for step in steps] for name, steps in self.sessions.items()},
            "charged": {user: round(to_seconds(charged), 6) for user, charged in self.charged.items() if charged},
            "rejected": [{"at": to_seconds(each.at), "event": each.event, "code": each.code} for each in self.rejected],
        }

    def as_json(self) -> str:
        """Return the output as one line."""
        return json.dumps(self.as_output())


def _run_entry(run: Ran) -> dict[str, Any]:
    return {
        "job": run.job,
        "device": run.device,
        "start": to_seconds(run.start),
        "end": None if run.end is None else to_seconds(run.end),
        "outcome": run.outcome,
        "epoch": run.epoch,
    }


def _step_entry(step: SessionStep) -> dict[str, Any]:
    entry: dict[str, Any] = {"at": to_seconds(step.at), "state": step.state}
    if step.reason is not None:
        entry["reason"] = step.reason
    return entry


def differences(outcome: SimulationOutcome, expect: Expectation) -> list[str]:
    """Say in sentences where the outcome is not what was expected; none if it is."""
    output = outcome.as_output()
    found: list[str] = []
    if expect.runs is not None:
        found += _compare_lists("run", output["runs"], expect.runs)
    if expect.jobs is not None:
        found += _compare_maps("job", output["jobs"], expect.jobs, _compare_entries)
    if expect.sessions is not None:
        found += _compare_maps("session", output["sessions"], expect.sessions, _compare_lists)
    if expect.charged is not None:
        found += _compare_maps("charged", output["charged"], expect.charged, _compare_numbers)
    if expect.rejected is not None:
        found += _compare_lists("rejected", output["rejected"], expect.rejected)
    return found


def _compare_maps(what: str, got: Mapping[str, Any], expected: Mapping[str, Any], compare: Any) -> Iterator[str]:
    for name in got.keys() | expected.keys():
        if name not in got:
            yield f"{what} {name}: expected, but there is none"
        elif name not in expected:
            yield f"{what} {name}: there is one, but none is expected"
        else:
            yield from compare(f"{what} {name}", got[name], expected[name])


def _compare_lists(what: str, got: Sequence[Entry], expected: Sequence[Entry]) -> Iterator[str]:
    for i, (one, other) in enumerate(zip(got, expected, strict=False)):
        yield from _compare_entries(f"{what} {i + 1}", one, other)
    for i in range(len(expected), len(got)):
        yield f"{what} {i + 1}: {_show(got[i])}, but only {len(expected)} are expected"
    for i in range(len(got), len(expected)):
        yield f"{what} {i + 1}: expected {_show(expected[i])}, but there are only {len(got)}"


def _compare_entries(what: str, got: Entry, expected: Entry) -> Iterable[str]:
    if any(got.get(key) != value for key, value in expected.items()):
        yield f"{what}: expected {_show(expected)}, but it is {_show(got)}"


def _compare_numbers(what: str, got: float, expected: float) -> Iterable[str]:
    if got != expected:
        yield f"{what}: expected {expected}, but it is {got}"


def _show(entry: Entry) -> str:
    return json.dumps(entry)

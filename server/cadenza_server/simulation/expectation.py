"""What a scenario file expects to come of it; what it leaves out is not compared."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from cadenza_server.model.errors import Code
from cadenza_server.model.words import CloseReason, JobReason, JobState, SessionState
from cadenza_server.simulation.tree import List, Scalar, Table, Tree
from cadenza_server.simulation.values import Keys, read_integer, read_number, read_text, refuse, word_reader

RUN_OUTCOMES: Final = ("SUCCEEDED", "FAILED", "CANCELLED", "WORKER_LOST", "RUNNING")

Entry = Mapping[str, object]
"""Some keys of an object of the output, with the values that they must have."""


@dataclass(frozen=True, slots=True)
class Expectation:
    """Each part as in the output, or None where the file says nothing."""

    runs: tuple[Entry, ...] | None
    jobs: Mapping[str, Entry] | None
    sessions: Mapping[str, tuple[Entry, ...]] | None
    charged: Mapping[str, float] | None
    rejected: tuple[Entry, ...] | None


def read_expectation(tree: Tree) -> Expectation:
    """Read `expect`. Raises `ScenarioError` if it is none."""
    keys = Keys(tree, "`expect`", ("runs", "jobs", "sessions", "charged", "rejected"))
    return Expectation(
        runs=keys.optional("runs", lambda runs: tuple(_read_run(each) for each in _items(runs))),
        jobs=keys.optional("jobs", lambda jobs: {name: _read_job(each) for name, each in _entries(jobs)}),
        sessions=keys.optional(
            "sessions",
            lambda sessions: {
                name: tuple(_read_session_step(each) for each in _items(steps)) for name, steps in _entries(sessions)
            },
        ),
        charged=keys.optional("charged", lambda users: {user: read_number(each) for user, each in _entries(users)}),
        rejected=keys.optional("rejected", lambda each: tuple(_read_rejected(item) for item in _items(each))),
    )


_read_job_state: Final = word_reader(JobState)
_read_job_reason: Final = word_reader(JobReason)
_read_session_state: Final = word_reader(SessionState)
_read_close_reason: Final = word_reader(CloseReason)
_read_code: Final = word_reader(Code)


def _items(tree: Tree) -> list[Tree]:
    if not isinstance(tree, List):
        refuse(tree, "expected a list")
    return tree.items


def _entries(tree: Tree) -> list[tuple[str, Tree]]:
    if not isinstance(tree, Table):
        refuse(tree, "expected a mapping")
    return list(tree.entries.items())


def _read_end(tree: Tree) -> float | None:
    return None if isinstance(tree, Scalar) and tree.kind == "null" else read_number(tree)


def _read_outcome(tree: Tree) -> str:
    text = read_text(tree)
    if text not in RUN_OUTCOMES:
        refuse(tree, f"expected one of {', '.join(RUN_OUTCOMES)}, not {text!r}")
    return text


def _read_run(tree: Tree) -> Entry:
    """Read `[job, start, end]` with or without the outcome, or a mapping with any of a run's keys."""
    if isinstance(tree, List):
        if len(tree.items) not in (3, 4):
            refuse(tree, "a run is [job, start, end] or [job, start, end, outcome]")
        job, start, end, *outcome = tree.items
        return {
            "job": read_text(job),
            "start": read_number(start),
            "end": _read_end(end),
            "outcome": _read_outcome(outcome[0]) if outcome else "SUCCEEDED",
        }
    keys = Keys(tree, "a run", ("job", "device", "start", "end", "outcome", "epoch"))
    entry: dict[str, object] = {}
    if "end" in keys:
        entry["end"] = keys.optional("end", read_number)
    for key, read in (
        ("job", read_text),
        ("device", read_text),
        ("start", read_number),
        ("outcome", _read_outcome),
        ("epoch", read_integer),
    ):
        if key in keys:
            entry[key] = read(keys.required(key))
    return entry


def _read_job(tree: Tree) -> Entry:
    keys = Keys(tree, "a job", ("state", "reason"))
    return {
        "state": str(_read_job_state(keys.required("state"))),
        "reason": keys.optional("reason", _read_job_reason),
    }


def _read_session_step(tree: Tree) -> Entry:
    """Read `[at, state]`, `[at, state, reason]`, or a mapping with these keys."""
    if isinstance(tree, List):
        if len(tree.items) not in (2, 3):
            refuse(tree, "a change of a session is [at, state] or [at, state, reason]")
        at, state, *reason = tree.items
        return {
            "at": read_number(at),
            "state": _read_session_state(state),
            "reason": _read_close_reason(reason[0]) if reason else None,
        }
    keys = Keys(tree, "a change of a session", ("at", "state", "reason"))
    return {
        "at": read_number(keys.required("at")),
        "state": _read_session_state(keys.required("state")),
        "reason": keys.optional("reason", _read_close_reason),
    }


def _read_rejected(tree: Tree) -> Entry:
    keys = Keys(tree, "a rejected command", ("at", "event", "code"))
    return {
        "at": read_number(keys.required("at")),
        "event": keys.text("event"),
        "code": _read_code(keys.required("code")),
    }

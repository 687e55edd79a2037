"""What waits costs nothing: whatever happens, the scheduler does as much for 20 queued jobs as for 5,000.

Counted are the lines of Python that are run, each turn of a loop included: they are the same every time, as seconds are
not. (The compiled queue has no lines; its figures are in the benchmarks.)
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import FrameType
from typing import Any

import pytest
from cadenza_server.model.commands import (
    Caller,
    CancelJob,
    CancelSession,
    CloseSession,
    Command,
    CreateReservation,
    CreateSession,
    Resumed,
    RunEnded,
    SetPriority,
    SetShares,
    SubmitJob,
)
from cadenza_server.model.errors import Refusal
from cadenza_server.model.events import Outcome
from cadenza_server.model.settings import RUNTIME_2023, SECOND
from cadenza_server.model.words import Pending, RunOutcome
from cadenza_server.scheduling import Scheduler

OPERATOR = Caller("root", operator=True)
ANN, BOB = Caller("lab/ann"), Caller("lab/bob")
HOUR = 3600 * SECOND
SETTINGS = replace(RUNTIME_2023, calibration_interval=HOUR)


def crowd(waiting: int) -> Scheduler:
    """Two devices, each running `first-...` of somebody else, and so many jobs of 10 users waiting for each; a session
    of Ann's that has the first device, with as many jobs, and one of Bob's that waits for it."""
    scheduler = Scheduler({"q0": SETTINGS, "q1": SETTINGS})
    commands: list[Command] = [
        CreateSession(session="mine", caller=ANN, device="q0", max_time=2 * HOUR, interactive_ttl=10 * SECOND),
        CreateSession(session="his", caller=BOB, device="q0"),
        CreateReservation(
            reservation="window", caller=OPERATOR, device="q1", holder="uni", start=HOUR // 2, end=HOUR // 2 + SECOND
        ),
        SubmitJob(job="first-q0", caller=ANN, session="mine"),
        SubmitJob(job="first-q1", caller=Caller("zoe"), device="q1"),
        SubmitJob(job="his-1", caller=BOB, session="his"),
    ]
    for i in range(waiting):
        commands += [
            SubmitJob(job=f"{device}-{i}", caller=Caller(f"crowd/u{i % 10}"), device=device) for device in ("q0", "q1")
        ]
        commands.append(SubmitJob(job=f"mine-{i}", caller=ANN, session="mine"))
    scheduler.apply(commands, 0)
    return scheduler


def end(device: str, job: str, outcome: RunOutcome = RunOutcome.SUCCEEDED) -> RunEnded:
    return RunEnded(device=device, job=job, attempt=1, outcome=outcome)


CASES: dict[str, tuple[list[Command], int]] = {
    "a job comes": ([SubmitJob(job="new", caller=ANN, device="q1")], SECOND),
    "a queued job is cancelled": ([CancelJob(job="q0-7", caller=OPERATOR)], SECOND),
    "a priority changes": ([SetPriority(job="q0-7", caller=OPERATOR, priority=5)], SECOND),
    "shares change": ([SetShares(path="crowd", caller=OPERATOR, shares=3.0)], SECOND),
    "a run ends and fair share picks": ([end("q1", "first-q1")], SECOND // 2),
    "a run ends and the session's next job runs": ([end("q0", "first-q0")], SECOND // 2),
    "a worker is lost": ([end("q1", "first-q1", RunOutcome.WORKER_LOST)], SECOND // 2),
    "an estimate is outlasted": ([], SECOND),
    "a session drains": ([CloseSession(session="mine", caller=ANN, pending=Pending.DRAIN)], SECOND // 2),
    "a session closes with nothing to run": (
        [CloseSession(session="his", caller=BOB, pending=Pending.FAIL_QUEUED)],
        SECOND // 2,
    ),
    "a window opens": ([], HOUR // 2),
    "a window closes": ([], HOUR // 2 + SECOND),
    "calibrations come": ([], HOUR),
    "the server is back": ([Resumed(down_from=SECOND // 4)], SECOND // 2),
    "a session expires": ([], 2 * HOUR),
}


def lines_of(act: Callable[[], object]) -> int:
    """How many lines it runs."""
    count = 0

    def note(_frame: FrameType, event: str, _arg: object) -> Any:
        nonlocal count
        count += event == "line"
        return note

    before = sys.gettrace()
    sys.settrace(note)
    try:
        act()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("case", CASES)
def test_nothing_costs_work_for_jobs_that_wait(case: str) -> None:
    commands, now = CASES[case]
    counts = []
    for waiting in (20, 5_000):
        scheduler = crowd(waiting)
        while (deadline := scheduler.next_deadline()) is not None and deadline < now:
            scheduler.apply([], deadline)
        outcomes: list[Outcome] = []
        counts.append(lines_of(partial(_apply, scheduler, commands, now, outcomes)))
        assert outcomes[0].events, "nothing happened: the test would see nothing"
        assert not [answer for answer in outcomes[0].answers if isinstance(answer, Refusal)]
    assert 0 < counts[1] <= counts[0], counts


def _apply(scheduler: Scheduler, commands: list[Command], now: int, outcomes: list[Outcome]) -> None:
    outcomes.append(scheduler.apply(commands, now))


def test_a_loop_over_waiting_jobs_would_be_seen() -> None:
    """Ending all queued jobs of a session is work for each of them, as it changes them."""
    counts = []
    for waiting in (20, 5_000):
        cancel: list[Command] = [CancelSession(session="mine", caller=ANN)]
        counts.append(lines_of(partial(_apply, crowd(waiting), cancel, SECOND // 2, [])))
    assert counts[1] - counts[0] >= 5_000 - 20

"""Random command sequences: both queues decide alike, a restored scheduler goes on alike, invariants hold."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import cast

from cadenza_server.model.commands import (
    Caller,
    CancelJob,
    CancelSession,
    CloseSession,
    Command,
    CreateReservation,
    CreateSession,
    DeleteReservation,
    Resumed,
    RunEnded,
    SetDeviceReady,
    SetPriority,
    SetShares,
    SubmitJob,
)
from cadenza_server.model.errors import Refusal
from cadenza_server.model.events import (
    Event,
    HoldEnded,
    JobEnded,
    JobQueued,
    JobRequeued,
    RunFinished,
    RunStarted,
    SessionChanged,
    SessionCreated,
    SessionJobsEnded,
    UsageSettled,
)
from cadenza_server.model.settings import RUNTIME_2023, RUNTIME_2024, SECOND, DeviceSettings
from cadenza_server.model.words import JobClass, Pending, RunOutcome, SessionMode, SessionState
from cadenza_server.scheduling import Scheduler
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

import _fastqueue
from _fastqueue import reference
from tests.simulation.seeds import run_seed

SHORT = {
    "interactive_ttl_dedicated": 4 * SECOND,
    "interactive_ttl_batch": 1 * SECOND,
    "max_time": 20 * SECOND,
    "unused_ttl": 9 * SECOND,
    "session_cache_ttl": 6 * SECOND,
    "limit": 12 * SECOND,
    "max_attempts": 2,
    "calibration_duration": 2 * SECOND,
}
DEVICES: dict[str, DeviceSettings] = {
    "old": replace(RUNTIME_2023, calibration_interval=15 * SECOND, **SHORT),  # type: ignore[arg-type]
    "new": replace(RUNTIME_2024, **SHORT),  # type: ignore[arg-type]
}
OPERATOR = Caller("root", operator=True)
USERS = ("lab/a", "lab/b", "uni/c", "d")
HALF_LIFE = 30 * SECOND
REFERENCE = cast("Callable[[int], _fastqueue.Queue]", reference.Queue)

# A step: seconds to wait, what to do, and three small numbers that say to what and how.
ACTIONS = (
    *("submit",) * 5,
    *("submit_to_session",) * 6,
    *("end_run",) * 6,
    *("wait_for_deadline",) * 2,
    *("create_session",) * 3,
    "submit_calibration",
    "cancel",
    "close",
    "cancel_session",
    "reserve",
    "delete_reservation",
    "set_priority",
    "set_shares",
    "set_ready",
    "resume",
)
STEPS = st.lists(
    st.tuples(st.integers(0, 4), st.sampled_from(ACTIONS), st.integers(0, 7), st.integers(0, 7), st.integers(0, 7)),
    min_size=1,
    max_size=60,
)
Step = tuple[int, str, int, int, int]


@dataclass
class Drive:
    """Turns steps into commands for one scheduler, and remembers what came of them."""

    scheduler: Scheduler
    now: int = 0
    made: int = 0
    events: list[tuple[int, Event]] = field(default_factory=list)
    refusals: list[tuple[int, str, str]] = field(default_factory=list)
    running: dict[str, RunStarted] = field(default_factory=dict)

    def follow(self, step: Step) -> None:
        wait, action, i, j, k = step
        due = self.scheduler.next_deadline()
        if action == "wait_for_deadline":
            self.now = self.now if due is None else max(self.now, due)
            self.apply([])
            return
        self.now += wait * SECOND
        self.apply(self.commands(action, i, j, k))

    def apply(self, commands: list[Command]) -> None:
        outcome = self.scheduler.apply(commands, self.now)
        for answer in outcome.answers:
            if isinstance(answer, Refusal):
                self.refusals.append((self.now, answer.code, answer.reason))
        for event in outcome.events:
            self.events.append((self.now, event))
            if isinstance(event, RunStarted):
                assert event.device not in self.running
                self.running[event.device] = event
            elif isinstance(event, RunFinished):
                del self.running[event.device]

    def commands(self, action: str, i: int, j: int, k: int) -> list[Command]:
        self.made += 1
        caller = Caller(USERS[i % 4])
        device = ("old", "new")[j % 2]
        if action == "submit":
            job = SubmitJob(job=f"j{self.made}", caller=caller, device=device, priority=k - 3)
            return [replace(job, estimate=(1 + j) * SECOND)]
        if action == "submit_to_session":
            job = SubmitJob(job=f"j{self.made}", caller=OPERATOR, session=f"s{j}", priority=i % 3)
            return [replace(job, estimate=(1 + k) * SECOND)]
        if action == "submit_calibration":
            return [SubmitJob(job=f"j{self.made}", caller=OPERATOR, device=device, job_class=JobClass.CALIBRATION)]
        if action == "end_run":
            outcomes = (
                RunOutcome.SUCCEEDED,
                RunOutcome.SUCCEEDED,
                RunOutcome.EXECUTION_ERROR,
                RunOutcome.RAN_TOO_LONG,
                RunOutcome.WORKER_LOST,
                RunOutcome.WORKER_LOST,
                RunOutcome.PUT_BACK,
                RunOutcome.SUCCEEDED,
            )
            return [
                RunEnded(device=run.device, job=run.job, attempt=run.attempt, outcome=outcomes[i])
                for run in self.running.values()
                if j > 4 or run.device == device
            ]
        if action == "create_session":
            mode = SessionMode.BATCH if k % 2 else SessionMode.DEDICATED
            session = CreateSession(session=f"s{k}", caller=caller, device=device, mode=mode)
            return [replace(session, reservation=f"r{i}") if k > 5 else session]
        if action == "cancel":
            return [CancelJob(job=f"j{max(1, self.made - 1 - i * 8 - j)}", caller=OPERATOR)]
        if action == "close":
            pending = (None, Pending.DRAIN, Pending.FAIL_QUEUED, Pending.DRAIN)[i % 4]
            return [CloseSession(session=f"s{j}", caller=OPERATOR, pending=pending)]
        if action == "cancel_session":
            return [CancelSession(session=f"s{j}", caller=OPERATOR)]
        if action == "reserve":
            start = self.now + k * SECOND
            reserve = CreateReservation(
                reservation=f"r{i}", caller=OPERATOR, device=device, holder=("lab", *USERS)[i % 5], start=start, end=0
            )
            return [replace(reserve, end=start + (1 + j) * 2 * SECOND)]
        if action == "delete_reservation":
            return [DeleteReservation(reservation=f"r{i}", caller=OPERATOR)]
        if action == "set_priority":
            return [SetPriority(job=f"j{max(1, self.made - 1 - i * 8 - j)}", caller=OPERATOR, priority=k)]
        if action == "set_shares":
            return [SetShares(path=("lab", "uni", *USERS)[i % 6], caller=OPERATOR, shares=0.5 + j)]
        if action == "set_ready":
            return [SetDeviceReady(device=device, ready=i > 2)]
        assert action == "resume"
        return [Resumed(down_from=max(0, self.now - k * SECOND))]


def fresh(devices: dict[str, DeviceSettings], queue: Callable[[int], _fastqueue.Queue]) -> Drive:
    return Drive(Scheduler(devices, half_life=HALF_LIFE, remember_final=True, _queue=queue))


SEED = seed(run_seed())
EXAMPLES = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@SEED
@EXAMPLES
@given(steps=STEPS)
def test_both_queues_decide_alike(steps: list[Step]) -> None:
    compiled, plain = fresh(DEVICES, _fastqueue.Queue), fresh(DEVICES, REFERENCE)
    for step in steps:
        compiled.follow(step)
        plain.follow(step)
        assert compiled.events == plain.events
    assert compiled.refusals == plain.refusals
    assert compiled.scheduler.state() == plain.scheduler.state()


@SEED
@EXAMPLES
@given(before=STEPS, after=STEPS)
def test_restored_scheduler_goes_on_alike(before: list[Step], after: list[Step]) -> None:
    """With one device: its usage in flight is that of one run, so it is the same double when it is charged again."""
    one = Drive(Scheduler({"new": DEVICES["new"]}, half_life=HALF_LIFE))
    for step in before:
        one.follow(step)
    state = one.scheduler.state()
    other = Drive(Scheduler.restore(state), one.now, one.made, running=dict(one.running))
    assert other.scheduler.state() == state
    seen = len(one.events)
    for step in after:
        one.follow(step)
        other.follow(step)
        assert one.events[seen:] == other.events
    assert one.scheduler.state() == other.scheduler.state()


@SEED
@EXAMPLES
@given(before=STEPS, after=STEPS, slept=st.integers(0, 30))
def test_restart_goes_on_as_if_the_server_had_only_paused(before: list[Step], after: list[Step], slept: int) -> None:
    """With any number of devices: all runs are put back, so nothing is in flight."""
    one = Drive(Scheduler(DEVICES, half_life=HALF_LIFE))
    for step in before:
        one.follow(step)
    other = Drive(Scheduler.restore(one.scheduler.state()), one.now, one.made, running=dict(one.running))
    down_from = one.now
    seen = len(one.events)
    for drive in (one, other):
        drive.now += slept * SECOND
        drive.apply([Resumed(down_from=down_from)])
        for step in after:
            drive.follow(step)
    assert one.events[seen:] == other.events
    assert one.scheduler.state() == other.scheduler.state()


@SEED
@EXAMPLES
@given(steps=STEPS)
def test_what_is_charged_is_what_was_run_and_held_and_every_job_has_one_end(steps: list[Step]) -> None:
    drive = fresh(DEVICES, _fastqueue.Queue)
    for step in steps:
        drive.follow(step)
    due = drive.scheduler.next_deadline()
    for _ in range(1000):
        if due is None or due > drive.now + 10_000 * SECOND:
            break
        drive.now = max(due, drive.now)
        drive.apply([])
        due = drive.scheduler.next_deadline()
    lengths: dict[str, float] = {}
    settled: dict[str, float] = {}
    queued: dict[str, str | None] = {}
    running: set[str] = set()
    states: dict[str, SessionState] = {}
    active: dict[str, str] = {}
    for now, event in drive.events:
        if isinstance(event, RunFinished) and event.charged:
            assert event.charged == event.end - event.start
            lengths[event.user] = lengths.get(event.user, 0.0) + _cost(event.start, event.charged)
        elif isinstance(event, HoldEnded):
            assert event.start < event.end == now
            assert active[event.device] == event.session or states[event.session] is SessionState.DRAINING
            lengths[event.user] = lengths.get(event.user, 0.0) + _cost(event.start, event.end - event.start)
        elif isinstance(event, UsageSettled):
            for path, usage, exponent in event.nodes:
                settled[path] = math.ldexp(usage, exponent)
        elif isinstance(event, JobQueued | JobRequeued):
            assert event.job not in queued
            queued[event.job] = event.session
            running.discard(event.job)
        elif isinstance(event, RunStarted):
            assert queued.pop(event.job) == event.session
            running.add(event.job)
        elif isinstance(event, JobEnded):
            assert (event.job in queued) is not (event.job in running)
            queued.pop(event.job, None)
            running.discard(event.job)
        elif isinstance(event, SessionJobsEnded):
            gone = [job for job, session in queued.items() if session == event.session]
            assert len(gone) == event.count > 0
            for job in gone:
                del queued[job]
        elif isinstance(event, SessionCreated):
            states[event.session] = SessionState.OPEN
        elif isinstance(event, SessionChanged):
            assert states[event.session] is not SessionState.CLOSED
            states[event.session] = event.state
            if event.state is SessionState.ACTIVE:
                active[event.device] = event.session
    for user, usage in lengths.items():
        assert math.isclose(settled[user], usage, rel_tol=1e-12)
    assert math.isclose(settled.get("", 0.0), sum(lengths.values()), rel_tol=1e-12)
    jobs = drive.scheduler.state().jobs
    assert {job.job for job in jobs if job.run is None} == queued.keys()
    assert {job.job for job in jobs if job.run is not None} == running


def _cost(start: int, length: int) -> float:
    n, r = divmod(start, HALF_LIFE)
    k = (HALF_LIFE / SECOND) / math.log(2)
    return math.ldexp((k * math.exp2(r / HALF_LIFE)) * math.expm1((length / SECOND) / k), n)

"""The scheduler asked directly: what no scenario file can say."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
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
    SubmitJobs,
)
from cadenza_server.model.errors import Code, Refusal
from cadenza_server.model.events import (
    EstimateDoubled,
    Event,
    HoldEnded,
    JobEnded,
    JobPriorityChanged,
    JobQueued,
    JobRequeued,
    Outcome,
    ReservationEnded,
    RunFinished,
    RunStarted,
    SessionChanged,
    SessionJobsEnded,
    SessionJobsReleased,
    SharesChanged,
    UsageSettled,
)
from cadenza_server.model.settings import HALF_LIFE_DEFAULT, RUNTIME_2023, RUNTIME_2024, SECOND, DeviceSettings
from cadenza_server.model.words import (
    CloseReason,
    JobClass,
    JobReason,
    JobState,
    Rule,
    RunOutcome,
    SessionMode,
    SessionState,
)
from cadenza_server.scheduling import Scheduler

OPERATOR = Caller("root", operator=True)
ALICE = Caller("lab/alice")
BOB = Caller("lab/bob")


class Desk:
    """A scheduler with one device, and times in whole seconds."""

    def __init__(
        self,
        settings: DeviceSettings = RUNTIME_2023,
        remember_final: bool = False,
        shares: dict[str, float] | None = None,
    ) -> None:
        self.scheduler = Scheduler({"qpu": settings}, remember_final=remember_final, shares=shares)
        self.run: RunStarted | None = None

    def at(self, seconds: int, *commands: Command) -> list[Event]:
        """Apply commands; return all events of the instant. Nothing may be refused."""
        outcome = self.apply(seconds, *commands)
        for answer in outcome.answers:
            assert not isinstance(answer, Refusal), answer
        return outcome.events

    def apply(self, seconds: int, *commands: Command) -> Outcome:
        outcome = self.scheduler.apply(commands, seconds * SECOND)
        for event in outcome.events:
            if isinstance(event, RunStarted):
                self.run = event
        return outcome

    def refused(self, seconds: int, command: Command) -> Refusal:
        """Apply a command that has to be refused, and leave no trace."""
        self.at(seconds)
        before = self.scheduler.state()
        outcome = self.apply(seconds, command)
        (answer,) = outcome.answers
        assert isinstance(answer, Refusal)
        assert outcome.events == []
        assert self.scheduler.state() == before
        return answer

    def end(self, seconds: int, outcome: RunOutcome = RunOutcome.SUCCEEDED) -> list[Event]:
        """End the run that started last."""
        assert self.run is not None
        return self.at(seconds, RunEnded(device="qpu", job=self.run.job, attempt=self.run.attempt, outcome=outcome))

    def sleep_to(self, seconds: int) -> list[Event]:
        """Wake up for each deadline up to an instant, and at it."""
        events: list[Event] = []
        while (due := self.scheduler.next_deadline()) is not None and due < seconds * SECOND:
            events += self.scheduler.apply([], due).events
        return events + self.at(seconds)


def submit(job: str, caller: Caller = BOB, *, session: str | None = None, estimate: int | None = None) -> SubmitJob:
    return SubmitJob(
        job=job,
        caller=caller,
        device=None if session else "qpu",
        session=session,
        estimate=None if estimate is None else estimate * SECOND,
    )


def reserve(name: str, start: int, end: int, holder: str = "lab") -> CreateReservation:
    return CreateReservation(
        reservation=name, caller=OPERATOR, device="qpu", holder=holder, start=start * SECOND, end=end * SECOND
    )


def started(events: list[Event]) -> list[str]:
    return [event.job for event in events if isinstance(event, RunStarted)]


def states(events: list[Event]) -> list[tuple[SessionState, CloseReason | None]]:
    return [(event.state, event.reason) for event in events if isinstance(event, SessionChanged)]


# --- 2: time --------------------------------------------------------------------------------------------------------


def test_time_that_goes_back_is_refused_and_changes_nothing() -> None:
    desk = Desk()
    desk.at(5, submit("b1"))
    before = desk.scheduler.state()
    with pytest.raises(ValueError, match="went back"):
        desk.at(4, submit("b2"))
    assert desk.scheduler.state() == before
    assert started(desk.at(5, submit("b2"))) == []


def test_overdue_deadlines_fire_by_due_time_with_the_now_of_the_instant() -> None:
    desk = Desk(replace(RUNTIME_2023, unused_ttl=60 * SECOND))
    desk.at(
        0,
        CreateSession(session="s1", caller=ALICE, device="qpu", max_time=20 * SECOND),
        submit("a1", ALICE, session="s1"),
    )
    desk.end(5)
    desk.at(6, CreateSession(session="s2", caller=BOB, device="qpu"))
    desk.at(
        7,
        CreateReservation(
            reservation="r1", caller=OPERATOR, device="qpu", holder="x", start=10 * SECOND, end=15 * SECOND
        ),
    )
    events = desk.at(100, submit("b1"))
    assert [type(event).__name__ for event in events] == [
        "ReservationStarted",  # due at 10: not alice's
        "HoldEnded",
        "UsageSettled",
        "SessionChanged",
        "ReservationEnded",  # due at 15
        "SessionJobsReleased",  # due at 20
        "SessionChanged",
        "SessionChanged",  # s2 unused, due at 66
        "JobQueued",
        "RunStarted",
    ]
    hold = next(event for event in events if isinstance(event, HoldEnded))
    assert (hold.start, hold.end) == (5 * SECOND, 100 * SECOND)
    released = next(event for event in events if isinstance(event, SessionJobsReleased))
    assert released.cache_deadline == (20 + 3600) * SECOND


def test_ends_come_before_commands_whatever_their_order_in_the_call() -> None:
    desk = Desk(remember_final=True)
    desk.at(0, submit("b1"))
    outcome = desk.apply(
        5,
        CancelJob(job="b1", caller=BOB),
        RunEnded(device="qpu", job="b1", attempt=1, outcome=RunOutcome.SUCCEEDED),
    )
    refusal, ended = outcome.answers
    assert isinstance(refusal, Refusal)
    assert (refusal.code, refusal.reason) == (Code.FAILED_PRECONDITION, "JOB_FINAL")
    assert isinstance(ended, tuple)
    assert [type(event) for event in ended] == [RunFinished, UsageSettled, JobEnded]


def test_late_report_of_another_run_is_ignored() -> None:
    desk = Desk()
    desk.at(0, submit("b1", estimate=10))
    for job, attempt, device in (("b1", 2, "qpu"), ("b2", 1, "qpu"), ("b1", 1, "nowhere")):
        late = RunEnded(device=device, job=job, attempt=attempt, outcome=RunOutcome.SUCCEEDED)
        assert desk.at(1, late) == []
    assert desk.scheduler.device_view("qpu").running == "b1"  # type: ignore[union-attr]


def test_device_that_is_not_ready_is_not_free() -> None:
    desk = Desk()
    assert started(desk.at(0, SetDeviceReady(device="qpu", ready=False), submit("b1"))) == []
    assert started(desk.at(3, SetDeviceReady(device="qpu", ready=True))) == ["b1"]
    assert desk.refused(4, SetDeviceReady(device="qq", ready=True)).reason == "UNKNOWN_DEVICE"


def test_device_that_is_not_ready_is_held_only_once_it_is_free() -> None:
    desk = Desk()
    desk.at(0, CreateSession(session="s1", caller=ALICE, device="qpu"), submit("a1", ALICE, session="s1"))
    desk.at(1, SetDeviceReady(device="qpu", ready=False))
    desk.end(5)
    desk.at(9, SetDeviceReady(device="qpu", ready=True))
    events = desk.at(20, CancelSession(session="s1", caller=ALICE))
    hold = next(event for event in events if isinstance(event, HoldEnded))
    assert (hold.start, hold.end) == (9 * SECOND, 20 * SECOND)


# --- 4: jobs --------------------------------------------------------------------------------------------------------


def test_priority_of_a_queued_job_moves_it_among_its_users_own() -> None:
    desk = Desk(remember_final=True)
    desk.at(0, submit("b0"), submit("b1"), submit("b2"))
    assert desk.at(0, SetPriority(job="b2", caller=BOB, priority=5)) == [JobPriorityChanged(job="b2", priority=5)]
    assert started(desk.end(2)) == ["b2"]
    assert desk.refused(3, SetPriority(job="b2", caller=BOB, priority=5)).reason == "JOB_NOT_QUEUED"
    assert desk.refused(3, SetPriority(job="b0", caller=BOB, priority=5)).reason == "JOB_FINAL"
    assert desk.refused(3, SetPriority(job="b1", caller=ALICE, priority=5)).reason == "NOT_OWNER"
    assert desk.refused(3, SetPriority(job="b1", caller=BOB, priority=101)).field == "priority"
    assert desk.refused(3, SetPriority(job="b9", caller=BOB, priority=0)).reason == "UNKNOWN_JOB"


def test_priority_of_a_calibration_orders_nothing() -> None:
    desk = Desk()
    desk.at(0, submit("b0"))
    for name in ("c1", "c2"):
        desk.at(0, SubmitJob(job=name, caller=OPERATOR, device="qpu", job_class=JobClass.CALIBRATION))
    desk.at(1, SetPriority(job="c2", caller=OPERATOR, priority=100))
    assert started(desk.end(2)) == ["c1"]


def test_many_jobs_are_queued_all_or_none() -> None:
    desk = Desk()
    refusal = desk.refused(0, SubmitJobs(jobs=(submit("b1"), submit("b2"), submit("b1"))))
    assert (refusal.code, refusal.reason, refusal.field) == (Code.ALREADY_EXISTS, "NAME_TAKEN", "jobs[2].job_id")
    one, two = (replace(submit(job, OPERATOR), user=user) for job, user in (("x1", "new/x"), ("x2", "new")))
    refusal = desk.refused(0, SubmitJobs(jobs=(one, two)))
    assert (refusal.reason, refusal.field) == ("PATH_CONFLICT", "jobs[1]")
    refusal = desk.refused(0, SubmitJobs(jobs=(two, one)))
    assert (refusal.reason, refusal.field) == ("PATH_CONFLICT", "jobs[1]")
    assert desk.refused(0, SubmitJobs(jobs=(submit("b1", estimate=0),))).field == "jobs[0].estimate_hint"
    events = desk.at(0, SubmitJobs(jobs=(submit("b1"), submit("b2"))))
    assert [event.seq for event in events if isinstance(event, JobQueued)] == [1, 2]


def test_only_operators_act_for_others() -> None:
    desk = Desk()
    assert desk.refused(0, replace(submit("x1"), user="lab/alice")).reason == "NOT_OPERATOR"
    session = CreateSession(session="s1", caller=BOB, device="qpu", user="lab/alice")
    assert desk.refused(0, session).reason == "NOT_OPERATOR"
    desk.at(0, replace(session, caller=OPERATOR))
    events = desk.at(0, submit("a1", OPERATOR, session="s1"), replace(submit("x1", OPERATOR), user="lab/bob"))
    assert [event.user for event in events if isinstance(event, JobQueued)] == ["lab/alice", "lab/bob"]
    assert desk.refused(1, submit("x2", BOB, session="s1")).reason == "SESSION_OF_OTHER_USER"
    assert desk.refused(1, CloseSession(session="s1", caller=BOB)).reason == "NOT_OWNER"
    desk.at(1, CancelJob(job="x1", caller=OPERATOR), CloseSession(session="s1", caller=OPERATOR))


def test_names_of_the_devices_own_calibrations_are_reserved() -> None:
    assert Desk().refused(0, submit("calibration-qpu-1")).field == "job_id"


def test_what_has_ended_is_forgotten() -> None:
    desk = Desk(RUNTIME_2024)
    desk.at(0, CreateSession(session="s1", caller=ALICE, device="qpu", max_time=10 * SECOND))
    desk.at(0, *(submit(f"a{i}", ALICE, session="s1") for i in range(5)))
    desk.at(
        1,
        CreateReservation(
            reservation="r1", caller=OPERATOR, device="qpu", holder="lab", start=2 * SECOND, end=3 * SECOND
        ),
    )
    desk.sleep_to(10)
    desk.end(11)
    state = desk.scheduler.state()
    assert (state.jobs, state.sessions, state.reservations) == ((), (), ())
    assert desk.refused(12, CancelJob(job="a1", caller=ALICE)).reason == "UNKNOWN_JOB"
    assert desk.refused(12, submit("a9", ALICE, session="s1")).reason == "UNKNOWN_SESSION"
    assert desk.scheduler.next_deadline() is None


def test_all_queued_jobs_of_a_session_end_in_one_event() -> None:
    desk = Desk()
    desk.at(0, CreateSession(session="s1", caller=ALICE, device="qpu"))
    desk.at(0, SubmitJobs(jobs=tuple(submit(f"a{i}", ALICE, session="s1") for i in range(1000))))
    events = desk.at(1, CancelSession(session="s1", caller=ALICE))
    assert (
        SessionJobsEnded(
            session="s1", device="qpu", state=JobState.CANCELLED, reason=JobReason.SESSION_CANCELLED, count=999
        )
        in events
    )
    assert not any(isinstance(event, JobEnded) for event in events)
    assert desk.scheduler.job_view("a500") is None


# --- 6: usage -------------------------------------------------------------------------------------------------------


def cost(start: int, length: int) -> float:
    n, r = divmod(start, HALF_LIFE_DEFAULT)
    k = (HALF_LIFE_DEFAULT / SECOND) / math.log(2)
    return math.ldexp((k * math.exp2(r / HALF_LIFE_DEFAULT)) * math.expm1((length / SECOND) / k), n)


def test_run_is_settled_on_its_user_and_every_account_above() -> None:
    desk = Desk()
    desk.at(3, submit("a1", ALICE))
    (settled,) = (event for event in desk.end(8) if isinstance(event, UsageSettled))
    assert [path for path, _, _ in settled.nodes] == ["lab/alice", "lab", ""]
    for _, usage, exponent in settled.nodes:
        assert math.ldexp(usage, exponent) == cost(3 * SECOND, 5 * SECOND)


def test_estimate_that_is_outlasted_doubles_and_so_does_the_charge_in_flight() -> None:
    desk = Desk()
    desk.at(0, submit("a1", ALICE, estimate=2))
    doubled = [event.estimate // SECOND for event in desk.sleep_to(20) if isinstance(event, EstimateDoubled)]
    assert doubled == [4, 8, 16, 32]
    (node,) = (node for node in desk.scheduler.shares_view(0) if node.path == "lab/alice")
    assert node.in_flight == cost(0, 32 * SECOND)
    desk.end(21)
    (node,) = (node for node in desk.scheduler.shares_view(0) if node.path == "lab/alice")
    assert (node.settled, node.in_flight) == (cost(0, 21 * SECOND), 0.0)


def test_lost_run_doubles_again_from_the_estimate_that_it_was_queued_with() -> None:
    desk = Desk()
    desk.at(0, submit("a1", ALICE, estimate=2))
    desk.sleep_to(5)
    events = desk.end(6, RunOutcome.WORKER_LOST)
    assert JobRequeued(job="a1", device="qpu", session=None, job_class=JobClass.FAIR_SHARE, attempts_lost=1) in events
    (again,) = (event for event in events if isinstance(event, RunStarted))
    assert (again.attempt, again.estimate) == (2, 2 * SECOND)
    assert desk.scheduler.next_deadline() == 8 * SECOND


def test_shares_change_who_is_next_and_usage_stays() -> None:
    desk = Desk(shares={"lab/alice": 3})
    desk.at(0, submit("a1", ALICE), submit("b1", BOB), submit("a2", ALICE), submit("b2", BOB))
    assert started(desk.end(2)) == ["b1"]
    assert started(desk.end(3)) == ["a2"]  # 2/3 < 1
    assert desk.at(3, SetShares(path="lab/bob", caller=OPERATOR, shares=1.5)) == [
        SharesChanged(path="lab/bob", shares=1.5)
    ]
    desk.at(3, submit("a3", ALICE))
    assert started(desk.end(4)) == ["b2"]  # 1/1.5 < 3/3
    assert desk.refused(5, SetShares(path="lab", caller=BOB, shares=1.0)).reason == "NOT_OPERATOR"
    for shares in (0.0, -1.0, math.nan, math.inf):
        assert desk.refused(5, SetShares(path="lab", caller=OPERATOR, shares=shares)).field == "shares"
    assert desk.refused(5, SetShares(path="lab/bob/x", caller=OPERATOR, shares=1.0)).reason == "PATH_CONFLICT"
    assert desk.refused(5, SetShares(path="/", caller=OPERATOR, shares=1.0)).field == "path"


def test_configured_shares_are_checked() -> None:
    with pytest.raises(Refusal, match="positive"):
        Scheduler({"qpu": RUNTIME_2023}, shares={"lab": 0.0})


def test_path_that_shares_make_an_account_is_no_user() -> None:
    desk = Desk(shares={"lab/alice": 2})
    assert desk.refused(0, submit("x1", Caller("lab"))).reason == "PATH_CONFLICT"
    desk.at(0, submit("a1", ALICE))


def test_fair_share_pick_names_what_it_was_chosen_over() -> None:
    desk = Desk(shares={"lab": 2})
    desk.at(0, submit("u0", Caller("uni/eve")))
    desk.at(0, submit("u1", Caller("uni/eve")), submit("a1", ALICE), submit("b1", BOB))
    (run,) = (event for event in desk.end(4) if isinstance(event, RunStarted))
    assert (run.job, run.rule) == ("a1", Rule.FAIR_SHARE)
    assert run.runner_up is not None
    assert (run.runner_up.node, run.runner_up.passed, run.runner_up.user) == ("lab/alice", "lab/bob", "lab/bob")
    (run,) = (event for event in desk.end(20) if isinstance(event, RunStarted))
    assert run.job == "u1"
    assert run.runner_up is not None
    assert (run.runner_up.node, run.runner_up.passed, run.runner_up.user) == ("uni", "lab", "lab/bob")
    assert run.runner_up.usage_per_share == pytest.approx(4, rel=1e-3)
    assert run.runner_up.passed_usage_per_share == pytest.approx(8, rel=1e-3)
    (run,) = (event for event in desk.end(21) if isinstance(event, RunStarted))
    assert run.runner_up is None


def test_calibration_costs_nobody_anything() -> None:
    desk = Desk()
    desk.at(0, SubmitJob(job="c1", caller=OPERATOR, device="qpu", job_class=JobClass.CALIBRATION))
    (finished,) = (event for event in desk.end(9) if isinstance(event, RunFinished))
    assert finished.charged == 0
    assert desk.scheduler.shares_view(0) == ()


# --- 8: reservations ------------------------------------------------------------------------------------------------


def test_reservation_that_has_not_started_is_removed_and_closes_its_sessions() -> None:
    desk = Desk(remember_final=True)
    desk.at(0, reserve("r1", 10, 20), CreateSession(session="s1", caller=ALICE, device="qpu", reservation="r1"))
    desk.at(1, submit("a1", ALICE, session="s1"), submit("x1", Caller("x"), estimate=30))
    events = desk.at(2, DeleteReservation(reservation="r1", caller=OPERATOR))
    assert ReservationEnded(reservation="r1", device="qpu", deleted=True) in events
    assert states(events) == [(SessionState.CLOSED, CloseReason.RESERVATION_ENDED)]
    assert any(isinstance(event, SessionJobsEnded) and event.reason is JobReason.RESERVATION_ENDED for event in events)
    assert started(events) == ["x1"]
    assert desk.refused(3, DeleteReservation(reservation="r1", caller=OPERATOR)).reason == "RESERVATION_OVER"
    assert desk.refused(3, DeleteReservation(reservation="r9", caller=OPERATOR)).reason == "UNKNOWN_RESERVATION"
    bound = CreateSession(session="s2", caller=ALICE, device="qpu", reservation="r1")
    assert desk.refused(3, bound).reason == "RESERVATION_OVER"
    assert desk.at(3, reserve("r2", 10, 20))[0].reservation == "r2"  # type: ignore[union-attr]


def test_reservation_that_has_started_ends_when_it_is_deleted() -> None:
    desk = Desk()
    desk.at(0, reserve("r1", 0, 20), submit("x1", Caller("x")))
    assert desk.refused(5, DeleteReservation(reservation="r1", caller=ALICE)).reason == "NOT_OPERATOR"
    assert started(desk.at(5, DeleteReservation(reservation="r1", caller=OPERATOR))) == ["x1"]
    assert desk.refused(6, replace(reserve("r2", 7, 8), caller=ALICE)).reason == "NOT_OPERATOR"


def test_overlap_names_the_reservation_in_the_way() -> None:
    desk = Desk()
    desk.at(0, reserve("r1", 0, 20))
    assert desk.refused(5, reserve("r2", 19, 30)).metadata == {"reservation_id": "r1"}
    assert desk.refused(5, reserve("r2", 19, 2**40)).field == "end_time"


def test_holder_below_a_user_is_refused() -> None:
    desk = Desk()
    desk.at(0, submit("b1", BOB))
    assert desk.refused(0, reserve("r1", 5, 6, holder="lab/bob/x")).reason == "PATH_CONFLICT"


# --- 10: restart ----------------------------------------------------------------------------------------------------


def test_put_back_run_keeps_its_place_and_does_not_count() -> None:
    desk = Desk(replace(RUNTIME_2023, max_attempts=1))
    desk.at(0, submit("b1"), submit("b2"))
    for attempt in range(1, 5):
        (run,) = (event for event in desk.end(attempt, RunOutcome.PUT_BACK) if isinstance(event, RunStarted))
        assert (run.job, run.attempt) == ("b1", attempt + 1)
    events = desk.end(5, RunOutcome.WORKER_LOST)
    assert JobEnded(job="b1", device="qpu", session=None, state=JobState.FAILED, reason=JobReason.WORKER_LOST) in events


def test_restart_puts_runs_back_before_anything_else() -> None:
    desk = Desk()
    desk.at(0, submit("b1"), submit("b2", estimate=7))
    outcome = desk.apply(
        50,
        SetDeviceReady(device="qpu", ready=False),
        RunEnded(device="qpu", job="b1", attempt=1, outcome=RunOutcome.SUCCEEDED),
        Resumed(down_from=10 * SECOND),
    )
    assert outcome.answers[1] == outcome.answers[0] == ()
    assert [type(event) for event in outcome.events] == [RunFinished, JobRequeued]
    assert desk.scheduler.next_deadline() is None
    (run,) = (e for e in desk.at(51, SetDeviceReady(device="qpu", ready=True)) if isinstance(e, RunStarted))
    assert (run.job, run.attempt) == ("b1", 2)


def test_restart_moves_idle_clocks_and_no_other_of_a_session() -> None:
    desk = Desk()
    desk.at(0, CreateSession(session="s1", caller=ALICE, device="qpu", max_time=1000 * SECOND))
    desk.at(0, submit("a1", ALICE, session="s1"), CreateSession(session="s2", caller=BOB, device="qpu"))
    desk.end(5)  # idle until 305
    desk.at(110, Resumed(down_from=10 * SECOND))
    view = desk.scheduler.session_view("s1")
    assert view is not None
    assert (view.idle_due, view.expires_at) == (405 * SECOND, 1000 * SECOND)
    assert desk.scheduler.session_view("s2").unused_due == 1800 * SECOND  # type: ignore[union-attr]
    events = desk.at(1500, Resumed(down_from=110 * SECOND))
    assert states(events) == [(SessionState.CLOSED, CloseReason.EXPIRED)]


def test_restart_during_a_calibration_leaves_the_idle_clock_what_it_had_left() -> None:
    desk = Desk()
    desk.at(0, CreateSession(session="s1", caller=ALICE, device="qpu"), submit("a1", ALICE, session="s1"))
    desk.end(5)
    desk.at(10, SubmitJob(job="c1", caller=OPERATOR, device="qpu", job_class=JobClass.CALIBRATION))
    desk.at(100, SetDeviceReady(device="qpu", ready=False), Resumed(down_from=20 * SECOND))
    assert desk.scheduler.session_view("s1").idle_due == (100 + 295) * SECOND  # type: ignore[union-attr]


def test_nobody_pays_for_a_held_device_while_the_server_is_down() -> None:
    desk = Desk()
    desk.at(0, CreateSession(session="s1", caller=ALICE, device="qpu"), submit("a1", ALICE, session="s1"))
    desk.end(5)  # held from here on
    holds = [e for e in desk.at(110, Resumed(down_from=10 * SECOND)) if isinstance(e, HoldEnded)]
    assert [(hold.start, hold.end) for hold in holds] == [(5 * SECOND, 10 * SECOND)]
    holds = [e for e in desk.at(120, submit("a2", ALICE, session="s1")) if isinstance(e, HoldEnded)]
    assert [(hold.start, hold.end) for hold in holds] == [(110 * SECOND, 120 * SECOND)]


def test_restart_moves_automatic_calibrations() -> None:
    desk = Desk(replace(RUNTIME_2023, calibration_interval=100 * SECOND))
    desk.at(70, Resumed(down_from=20 * SECOND))
    assert desk.scheduler.next_deadline() == 150 * SECOND
    assert desk.refused(80, Resumed(down_from=81 * SECOND)).field == "down_from"


def test_first_automatic_calibration_counts_from_the_start_of_time() -> None:
    settings = replace(RUNTIME_2023, calibration_interval=100 * SECOND)
    assert Scheduler({"qpu": settings}, start=5 * SECOND).next_deadline() == 105 * SECOND


def test_restored_scheduler_has_the_same_state() -> None:
    desk = Desk(replace(RUNTIME_2023, calibration_interval=1000 * SECOND))
    desk.at(0, CreateSession(session="s1", caller=ALICE, device="qpu", max_time=50 * SECOND))
    desk.at(0, CreateSession(session="s2", caller=BOB, device="qpu", mode=SessionMode.BATCH))
    desk.at(0, submit("a1", ALICE, session="s1", estimate=2), submit("a2", ALICE, session="s1"))
    desk.at(1, reserve("r1", 60, 80), submit("b1", session="s2"), SetShares(path="lab", caller=OPERATOR, shares=2.5))
    desk.sleep_to(52)
    state = desk.scheduler.state()
    assert [job.run is None for job in state.jobs] == [False, True, True]
    assert [session.released for session in state.sessions] == [True, False]
    again = Scheduler.restore(state)
    assert again.state() == state
    assert again.next_deadline() == desk.scheduler.next_deadline()
    assert again.shares_view(state.now) == desk.scheduler.shares_view(state.now)
    for view, name in (("session_view", "s1"), ("session_view", "s2"), ("job_view", "a1"), ("device_view", "qpu")):
        assert getattr(again, view)(name) == getattr(desk.scheduler, view)(name)


def test_state_that_contradicts_itself_is_refused() -> None:
    desk = Desk()
    desk.at(0, submit("b1"))
    state = replace(desk.scheduler.state(), nodes=())
    with pytest.raises(ValueError, match="lab/bob"):
        Scheduler.restore(state)


def test_usage_survives_any_number_of_half_lives() -> None:
    scheduler = Scheduler({"qpu": RUNTIME_2023}, half_life=SECOND)
    seen = []
    for i in range(1, 3000, 7):
        outcome = scheduler.apply([submit(f"j{i}", (ALICE, BOB)[i % 2])], i * SECOND)
        (run,) = (event for event in outcome.events if isinstance(event, RunStarted))
        end = RunEnded(device="qpu", job=run.job, attempt=1, outcome=RunOutcome.SUCCEEDED)
        outcome = scheduler.apply([end], (i + 1) * SECOND)
        (settled,) = (event for event in outcome.events if isinstance(event, UsageSettled))
        seen.append(settled.nodes[-1])
    assert all(math.isfinite(usage) and usage > 0 for _, usage, _ in seen)
    assert all(one[2] <= other[2] for one, other in pairwise(seen))

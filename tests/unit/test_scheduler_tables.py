"""The life cycles as data, and the heap of deadlines."""

from itertools import product

from cadenza_server.model.words import JobState, SessionState
from cadenza_server.scheduling.deadlines import Deadline, DeadlineKind, Deadlines
from cadenza_server.scheduling.jobs import JOB_TRANSITIONS, JobEvent
from cadenza_server.scheduling.sessions import SESSION_TRANSITIONS, SessionEvent
from hypothesis import given, seed
from hypothesis import strategies as st

from tests.simulation.seeds import run_seed


def test_no_final_state_of_a_job_ever_changes() -> None:
    assert not [state for state, _ in JOB_TRANSITIONS if state.is_final]


def test_every_state_of_a_job_is_reached_and_left_as_the_law_says() -> None:
    ways: dict[JobState, set[JobState]] = {}
    for (state, _), after in JOB_TRANSITIONS.items():
        ways.setdefault(state, set()).add(after)
    final = {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED}
    assert ways == {
        JobState.QUEUED: {JobState.RUNNING, JobState.FAILED, JobState.CANCELLED},
        JobState.RUNNING: {JobState.QUEUED, *final},
    }
    assert {event for _, event in JOB_TRANSITIONS} == set(JobEvent)


def test_closed_sessions_stay_closed_and_all_others_can_close() -> None:
    assert not [state for state, _ in SESSION_TRANSITIONS if state is SessionState.CLOSED]
    closing = {state for (state, _), after in SESSION_TRANSITIONS.items() if after is SessionState.CLOSED}
    assert closing == set(SessionState) - {SessionState.CLOSED}
    assert {event for _, event in SESSION_TRANSITIONS} == set(SessionEvent)


def test_rows_that_say_any_but_closed_hold_for_every_such_state() -> None:
    """But an open session has no expiry yet: its clock starts when it is first active (5.2)."""
    events = (SessionEvent.EXPIRED, SessionEvent.RESERVATION_ENDED, SessionEvent.FIRST_JOB_CANCELLED)
    for state, event in product(set(SessionState) - {SessionState.CLOSED}, events):
        if (state, event) != (SessionState.OPEN, SessionEvent.EXPIRED):
            assert SESSION_TRANSITIONS[state, event] is SessionState.CLOSED


@seed(run_seed())
@given(
    st.lists(
        st.tuples(
            st.sampled_from(DeadlineKind),
            st.integers(0, 9),
            st.integers(0, 4),
            st.one_of(st.none(), st.integers(0, 30)),
        ),
        max_size=40,
    ),
    st.integers(0, 10),
)
def test_deadlines_fire_in_the_order_of_the_law(
    steps: list[tuple[DeadlineKind, int, int, int | None]], now: int
) -> None:
    """Each step sets a timer; a fourth number cancels one of those set before."""
    deadlines = Deadlines()
    alive: list[Deadline] = []
    for number, (kind, due, age, cancelled) in enumerate(steps):
        alive.append(deadlines.add(kind, due, (age, number), number))
        if cancelled is not None and cancelled < len(alive):
            deadlines.cancel(alive.pop(cancelled))
        assert deadlines.next_due() == min((each.due for each in alive), default=None)
    expected = sorted((each for each in alive if each.due <= now), key=lambda each: each.key)
    fired = []
    while (deadline := deadlines.take_due(now)) is not None:
        assert deadline.position == -1
        fired.append(deadline)
    assert fired == expected
    assert len(deadlines) == len(alive) - len(expected)

"""What the law makes happen by itself, live, by a clock that the test turns.

The engine wakes at each deadline, watchers see every change with its reason, each run keeps the decision behind it.
"""

from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from cadenza_server.engine import ReservationState, RunFilter, SessionChanged, SessionJobsEnded, SessionJobsReleased
from cadenza_server.model.commands import CancelSession, CloseSession, CreateReservation, SubmitJob
from cadenza_server.model.settings import RUNTIME_2023, SECOND
from cadenza_server.model.words import JobClass, JobReason, JobState, OnExpiry, Pending, Rule, RunOutcome
from cadenza_server.store import Store
from cadenza_server.store.batch import END_SESSION_JOBS, RELEASE_SESSION_JOBS, Batch

from tests.integration.test_engine import ALICE, BOB, OPERATOR, START, Home, content_of, quiet, settle, wait_state

SETTINGS = replace(
    RUNTIME_2023,
    interactive_ttl_dedicated=10 * SECOND,
    max_time=100 * SECOND,
    unused_ttl=50 * SECOND,
    calibration_interval=1_000 * SECOND,
    default_estimate=4 * SECOND,
)


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[Home]:
    home = Home(tmp_path)
    await home.open(settings=SETTINGS)
    yield home
    await home.engine.stop(0)


async def pass_to(home: Home, second: float) -> None:
    """Let the clock come to a second after the start."""
    home.clock.advance(START + int(second * SECOND) - home.clock.now())
    await quiet(home)


async def run_job(home: Home, job: str) -> None:
    """Let the job that runs end well."""
    await settle(lambda: home.device.running is not None)
    assert home.device.running is not None
    assert home.device.running.job == job
    home.device.end()
    await wait_state(home.engine, job, JobState.SUCCEEDED)


async def life(home: Home, session: str) -> list[tuple[float, str, str | None]]:
    """Every change of a session: second, state (`*`: it has the device), reason."""
    told: list[tuple[float, str, str | None]] = []
    for notice in (await home.engine.list_session_events(session)).items:
        if isinstance(notice.change, SessionChanged):
            view = notice.change.session
            mark = "*" if view.active else ""
            told.append(((notice.time - START) / SECOND, f"{view.state}{mark}", view.close_reason))
    return told


async def test_sessions_deactivate_expire_and_close_unused_by_themselves(home: Home) -> None:
    await home.session("used")
    job = await home.submit(session="used", job_class=JobClass.SESSION)
    await home.session("unused", caller=BOB)
    await pass_to(home, 5)
    await run_job(home, job)
    await pass_to(home, 15)
    await pass_to(home, 50)
    await pass_to(home, 100)
    assert await life(home, "used") == [
        (0, "OPEN", None),
        (0, "ACTIVE*", None),
        (15, "INACTIVE", None),
        (100, "CLOSED", "EXPIRED"),
    ]
    assert await life(home, "unused") == [(0, "OPEN", None), (50, "CLOSED", "UNUSED")]
    assert (await home.engine.get_session("used")).held_time_ns == 10 * SECOND


async def test_a_session_that_drains_closes_when_its_last_job_has_ended(home: Home) -> None:
    await home.session()
    jobs = [await home.submit(session="s", job_class=JobClass.SESSION) for _ in range(2)]
    await home.engine.execute(CloseSession(session="s", caller=ALICE, pending=Pending.DRAIN))
    await pass_to(home, 3)
    await run_job(home, jobs[0])
    await pass_to(home, 7)
    await run_job(home, jobs[1])
    await quiet(home)
    assert await life(home, "s") == [
        (0, "OPEN", None),
        (0, "ACTIVE*", None),
        (0, "DRAINING*", "CLOSED_BY_USER"),
        (7, "CLOSED", "CLOSED_BY_USER"),
    ]


async def test_reservations_open_and_close_and_take_the_device_from_others(home: Home) -> None:
    engine = home.engine
    await engine.execute(
        CreateReservation(
            reservation="r",
            caller=OPERATOR,
            device="aer",
            holder="lab/bob",
            start=START + 8 * SECOND,
            end=START + 20 * SECOND,
        )
    )
    await home.session("others")
    await run_job(home, await home.submit(session="others", job_class=JobClass.SESSION))
    await home.session("bound", caller=BOB, reservation="r")
    own = [await home.submit(BOB, session="bound", job_class=JobClass.SESSION) for _ in range(2)]
    await pass_to(home, 7.5)
    assert home.device.running is None, "the others' session holds the device"
    await pass_to(home, 8)
    await settle(lambda: home.device.running is not None)
    assert (await engine.get_reservation("r")).state is ReservationState.ACTIVE
    await pass_to(home, 20)
    assert (await engine.get_reservation("r")).state is ReservationState.ENDED
    assert (await life(home, "others"))[-1] == (8, "INACTIVE", None)
    assert await life(home, "bound") == [
        (0, "OPEN", None),
        (8, "ACTIVE*", None),
        (20, "CLOSED", "RESERVATION_ENDED"),
    ]
    running, queued = [await engine.get_job(job) for job in own]
    assert (running.state, running.reason) == (JobState.RUNNING, None)
    assert (queued.state, queued.reason) == (JobState.FAILED, JobReason.RESERVATION_ENDED)
    told = [notice.change for notice in (await engine.list_session_events("bound")).items]
    ended = [change for change in told if isinstance(change, SessionJobsEnded)]
    assert [(each.reason, each.count) for each in ended] == [(JobReason.RESERVATION_ENDED, 1)]


class CountingStore(Store):
    """Notes how often which statement is executed."""

    def __init__(self, data_dir: Path) -> None:
        super().__init__(data_dir)
        self.executed: Counter[str] = Counter()

    async def commit(self, batch: Batch) -> None:
        for statement, rows in batch.groups():
            self.executed[statement] += len(rows)
        await super().commit(batch)


@pytest.mark.parametrize("what", ["cancel", "expiry", "expiry that fails", "cache deadline"])
async def test_what_happens_to_all_queued_jobs_of_a_session_is_one_statement_and_one_message(
    tmp_path: Path, what: str
) -> None:
    executed: list[Counter[str]] = []
    for jobs in (3, 300):
        home = Home(tmp_path / str(jobs))
        store = CountingStore(home.data_dir)
        on_expiry = OnExpiry.FAIL if what == "expiry that fails" else OnExpiry.FAIR_SHARE
        await home.open(settings=replace(SETTINGS, on_expiry=on_expiry), store=store)
        await home.session()
        job = SubmitJob(job="", caller=ALICE, session="s")
        await home.engine.submit([job] * jobs, [content_of()] * jobs)
        await pass_to(home, 1)
        if what == "cache deadline":
            await pass_to(home, 100)
        before = store.executed.copy()
        seen = len((await home.engine.list_session_events("s")).items)
        if what == "cancel":
            await home.engine.execute(CancelSession(session="s", caller=ALICE))
        else:
            await pass_to(home, 100 if what != "cache deadline" else 100 + SETTINGS.session_cache_ttl / SECOND)
        await quiet(home)
        executed.append(store.executed - before)
        told = (await home.engine.list_session_events("s")).items[seen:]
        of_jobs = [each.change for each in told if isinstance(each.change, SessionJobsEnded | SessionJobsReleased)]
        assert [each.count for each in of_jobs] == [jobs - 1]
        counts = (await home.engine.get_session("s")).job_counts
        assert counts.queued == (jobs - 1 if what == "expiry" else 0)
        await home.engine.stop(0)
    assert executed[0] == executed[1]
    assert executed[0][RELEASE_SESSION_JOBS if what == "expiry" else END_SESSION_JOBS] == 1


async def test_a_device_calibrates_itself_on_its_interval(home: Home) -> None:
    await pass_to(home, 999)
    assert home.device.running is None
    await pass_to(home, 1_000)
    await settle(lambda: home.device.running is not None)
    await pass_to(home, 1_030)
    home.device.end()
    await settle(lambda: home.device.running is None)
    await pass_to(home, 2_029)
    assert home.device.running is None
    await pass_to(home, 2_030)
    await settle(lambda: home.device.running is not None)
    runs = (await home.engine.list_runs(RunFilter(device="aer"))).items
    assert [(run.start_time, run.rule, run.epoch, run.charged_ns) for run in runs] == [
        (START + 1_000 * SECOND, Rule.CALIBRATION, 0, 0),
        (START + 2_030 * SECOND, Rule.CALIBRATION, 1, 0),
    ]


async def test_a_run_keeps_the_rule_what_it_was_chosen_over_its_estimate_its_epoch_and_its_charge(home: Home) -> None:
    first = await home.submit()
    await pass_to(home, 3)
    again = await home.submit()
    other = await home.submit(BOB, estimate=2 * SECOND)
    await run_job(home, first)
    await pass_to(home, 4)
    home.device.end(RunOutcome.WORKER_LOST, None)
    await settle(lambda: home.device.running is not None)
    await pass_to(home, 6)
    await run_job(home, other)
    await run_job(home, again)
    runs = (await home.engine.list_runs(RunFilter(device="aer"))).items
    told = [(run.job, run.outcome, run.charged_ns // SECOND, run.estimate_ns // SECOND, run.user) for run in runs]
    assert told == [
        (first, RunOutcome.SUCCEEDED, 3, 4, "lab/alice"),
        (other, RunOutcome.WORKER_LOST, 0, 2, "lab/bob"),
        (other, RunOutcome.SUCCEEDED, 2, 2, "lab/bob"),
        (again, RunOutcome.SUCCEEDED, 0, 4, "lab/alice"),
    ]
    assert {run.rule for run in runs} == {Rule.FAIR_SHARE}
    assert {run.epoch for run in runs} == {0}
    alone, chosen, _, last = runs
    assert (alone.runner_up, alone.runner_up_user, alone.chosen_usage) == (None, None, None)
    assert (chosen.chosen_node, chosen.runner_up, chosen.runner_up_user) == ("lab/bob", "lab/alice", "lab/alice")
    assert chosen.chosen_usage == 0
    assert chosen.runner_up_usage == pytest.approx(3, rel=1e-4)
    assert last.runner_up is None

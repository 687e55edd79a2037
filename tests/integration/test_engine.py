"""The engine on a real store and the real scheduler, with devices that a test plays and a clock that it turns."""

import asyncio
import hashlib
import os
import random
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cadenza.v1 import circuit_pb2, program_pb2
from cadenza_server.clock import VirtualClock
from cadenza_server.engine import (
    DevicePlan,
    Engine,
    JobAccepted,
    JobContent,
    JobEnded,
    JobFilter,
    JobRequeued,
    JobSnapshot,
    JobStarted,
    JobView,
    Notice,
    ProgramKind,
    RequestKey,
    ReservationFilter,
    ReservationState,
    RunFilter,
    SessionChanged,
    SessionJobsEnded,
    SessionSnapshot,
    TimeOrderedIds,
    UsageView,
    make_workload,
    restart,
    writer,
)
from cadenza_server.engine.quotas import Quotas
from cadenza_server.engine.writer import Stage
from cadenza_server.execution.runs import Assignment, RunReport
from cadenza_server.model.commands import (
    Caller,
    CancelJob,
    CancelSession,
    CloseSession,
    CreateReservation,
    CreateSession,
    DeleteReservation,
    SetPriority,
    SetShares,
    SubmitJob,
)
from cadenza_server.model.errors import Code, Refusal
from cadenza_server.model.settings import RUNTIME_2023, SECOND, DeviceSettings
from cadenza_server.model.words import (
    CloseReason,
    JobClass,
    JobReason,
    JobState,
    Pending,
    Rule,
    RunOutcome,
    SessionMode,
    SessionState,
)
from cadenza_server.scheduling import Scheduler
from cadenza_server.scheduling.state import State
from cadenza_server.store import Store, StoreError, StoreInUse
from cadenza_server.store.store import FILE_NAME

START = 1_000 * SECOND
ALICE = Caller("lab/alice")
BOB = Caller("lab/bob")
OPERATOR = Caller("root", operator=True)
GHZ = make_workload("SAMPLER", (hashlib.sha256(b"ghz").digest(),), qubits=2, size=500, work=1000)


class HandDevice:
    """A device whose runs the test ends itself."""

    def __init__(self, name: str, report: Callable[[RunReport], None], ready: Callable[[str, bool], None]) -> None:
        self.name = name
        self._report = report
        self._ready = ready
        self.assignments: list[Assignment] = []
        self.stopped: list[tuple[str, int]] = []
        self.running: Assignment | None = None
        self.is_started = False

    async def start(self) -> None:
        self.is_started = True
        self._ready(self.name, True)

    def run(self, assignment: Assignment) -> None:
        assert self.running is None
        self.running = assignment
        self.assignments.append(assignment)

    def stop_run(self, job: str, attempt: int) -> None:
        self.stopped.append((job, attempt))
        self.running = None

    async def stop(self) -> None:
        self.running = None
        self.is_started = False

    def end(
        self,
        outcome: RunOutcome = RunOutcome.SUCCEEDED,
        result: bytes | None = b"result",
        detail: str = "",
        properties: bytes | None = None,
    ) -> None:
        assert self.running is not None
        run, self.running = self.running, None
        self._report(
            RunReport(
                device=self.name,
                job=run.job,
                attempt=run.attempt,
                outcome=outcome,
                detail=detail,
                result=result if outcome is RunOutcome.SUCCEEDED else None,
                properties=properties,
            )
        )

    def late(self, run: Assignment) -> None:
        self._report(
            RunReport(device=self.name, job=run.job, attempt=run.attempt, outcome=RunOutcome.SUCCEEDED, result=b"late")
        )


class Home:
    """One engine at a time on one data directory."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.clock = VirtualClock(START)
        self.ids = TimeOrderedIds(self.clock, random.Random(1))
        self.device: HandDevice
        self.engine: Engine
        self.store: Store

    async def open(
        self,
        *,
        name: str = "aer",
        settings: DeviceSettings = RUNTIME_2023,
        store: Store | None = None,
        **arguments: Any,
    ) -> Engine:
        def build(report: Callable[[RunReport], None], ready: Callable[[str, bool], None]) -> HandDevice:
            self.device = HandDevice(name, report, ready)
            return self.device

        self.store = store or Store(self.data_dir)
        self.engine = Engine(
            store=self.store,
            devices={name: DevicePlan(settings=settings, profile="runtime-2023", build=build)},
            clock=self.clock,
            ids=self.ids,
            **arguments,
        )
        await self.engine.start()
        return self.engine

    async def crash(self) -> None:
        """What a kill -9 leaves: the store as it is, with nothing said."""
        self.engine._writer._cancel_timers()
        self.engine._writer.stage = Stage.STOPPED
        await self.store.close()

    async def submit(self, caller: Caller = ALICE, **arguments: Any) -> str:
        content = arguments.pop("content", None) or content_of(b"program")
        arguments.setdefault("device", "aer")
        arguments.setdefault("job", "")
        (view,) = await self.engine.submit([SubmitJob(caller=caller, **arguments)], [content])
        return view.job

    def usage(self, path: str) -> UsageView:
        (view,) = self.engine.usage_views([path])
        return view

    async def session(self, name: str = "s", **arguments: Any) -> str:
        arguments.setdefault("caller", ALICE)
        await self.engine.execute(CreateSession(session=name, device="aer", **arguments))
        return name


def content_of(program: bytes = b"program", **arguments: Any) -> JobContent:
    return JobContent(program=program, program_kind=ProgramKind.SAMPLER, **arguments)


def program_with(*circuits: circuit_pb2.Circuit) -> bytes:
    pubs = [program_pb2.SamplerPub(circuit=circuit) for circuit in circuits]
    return program_pb2.Program(sampler=program_pb2.SamplerJob(pubs=pubs)).SerializeToString()


async def settle(condition: Callable[[], bool]) -> None:
    """Let the event loop and the commit thread work until something is so."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  (what is waited for is seen from outside only)
            await asyncio.sleep(0.001)


async def wait_state(engine: Engine, job: str, *states: JobState) -> None:
    async with asyncio.timeout(5):
        while (await engine.get_job(job)).state not in states:  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def collect(watch: AsyncIterator[Notice]) -> list[Notice]:
    async with asyncio.timeout(5):
        return [notice async for notice in watch]


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[Home]:
    home = Home(tmp_path)
    await home.open()
    yield home
    if home.engine._writer.stage is not Stage.STOPPED:
        await home.engine.stop(0)


async def test_a_submitted_job_runs_and_its_result_can_be_read(home: Home) -> None:
    job = await home.submit()
    assert job.startswith("job-")
    assert home.device.running is not None
    assert home.device.running.program == b"program"
    home.device.end(result=b"counts")
    await wait_state(home.engine, job, JobState.SUCCEEDED)
    assert await home.engine.get_result(job) == b"counts"
    view = await home.engine.get_job(job)
    assert (view.attempts, view.result_bytes, view.user) == (1, 6, "lab/alice")
    (run,) = (await home.engine.list_runs(RunFilter(job=job))).items
    assert (run.rule, run.outcome) == (Rule.FAIR_SHARE, RunOutcome.SUCCEEDED)


class HeldStore(Store):
    """A store whose commits wait until the test lets them go, or fail."""

    def __init__(self, data_dir: Path) -> None:
        super().__init__(data_dir)
        self.gate = asyncio.Event()
        self.gate.set()
        self.batches = 0
        self.failure: str | None = None

    async def commit(self, batch: Any) -> None:
        self.batches += 1
        await self.gate.wait()
        if self.failure is not None:
            raise StoreError(self.failure)
        await super().commit(batch)


@pytest.fixture
async def held(tmp_path: Path) -> AsyncIterator[tuple[Home, HeldStore]]:
    home = Home(tmp_path)
    store = HeldStore(tmp_path)
    await home.open(store=store)
    yield home, store
    store.gate.set()
    store.failure = None
    await home.engine.stop(0)


async def quiet(home: Home) -> None:
    """Until everything that has happened is on disk."""
    await asyncio.sleep(0)
    await home.engine._writer.catch_up()


# --- answers, commits, dispatch -------------------------------------------------------------------------------------
async def test_devices_start_when_the_store_is_read_and_not_at_all_if_it_cannot_be(tmp_path: Path) -> None:
    home, store = Home(tmp_path), Store(tmp_path)
    read, started = store.read, []

    async def look(question: Any) -> Any:
        started.append(home.device.is_started)
        return await read(question)

    store.read = look  # type: ignore[method-assign,assignment]
    await home.open(store=store)
    after = home.device.is_started
    assert (started[0], after) == (False, True)  # it leaves the processors to the reading
    await home.submit()
    await home.submit()
    await home.engine.stop(0)
    with pytest.raises(StoreError, match="2 jobs wait for aer, which the configuration does not have"):
        await home.open(name="other")
    assert not home.device.is_started
    await home.open()  # nothing was lost, and nobody holds the store
    assert home.engine.count_unfinished() == 2
    await home.engine.stop(0)


async def test_an_answer_waits_for_the_commit_and_a_run_does_not(held: tuple[Home, HeldStore]) -> None:
    home, store = held
    await quiet(home)
    store.gate.clear()
    task = asyncio.create_task(home.submit())
    await settle(lambda: home.device.running is not None)
    assert not task.done()
    store.gate.set()
    await task


async def fall_silent(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the engine find that a commit has been on its way for too long."""
    monkeypatch.setattr(writer, "COMMIT_SECONDS_MAX", 0.0)
    home.clock.advance(writer.HEARTBEAT_NS)
    await settle(lambda: home.engine._writer._is_silent)
    await asyncio.sleep(0)


async def test_a_store_that_does_not_answer_is_said_and_nothing_piles_up_until_it_does(
    held: tuple[Home, HeldStore], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, store = held
    running = await home.submit()
    await home.submit()
    await quiet(home)
    store.gate.clear()
    submit = partial(home.engine.submit, [SubmitJob(job="", caller=ALICE, device="aer")], [content_of()], key("waits"))
    waits = asyncio.create_task(submit())
    await settle(lambda: home.engine.count_unfinished() == 3)
    home.clock.advance(10 * writer.HEARTBEAT_NS)  # which nobody has waited for
    in_time = asyncio.create_task(home.submit())
    await settle(lambda: home.engine.count_unfinished() == 4)
    await fall_silent(home, monkeypatch)
    assert "the store has not answered for" in caplog.text
    with pytest.raises(Refusal) as refused:
        await home.submit()
    assert (refused.value.code, refused.value.reason) == (Code.UNAVAILABLE, "STORE_UNAVAILABLE")
    again = asyncio.create_task(submit())
    home.device.end()
    home.device._ready("aer", True)  # a worker that comes now changes nothing
    await asyncio.sleep(0.01)
    assert home.device.running is None  # its result could not be written either
    assert (await home.engine.get_job(running)).state is JobState.RUNNING
    assert not any(task.done() for task in (waits, again, in_time))
    store.gate.set()
    assert await again == await waits
    await in_time
    await settle(lambda: home.device.running is not None)
    await wait_state(home.engine, running, JobState.SUCCEEDED)
    await home.submit()
    assert home.engine.count_unfinished() == 4


async def test_a_store_that_answers_while_the_server_stops_starts_nothing_more(
    held: tuple[Home, HeldStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    home, store = held
    await home.submit()
    await home.submit()
    await quiet(home)
    store.gate.clear()
    waits = asyncio.create_task(home.submit())
    await settle(lambda: home.engine.count_unfinished() == 3)
    await fall_silent(home, monkeypatch)
    home.device.end()
    monkeypatch.undo()
    stopping = asyncio.create_task(home.engine.stop(0))
    await asyncio.sleep(0)
    store.gate.set()
    await stopping
    await waits
    assert len(home.device.assignments) == 1
    assert home.engine.count_unfinished() == 2


async def test_what_comes_while_a_commit_is_on_its_way_is_one_commit(held: tuple[Home, HeldStore]) -> None:
    home, store = held
    await quiet(home)
    store.gate.clear()
    first = asyncio.create_task(home.submit())
    await settle(lambda: home.device.running is not None)
    before = store.batches
    others = [asyncio.create_task(home.submit()) for _ in range(20)]
    await settle(lambda: len(home.engine._writer.recorder.accepted) == 20)
    store.gate.set()
    await asyncio.gather(first, *others)
    assert store.batches == before + 1


async def test_a_refusal_that_came_during_a_commit_is_told_after_what_the_commit_holds(
    held: tuple[Home, HeldStore],
) -> None:
    home, store = held
    await quiet(home)
    store.gate.clear()
    told: list[str] = []
    accepted = asyncio.create_task(home.submit())
    await settle(lambda: home.device.running is not None)
    refused = asyncio.create_task(home.submit(device="nowhere"))
    accepted.add_done_callback(lambda _: told.append("accepted"))
    refused.add_done_callback(lambda _: told.append("refused"))
    await settle(lambda: len(home.engine._writer._unit.answers) == 1)
    store.gate.set()
    await asyncio.gather(accepted, refused, return_exceptions=True)
    assert told == ["accepted", "refused"]


async def test_the_next_commit_waits_for_as_many_callers_as_the_last_one_answered(
    held: tuple[Home, HeldStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "GATHER_SECONDS", 600.0)
    home, store = held
    await quiet(home)
    before = store.batches
    await asyncio.gather(*(home.submit() for _ in range(3)))
    early = [asyncio.create_task(home.submit()) for _ in range(2)]
    await settle(lambda: len(home.engine._writer._unit.answers) == 2)
    assert store.batches == before + 1
    await asyncio.gather(home.submit(), *early)
    assert store.batches == before + 2


async def test_a_commit_that_is_worth_it_waits_for_no_more_callers(
    held: tuple[Home, HeldStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "GATHER_SECONDS", 600.0)
    monkeypatch.setattr(writer, "GATHER_CALLS_MAX", 2)
    home, store = held
    await quiet(home)
    before = store.batches
    await asyncio.gather(*(home.submit() for _ in range(9)))
    await asyncio.gather(*(home.submit() for _ in range(2)))
    assert store.batches == before + 2


async def test_what_is_asked_of_the_store_while_a_commit_waits_for_callers_has_what_happened_without_an_event(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "GATHER_SECONDS", 600.0)
    session = await home.session()
    await home.submit(session=session, job_class=JobClass.SESSION, device=None)
    home.device._ready("aer", False)
    await quiet(home)
    home.device.end()
    await quiet(home)
    await asyncio.gather(*(home.submit() for _ in range(3)))  # the next commit waits for more
    home.device._ready("aer", True)  # the session holds the device from now on, of which there is no event
    await quiet(home)
    device = home.engine._writer.scheduler.device_record("aer")
    assert device is not None
    loaded = await home.store.read(restart.load)
    assert loaded.devices["aer"].clocks == restart.device_clocks(device)
    assert device.held_since is not None


async def test_the_end_of_a_run_does_not_wait_for_callers(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "GATHER_SECONDS", 600.0)
    first, *_ = await asyncio.gather(*(home.submit() for _ in range(3)))
    home.device.end()
    await wait_state(home.engine, first, JobState.SUCCEEDED)


async def test_a_run_that_is_expected_to_be_short_is_one_commit_with_its_submission(
    held: tuple[Home, HeldStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "SHORT_RUN_NS", 600 * SECOND)
    home, store = held
    await quiet(home)
    before = store.batches
    task = asyncio.create_task(home.submit(limit=SECOND))
    await settle(lambda: home.device.running is not None)
    assert store.batches == before
    home.device.end()
    await wait_state(home.engine, await task, JobState.SUCCEEDED)
    assert store.batches == before + 1


async def test_an_answer_does_not_wait_for_a_short_run_that_is_long(home: Home) -> None:
    job = await home.submit(limit=1_000_000)
    assert home.device.running is not None
    assert (await home.engine.get_job(job)).state is JobState.RUNNING


async def test_the_answer_tells_the_end_that_came_to_disk_with_it_and_a_repetition_the_job_as_it_was_accepted(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "SHORT_RUN_NS", 600 * SECOND)
    await quiet(home)
    job = SubmitJob(job="", caller=ALICE, device="aer", limit=SECOND)
    request = key("one")
    first = asyncio.create_task(home.engine.submit_one(job, content_of(), request))
    await settle(lambda: home.device.running is not None)
    meanwhile = asyncio.create_task(home.engine.submit([job], [content_of()], request))
    home.device.end()
    ended = await first
    assert isinstance(ended, JobEnded)
    assert (ended.job.state, ended.result) == (JobState.SUCCEEDED, await home.engine.get_result(ended.job.job))
    assert ended.run is not None
    again = await home.engine.submit_one(job, content_of(), request)
    assert isinstance(again, JobView)
    assert (again.job, again.state) == (ended.job.job, JobState.QUEUED)
    assert await meanwhile == (again,)


async def test_the_answer_does_not_tell_an_end_that_is_not_on_disk_yet(held: tuple[Home, HeldStore]) -> None:
    home, store = held
    await quiet(home)
    store.gate.clear()
    before = store.batches
    task = asyncio.create_task(home.engine.submit_one(SubmitJob(job="", caller=ALICE, device="aer"), content_of()))
    await settle(lambda: store.batches == before + 1)
    home.device.end()
    await asyncio.sleep(0)
    store.gate.set()
    assert isinstance(await task, JobView)


async def test_a_watch_that_skips_what_is_superseded_hears_of_a_short_job_once(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "SHORT_RUN_NS", 600 * SECOND)
    session = await home.session()
    watches = [home.engine.watch_session(session, include_results=True, skip_superseded=skip) for skip in (True, False)]
    for watch in watches:
        await anext(watch)
    for _ in range(2):  # the session itself becomes active with its first job
        task = asyncio.create_task(home.submit(session=session, job_class=JobClass.SESSION, limit=SECOND))
        await settle(lambda: home.device.running is not None)
        home.device.end()
        job = await task
    told: list[list[str]] = []
    for watch in watches:
        kinds: list[str] = []
        while kinds.count("JobEnded") < 2:
            notice = await anext(watch)
            kinds.append(type(notice.change).__name__)
        assert isinstance(notice.change, JobEnded)
        assert notice.change.job.job == job
        assert notice.change.result is not None
        told.append(kinds[kinds.index("JobEnded") + 1 :])
        await watch.aclose()
    assert told == [["JobEnded"], ["JobAccepted", "JobStarted", "JobEnded"]]


async def test_a_refusal_leaves_nothing(home: Home) -> None:
    with pytest.raises(Refusal) as caught:
        await home.engine.submit(
            [
                SubmitJob(job="", caller=ALICE, device="aer"),
                SubmitJob(job="", caller=ALICE, device="nowhere"),
            ],
            [content_of(), content_of()],
        )
    assert (caught.value.code, caught.value.reason) == (Code.NOT_FOUND, "UNKNOWN_DEVICE")
    assert (await home.engine.list_jobs(JobFilter())).items == ()
    assert home.device.running is None


async def test_a_name_is_taken_for_ever(home: Home) -> None:
    await home.submit(job="mine")
    home.device.end()
    await wait_state(home.engine, "mine", JobState.SUCCEEDED)
    with pytest.raises(Refusal) as caught:
        await home.submit(job="mine")
    assert (caught.value.code, caught.value.reason) == (Code.ALREADY_EXISTS, "NAME_TAKEN")


async def test_a_name_is_taken_while_all_that_was_ever_called_so_is_on_its_way_to_disk(
    held: tuple[Home, HeldStore],
) -> None:
    home, store = held
    engine = home.engine
    await quiet(home)
    store.gate.clear()
    jobs = [asyncio.create_task(home.submit(job="mine"))]
    await settle(lambda: home.device.running is not None)
    home.device.end()
    jobs.append(asyncio.create_task(home.submit(BOB, job="mine")))
    sessions = [asyncio.create_task(home.session())]
    await settle(lambda: "s" in engine._writer.recorder.sessions)
    over = asyncio.create_task(engine.execute(CancelSession(session="s", caller=ALICE)))
    await settle(lambda: engine._writer.scheduler.session_record("s") is None)
    sessions.append(asyncio.create_task(home.session(caller=BOB)))
    await asyncio.sleep(0.05)  # both would be entered by now
    store.gate.set()
    assert await jobs[0] == "mine"
    await asyncio.gather(sessions[0], over)
    for late in (jobs[1], sessions[1]):
        with pytest.raises(Refusal) as caught:
            await late
        assert (caught.value.code, caught.value.reason) == (Code.ALREADY_EXISTS, "NAME_TAKEN")
    assert engine._writer.stage is Stage.RUNNING


async def test_a_name_of_a_call_whose_caller_left_is_taken_when_the_call_is_on_disk(
    held: tuple[Home, HeldStore],
) -> None:
    home, store = held
    await quiet(home)
    store.gate.clear()
    first = asyncio.create_task(home.submit(job="mine"))
    await settle(lambda: home.device.running is not None)
    first.cancel()
    home.device.end()
    late = asyncio.create_task(home.submit(BOB, job="mine"))
    await asyncio.sleep(0.05)  # it would be entered by now
    store.gate.set()
    with pytest.raises(Refusal, match="choose another name"):
        await late
    assert first.cancelled()


async def test_a_job_in_a_final_state_is_not_changed_and_belongs_to_its_owner(home: Home) -> None:
    job = await home.submit()
    home.device.end()
    await wait_state(home.engine, job, JobState.SUCCEEDED)
    for caller, reason in ((ALICE, "JOB_FINAL"), (OPERATOR, "JOB_FINAL"), (BOB, "NOT_OWNER")):
        with pytest.raises(Refusal) as caught:
            await home.engine.execute(CancelJob(job=job, caller=caller))
        assert caught.value.reason == reason
    with pytest.raises(Refusal) as caught:
        await home.engine.execute(SetPriority(job=job, caller=ALICE, priority=3))
    assert caught.value.reason == "JOB_NOT_QUEUED"
    with pytest.raises(Refusal) as caught:
        await home.engine.execute(CancelJob(job="none", caller=ALICE))
    assert caught.value.reason == "UNKNOWN_JOB"


async def test_cancelling_a_running_job_stops_its_worker_and_frees_the_device(home: Home) -> None:
    job = await home.submit()
    following = await home.submit()
    run = home.device.running
    assert run is not None
    home.clock.advance(SECOND)
    await home.engine.execute(CancelJob(job=job, caller=ALICE))
    assert home.device.stopped == [(job, 1)]
    assert home.device.running is not None
    assert home.device.running.job == following
    view = await home.engine.get_job(job)
    assert (view.state, view.reason, view.charged_ns) == (JobState.CANCELLED, JobReason.CANCELLED_BY_USER, SECOND)
    home.device.late(run)
    await quiet(home)
    assert (await home.engine.get_job(job)).state is JobState.CANCELLED
    with pytest.raises(Refusal) as caught:
        await home.engine.get_result(job)
    assert caught.value.reason == "NO_RESULT"
    with pytest.raises(Refusal) as caught:
        await anext(home.engine.stream_result(job, 0, 100))
    assert caught.value.reason == "NO_RESULT"


async def test_a_result_that_is_taken_slowly_comes_whole(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    job = await home.submit()
    home.device.end(result=b"a long one")
    await wait_state(home.engine, job, JobState.SUCCEEDED)
    monkeypatch.setattr("cadenza_server.store.store.PATIENCE_SECONDS", 0.0)  # it is read in several parts
    for offset in (0, 9, 10):
        pieces = [piece async for piece in home.engine.stream_result(job, offset, 1)]
        assert b"".join(piece.data for piece in pieces) == b"a long one"[offset:]
        assert [piece.offset for piece in pieces] == (list(range(offset, 10)) or [10])


async def test_a_lost_worker_is_an_attempt_and_its_late_result_is_ignored(home: Home) -> None:
    job = await home.submit()
    first = home.device.running
    assert first is not None
    home.device.end(RunOutcome.WORKER_LOST, None)
    await settle(lambda: home.device.running is not None)
    home.device.late(first)
    home.device.end(result=b"second")
    await wait_state(home.engine, job, JobState.SUCCEEDED)
    assert await home.engine.get_result(job) == b"second"
    assert [piece.data async for piece in home.engine.stream_result(job, 1, 3)] == [b"eco", b"nd"]
    with pytest.raises(Refusal) as caught:
        await anext(home.engine.stream_result(job, 7, 3))
    assert caught.value.reason == "OFFSET_TOO_LARGE"
    runs = (await home.engine.list_runs(RunFilter(job=job))).items
    assert [(run.attempt, run.outcome) for run in runs] == [(1, RunOutcome.WORKER_LOST), (2, RunOutcome.SUCCEEDED)]


async def test_a_failed_run_keeps_its_detail(home: Home) -> None:
    job = await home.submit()
    home.device.end(RunOutcome.EXECUTION_ERROR, None, "line 3: no such gate")
    await wait_state(home.engine, job, JobState.FAILED)
    view = await home.engine.get_job(job)
    assert (view.reason, view.detail) == (JobReason.EXECUTION_ERROR, "line 3: no such gate")


async def test_large_programs_and_those_that_memory_does_not_keep_run_all_the_same(home: Home) -> None:
    payloads = home.engine._writer.payloads
    payloads._bytes_max = 0
    programs = [b"a" * 100, b"b" * 100_000, b"c" * 4096, b"d" * 4097]
    jobs = [await home.submit(content=content_of(program)) for program in programs]
    for job, program in zip(jobs, programs, strict=True):
        await settle(lambda: home.device.running is not None)
        assert home.device.running is not None
        assert home.device.running.program == program
        assert await home.engine.get_program(job) == program
        home.device.end()
    await wait_state(home.engine, jobs[-1], JobState.SUCCEEDED)


async def test_history_is_learnt_of_jobs_that_memory_does_not_keep_and_over_a_crash(home: Home) -> None:
    home.engine._writer.payloads._bytes_max = 0
    for _ in range(2):  # the second waits, so that its program is read from the store
        await home.submit(content=content_of(workload=GHZ))
    for length in (3 * SECOND, 5 * SECOND):
        await settle(lambda: home.device.running is not None)
        home.clock.advance(length)
        home.device.end()
    assert (await home.engine.get_job(await home.submit(content=content_of(workload=GHZ)))).estimate_ns == 5 * SECOND
    error = home.engine.device_view("aer").estimate_error
    assert error is not None
    assert (error.run_count, error.factor_p50, error.difference_p90_ns) == (2, 3.0, 4 * SECOND)
    await home.crash()
    await home.open()
    assert home.engine.device_view("aer").estimate_error == error
    assert (await home.engine.get_job(await home.submit(content=content_of(workload=GHZ)))).estimate_ns == 5 * SECOND


async def test_runs_that_did_not_come_to_their_end_teach_nothing_and_a_limit_that_was_reached_does(home: Home) -> None:
    for outcome in (RunOutcome.EXECUTION_ERROR, RunOutcome.WORKER_LOST):
        job = await home.submit(content=content_of(workload=GHZ), limit=20 * SECOND)
        await settle(lambda: home.device.running is not None)
        home.clock.advance(2 * SECOND)
        home.device.end(outcome)
    await home.engine.execute(CancelJob(job=job, caller=ALICE))
    assert home.engine.device_view("aer").estimate_error is None
    job = await home.submit(content=content_of(workload=GHZ), limit=20 * SECOND)
    assert (await home.engine.get_job(job)).estimate_ns == 20 * SECOND
    home.clock.advance(20 * SECOND)
    home.device.end(RunOutcome.RAN_TOO_LONG)
    unlimited = await home.submit(content=content_of(workload=GHZ))
    assert (await home.engine.get_job(unlimited)).estimate_ns == 20 * SECOND
    assert not home.engine._writer._predicted.keys() - {(unlimited, 1)}


async def test_alike_jobs_of_one_call_are_each_estimated_by_the_history_of_its_sessions_owner(home: Home) -> None:
    for caller, length in ((ALICE, 60 * SECOND), (BOB, 2 * SECOND)):
        await home.submit(caller, content=content_of(workload=GHZ))
        await settle(lambda: home.device.running is not None)
        home.clock.advance(length)
        home.device.end()
        await settle(lambda: home.device.running is None)
    sessions = [await home.session("alices"), await home.session("bobs", caller=BOB)]
    alike = [
        SubmitJob(job="", caller=OPERATOR, job_class=JobClass.SESSION, device="aer", session=session)
        for session in sessions
    ]
    views = await home.engine.submit(alike, [content_of(workload=GHZ)] * 2)
    assert [view.estimate_ns for view in views] == [60 * SECOND, 2 * SECOND]


async def test_a_batch_runs_first_what_was_shortest_before_and_runs_are_charged_in_flight_by_it(home: Home) -> None:
    long, short = (
        make_workload("SAMPLER", (hashlib.sha256(name).digest(),), qubits=qubits, size=500, work=1000)
        for name, qubits in ((b"long", 9), (b"short", 3))
    )
    for workload, length in ((long, 60 * SECOND), (short, 2 * SECOND)):
        await home.submit(content=content_of(workload=workload))
        home.clock.advance(length)
        home.device.end()
        await settle(lambda: home.device.running is None)
    session = await home.session(mode=SessionMode.BATCH)
    jobs = [
        await home.submit(
            device=None, session=session, job_class=JobClass.SESSION, content=content_of(workload=workload)
        )
        for workload in (long, long, short)
    ]
    order = []
    for _ in jobs:
        await settle(lambda: home.device.running is not None)
        assert home.device.running is not None
        order.append(home.device.running.job)
        in_flight = home.usage("lab/alice").in_flight_s
        assert in_flight == pytest.approx(2 if home.device.running.job == jobs[2] else 60, rel=1e-3)
        home.device.end()
    assert order == [jobs[0], jobs[2], jobs[1]]


async def test_a_calibration_is_expected_to_take_the_time_that_it_asks_for(home: Home) -> None:
    content = replace(content_of(min_duration_ns=9 * SECOND), program_kind=ProgramKind.CALIBRATION)
    job = await home.submit(OPERATOR, job_class=JobClass.CALIBRATION, content=content)
    assert (await home.engine.get_job(job)).estimate_ns == 9 * SECOND


async def test_a_job_behind_a_calibration_has_a_position_if_the_clock_was_set_back(tmp_path: Path) -> None:
    home = Home(tmp_path)
    await home.open()
    await home.engine.stop(0)
    home.clock = VirtualClock(START - 60 * SECOND)
    await home.open()
    content = replace(content_of(min_duration_ns=9 * SECOND), program_kind=ProgramKind.CALIBRATION)
    await home.submit(OPERATOR, job_class=JobClass.CALIBRATION, content=content)
    waiting = await home.submit()
    assert (await home.engine.get_job(waiting)).queue_position == 0
    await home.engine.stop(0)


async def test_automatic_calibrations_run_the_devices_own_measurement(tmp_path: Path) -> None:
    home = Home(tmp_path)
    await home.open(settings=replace(RUNTIME_2023, calibration_interval=10 * SECOND, calibration_duration=2 * SECOND))
    home.clock.advance(10 * SECOND)
    await settle(lambda: home.device.running is not None)
    run = home.device.running
    assert run is not None
    assert (run.job, run.min_duration_ns) == ("calibration-aer-1", 2 * SECOND)
    assert program_pb2.Program.FromString(run.program).WhichOneof("kind") == "calibration"
    home.clock.advance(2 * SECOND)
    home.device.end(properties=b"measured")
    await quiet(home)
    await wait_state(home.engine, run.job, JobState.SUCCEEDED)
    view = home.engine.device_view("aer")
    assert (view.epoch, view.properties, view.calibrate_time) == (1, b"measured", START + 12 * SECOND)
    await home.crash()
    await home.open(settings=replace(RUNTIME_2023, calibration_interval=10 * SECOND, calibration_duration=2 * SECOND))
    again = home.engine.device_view("aer")
    assert (again.epoch, again.properties, again.calibrate_time) == (1, b"measured", START + 12 * SECOND)
    assert again.next_calibration_time == START + 22 * SECOND
    await home.engine.stop(0)


# --- circuits by digest ---------------------------------------------------------------------------------------------
def circuit_and_digest(text: str) -> tuple[circuit_pb2.Circuit, bytes]:
    return circuit_pb2.Circuit(openqasm3=text), hashlib.sha256(text.encode()).digest()


async def test_a_session_holds_its_circuits_also_after_a_restart(home: Home) -> None:
    session = await home.session()
    circuit, digest = circuit_and_digest("OPENQASM 3.0;")
    brings = content_of(program_with(circuit), new_circuits={digest: circuit.SerializeToString()})
    names = content_of(program_with(circuit_pb2.Circuit(digest=digest)), digests=frozenset({digest}))
    await home.submit(session=session, job_class=JobClass.SESSION, content=brings)
    home.device.end()
    await home.submit(session=session, job_class=JobClass.SESSION, content=names)
    await settle(lambda: home.device.running is not None)
    assert home.device.running is not None
    assert home.device.running.circuits == {digest: circuit.SerializeToString()}
    await home.crash()
    await home.open()
    await settle(lambda: home.device.running is not None)
    assert home.device.running.circuits == {digest: circuit.SerializeToString()}
    await home.submit(session=session, job_class=JobClass.SESSION, content=names)


async def test_an_unknown_digest_is_refused_before_anything_is_queued(home: Home) -> None:
    session = await home.session()
    circuit, digest = circuit_and_digest("OPENQASM 3.0;")
    brings = content_of(program_with(circuit), new_circuits={digest: circuit.SerializeToString()})
    names = content_of(program_with(circuit_pb2.Circuit(digest=digest)), digests=frozenset({digest}))
    job = SubmitJob(job="", caller=ALICE, session=session, job_class=JobClass.SESSION)
    for jobs, contents in (([job], [names]), ([job, job], [names, brings])):
        with pytest.raises(Refusal) as caught:
            await home.engine.submit(jobs, contents)
        assert (caught.value.code, caught.value.reason) == (Code.NOT_FOUND, "UNKNOWN_CIRCUIT")
    assert (await home.engine.list_jobs(JobFilter())).items == ()
    await home.engine.submit([job, job], [brings, names])


async def test_a_job_without_a_session_may_name_a_circuit_that_a_later_pub_of_it_brings(home: Home) -> None:
    circuit, digest = circuit_and_digest("OPENQASM 3.0;")
    program = program_with(circuit_pb2.Circuit(digest=digest), circuit)
    brings = {digest: circuit.SerializeToString()}
    job = await home.submit(content=content_of(program, new_circuits=brings, digests=frozenset({digest})))
    for _ in range(2):
        await settle(lambda: home.device.running is not None)
        assert home.device.running is not None
        assert (home.device.running.job, home.device.running.program) == (job, program)
        await home.crash()
        await home.open()


class UnreadableStore(Store):
    """A store that cannot be read for a number of times."""

    failures = 0
    failed = 0

    async def read(self, query: Any) -> Any:
        if self.failed < self.failures:
            self.failed += 1
            raise StoreError("the disk does not answer")
        return await super().read(query)


@pytest.mark.parametrize("failures", [1, 2, 3])
async def test_a_program_that_cannot_be_read_is_read_again_before_the_run_counts_as_lost(
    home: Home, failures: int
) -> None:
    job = await home.submit()
    await home.crash()
    store = UnreadableStore(home.data_dir)
    await home.open(store=store)
    await settle(lambda: home.device.running is not None)
    store.failures = failures
    other = await home.submit(BOB)
    home.engine._writer.payloads.drop(other)
    home.device.end()
    for number in range(1, min(failures, 2) + 1):
        await settle(lambda number=number: store.failed == number)  # type: ignore[misc]
        await asyncio.sleep(0)
        assert home.device.running is None
        home.clock.advance(SECOND)
    await settle(lambda: home.device.running is not None)
    assert home.device.running is not None
    assert (home.device.running.job, home.device.running.attempt) == (other, 1 if failures < 3 else 2)
    await wait_state(home.engine, job, JobState.SUCCEEDED)


# --- watches --------------------------------------------------------------------------------------------------------
async def test_a_watch_shows_every_change_and_ends_with_the_result(home: Home) -> None:
    blocker = await home.submit(BOB)
    job = await home.submit()
    watch = home.engine.watch_job(job, include_results=True)
    first = await anext(watch)
    assert isinstance(first.change, JobSnapshot)
    assert first.change.job.state is JobState.QUEUED
    home.device.end()
    await settle(lambda: home.device.running is not None)
    home.device.end(result=b"counts")
    started, ended = await collect(watch)
    assert isinstance(started.change, JobStarted)
    assert isinstance(ended.change, JobEnded)
    assert (ended.change.job.state, ended.change.result) == (JobState.SUCCEEDED, b"counts")
    assert ended.change.run is not None
    assert ended.change.run.outcome is RunOutcome.SUCCEEDED
    assert ended.change.job == await home.engine.get_job(job)
    (final,) = await collect(home.engine.watch_job(blocker))
    assert isinstance(final.change, JobSnapshot)


async def test_a_queued_job_tells_how_many_start_before_it(home: Home) -> None:
    running = await home.submit(BOB)
    jobs = [await home.submit(caller) for caller in (ALICE, ALICE, BOB, ALICE)]
    positions = [(await home.engine.get_job(job)).queue_position for job in (running, *jobs)]
    assert positions == [None, 0, 2, 1, 3]  # bob has used the device: alice comes first
    await home.engine.execute(SetPriority(job=jobs[3], caller=ALICE, priority=5))
    assert [(await home.engine.get_job(job)).queue_position for job in jobs] == [2, 3, 1, 0]
    snapshot = await anext(home.engine.watch_job(jobs[1]))
    assert isinstance(snapshot.change, JobSnapshot)
    assert snapshot.change.job.queue_position == 3
    home.clock.advance(SECOND)  # what the run was expected to take
    home.device.end()
    await settle(lambda: home.device.running is not None)
    assert [(await home.engine.get_job(job)).queue_position for job in jobs] == [1, 2, 0, None]


async def test_a_watch_resumes_anywhere_without_loss_or_repetition(home: Home) -> None:
    await home.submit(BOB)
    job = await home.submit()
    await home.engine.execute(SetPriority(job=job, caller=ALICE, priority=5))
    home.device.end()
    await settle(lambda: home.device.running is not None)
    home.device.end(RunOutcome.WORKER_LOST, None)
    await settle(lambda: home.device.running is not None)
    home.device.end()
    await wait_state(home.engine, job, JobState.SUCCEEDED)
    everything = await collect(home.engine.watch_job(job, after=0))
    kinds = [type(notice.change).__name__ for notice in everything]
    assert kinds == ["JobAccepted", "JobPriorityChanged", "JobStarted", "JobRequeued", "JobStarted", "JobEnded"]
    for index, notice in enumerate(everything):
        assert await collect(home.engine.watch_job(job, after=notice.event_number)) == everything[index + 1 :]
    page = await home.engine.list_job_events(job, page_size=4)
    rest = await home.engine.list_job_events(job, page_size=4, page_token=page.next_page_token)
    assert (*page.items, *rest.items) == tuple(everything)
    assert rest.next_page_token == ""


async def test_what_is_watched_live_is_what_history_tells(home: Home) -> None:
    session = await home.session()
    watch = home.engine.watch_session(session, include_results=True)
    live = [await anext(watch)]
    assert isinstance(live[0].change, SessionSnapshot)
    tail = asyncio.create_task(collect(watch))
    for _ in range(3):
        await home.submit(session=session, job_class=JobClass.SESSION)
    home.device.end()
    await settle(lambda: home.device.running is not None)
    home.clock.advance(SECOND)
    home.device.end(RunOutcome.WORKER_LOST, None)
    await settle(lambda: home.device.running is not None)
    await home.engine.execute(CloseSession(session=session, caller=ALICE, pending=Pending.FAIL_QUEUED))
    home.device.end()
    live += await tail
    told = await collect(home.engine.watch_session(session, after=live[0].event_number, include_results=True))
    assert [notice.event_number for notice in live[1:]] == [notice.event_number for notice in told]
    assert [type(notice.change) for notice in live[1:]] == [type(notice.change) for notice in told]
    for seen, notice in zip(live[1:], told, strict=True):
        if isinstance(seen.change, JobEnded | SessionChanged | SessionJobsEnded):
            assert _without_deadlines(seen) == _without_deadlines(notice)
    last = live[-1].change
    assert isinstance(last, SessionChanged)
    assert (last.session.state, last.session.close_reason) == (SessionState.CLOSED, CloseReason.CLOSED_BY_USER)
    own = await home.engine.list_session_events(session)
    assert {type(notice.change) for notice in own.items} == {SessionChanged, SessionJobsEnded}


def _without_deadlines(notice: Notice) -> Notice:
    """Clocks of the live session are not part of its history."""
    if not isinstance(notice.change, SessionChanged):
        return notice
    session = replace(notice.change.session, idle_deadline=None, unused_deadline=None)
    return replace(notice, change=replace(notice.change, session=session))


async def test_a_draining_session_that_is_picked_tells_its_watchers_when_it_expires(home: Home) -> None:
    blocker = await home.submit(BOB)
    await home.session()
    await home.submit(session="s", job_class=JobClass.SESSION)
    await home.submit(session="s", job_class=JobClass.SESSION)
    watch = asyncio.create_task(collect(home.engine.watch_session("s", exclude_jobs=True)))
    await settle(lambda: len(home.engine._watches) == 1)
    await home.engine.execute(CloseSession(session="s", caller=ALICE, pending=Pending.DRAIN))
    await quiet(home)
    home.clock.advance(5 * SECOND)
    home.device.end()
    await wait_state(home.engine, blocker, JobState.SUCCEEDED)
    await settle(lambda: home.device.running is not None)
    home.clock.advance(SECOND)
    home.device.end()
    await settle(lambda: home.device.running is not None)
    await home.engine.execute(CancelSession(session="s", caller=ALICE))
    home.device.end()
    await watch
    told = [notice.change for notice in (await home.engine.list_session_events("s")).items]
    picked = START + 5 * SECOND
    seen = [
        (each.session.state, each.session.active, each.session.start_time, each.session.expire_time)
        for each in told
        if isinstance(each, SessionChanged)
    ]
    known = (picked, picked + RUNTIME_2023.max_time)
    assert seen == [
        (SessionState.OPEN, False, None, None),
        (SessionState.DRAINING, False, None, None),
        (SessionState.DRAINING, True, *known),
        (SessionState.DRAINING, True, *known),  # it will close for its cancel now
        (SessionState.CLOSED, False, *known),
    ]


async def test_all_queued_jobs_of_a_session_end_as_one_event_and_each_tells_its_own_watchers(home: Home) -> None:
    session = await home.session()
    jobs = [await home.submit(session=session, job_class=JobClass.SESSION) for _ in range(5)]
    watches = [asyncio.create_task(collect(home.engine.watch_job(job))) for job in jobs]
    await settle(lambda: len(home.engine._watches) == 5)
    await quiet(home)
    await asyncio.sleep(0.02)  # the watches have read their snapshots, or will read what follows: both must do
    await home.engine.execute(CancelSession(session=session, caller=ALICE))
    for job, watch in list(zip(jobs, watches, strict=True))[1:]:
        last = (await watch)[-1].change
        assert isinstance(last, JobEnded | JobSnapshot)
        assert (last.job.state, last.job.reason) == (JobState.CANCELLED, JobReason.SESSION_CANCELLED)
        events = (await home.engine.list_job_events(job)).items
        assert [type(notice.change) for notice in events] == [JobAccepted, JobEnded]
    assert not watches[0].done()
    home.device.end()
    last = (await watches[0])[-1].change
    assert isinstance(last, JobEnded)
    assert last.job.state is JobState.SUCCEEDED
    counts = (await home.engine.get_session(session)).job_counts
    assert (counts.queued, counts.running, counts.succeeded, counts.cancelled) == (0, 0, 1, 4)


async def test_jobs_of_an_expired_session_are_released_and_fail_at_the_cache_deadline(home: Home) -> None:
    session = await home.session(max_time=10 * SECOND)
    jobs = [await home.submit(session=session, job_class=JobClass.SESSION) for _ in range(2)]
    watch = home.engine.watch_job(jobs[1])
    await anext(watch)
    home.clock.advance(10 * SECOND)
    await quiet(home)
    view = await home.engine.get_job(jobs[1])
    deadline = START + 10 * SECOND + RUNTIME_2023.session_cache_ttl
    assert (view.job_class, view.cache_deadline) == (JobClass.FAIR_SHARE, deadline)
    home.clock.advance(RUNTIME_2023.session_cache_ttl)
    kinds = [type(notice.change).__name__ for notice in await collect(watch)]
    assert kinds == ["JobReleased", "JobEnded"]
    told = [type(notice.change).__name__ for notice in (await home.engine.list_job_events(jobs[1])).items]
    assert told == ["JobAccepted", "JobReleased", "JobEnded"]
    assert (await home.engine.get_job(jobs[1])).reason is JobReason.SESSION_CACHE_EXPIRED


async def test_a_watch_of_a_session_ends_at_its_cache_deadline(home: Home) -> None:
    session = await home.session(max_time=10 * SECOND)
    await home.submit(session=session, job_class=JobClass.SESSION)
    home.device.end()
    watch = asyncio.create_task(collect(home.engine.watch_session(session, exclude_jobs=True)))
    await settle(lambda: len(home.engine._watches) == 1)
    await quiet(home)
    home.clock.advance(10 * SECOND)
    await quiet(home)
    await asyncio.sleep(0.02)
    assert not watch.done()
    home.clock.advance(RUNTIME_2023.session_cache_ttl)
    last = (await watch)[-1].change
    assert isinstance(last, SessionChanged)
    assert last.session.close_reason is CloseReason.EXPIRED
    assert len(home.engine._watches) == 0


async def test_a_slow_watcher_ends_alone_and_resumes(home: Home) -> None:
    await home.engine.stop(0)
    await home.open(quotas=Quotas(watch_backlog_max=10))
    session = await home.session()
    slow = home.engine.watch_session(session)
    seen = (await anext(slow)).event_number
    other = home.engine.watch_session(session)
    await anext(other)
    fast = asyncio.create_task(collect(other))
    jobs = [await home.submit(session=session, job_class=JobClass.SESSION) for _ in range(30)]
    with pytest.raises(Refusal) as caught:
        await collect(slow)
    assert (caught.value.code, caught.value.reason) == (Code.RESOURCE_EXHAUSTED, "WATCH_TOO_SLOW")
    await home.engine.execute(CancelSession(session=session, caller=ALICE))
    home.device.end()
    accepted = [notice for notice in await fast if isinstance(notice.change, JobAccepted)]
    assert len(accepted) == 30
    resumed = await collect(home.engine.watch_session(session, after=seen))
    assert [n.change.job.job for n in resumed if isinstance(n.change, JobAccepted)] == jobs


async def test_a_resume_token_of_another_store_is_out_of_range(home: Home) -> None:
    job = await home.submit()
    for after in (10_000, -1):
        with pytest.raises(Refusal) as caught:
            await collect(home.engine.watch_job(job, after=after))
        assert (caught.value.code, caught.value.reason) == (Code.OUT_OF_RANGE, "RESUME_TOO_OLD")
    with pytest.raises(Refusal) as caught:
        await collect(home.engine.watch_job(job, caller=BOB))
    assert caught.value.reason == "NOT_OWNER"


# --- idempotency ----------------------------------------------------------------------------------------------------
def key(request_id: str, digest: bytes = b"same") -> RequestKey:
    return RequestKey(caller="lab/alice", request_id=request_id, digest=digest)


async def test_a_repeated_submit_gets_the_first_answer_also_after_a_restart(home: Home) -> None:
    job = SubmitJob(job="", caller=ALICE, device="aer")
    first = await home.engine.submit([job, job], [content_of(), content_of()], key("r"))
    assert await home.engine.submit([job, job], [content_of(), content_of()], key("r")) == first
    home.device.end()
    await wait_state(home.engine, first[0].job, JobState.SUCCEEDED)
    await home.crash()
    await home.open()
    assert await home.engine.submit([job, job], [content_of(), content_of()], key("r")) == first
    assert len((await home.engine.list_jobs(JobFilter())).items) == 2
    with pytest.raises(Refusal) as caught:
        await home.engine.submit([job], [content_of()], key("r", b"other"))
    assert (caught.value.code, caught.value.reason) == (Code.INVALID_ARGUMENT, "REQUEST_ID_REUSED")
    other = RequestKey(caller="lab/bob", request_id="r", digest=b"other")
    assert len(await home.engine.submit([job], [content_of()], other)) == 1


async def test_a_retry_that_races_the_first_call_gets_its_answer(held: tuple[Home, HeldStore]) -> None:
    home, store = held
    await quiet(home)
    store.gate.clear()
    job = SubmitJob(job="", caller=ALICE, device="aer")
    calls = [asyncio.create_task(home.engine.submit([job], [content_of()], key("r"))) for _ in range(3)]
    await settle(lambda: home.device.running is not None)
    calls[0].cancel()
    with pytest.raises(Refusal):
        await home.engine.submit([job], [content_of()], key("r", b"other"))
    store.gate.set()
    one, two = await asyncio.gather(*calls[1:])
    assert one == two
    assert len((await home.engine.list_jobs(JobFilter())).items) == 1


async def test_a_retry_gets_its_answer_also_while_its_id_is_tried_with_other_content(home: Home) -> None:
    job = SubmitJob(job="", caller=ALICE, device="aer")
    first = await home.engine.submit([job], [content_of()], key("r"))
    other = asyncio.create_task(home.engine.submit([job], [content_of()], key("r", b"other")))
    await asyncio.sleep(0)  # it is looked at
    assert await home.engine.submit([job], [content_of()], key("r")) == first
    with pytest.raises(Refusal, match="used before"):
        await other


async def test_a_repeated_command_gets_its_first_events(home: Home) -> None:
    command = CreateSession(session="", caller=ALICE, device="aer")
    first = await home.engine.execute(command, request=key("c"))
    assert await home.engine.execute(command, request=key("c")) == first
    weights = await home.engine.execute(SetShares(path="lab", caller=OPERATOR, shares=3.0), request=key("w"))
    await home.crash()
    await home.open()
    assert await home.engine.execute(command, request=key("c")) == first
    repeated = await home.engine.execute(SetShares(path="lab", caller=OPERATOR, shares=3.0), request=key("w"))
    assert repeated == weights
    assert home.usage("lab").shares == 3.0


async def test_a_repeated_submit_has_the_priority_that_was_accepted_also_after_it_was_changed(home: Home) -> None:
    job = SubmitJob(job="a", caller=ALICE, device="aer", priority=2)
    await home.submit()
    first = await home.engine.submit([job], [content_of()], key("r"))
    for priority in (7, -7):
        await home.engine.execute(SetPriority(job="a", caller=ALICE, priority=priority))
    assert await home.engine.submit([job], [content_of()], key("r")) == first
    (accepted, *_) = (await home.engine.list_job_events("a")).items
    assert isinstance(accepted.change, JobAccepted)
    assert accepted.change.job.priority == 2
    assert (await home.engine.get_job("a")).priority == -7


async def test_a_call_that_had_nothing_to_do_is_remembered_too(home: Home) -> None:
    await home.session()
    await home.engine.execute(CloseSession(session="s", caller=ALICE))
    again = CloseSession(session="s", caller=ALICE)
    assert await home.engine.execute(again, request=key("r")) == ()
    await home.crash()
    await home.open()
    assert await home.engine.execute(again, request=key("r")) == ()
    with pytest.raises(Refusal) as caught:
        await home.engine.execute(again, request=key("r", b"other"))
    assert caught.value.reason == "REQUEST_ID_REUSED"


async def test_a_refused_call_is_not_remembered(home: Home) -> None:
    job = SubmitJob(job="", caller=ALICE, session="later", job_class=JobClass.SESSION)
    with pytest.raises(Refusal):
        await home.engine.submit([job], [content_of()], key("r"))
    await home.session("later")
    assert len(await home.engine.submit([job], [content_of()], key("r"))) == 1


# --- restart --------------------------------------------------------------------------------------------------------
async def test_after_a_kill_everything_goes_on_and_the_interrupted_run_is_repeated(home: Home) -> None:
    session = await home.session()
    first = await home.submit(session=session, job_class=JobClass.SESSION)
    home.clock.advance(SECOND)
    home.device.end(result=b"kept")
    running = await home.submit(session=session, job_class=JobClass.SESSION)
    waiting = await home.submit(BOB)
    await quiet(home)
    usage = home.usage("lab/alice")
    interrupted = home.device.running
    await home.crash()
    home.clock.advance(60 * SECOND)
    await home.open()
    assert await home.engine.get_result(first) == b"kept"
    await settle(lambda: home.device.running is not None)
    assert interrupted is not None
    assert home.device.running is not None
    assert (home.device.running.job, home.device.running.attempt) == (running, interrupted.attempt + 1)
    await quiet(home)
    runs = (await home.engine.list_runs(RunFilter(job=running))).items
    assert [(run.outcome, run.charged_ns) for run in runs] == [(RunOutcome.PUT_BACK, 0), (None, 0)]
    assert home.usage("lab/alice").charged_s == usage.charged_s == 1.0
    home.device.end()
    await wait_state(home.engine, running, JobState.SUCCEEDED)
    await home.engine.execute(CloseSession(session=session, caller=ALICE))
    await settle(lambda: home.device.running is not None)
    assert home.device.running.job == waiting
    home.device.end()
    await wait_state(home.engine, waiting, JobState.SUCCEEDED)


@pytest.mark.parametrize("seed", range(int(os.environ.get("ENGINE_SEEDS", "4"))))
async def test_a_store_gives_back_the_very_state_of_the_scheduler(home: Home, seed: int) -> None:
    """Whatever is asked, at any time: what is restored from the store is what the scheduler was."""
    source = random.Random(seed)
    callers = [ALICE, BOB, Caller("solo")]
    for step in range(400):
        await play(home, source, callers)
        if step % 20:
            continue
        await quiet(home)
        engine = home.engine
        live = engine._writer.scheduler.state()
        loaded = await home.store.read(restart.load)
        stored = restart.scheduler_state(loaded, {"aer": RUNTIME_2023}, {}, live.half_life, live.now)
        found, expected = by_name(stored), by_name(live)
        for part, value in expected.items():
            assert found[part] == value, f"{part} after {step} steps"


def by_name(state: State) -> dict[str, Any]:
    """A state by the names in it; without what a restart begins anew (readiness, doubled estimates of runs)."""
    return {
        "nodes": {node.path: node for node in state.nodes},
        "devices": {device.device: replace(device, ready=True) for device in state.devices},
        "reservations": {reservation.reservation: reservation for reservation in state.reservations},
        "sessions": {session.session: session for session in state.sessions},
        "jobs": {job.job: job._replace(run=job.run and replace(job.run, estimate=0)) for job in state.jobs},
        "numbers": (state.seq, state.sessions_created, state.reservations_created, state.now, state.half_life),
    }


async def play(home: Home, source: random.Random, callers: Sequence[Caller]) -> None:
    """Ask for something, or end a run, or let time pass; refusals are part of it."""
    engine = home.engine
    jobs = [view.job for view in (await engine.list_jobs(JobFilter(), page_size=20)).items]
    sessions = list(engine._writer.recorder.sessions)  # after the wait: one may end while the store is read
    caller = source.choice(callers)
    try:
        match source.randrange(12):
            case 0 | 1:
                await home.submit(caller, estimate=source.randrange(1, 5) * SECOND, priority=source.randrange(-2, 3))
            case 2 | 3 | 4 if sessions:
                name = source.choice(sessions)
                owner = Caller(engine._writer.recorder.sessions[name].user)
                await home.submit(owner, session=name, job_class=JobClass.SESSION, device=None)
            case 5:
                mode = source.choice(list(SessionMode))
                await home.session("", caller=caller, mode=mode, max_time=source.randrange(5, 60) * SECOND)
            case 6 if sessions:
                name = source.choice(sessions)
                owner = Caller(engine._writer.recorder.sessions[name].user)
                close = CloseSession(session=name, caller=owner, pending=source.choice(list(Pending)))
                await engine.execute(close if source.random() < 0.5 else CancelSession(session=name, caller=owner))
            case 7 if jobs:
                await engine.execute(CancelJob(job=source.choice(jobs), caller=OPERATOR))
            case 8 if home.device.running is not None:
                home.clock.advance(source.randrange(3) * SECOND)
                if home.device.running is not None:
                    home.device.end(source.choice([RunOutcome.SUCCEEDED] * 4 + [RunOutcome.WORKER_LOST]))
            case 9:
                await engine.submit(
                    [SubmitJob(job="", caller=OPERATOR, device="aer", job_class=JobClass.CALIBRATION)],
                    [content_of()],
                )
            case 10:
                start = engine.now() + source.randrange(1, 100) * SECOND
                await engine.execute(
                    CreateReservation(
                        reservation="",
                        caller=OPERATOR,
                        device="aer",
                        holder=source.choice(["lab", "solo"]),
                        start=start,
                        end=start + 10 * SECOND,
                    )
                )
            case _:
                home.clock.advance(source.choice([1, 10, 400]) * SECOND)
    except Refusal:
        pass
    if source.random() < 0.6 and home.device.running is not None:
        home.device.end()
    await asyncio.sleep(0)


async def test_the_same_seed_crashes_anywhere_and_loses_nothing(tmp_path: Path) -> None:
    source = random.Random(11)
    home = Home(tmp_path)
    await home.open()
    accepted: set[str] = set()
    finals: dict[str, JobState] = {}
    for _ in range(12):
        for _ in range(25):
            await play(home, source, [ALICE, BOB, Caller("solo")])
        for view in (await home.engine.list_jobs(JobFilter(), page_size=1000)).items:
            accepted.add(view.job)
            if view.state.is_final:
                assert finals.setdefault(view.job, view.state) is view.state
        await home.crash()
        home.clock.advance(source.randrange(20) * SECOND)
        await home.open()
        there = {view.job: view for view in (await home.engine.list_jobs(JobFilter(), page_size=1000)).items}
        assert accepted <= set(there)
        for job, state in finals.items():
            assert there[job].state is state
        for view in there.values():
            if view.state is JobState.SUCCEEDED:
                assert await home.engine.get_result(view.job) == b"result"
    await home.engine.stop(0)


async def test_time_does_not_go_back_when_the_wall_clock_did(home: Home) -> None:
    await home.submit()
    home.clock.advance(100 * SECOND)
    await home.submit()
    await home.crash()
    home.clock = VirtualClock(START)
    home.ids = TimeOrderedIds(home.clock, random.Random(2))
    await home.open()
    assert home.engine.now() >= START + 100 * SECOND
    home.clock.advance(SECOND)
    assert home.engine.now() >= START + 101 * SECOND


@pytest.mark.parametrize(
    "damage", ["UPDATE devices SET clocks = 'nonsense'", "UPDATE usage SET settled = 'much'"], ids=["clocks", "usage"]
)
async def test_a_store_that_holds_what_no_server_wrote_is_refused_with_a_sentence(home: Home, damage: str) -> None:
    job = await home.submit()
    await home.submit()
    home.clock.advance(SECOND)
    home.device.end()
    await wait_state(home.engine, job, JobState.SUCCEEDED)
    await home.engine.stop(0)
    with closing(sqlite3.connect(home.data_dir / FILE_NAME)) as connection:
        connection.execute(damage)
        connection.commit()
    with pytest.raises(StoreError, match="put a backup in its place, or mend what `cadenza check` finds"):
        await home.open()
    assert home.engine._writer.stage is not Stage.RUNNING


async def test_a_device_that_is_gone_while_jobs_wait_for_it_is_an_error_at_start(home: Home) -> None:
    await home.submit()
    await home.engine.stop(0)
    with pytest.raises(StoreError, match=r"1 job waits for aer.*configure it again"):
        await home.open(name="other")
    await home.open()


# --- failure of the store -------------------------------------------------------------------------------------------
async def test_a_watch_that_begins_while_the_engine_has_failed_is_refused_and_does_not_hang(
    held: tuple[Home, HeldStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    home, store = held
    job = await home.submit()
    store.gate.clear()
    waiting = asyncio.create_task(home.submit(BOB))
    await settle(lambda: home.engine._writer._in_flight is not None)
    with monkeypatch.context() as patch:
        patch.setattr(Scheduler, "apply", lambda *_: 1 / 0)
        with pytest.raises(Refusal, match="cannot commit"):
            await home.submit(BOB)
    async with asyncio.timeout(5):
        with pytest.raises(Refusal, match="cannot commit"):
            await anext(home.engine.watch_job(job))
    store.gate.set()
    await waiting
    home.clock.advance(SECOND)
    await settle(lambda: home.engine._writer.stage is Stage.RUNNING)


async def test_a_failed_commit_fails_what_is_pending_and_the_engine_begins_again_from_the_store(
    held: tuple[Home, HeldStore],
) -> None:
    home, store = held
    kept = await home.submit()
    store.failure = "the disk is full"
    with pytest.raises(Refusal) as caught:
        await home.submit(job="lost")
    assert (caught.value.code, caught.value.reason) == (Code.UNAVAILABLE, "STORE_UNAVAILABLE")
    with pytest.raises(Refusal) as caught:
        await home.submit(job="lost")
    assert caught.value.reason == "STORE_UNAVAILABLE"
    assert (await home.engine.get_job(kept)).state in (JobState.QUEUED, JobState.RUNNING)
    assert len(home.device.stopped) == 1
    home.clock.advance(SECOND)  # the first new try fails, too
    await settle(lambda: home.engine._writer.stage.value == "failed" and home.engine._writer._rebuild_timer is not None)
    store.failure = None
    home.clock.advance(4 * SECOND)
    await settle(lambda: home.device.running is not None)
    assert home.device.running is not None
    assert home.device.running.job == kept
    await home.submit(job="lost")


# --- stopping -------------------------------------------------------------------------------------------------------
async def test_a_stop_lets_a_run_end_within_the_grace(home: Home) -> None:
    job = await home.submit()
    waiting = await home.submit()
    stop = asyncio.create_task(home.engine.stop(5))
    await asyncio.sleep(0.01)
    with pytest.raises(Refusal) as caught:
        await home.submit()
    assert (caught.value.code, caught.value.reason) == (Code.UNAVAILABLE, "STOPPING")
    home.device.end()
    await stop
    await home.open()
    assert (await home.engine.get_job(job)).state is JobState.SUCCEEDED
    await settle(lambda: home.device.running is not None)
    assert home.device.running is not None
    assert (home.device.running.job, home.device.running.attempt) == (waiting, 1)


async def test_a_stop_puts_back_what_does_not_end_and_tells_watchers(home: Home) -> None:
    job = await home.submit()
    watch = home.engine.watch_job(job)
    await anext(watch)
    stop = asyncio.create_task(home.engine.stop(5))
    await asyncio.sleep(0.01)
    home.clock.advance(5 * SECOND)
    await stop
    assert home.device.stopped == [(job, 1)]
    assert isinstance((await anext(watch)).change, JobRequeued)
    with pytest.raises(Refusal) as caught:
        await anext(watch)
    assert caught.value.reason == "STOPPING"
    await home.open()
    await settle(lambda: home.device.running is not None)
    assert home.device.running is not None
    assert home.device.running.attempt == 2
    await quiet(home)
    (run, _) = (await home.engine.list_runs(RunFilter(job=job))).items
    assert (run.outcome, run.charged_ns) == (RunOutcome.PUT_BACK, 0)


# --- reads ----------------------------------------------------------------------------------------------------------
async def test_jobs_are_filtered_and_paged(home: Home) -> None:
    for index in range(25):
        caller = ALICE if index % 2 else BOB
        await home.submit(caller, job=f"j{index}", content=content_of(tags=("odd",) if index % 2 else ("even", "x")))
        home.clock.advance(SECOND)

    async def names(**where: Any) -> list[str]:
        found: list[str] = []
        token = ""
        while True:
            page = await home.engine.list_jobs(JobFilter(**where), page_size=4, page_token=token)
            found += [view.job for view in page.items]
            token = page.next_page_token
            if not token:
                return found

    everything = [f"j{index}" for index in range(25)]
    assert await names() == everything[::-1]
    assert await names(oldest_first=True) == everything
    assert await names(oldest_first=True, skip=20) == everything[20:]
    assert await names(user="lab/alice", oldest_first=True) == everything[1::2]
    assert await names(user="lab", oldest_first=True) == everything
    assert await names(user="la") == []
    assert await names(tags=frozenset({"x", "even"}), oldest_first=True) == everything[::2]
    assert await names(states=frozenset({JobState.RUNNING})) == ["j0"]
    assert await names(states=frozenset({JobState.QUEUED}), oldest_first=True) == everything[1:]
    since = START + 5 * SECOND
    assert await names(created_from=since, created_before=since + 2 * SECOND) == ["j6", "j5"]
    assert await names(device="other") == []
    page = await home.engine.list_jobs(JobFilter(), page_size=4)
    for token in ("nonsense", page.next_page_token):
        with pytest.raises(Refusal) as caught:
            await home.engine.list_jobs(JobFilter(user="lab"), page_token=token)
        assert caught.value.reason == "INVALID_PAGE_TOKEN"


async def test_reservations_are_listed_while_they_matter(home: Home) -> None:
    engine = home.engine
    for name, start in (("late", 200), ("early", 100)):
        await engine.execute(
            CreateReservation(
                reservation=name,
                caller=OPERATOR,
                device="aer",
                holder="lab",
                start=START + start * SECOND,
                end=START + (start + 50) * SECOND,
            ),
            description=f"the {name} one",
        )
    listed = (await engine.list_reservations(ReservationFilter(covering="lab/alice"), page_size=1)).items
    assert [(view.reservation, view.description) for view in listed] == [("early", "the early one")]
    assert (await engine.list_reservations(ReservationFilter(covering="other"))).items == ()
    home.clock.advance(120 * SECOND)
    await quiet(home)
    assert (await engine.get_reservation("early")).state is ReservationState.ACTIVE
    assert home.engine.device_view("aer").reservation == "early"
    await engine.execute(DeleteReservation(reservation="early", caller=OPERATOR))
    await engine.execute(DeleteReservation(reservation="late", caller=OPERATOR))
    views = [await engine.get_reservation(name) for name in ("early", "late")]
    assert [view.state for view in views] == [ReservationState.ENDED, ReservationState.DELETED]
    assert views[0].end_time == START + 120 * SECOND
    with pytest.raises(Refusal) as caught:
        await engine.execute(DeleteReservation(reservation="late", caller=OPERATOR))
    assert caught.value.reason == "RESERVATION_OVER"


async def test_what_is_done_to_a_closed_session_is_refused_for_the_right_reason_or_changes_nothing(home: Home) -> None:
    session = await home.session()
    await home.engine.execute(CancelSession(session=session, caller=ALICE))
    assert await home.engine.execute(CloseSession(session=session, caller=ALICE)) == ()
    with pytest.raises(Refusal) as caught:
        await home.engine.execute(CloseSession(session=session, caller=BOB))
    assert caught.value.reason == "NOT_OWNER"
    for caller, reason in ((ALICE, "SESSION_NOT_ACCEPTING"), (BOB, "SESSION_OF_OTHER_USER")):
        with pytest.raises(Refusal) as caught:
            await home.submit(caller, session=session, job_class=JobClass.SESSION)
        assert caught.value.reason == reason
    with pytest.raises(Refusal) as caught:
        await home.session(session)
    assert caught.value.reason == "NAME_TAKEN"


async def test_usage_counts_who_waits(home: Home) -> None:
    jobs = [await home.submit() for _ in range(3)]
    await home.submit(BOB)
    lab, alice, bob = home.engine.usage_views(home.engine.share_paths())
    assert [(view.path, view.is_user) for view in (lab, alice, bob)] == [
        ("lab", False),
        ("lab/alice", True),
        ("lab/bob", True),
    ]
    assert [(view.queued, view.running) for view in (lab, alice, bob)] == [(3, 1), (2, 1), (1, 0)]
    await home.engine.execute(CancelJob(job=jobs[1], caller=ALICE))
    assert home.usage("lab/alice").queued == 1
    assert home.engine.usage_views(["lab"], device="aer")[0].queued == 2
    with pytest.raises(Refusal) as caught:
        home.usage("nobody")
    assert caught.value.reason == "UNKNOWN_PATH"


async def test_usage_of_many_users_is_summed_up_in_one_pass(home: Home) -> None:
    """A list of 10,000 users once took half a minute, in which nobody was answered."""

    class Counted(dict[tuple[str, str], tuple[int, int]]):
        passes = 0

        def items(self) -> Any:
            self.passes += 1
            return super().items()

    for account in range(3):
        for user in range(4):
            await home.submit(Caller(f"uni{account}/group/user{user}"))
    recorder: Any = home.engine._writer.recorder
    recorder.waiting = counted = Counted(recorder.waiting)
    views = {view.path: view for view in home.engine.usage_views(home.engine.share_paths())}
    assert counted.passes == 1
    assert {path: view.queued + view.running for path, view in views.items()} == {
        **{f"uni{account}": 4 for account in range(3)},
        **{f"uni{account}/group": 4 for account in range(3)},
        **{f"uni{account}/group/user{user}": 1 for account in range(3) for user in range(4)},
    }
    assert list(views) == sorted(views)


async def test_only_the_nodes_that_are_asked_for_are_looked_at(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page of a list of 10,000 users, and each path of a `SetShares`, once took a tenth of a second of the loop."""
    for number in range(30):
        await home.submit(Caller(f"uni/user{number:02}"))
    looked: list[str] = []
    look = Scheduler.node_view

    def note(self: Scheduler, path: str, now: int) -> Any:
        looked.append(path)
        return look(self, path, now)

    monkeypatch.setattr(Scheduler, "node_view", note)
    paths = home.engine.share_paths("uni")[:3]
    home.engine.usage_views(paths)
    assert looked == paths == ["uni", "uni/user00", "uni/user01"]


async def test_paths_are_in_order_also_as_new_ones_come_and_after_the_memory_was_made_anew(home: Home) -> None:
    for path in ("b/x", "a.c/y", "a/z"):
        await home.submit(Caller(path))
    assert home.engine.share_paths() == ["a", "a/z", "a.c", "a.c/y", "b", "b/x"]
    await home.submit(Caller("a/c"))
    assert home.engine.share_paths("a") == ["a", "a/c", "a/z"]
    await quiet(home)
    home.engine._writer._fail(StoreError("the disk"))
    home.clock.advance(2 * SECOND)
    await settle(lambda: home.engine._writer.stage is Stage.RUNNING)
    assert home.engine.share_paths() == ["a", "a/c", "a/z", "a.c", "a.c/y", "b", "b/x"]


async def test_a_second_server_on_the_same_store_is_told_who_has_it(home: Home) -> None:
    with pytest.raises(StoreInUse, match=rf"in use by process {os.getpid()} on .*, since 1970-01-01T00:16:40"):
        await Home(home.data_dir).open()
    await home.submit()

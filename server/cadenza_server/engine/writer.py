"""The one writer: what comes in within one turn of the event loop is one instant of the scheduler, at one `now`.

An instant's events become rows of the batch that collects while the batch before it is being committed. Answers and
notices leave after the commit that holds them; runs start at once. If a commit fails, nothing of the memory is trusted
any more: the writer fails what is pending, stops the runs, and takes itself up again from the store.
"""

import asyncio
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from functools import partial
from typing import Any, Final, Protocol

from cadenza.v1 import program_pb2

from cadenza_server.clock import Clock, Timer
from cadenza_server.engine import event_json, restart
from cadenza_server.engine.observer import Observer
from cadenza_server.engine.payloads import Circuits, Payload, Payloads, circuits_of
from cadenza_server.engine.predictor import INSTRUCTIVE_OUTCOMES, Predictor
from cadenza_server.engine.quotas import Doorkeeper, Quotas
from cadenza_server.engine.recorder import Published, Recorder, Report
from cadenza_server.engine.views import JobContent, RequestKey
from cadenza_server.engine.watches import Watches
from cadenza_server.execution.runs import Assignment, RunReport
from cadenza_server.model.commands import CancelJob, Command, Resumed, RunEnded, SetDeviceReady, SubmitJob, SubmitJobs
from cadenza_server.model.errors import Code, Refusal
from cadenza_server.model.events import EpochStarted, Event, JobQueued, RunFinished, RunStarted
from cadenza_server.model.settings import SECOND, DeviceSettings
from cadenza_server.model.words import RunOutcome
from cadenza_server.scheduling import Scheduler
from cadenza_server.store import StoreError, reads
from cadenza_server.store import batch as sql
from cadenza_server.store.batch import Batch
from cadenza_server.store.store import Store
from cadenza_server.store.views import ProgramKind

HEARTBEAT_NS: Final = 5 * SECOND
"""How often the time is recorded: what a restart takes for the time at which the server went down, if nothing later
was written."""
READ_AGAIN_NS: Final = (SECOND // 10, 1 * SECOND)
"""How long to wait before a program that could not be read is read again. Then the run counts as lost."""
GATHER_SECONDS: Final = 0.003
"""How long a commit waits for more calls, if the one before it answered several. A commit costs what dozens of calls
do, and callers that wait for their answers before they call again come again soon."""

GATHER_CALLS_MAX: Final = 24
"""For how many calls it waits at most: if all of many callers were waited for, they and the server would take turns."""

SHORT_RUN_NS: Final = 3 * SECOND // 1000
"""A run that is expected to take no longer is waited for, so long at most, with the commit of its start. One commit
instead of two; and the first would take the processor from the run."""

INSTANT_JOBS_MAX: Final = 200
"""If so many jobs come in with this instant already, a call of many waits for the next: a thousand take some 20 ms."""

COMMIT_SECONDS_MAX: Final = 10.0
"""How long a stop waits for a commit: a disk that hangs does not keep a server from ending."""

REBUILD_AFTER_NS: Final = 1 * SECOND
REBUILD_AFTER_NS_MAX: Final = 30 * SECOND
"""How long after a failed commit the writer tries to take itself up again; doubled with each failure."""

_log: Final = logging.getLogger(__name__)
_CALIBRATION: Final = program_pb2.Program(calibration=program_pb2.CalibrationJob()).SerializeToString()


class Device(Protocol):
    """What the engine needs of `execution.Device`."""

    async def start(self) -> None:
        """Start the workers; `ready` is called when the first is warm."""

    def run(self, assignment: Assignment) -> None:
        """Take one run up; returns at once."""

    def stop_run(self, job: str, attempt: int) -> None:
        """Stop it; no report follows for this attempt."""

    async def stop(self) -> None:
        """End the workers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicePlan:
    """A configured device: its settings, and how to build it with the engine's two callbacks (report, ready)."""

    settings: DeviceSettings
    profile: str
    build: Callable[[Callable[[RunReport], None], Callable[[str, bool], None]], Device]


class Stage(Enum):
    """Where the writer is in its life."""

    NEW = "new"
    RUNNING = "running"
    FAILED = "failed"
    STOPPING = "stopping"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command came to: its events, and the jobs that it submitted as they were accepted."""

    events: tuple[Event, ...]
    jobs: tuple[Payload, ...]


@dataclass(slots=True)
class _Input:
    command: Command
    answer: asyncio.Future[Answer] | None = None
    contents: Sequence[JobContent] = ()
    request: RequestKey | None = None
    description: str = ""


@dataclass(slots=True)
class _Unit:
    """What one commit writes, and what leaves after it."""

    batch: Batch = field(default_factory=Batch)
    answers: list[tuple[asyncio.Future[Answer], Answer | Refusal]] = field(default_factory=list)
    published: list[Published] = field(default_factory=list)
    jobs: list[str] = field(default_factory=list)
    began: float = 0.0
    """When it was sent, by the observer's clock."""
    sent: float = 0.0
    """When it was sent, by the event loop's clock."""
    urgent: bool = False
    """Not only callers wait for it."""


class Writer:
    """See the module. All methods are to be called on the event loop that `start` ran on."""

    def __init__(
        self,
        *,
        store: Store,
        devices: Mapping[str, DevicePlan],
        clock: Clock,
        shares: Mapping[str, float],
        half_life: int,
        watches: Watches,
        quotas: Quotas,
        observer: Observer,
    ) -> None:
        self._observer = observer
        self._doorkeeper = Doorkeeper(quotas)
        self._store = store
        self._clock = clock
        self._shares = shares
        self._half_life = half_life
        self._watches = watches
        self._settings = {name: plan.settings for name, plan in sorted(devices.items())}
        self.devices: dict[str, Device] = {
            name: plan.build(self._reported, self._changed_ready) for name, plan in sorted(devices.items())
        }
        self.ready = dict.fromkeys(self.devices, False)
        self.stage = Stage.NEW
        self.running: dict[str, tuple[str, int]] = {}
        """By device: job and attempt."""
        self.running_since: dict[str, int] = {}
        self._calibrated: dict[str, int] = {}
        """By device: when its epoch began; before the first calibration, when it took up its first run here."""
        self.result_bytes = 0
        """Recorded since `take_ups` changed, less those deleted."""
        self.take_ups = 0
        """How often the memory was made from the store."""
        self.seen_requests: set[int] = set()
        """Hashes of all request keys in the store: what is not in it needs no look at the store."""
        self._last_now = 0
        self._shift = 0
        self._inputs: list[_Input] = []
        self._entering = False
        self._gathering: asyncio.TimerHandle | None = None
        """Runs while the next commit waits: for the callers that the latest one answered to come again, or for the
        end of a short run."""
        self._gathered = 0
        """With so many calls to answer it waits no longer."""
        self._reports: dict[tuple[str, int], Report] = {}
        self._beginnings = 0
        """How often it has begun from the store: what was asked for before is not to be done after."""
        self._predicted: dict[tuple[str, int], tuple[bytes | None, int | None, int]] = {}
        """Of what runs, by job and attempt: workload, hint and estimate."""
        self._unit = _Unit()
        self._in_flight: _Unit | None = None
        self._commit: asyncio.Future[None] | None = None
        self._is_silent = False
        """The store has not answered for long. Until it does nothing is taken and nothing starts: calls and results
        would pile up."""
        self._timer: Timer | None = None
        self._timer_due: int | None = None
        self._heartbeat: Timer | None = None
        self._rebuild_timer: Timer | None = None
        self._rebuild_after = REBUILD_AFTER_NS
        self._tasks: set[asyncio.Task[Any]] = set()
        self._idle: asyncio.Event | None = None
        self._forget_memory()

    def _forget_memory(self) -> None:
        self._beginnings += 1
        self.payloads = Payloads()
        self.circuits = Circuits()
        self.predictor = Predictor(self._settings)
        self.recorder = Recorder(self._settings, self.payloads, self.circuits, is_watched=self._watches.is_watched)
        self.scheduler = Scheduler(self._settings, shares=self._shares, half_life=self._half_life, start=self._last_now)

    def now(self) -> int:
        """The scheduler's time: the clock's, moved on if the store has seen later times; it never goes back."""
        self._last_now = max(self._last_now, self._clock.now() + self._shift)
        return self._last_now

    # --- life ---------------------------------------------------------------------------------------------------
    async def start(self, *, wait_for_devices: bool) -> None:
        """Take up what the (open) store holds, then start the devices: their workers would take the processors that
        reading needs. `wait_for_devices`: until each has a worker, or could not start one. Raises `StoreError`."""
        try:
            await self._take_up()
        except BaseException as error:
            self._cancel_timers()
            if not isinstance(error, Refusal):
                raise
            raise StoreError(f"the store in {self._store.data_dir} cannot be written: free the disk") from error
        starting = asyncio.get_running_loop().create_task(self._start_devices())
        if not wait_for_devices:
            self._tasks.add(starting)
            starting.add_done_callback(self._tasks.discard)
        elif failed := await starting:
            await self.stop(0)
            raise failed

    async def _start_devices(self) -> BaseException | None:
        """Returns the first failure, if there is one; all are logged."""
        devices = self.devices
        results = await asyncio.gather(*(device.start() for device in devices.values()), return_exceptions=True)
        failed = [result for result in results if isinstance(result, BaseException)]
        for name, result in zip(devices, results, strict=True):
            if isinstance(result, BaseException):
                _log.error("device %s could not be started", name, exc_info=result)
        return failed[0] if failed else None

    async def _take_up(self) -> None:
        try:
            await self._take_up_all()
        except (StoreError, Refusal):
            raise
        except Exception as error:
            raise StoreError(
                f"the store in {self._store.data_dir} holds what no server wrote ({type(error).__name__}: {error}): "
                "put a backup in its place, or mend what `cadenza check` finds"
            ) from error

    async def _take_up_all(self) -> None:
        loaded = await self._store.read(restart.load)
        lost = sorted({job.device for job in loaded.jobs} - set(self._settings))
        if lost:
            count = sum(job.device in lost for job in loaded.jobs)
            raise StoreError(
                f"{count} job{'s wait' if count > 1 else ' waits'} for {', '.join(lost)}, which the configuration does "
                "not have any more: configure it again until they have run, or were cancelled"
            )
        self._shift = max(self._shift, loaded.alive - self._clock.now())
        now = self.now()
        self._forget_memory()
        self.take_ups += 1
        self.result_bytes = 0
        commands: list[Command] = []
        if loaded.alive:
            state = restart.scheduler_state(loaded, self._settings, self._shares, self._half_life, loaded.alive)
            self.scheduler = Scheduler.restore(state)
            commands.append(Resumed(down_from=loaded.alive))
        recorder = self.recorder
        recorder.event_number = loaded.event_number
        recorder.session_number = loaded.session_number
        recorder.reservation_number = loaded.reservation_number
        recorder.sessions.update(loaded.sessions)
        for name, record in loaded.devices.items():
            if name in recorder.devices:
                recorder.devices[name] = record
        for path, row in loaded.usage.items():
            recorder.charged_ns[path] = row.charged_ns
            if row.is_user:
                recorder.know_user(path)
        for session, digests, job in loaded.circuits:
            self.circuits.add(session, digests, job)
        recorder.take_up_jobs(loaded.jobs)
        for length in loaded.lengths:
            self.predictor.learn(*length)
        self.seen_requests = {hash(key) for key in loaded.requests}
        commands += [SetDeviceReady(device=name, ready=ready) for name, ready in self.ready.items()]
        self._inputs = [_Input(command) for command in commands]
        recorder.touched_sessions.update(dict.fromkeys(recorder.sessions))
        recorder.touched_devices.update(dict.fromkeys(recorder.devices))
        self._unit = _Unit()
        self._unit.batch.add(sql.PUT_META, ("alive", now))
        self.stage = Stage.RUNNING
        self._enter()
        self._beat()
        if loaded.alive:
            _log.info(
                "took up all that was unfinished",
                extra={
                    "jobs": len(loaded.jobs),
                    "sessions": len(loaded.sessions),
                    "down_since": datetime.fromtimestamp(loaded.alive / SECOND, UTC).isoformat(timespec="seconds"),
                },
            )
        await self.catch_up()

    async def stop(self, grace_ns: int) -> None:
        """Take nothing more; let runs end within the grace and put the others back; commit; stop the devices."""
        was = self.stage
        self.stage = Stage.STOPPING
        self._cancel_timers()
        if was is Stage.RUNNING:
            self._inputs += [_Input(SetDeviceReady(device=name, ready=False)) for name in self.devices]
            self._enter()
            if self.running and grace_ns > 0:
                self._idle = asyncio.Event()
                timer = self._clock.call_at(self._clock.now() + grace_ns, self._idle.set)
                await self._idle.wait()
                timer.cancel()
            for name, (job, attempt) in list(self.running.items()):
                self.devices[name].stop_run(job, attempt)
                self._inputs.append(
                    _Input(RunEnded(device=name, job=job, attempt=attempt, outcome=RunOutcome.PUT_BACK))
                )
            self._enter()
            self._unit.batch.add(sql.PUT_META, ("alive", self.now()))
            self._kick()
        while self._commit is not None:
            done, _ = await asyncio.wait([self._commit], timeout=COMMIT_SECONDS_MAX)
            if not done:
                _log.error("the store does not answer: what it has not acknowledged may be on disk or not")
                break
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if was is not Stage.NEW:
            await asyncio.gather(*(device.stop() for device in self.devices.values()))
        self._cancel_timers()
        self.stage = Stage.STOPPED

    def _cancel_timers(self) -> None:
        for timer in (self._timer, self._heartbeat, self._rebuild_timer):
            if timer is not None:
                timer.cancel()
        self._timer = self._heartbeat = self._rebuild_timer = None
        self._timer_due = None
        if self._gathering is not None:
            self._gathering.cancel()
            self._gathering = None

    # --- what comes in ------------------------------------------------------------------------------------------
    def check_open(self) -> None:
        """Raise `Refusal` UNAVAILABLE unless commands are taken."""
        if self.stage is Stage.RUNNING and not self._is_silent:
            return
        if self.stage in (Stage.RUNNING, Stage.FAILED):
            raise store_unavailable()
        raise stopping()

    def enter(
        self,
        command: Command,
        *,
        contents: Sequence[JobContent] = (),
        request: RequestKey | None = None,
        description: str = "",
    ) -> "asyncio.Future[Answer]":
        """Enter one command; the future ends after its commit. Raises `Refusal` UNAVAILABLE, RESOURCE_EXHAUSTED."""
        self.check_open()
        self._doorkeeper.let_in(command, self.recorder.occupied, self.recorder.sessions)
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._put(_Input(command, answer, contents, request, description))
        return answer

    async def wait_for_turn(self) -> None:
        """Return when what waits to be entered is little enough for many more jobs. All that is entered in one turn of
        the loop is one instant, and the loop does nothing else meanwhile."""
        while self._doorkeeper.entering_jobs >= INSTANT_JOBS_MAX:  # noqa: ASYNC110  (the next turn enters them)
            await asyncio.sleep(0)

    async def remember(self, request: RequestKey | None) -> None:
        """Keep it that a call was answered though there was nothing to do; returns when that is on disk. Raises
        `Refusal` UNAVAILABLE."""
        self.check_open()
        if request is not None:
            self._keep_request(request, (), [], self.now())
            await self.catch_up()

    async def catch_up(self) -> None:
        """Wait until all that was recorded so far is on disk. What happens from now on is told to those who watch now;
        so a watch that reads the store after this misses nothing. Raises `Refusal` UNAVAILABLE."""
        if self.stage is Stage.FAILED:
            raise store_unavailable()  # nothing that is recorded now will ever be on disk
        unit = self._unit
        if self._in_flight is None and not (unit.batch or unit.answers or self.recorder.has_touched):
            return
        done: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._unit.answers.append((done, Answer((), ())))
        self._unit.urgent = True
        self._kick()
        await done

    async def delete_results(self, results: Sequence[reads.ResultRow]) -> None:
        """Delete these; returns when that is on disk. Raises `Refusal` UNAVAILABLE."""
        self.check_open()
        now = self.now()
        for row in results:
            self._unit.batch.add(sql.DELETE_RESULT, (row.job,))
            self._unit.batch.add(sql.MARK_RESULT_DELETED, (now, row.job))
            self.result_bytes -= row.size
        await self.catch_up()

    async def forget_requests(self, keys: Sequence[tuple[str, str]]) -> None:
        """Keep these callers' request ids no longer; returns when they are off the disk. Raises `Refusal`
        UNAVAILABLE."""
        self.check_open()
        for key in keys:
            self._unit.batch.add(sql.DELETE_REQUEST, key)
            self.seen_requests.discard(hash(key))
        await self.catch_up()

    def _put(self, item: _Input) -> None:
        self._inputs.append(item)
        if not self._entering:
            self._entering = True
            asyncio.get_running_loop().call_soon(self._enter_soon)

    def _enter_soon(self) -> None:
        self._entering = False
        if self._inputs:
            self._enter()

    def _reported(self, report: RunReport) -> None:
        key = (report.job, report.attempt)
        if self.running.get(report.device) != key:
            _log.info("late report of attempt %d of %s on %s ignored", report.attempt, report.job, report.device)
            return
        self._reports[key] = Report(report.detail, report.result, report.properties)
        self._inputs.append(
            _Input(RunEnded(device=report.device, job=report.job, attempt=report.attempt, outcome=report.outcome))
        )
        self._enter()  # not on the next turn of the loop: the device stands idle until then

    def _changed_ready(self, device: str, ready: bool) -> None:
        self.ready[device] = ready
        self._put_ready(device)

    def _put_ready(self, device: str) -> None:
        if self.stage is Stage.RUNNING:
            self._put(_Input(SetDeviceReady(device=device, ready=self.ready[device] and not self._is_silent)))

    def _due(self) -> None:
        self._timer = self._timer_due = None
        self._enter()

    def _beat(self) -> None:
        # Behind what has come in meanwhile: this whole process may have stood still.
        asyncio.get_running_loop().call_soon(self._look_at_commit)
        now = self.now()
        self._unit.batch.add(sql.PUT_META, ("alive", now))
        self._kick()
        self._heartbeat = self._clock.call_at(self._clock.now() + HEARTBEAT_NS, self._beat)

    def _look_at_commit(self) -> None:
        unit = self._in_flight
        if unit is None or self._is_silent or self.stage is not Stage.RUNNING:
            return
        waited = asyncio.get_running_loop().time() - unit.sent
        if waited >= COMMIT_SECONDS_MAX:
            _log.error(
                "the store has not answered for %.0f s: nothing more is taken, and nothing starts, until it does; is "
                "the disk well?",
                waited,
            )
            self._set_silent(True)

    def _set_silent(self, is_silent: bool) -> None:
        self._is_silent = is_silent
        for name in self.devices:
            self._put_ready(name)

    # --- one instant --------------------------------------------------------------------------------------------
    def _enter(self) -> None:
        if self.stage not in (Stage.RUNNING, Stage.STOPPING):
            return
        inputs, self._inputs = self._inputs, []
        self._doorkeeper.settle()
        try:
            self._apply(inputs)
        except Exception as error:
            _log.exception("the scheduler failed: this is a bug")
            for item in inputs:
                if item.answer is not None:
                    self._unit.answers.append((item.answer, store_unavailable()))
            self._fail(error)
            return
        if len(self._unit.jobs) < INSTANT_JOBS_MAX:
            self._kick()
        else:
            asyncio.get_running_loop().call_soon(self._kick)  # to pack so much takes some milliseconds: others first

    def _apply(self, inputs: list[_Input]) -> None:
        now = self.now()
        owners: dict[str, str] = {}
        for item in inputs:
            if isinstance(item.command, CancelJob):
                job = self.scheduler.job_view(item.command.job)
                if job is not None:
                    owners[job.job] = job.user
            elif isinstance(item.command, SetDeviceReady):
                self.recorder.touched_devices[item.command.device] = None  # a session may hold it from now on
        began = self._observer.stamp()
        outcome = self.scheduler.apply([item.command for item in inputs], now)
        self._observer.decided(began, outcome.events)
        contents: dict[str, JobContent] = {}
        descriptions: dict[str, str] = {}
        for item in inputs:
            command = item.command
            if isinstance(command, SubmitJobs):
                contents.update(zip((job.job for job in command.jobs), item.contents, strict=True))
            elif isinstance(command, SubmitJob):
                contents[command.job] = item.contents[0]
            elif item.description:
                descriptions[getattr(command, "reservation", "")] = item.description
        # Devices first: what else there is to do with this instant is done while they work.
        waiting = self._drive(outcome.events, contents, now)
        unit, recorder = self._unit, self.recorder
        if outcome.events:
            unit.urgent |= not inputs or any(item.answer is None for item in inputs)
        unit.published += recorder.record(
            outcome.events,
            now,
            unit.batch,
            contents=contents,
            reports=self._reports,
            descriptions=descriptions,
            owners=owners,
            default_content=self._automatic,
        )
        unit.jobs += recorder.accepted
        for item, answer in zip(inputs, outcome.answers, strict=True):
            if item.answer is None:
                continue
            if isinstance(answer, Refusal):
                unit.answers.append((item.answer, answer))
                continue
            queued = [event for event in answer if isinstance(event, JobQueued)]
            unit.answers.append((item.answer, Answer(answer, tuple(recorder.accepted[event.job] for event in queued))))
            if item.request is not None:
                self._keep_request(item.request, answer, queued, now)
        for event in outcome.events:
            if isinstance(event, RunFinished):
                report = self._reports.pop((event.job, event.attempt), None)
                if report is not None and report.result is not None:
                    self.result_bytes += len(report.result)
                self._learn(event)
        for started in waiting:
            if not self._run_from_memory(started, self.payloads.get(started.job)):
                self._run_from_store(started)
        if any(isinstance(event, RunStarted) and event.estimate <= SHORT_RUN_NS for event in outcome.events):
            self._gather(SHORT_RUN_NS / SECOND, sys.maxsize)
        self._arm()

    def _keep_request(self, request: RequestKey, events: tuple[Event, ...], jobs: list[JobQueued], now: int) -> None:
        self.seen_requests.add(hash((request.caller, request.request_id)))
        self._unit.batch.append(
            sql.INSERT_REQUEST,
            (
                request.caller,
                request.request_id,
                request.digest,
                now,
                jobs[0].seq if jobs else None,
                len(jobs),
                None if jobs else event_json.encode(events),
            ),
        )

    def _automatic(self, event: JobQueued) -> JobContent:
        duration = self._settings[event.device].calibration_duration
        return JobContent(program=_CALIBRATION, program_kind=ProgramKind.CALIBRATION, min_duration_ns=duration)

    def _arm(self) -> None:
        due = self.scheduler.next_deadline()
        if due == self._timer_due or self.stage is not Stage.RUNNING:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_due = due
        self._timer = None if due is None else self._clock.call_at(due - self._shift, self._due)

    # --- runs ---------------------------------------------------------------------------------------------------
    def _drive(self, events: Sequence[Event], contents: Mapping[str, JobContent], now: int) -> list[RunStarted]:
        """Stop and start runs as the scheduler says; return the starts whose program is not at hand yet. `contents`:
        of the jobs that came in within this very instant."""
        waiting = []
        for event in events:
            if isinstance(event, RunFinished):
                self._finished(event)
            elif isinstance(event, EpochStarted):
                self._calibrated[event.device] = now
            elif isinstance(event, RunStarted):
                self.running[event.device] = (event.job, event.attempt)
                self.running_since[event.device] = now
                if event.device not in self._calibrated:
                    self._calibrated[event.device] = self.recorder.devices[event.device].calibrate_time or now
                if not self._run_from_memory(event, self.payloads.get(event.job) or contents.get(event.job)):
                    waiting.append(event)
        return waiting

    def _run_from_memory(self, event: RunStarted, source: Payload | JobContent | None) -> bool:
        """Start the run if its program and the circuits that it names are in memory."""
        if source is None:
            return False
        own = source.new_digests if isinstance(source, Payload) else tuple(source.new_circuits)
        circuits = self._circuits_in_memory(event.session, source.digests, own, source.program)
        if circuits is None:
            return False
        self._run(event, source, circuits)
        return True

    def _run_from_store(self, event: RunStarted) -> None:
        task = asyncio.get_running_loop().create_task(self._fetch_and_run(event))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _run(
        self, event: RunStarted, source: Payload | JobContent | reads.ProgramRow, circuits: Mapping[bytes, bytes]
    ) -> None:
        waited = 0 if isinstance(source, JobContent) else self._last_now - source.create_time
        self._observer.started(event, waited)
        self._predicted[event.job, event.attempt] = (source.workload, source.estimate_hint_ns, event.estimate)
        self.devices[event.device].run(
            Assignment(
                job=event.job,
                attempt=event.attempt,
                program=source.program,
                circuits=circuits,
                limit_ns=event.limit,
                min_duration_ns=source.min_duration_ns,
                epoch=event.epoch,
                session_first_epoch=self._find_first_epoch(event),
                age_ns=self.running_since[event.device] - self._calibrated[event.device],
            )
        )

    def _find_first_epoch(self, event: RunStarted) -> int | None:
        """Of the session that the run is in."""
        if event.session is None:
            return None
        record = self.recorder.sessions.get(event.session)  # it may be over by now
        return event.epoch if record is None or record.first_epoch is None else record.first_epoch

    def _circuits_in_memory(
        self, session: str | None, digests: frozenset[bytes], own: tuple[bytes, ...], program: bytes
    ) -> dict[bytes, bytes] | None:
        """The circuits that a program names; None if one has to be read from the store."""
        if session is None:
            return {}  # there is no other job to bring them: they are in the program itself
        found: dict[bytes, bytes] = {}
        for digest in digests:
            circuit = self.circuits.get(digest)
            if circuit is None:
                source: bytes | None = None
                if digest in own:
                    source = program
                else:
                    payload = self.payloads.get(self.circuits.source(session, digest) or "")
                    source = payload.program if payload is not None else None
                if source is None:
                    return None
                circuit = circuits_of(source)[digest]
                self.circuits.put(digest, circuit)
            found[digest] = circuit
        return found

    async def _fetch_and_run(self, event: RunStarted) -> None:
        found, beginning = None, self._beginnings
        for wait in (*READ_AGAIN_NS, None):
            try:
                found = await self._fetch(event)
                break
            except StoreError as error:
                if wait is None:
                    _log.error("what %s executes cannot be read: %s", event.job, error)
                    break
                _log.warning("what %s executes is read again in %g s: %s", event.job, wait / SECOND, error)
            again = asyncio.Event()
            timer = self._clock.call_at(self._clock.now() + wait, again.set)
            try:
                await again.wait()
            finally:
                timer.cancel()
        if self.running.get(event.device) != (event.job, event.attempt) or beginning != self._beginnings:
            # It was stopped in the meantime. (After a failed commit an attempt may come again with its number.)
            return
        if found is None:
            self._reported(
                RunReport(
                    device=event.device,
                    job=event.job,
                    attempt=event.attempt,
                    outcome=RunOutcome.WORKER_LOST,
                    detail="the store could not give the program or a circuit that it names",
                )
            )
            return
        row, circuits = found
        self._run(event, row, circuits)

    async def _fetch(self, event: RunStarted) -> tuple[Payload | reads.ProgramRow, Mapping[bytes, bytes]] | None:
        """What a run executes, from the store; None if the store does not have it. Raises `StoreError`."""
        # A job that is not on disk yet is in memory in any case.
        row: Payload | reads.ProgramRow | None = self.payloads.get(event.job)
        if row is None:
            row = await self._store.read(partial(reads.read_program, job=event.job))
        if row is None:
            _log.error("the store has no program of %s", event.job)
            return None
        for digest in row.digests - set(row.new_digests):
            if self.circuits.get(digest) is None and event.session is not None:
                source = self.circuits.source(event.session, digest)
                other = await self._store.read(partial(reads.read_program, job=source or ""))
                brought = circuits_of(other.program) if other is not None else {}
                if digest not in brought:
                    _log.error("the store has no circuit %s, which %s names", digest.hex(), event.job)
                    return None
                self.circuits.put(digest, brought[digest])
        circuits = self._circuits_in_memory(event.session, row.digests, row.new_digests, row.program)
        return None if circuits is None else (row, circuits)

    def _finished(self, event: RunFinished) -> None:
        if self.running.get(event.device) == (event.job, event.attempt):
            del self.running[event.device]
            if event.outcome is RunOutcome.CANCELLED:
                self.devices[event.device].stop_run(event.job, event.attempt)
        if not self.running and self._idle is not None:
            self._idle.set()

    def _learn(self, event: RunFinished) -> None:
        workload, hint, estimate = self._predicted.pop((event.job, event.attempt), (None, None, 0))
        if workload is not None and event.outcome in INSTRUCTIVE_OUTCOMES:
            self.predictor.learn(event.device, event.user, workload, hint, estimate, event.end - event.start)

    # --- commits ------------------------------------------------------------------------------------------------
    def _kick(self) -> None:
        """Send what has collected to the process that writes, unless a batch is on its way: the next one then goes."""
        if self._in_flight is not None or self.stage is Stage.FAILED:
            return
        if self._gathering is not None:
            if not self._unit.urgent and len(self._unit.answers) < self._gathered and self.stage is Stage.RUNNING:
                return
            self._gathering.cancel()
            self._gathering = None
        self._flush()
        unit = self._unit
        if not (unit.batch or unit.answers or unit.published):
            return
        self._unit = _Unit()
        if not unit.batch:
            # Not at once: if a commit has just ended, what it holds is to be told first.
            asyncio.get_running_loop().call_soon(self._release, unit)
            return
        self._in_flight = unit
        unit.began = self._observer.stamp()
        unit.sent = asyncio.get_running_loop().time()
        self._commit = asyncio.ensure_future(self._store.commit(unit.batch))
        self._commit.add_done_callback(partial(self._committed, unit))

    def _flush(self) -> None:
        recorder, scheduler = self.recorder, self.scheduler
        for name in recorder.touched_devices:
            view = scheduler.device_view(name)
            if view is not None and view.active_session is not None:
                recorder.touched_sessions[view.active_session] = None  # its idle clock pauses for calibrations
        over = []
        for name in recorder.touched_sessions:
            live = scheduler.session_record(name)
            if live is None:
                over.append(name)
                continue
            record = recorder.sessions[name]
            record.clocks = restart.session_clocks(live)
            record.cache_deadline = live.cache_deadline
            if live.active and not record.active:
                record.activate_time = self._last_now  # a draining session was picked
            record.active = live.active
        for name in recorder.touched_devices:
            device = scheduler.device_record(name)
            if device is not None:
                recorder.devices[name].clocks = restart.device_clocks(device)
        recorder.flush(self._unit.batch, over)
        for name in over:
            if self._watches.is_watched(None, name):
                self._unit.published.append(
                    Published(recorder.event_number, self._last_now, None, name, "session_over", {}, None)
                )

    def _committed(self, unit: _Unit, commit: "asyncio.Future[None]") -> None:
        self._in_flight = self._commit = None
        if self._is_silent:
            _log.info("the store answers again")
            self._set_silent(False)
        error = commit.exception()
        if error is not None:
            for future, _ in unit.answers:
                if not future.done():
                    future.set_exception(store_unavailable())
            self._fail(error)
            return
        self._rebuild_after = REBUILD_AFTER_NS
        self._observer.committed(unit.began, unit.batch, len(unit.answers))
        self.payloads.set_committed(unit.jobs)
        if len(unit.answers) > 1:
            self._gather(GATHER_SECONDS, min(len(self._unit.answers) + len(unit.answers), GATHER_CALLS_MAX))
        self._kick()  # before the answers: the disk is what takes longest
        self._release(unit)

    def _gather(self, seconds: float, calls: int) -> None:
        """Let the next commit wait so long at most, and till it has so many calls to answer."""
        if self._gathering is None and self._in_flight is None and self.stage is Stage.RUNNING:
            self._gathered = calls
            self._gathering = asyncio.get_running_loop().call_later(seconds, self._gather_no_more)

    def _gather_no_more(self) -> None:
        self._gathering = None
        self._kick()

    def _release(self, unit: _Unit) -> None:
        for future, answer in unit.answers:
            if future.done():
                continue  # whoever asked has gone
            if isinstance(answer, Refusal):
                future.set_exception(answer)
            else:
                future.set_result(answer)
        self._watches.publish(unit.published)

    # --- failure ------------------------------------------------------------------------------------------------
    def _fail(self, error: BaseException) -> None:
        """Trust the memory no more: fail what is pending, stop the runs, and try to begin again from the store."""
        if self.stage is Stage.FAILED:
            return
        _log.error("no more commands are taken: %s; the store is tried again from time to time", error)
        was_stopping = self.stage is Stage.STOPPING
        self.stage = Stage.FAILED
        self._cancel_timers()
        for future, _ in self._unit.answers:
            if not future.done():
                future.set_exception(store_unavailable())
        for item in self._inputs:
            if item.answer is not None and not item.answer.done():
                item.answer.set_exception(store_unavailable())
        self._unit = _Unit()
        self._inputs = []
        self._doorkeeper.settle()
        self._reports.clear()
        self._predicted.clear()
        for name, (job, attempt) in self.running.items():
            self.devices[name].stop_run(job, attempt)
        self.running.clear()
        if self._idle is not None:
            self._idle.set()
        # What was to be committed may be on disk all the same, and nobody would be told of it: they resume from there.
        self._watches.end_all(watch_again())
        if not was_stopping:
            self._rebuild_timer = self._clock.call_at(self._clock.now() + self._rebuild_after, self._rebuild)
            self._rebuild_after = min(2 * self._rebuild_after, REBUILD_AFTER_NS_MAX)

    def _rebuild(self) -> None:
        self._rebuild_timer = None
        task = asyncio.get_running_loop().create_task(self._try_again())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _try_again(self) -> None:
        if self._commit is not None:
            await asyncio.wait([self._commit])
        if self.stage is not Stage.FAILED:
            return
        try:
            await self._take_up()
        except Refusal:
            return  # read, but not written: a new try is set
        except StoreError as error:
            _log.error("the store cannot be read: %s", error)
            self._rebuild_timer = self._clock.call_at(self._clock.now() + self._rebuild_after, self._rebuild)
            self._rebuild_after = min(2 * self._rebuild_after, REBUILD_AFTER_NS_MAX)


def store_unavailable() -> Refusal:
    """While the store cannot commit."""
    return Refusal(
        Code.UNAVAILABLE,
        "STORE_UNAVAILABLE",
        "the store cannot commit now; whether this call took effect is not known: try again with the same request_id",
    )


def watch_again() -> Refusal:
    """The end of a watch when the store has failed."""
    return Refusal(
        Code.UNAVAILABLE, "STORE_UNAVAILABLE", "the store failed: watch again from the last change that you were told"
    )


def stopping() -> Refusal:
    """While the server stops."""
    return Refusal(
        Code.UNAVAILABLE, "STOPPING", "the server is stopping: try again with the same request_id when it is back"
    )

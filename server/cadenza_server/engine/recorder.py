"""Turns events into rows of the store and changes for watchers. No asyncio, no I/O: the engine's memory of live things.

It remembers what rows hold beyond the scheduler's own state: figures of sessions, epochs, what was ever charged.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

from cadenza_server.engine.notices import (
    Change,
    JobAccepted,
    JobEnded,
    JobPriorityChanged,
    JobRequeued,
    JobStarted,
    SessionChanged,
    SessionJobsEnded,
    SessionJobsReleased,
)
from cadenza_server.engine.payloads import Circuits, Payload, Payloads
from cadenza_server.engine.quotas import Occupancy
from cadenza_server.engine.views import JobContent
from cadenza_server.model import events as ev
from cadenza_server.model.paths import ancestors
from cadenza_server.model.settings import DeviceSettings
from cadenza_server.model.words import (
    CloseReason,
    JobClass,
    JobState,
    RunOutcome,
    SessionMode,
    SessionState,
)
from cadenza_server.scheduling.state import JobRecord
from cadenza_server.store import batch as sql
from cadenza_server.store.batch import Batch
from cadenza_server.store.schema import INLINE_PROGRAM_BYTES_MAX
from cadenza_server.store.views import JobCounts, JobView, RunView, SessionView

INLINE_RESULT_BYTES_MAX: Final = 64 * 1024
"""Larger results do not ride on notices."""


@dataclass(slots=True, kw_only=True)
class SessionRecord:
    """A session that is not over. `counts` are of its jobs, by state; the rest is as in `SessionView`."""

    number: int
    session: str
    user: str
    device: str
    mode: SessionMode
    reservation: str | None
    max_time_ns: int
    interactive_ttl_ns: int
    create_time: int
    state: SessionState = SessionState.OPEN
    close_reason: CloseReason | None = None
    active: bool = False
    accepting_jobs: bool = True
    start_time: int | None = None
    activate_time: int | None = None
    expire_time: int | None = None
    close_time: int | None = None
    cache_deadline: int | None = None
    first_job: str | None = None
    last_job_start_time: int | None = None
    last_job_end_time: int | None = None
    run_time_ns: int = 0
    held_time_ns: int = 0
    first_epoch: int | None = None
    last_epoch: int | None = None
    counts: dict[JobState, int] = field(default_factory=lambda: dict.fromkeys(JobState, 0))
    clocks: dict[str, Any] = field(default_factory=dict)
    """What the scheduler needs to go on with it, as plain values."""

    def view(self) -> SessionView:
        """As people see it now."""
        counts = self.counts
        return SessionView(
            session=self.session,
            user=self.user,
            device=self.device,
            mode=self.mode,
            state=self.state,
            close_reason=self.close_reason,
            active=self.active,
            accepting_jobs=self.accepting_jobs,
            reservation=self.reservation,
            max_time_ns=self.max_time_ns,
            interactive_ttl_ns=self.interactive_ttl_ns,
            create_time=self.create_time,
            start_time=self.start_time,
            activate_time=self.activate_time,
            expire_time=self.expire_time,
            close_time=self.close_time,
            cache_deadline=self.cache_deadline,
            first_job=self.first_job,
            last_job_start_time=self.last_job_start_time,
            last_job_end_time=self.last_job_end_time,
            run_time_ns=self.run_time_ns,
            held_time_ns=self.held_time_ns,
            first_epoch=self.first_epoch,
            last_epoch=self.last_epoch,
            job_counts=JobCounts(
                queued=counts[JobState.QUEUED],
                running=counts[JobState.RUNNING],
                succeeded=counts[JobState.SUCCEEDED],
                failed=counts[JobState.FAILED],
                cancelled=counts[JobState.CANCELLED],
            ),
            idle_deadline=self.clocks.get("idle_due"),
            unused_deadline=self.clocks.get("unused_due"),
        )


@dataclass(slots=True)
class DeviceRecord:
    """What the store has of a device beyond the scheduler's state."""

    epoch: int = 0
    calibrate_time: int | None = None
    properties: bytes | None = None
    clocks: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Published:
    """A change on its way to those who watch `job` or `session`. `change` None: read it from the store when it is
    delivered (of a change of a whole session: find out whether it was one of the job)."""

    event_number: int
    time: int
    job: str | None
    session: str | None
    kind: str
    body: Mapping[str, Any]
    change: Change | None


@dataclass(frozen=True, slots=True)
class Report:
    """What a run's device said at its end."""

    detail: str
    result: bytes | None
    properties: bytes | None


_NO_REPORT: Final = Report("", None, None)


class Recorder:
    """The engine's memory of live things. One `record` call an instant."""

    def __init__(
        self,
        devices: Mapping[str, DeviceSettings],
        payloads: Payloads,
        circuits: Circuits,
        *,
        is_watched: Callable[[str | None, str | None], bool],
    ) -> None:
        self._settings = devices
        self._payloads = payloads
        self._circuits = circuits
        self._is_watched = is_watched
        self.sessions: dict[str, SessionRecord] = {}
        self.devices: dict[str, DeviceRecord] = {name: DeviceRecord() for name in devices}
        self.charged_ns: dict[str, int] = {}
        self.users: set[str] = set()
        self.accounts: dict[str, None] = {}
        """Above these users."""
        self.waiting: dict[tuple[str, str], tuple[int, int]] = {}
        """How many jobs are queued and run, by user and device; those with none are not in it."""
        self.occupied = Occupancy()
        self.event_number = 0
        self.session_number = 0
        self.reservation_number = 0
        self.accepted: dict[str, Payload] = {}
        """The jobs that the instant recorded last accepted."""
        self.cached: dict[str, int] = {}
        """Closed sessions with a cache deadline, and when it is: it passes without an event if nothing is left."""
        self.touched_sessions: dict[str, None] = {}
        self.touched_devices: dict[str, None] = {}
        self._settled: dict[str, tuple[float, int]] = {}
        self._ended_run: dict[str, tuple[int, int, str]] = {}

    def next_event(self) -> int:
        """A new event number."""
        self.event_number += 1
        return self.event_number

    def record(
        self,
        events: Iterable[ev.Event],
        now: int,
        batch: Batch,
        *,
        contents: Mapping[str, JobContent],
        reports: Mapping[tuple[str, int], Report],
        descriptions: Mapping[str, str],
        owners: Mapping[str, str],
        default_content: Callable[[ev.JobQueued], JobContent],
    ) -> list[Published]:
        """Write one instant into `batch`; return what its watchers are to be told after the commit.

        `contents`, `descriptions`: of the jobs and reservations that came in; `reports`: of the runs that ended;
        `owners`: of the jobs that a command cancelled; `default_content`: of a device's own calibrations.
        """
        published: list[Published] = []
        self._ended_run.clear()
        self.accepted.clear()
        for event in events:
            match event:
                case ev.JobQueued():
                    content = default_content(event) if event.automatic else contents[event.job]
                    self._job_queued(event, content, now, batch, published)
                case ev.JobPriorityChanged():
                    self._job_priority_changed(event, now, batch, published)
                case ev.RunStarted():
                    self._run_started(event, now, batch, published)
                case ev.RunFinished():
                    self._run_finished(event, now, batch, reports)
                case ev.JobEnded():
                    self._job_ended(event, now, batch, published, reports, owners)
                case ev.JobRequeued():
                    self._job_requeued(event, now, batch, published)
                case ev.SessionCreated():
                    self._session_created(event, now, batch, published)
                case ev.SessionChanged():
                    self._session_changed(event, now, batch, published)
                case ev.SessionDraining():
                    record = self.sessions[event.session]
                    record.close_reason = event.reason
                    record.accepting_jobs = False
                    self.touched_sessions[event.session] = None
                case ev.SessionJobsEnded():
                    self._session_jobs_ended(event, now, batch, published)
                case ev.SessionJobsReleased():
                    self._session_jobs_released(event, now, batch, published)
                case ev.HoldEnded():
                    record = self.sessions[event.session]
                    record.held_time_ns += event.end - event.start
                    self._charge(event.user, event.end - event.start)
                    self.touched_sessions[event.session] = None
                    self.touched_devices[event.device] = None
                case ev.UsageSettled():
                    for path, settled, exponent in event.nodes:
                        self._settled[path] = (settled, exponent)
                case ev.SharesChanged():
                    batch.add(sql.PUT_SHARES, (event.path, event.shares))
                case ev.ReservationCreated():
                    self.reservation_number += 1
                    batch.add(
                        sql.INSERT_RESERVATION,
                        (
                            self.reservation_number,
                            event.reservation,
                            event.device,
                            event.holder,
                            event.start,
                            event.end,
                            descriptions.get(event.reservation, ""),
                            now,
                        ),
                    )
                case ev.ReservationStarted():
                    batch.add(sql.START_RESERVATION, (event.reservation,))
                    for record in self.sessions.values():
                        if record.reservation == event.reservation:  # its unused clock starts
                            self.touched_sessions[record.session] = None
                    self.touched_devices[event.device] = None
                case ev.ReservationEnded():
                    batch.add(sql.END_RESERVATION, (now, event.reservation))
                    self.touched_devices[event.device] = None
                case ev.EpochStarted():
                    device = self.devices[event.device]
                    device.epoch = event.epoch
                    device.calibrate_time = now
                    self.touched_devices[event.device] = None
                case ev.EstimateDoubled():
                    pass  # a charge in flight: a restart puts the run back, so nothing of it is kept
        for name, deadline in self.cached.items():
            if deadline <= now:
                self.touched_sessions[name] = None
        return published

    @property
    def has_touched(self) -> bool:
        """Whether there is anything to flush. An instant without an event may have touched a device."""
        return bool(self.touched_sessions or self.touched_devices or self._settled)

    def flush(self, batch: Batch, over: Iterable[str]) -> None:
        """Write, once for all instants of a batch, the rows of sessions, devices and usage that they touched; the
        scheduler's `clocks` of them are set before. The sessions in `over` are forgotten."""
        for name in over:
            self.touched_sessions.pop(name, None)
            batch.add(sql.UPDATE_SESSION, _session_row(self.sessions.pop(name), live=False))
            self._circuits.forget(name)
            self.cached.pop(name, None)
        for name in self.touched_sessions:
            batch.add(sql.UPDATE_SESSION, _session_row(self.sessions[name], live=True))
        self.touched_sessions.clear()
        for name in self.touched_devices:
            device = self.devices[name]
            batch.add(
                sql.PUT_DEVICE,
                (name, device.epoch, device.calibrate_time, device.properties, json.dumps(device.clocks)),
            )
        self.touched_devices.clear()
        for path, (settled, exponent) in self._settled.items():
            batch.add(sql.PUT_USAGE, (path, settled, exponent, self.charged_ns.get(path, 0)))
        self._settled.clear()

    def take_up_jobs(self, jobs: Iterable[JobRecord]) -> None:
        """Count the unfinished jobs of a store, and note the deadlines of its sessions."""
        found = Counter((job.user, job.device, job.run is None) for job in jobs)
        for (user, device, is_queued), count in found.items():
            self._wait(user, device, count if is_queued else 0, 0 if is_queued else count)
        for record in self.sessions.values():
            if record.cache_deadline is not None:
                self.cached[record.session] = record.cache_deadline
            if record.state is not SessionState.CLOSED:
                self.occupied.open(record.user, 1)

    # --- jobs ---------------------------------------------------------------------------------------------------
    def _job_queued(
        self, event: ev.JobQueued, content: JobContent, now: int, batch: Batch, published: list[Published]
    ) -> None:
        number = self.next_event()
        inline = len(content.program) <= INLINE_PROGRAM_BYTES_MAX
        new_digests = tuple(content.new_circuits) if event.session is not None else ()
        batch.add(
            sql.INSERT_JOB,
            (
                event.seq,
                event.job,
                event.user,
                event.device,
                event.session,
                event.job_class.value,
                content.program_kind.value,
                event.priority,
                event.first,
                event.estimate,
                content.estimate_hint_ns,
                event.limit,
                content.min_duration_ns,
                json.dumps(content.tags) if content.tags else None,
                now,
                event.cache_deadline,
                number,
                b"".join(new_digests) or None,
                b"".join(sorted(content.digests)) or None,
                content.program if inline else None,
                content.workload,
            ),
        )
        if not inline:
            batch.append(sql.INSERT_PROGRAM, (event.seq, content.program))
        if event.job_class is not JobClass.CALIBRATION:
            self._note_user(event.user, batch)
        self._wait(event.user, event.device, 1)
        payload = self.accepted[event.job] = Payload(event, content, now, new_digests)
        payload.unit = batch
        self._payloads.put(payload)
        if event.session is not None:
            record = self.sessions[event.session]
            record.counts[JobState.QUEUED] += 1
            if event.first:
                record.first_job = event.job
            self.touched_sessions[event.session] = None
            if new_digests:
                self._circuits.add(event.session, new_digests, event.job)
            if self._is_watched(event.job, event.session):
                published.append(
                    Published(
                        number, now, event.job, event.session, "job_accepted", {}, JobAccepted(job=payload.accepted)
                    )
                )
        if event.job_class is JobClass.CALIBRATION:
            self.touched_devices[event.device] = None

    def _job_priority_changed(
        self, event: ev.JobPriorityChanged, now: int, batch: Batch, published: list[Published]
    ) -> None:
        payload = self._payloads.get(event.job)
        session = payload.view.session if payload is not None else None
        if payload is not None:
            payload.view = replace(payload.view, priority=event.priority)
        batch.add(sql.SET_PRIORITY, (event.priority, event.job))
        self._history(
            "job_priority_changed",
            {"priority": event.priority},
            JobPriorityChanged(job=event.job, priority=event.priority),
            now,
            batch,
            published,
            job=event.job,
            session=session,
        )

    def _run_started(self, event: ev.RunStarted, now: int, batch: Batch, published: list[Published]) -> None:
        batch.add(sql.START_JOB, (now, event.attempt, event.epoch, event.job))
        other = event.runner_up
        batch.add(
            sql.INSERT_RUN,
            (
                event.job,
                event.attempt,
                event.device,
                event.user,
                event.session,
                event.job_class.value,
                event.rule.value,
                event.job,
                now,
                event.estimate,
                event.limit,
                event.epoch,
                other.node if other else None,
                other.usage_per_share if other else None,
                other.passed if other else None,
                other.passed_usage_per_share if other else None,
                other.user if other else None,
            ),
        )
        payload = self._payloads.get(event.job)
        change: Change | None = None
        if payload is not None:
            payload.view = replace(
                payload.view, state=JobState.RUNNING, start_time=now, attempts=event.attempt, epoch=event.epoch
            )
            payload.run = _started_run(event, now, payload.view.create_time)
            change = JobStarted(run=payload.run)
        if event.session is not None:
            record = self.sessions[event.session]
            record.counts[JobState.QUEUED] -= 1
            record.counts[JobState.RUNNING] += 1
            record.last_job_start_time = now
            record.first_epoch = event.epoch if record.first_epoch is None else record.first_epoch
            record.last_epoch = event.epoch
            self.touched_sessions[event.session] = None
        self.touched_devices[event.device] = None
        self._wait(event.user, event.device, -1, 1)
        self._history(
            "job_started",
            {"attempt": event.attempt},
            change,
            now,
            batch,
            published,
            job=event.job,
            session=event.session,
        )

    def _run_finished(
        self, event: ev.RunFinished, now: int, batch: Batch, reports: Mapping[tuple[str, int], Report]
    ) -> None:
        batch.add(sql.FINISH_RUN, (event.end, event.outcome.value, event.charged, event.job, event.attempt))
        self._ended_run[event.job] = (event.attempt, event.charged, event.user)
        self._wait(event.user, event.device, 0, -1)
        self._charge(event.user, event.charged)
        payload = self._payloads.get(event.job)
        if payload is not None:
            payload.view = replace(payload.view, charged_ns=payload.view.charged_ns + event.charged)
            if payload.run is not None:
                payload.run = replace(payload.run, end_time=event.end, outcome=event.outcome, charged_ns=event.charged)
        if event.session is not None:
            record = self.sessions[event.session]
            record.run_time_ns += event.charged
            record.last_job_end_time = now
            self.touched_sessions[event.session] = None
        device = self.devices[event.device]
        report = reports.get((event.job, event.attempt))
        if report is not None and report.properties is not None and event.outcome is RunOutcome.SUCCEEDED:
            device.properties = report.properties
        self.touched_devices[event.device] = None

    def _job_ended(
        self,
        event: ev.JobEnded,
        now: int,
        batch: Batch,
        published: list[Published],
        reports: Mapping[tuple[str, int], Report],
        owners: Mapping[str, str],
    ) -> None:
        attempt, charged, _ = self._ended_run.pop(event.job, (0, 0, ""))
        report = reports.get((event.job, attempt), _NO_REPORT)
        result = report.result if event.state is JobState.SUCCEEDED else None
        if result is not None:
            batch.append(sql.INSERT_RESULT, (event.job, result))
        payload = self._payloads.get(event.job)
        change: Change | None = None
        at_once = payload is not None and payload.unit is batch
        if payload is not None and (at_once or self._is_watched(event.job, event.session)):
            view = replace(
                payload.view,
                state=event.state,
                reason=event.reason,
                detail=report.detail,
                end_time=now,
                result_bytes=len(result) if result is not None else None,
            )
            small = result is not None and len(result) <= INLINE_RESULT_BYTES_MAX
            change = JobEnded(job=view, run=payload.run, result=result if small else None)
            if at_once:
                payload.ended = change
        number = self._history(
            "job_ended",
            {"attempt": attempt},
            change,
            now,
            batch,
            published,
            job=event.job,
            session=event.session,
        )
        batch.add(
            sql.END_JOB,
            (
                event.state.value,
                event.reason.value if event.reason is not None else None,
                report.detail or None,
                now,
                charged,
                number,
                len(result) if result is not None else None,
                event.job,
            ),
        )
        self._payloads.drop(event.job)
        if event.session is not None:
            record = self.sessions[event.session]
            record.counts[JobState.RUNNING if attempt else JobState.QUEUED] -= 1
            record.counts[event.state] += 1
            self.touched_sessions[event.session] = None
        if not attempt:
            user = self.sessions[event.session].user if event.session is not None else owners[event.job]
            self._wait(user, event.device, -1)
        self.touched_devices[event.device] = None

    def _job_requeued(self, event: ev.JobRequeued, now: int, batch: Batch, published: list[Published]) -> None:
        attempt, charged, user = self._ended_run.pop(event.job)
        self._wait(user, event.device, 1)
        deadline = None
        if event.session is not None:
            record = self.sessions[event.session]
            record.counts[JobState.RUNNING] -= 1
            record.counts[JobState.QUEUED] += 1
            self.touched_sessions[event.session] = None
            if event.job_class is JobClass.FAIR_SHARE:
                deadline = record.cache_deadline
        batch.add(sql.REQUEUE_JOB, (event.job_class.value, event.attempts_lost, charged, deadline, event.job))
        payload = self._payloads.get(event.job)
        if payload is not None:
            payload.view = replace(
                payload.view,
                state=JobState.QUEUED,
                job_class=event.job_class,
                cache_deadline=payload.view.cache_deadline or deadline,
            )
        self._history(
            "job_requeued",
            {"attempt": attempt},
            JobRequeued(run=payload.run) if payload is not None and payload.run is not None else None,
            now,
            batch,
            published,
            job=event.job,
            session=event.session,
        )

    # --- sessions -----------------------------------------------------------------------------------------------
    def _session_created(self, event: ev.SessionCreated, now: int, batch: Batch, published: list[Published]) -> None:
        self.session_number += 1
        record = SessionRecord(
            number=self.session_number,
            session=event.session,
            user=event.user,
            device=event.device,
            mode=event.mode,
            reservation=event.reservation,
            max_time_ns=event.max_time,
            interactive_ttl_ns=event.interactive_ttl,
            create_time=now,
        )
        self.sessions[event.session] = record
        self.occupied.open(event.user, 1)
        self._note_user(event.user, batch)
        batch.add(
            sql.INSERT_SESSION,
            (
                record.number,
                event.session,
                event.user,
                event.device,
                event.mode.value,
                event.reservation,
                event.max_time,
                event.interactive_ttl,
                now,
            ),
        )
        self.touched_sessions[event.session] = None
        self._session_history(record, None, now, batch, published)

    def _session_changed(self, event: ev.SessionChanged, now: int, batch: Batch, published: list[Published]) -> None:
        record = self.sessions[event.session]
        previous, record.state = record.state, event.state
        record.accepting_jobs = event.accepting_jobs
        if event.expires_at is not None:
            record.expire_time = event.expires_at
        if event.active and not record.active:
            record.activate_time = now
            record.start_time = now if record.start_time is None else record.start_time
        record.active = event.active
        if event.state is SessionState.CLOSED:
            self.occupied.open(record.user, -1)
            record.close_time = now
            record.close_reason = event.reason
        self.touched_sessions[event.session] = None
        self.touched_devices[event.device] = None
        self._session_history(record, previous, now, batch, published)

    def _session_jobs_ended(
        self, event: ev.SessionJobsEnded, now: int, batch: Batch, published: list[Published]
    ) -> None:
        record = self.sessions[event.session]
        self._wait(record.user, event.device, -event.count)
        record.counts[JobState.QUEUED] -= event.count
        record.counts[event.state] += event.count
        number = self._history(
            "session_jobs_ended",
            {"state": event.state.value, "reason": event.reason.value, "count": event.count},
            SessionJobsEnded(session=event.session, state=event.state, reason=event.reason, count=event.count),
            now,
            batch,
            published,
            session=event.session,
        )
        batch.add(sql.END_SESSION_JOBS, (event.state.value, event.reason.value, now, number, event.session))
        self._payloads.drop_queued(event.session)
        self.touched_sessions[event.session] = None

    def _session_jobs_released(
        self, event: ev.SessionJobsReleased, now: int, batch: Batch, published: list[Published]
    ) -> None:
        record = self.sessions[event.session]
        record.cache_deadline = self.cached[event.session] = event.cache_deadline
        number = self._history(
            "session_jobs_released",
            {"cache_deadline": event.cache_deadline, "count": event.count},
            SessionJobsReleased(session=event.session, cache_deadline=event.cache_deadline, count=event.count),
            now,
            batch,
            published,
            session=event.session,
        )
        batch.add(sql.RELEASE_SESSION_JOBS, (event.cache_deadline, number, event.session))
        self._payloads.release_queued(event.session, event.cache_deadline)
        self.touched_sessions[event.session] = None

    # --- history ------------------------------------------------------------------------------------------------
    def _history(
        self,
        kind: str,
        body: Mapping[str, Any],
        change: Change | None,
        now: int,
        batch: Batch,
        published: list[Published],
        *,
        job: str | None = None,
        session: str | None = None,
    ) -> int:
        number = self.next_event()
        batch.append(sql.INSERT_EVENT, (number, now, job, session, kind, json.dumps(body, separators=(",", ":"))))
        if self._is_watched(job, session):
            published.append(Published(number, now, job, session, kind, body, change))
        return number

    def _session_history(
        self, record: SessionRecord, previous: SessionState | None, now: int, batch: Batch, published: list[Published]
    ) -> None:
        """The body has what changes in a session's life, so that its history can be told from it."""
        view = record.view()
        body = {"previous": previous, **{name: getattr(view, name) for name in SESSION_BODY}}
        body["job_counts"] = asdict(view.job_counts)
        self._history(
            "session_changed",
            body,
            SessionChanged(session=view, previous=previous),
            now,
            batch,
            published,
            session=record.session,
        )

    # --- usage --------------------------------------------------------------------------------------------------
    def _charge(self, user: str, length: int) -> None:
        """Counted before the `UsageSettled` that follows a charge writes it."""
        if length:
            for path in ("", *ancestors(user), user):
                self.charged_ns[path] = self.charged_ns.get(path, 0) + length

    def _wait(self, user: str, device: str, queued: int, running: int = 0) -> None:
        if queued:
            self.occupied.queue(user, queued)
        before = self.waiting.get((user, device), (0, 0))
        after = (before[0] + queued, before[1] + running)
        if after == (0, 0):
            self.waiting.pop((user, device), None)
        else:
            self.waiting[user, device] = after

    def know_user(self, user: str) -> None:
        """Jobs or sessions of this user were accepted once."""
        self.users.add(user)
        self.accounts.update(dict.fromkeys(ancestors(user)))

    def _note_user(self, user: str, batch: Batch) -> None:
        if user not in self.users:
            self.know_user(user)
            batch.add(sql.PUT_USER, (user,))


SESSION_BODY: Final = (
    "state",
    "close_reason",
    "active",
    "accepting_jobs",
    "start_time",
    "activate_time",
    "expire_time",
    "close_time",
    "cache_deadline",
    "first_job",
    "last_job_start_time",
    "last_job_end_time",
    "run_time_ns",
    "held_time_ns",
    "first_epoch",
    "last_epoch",
)
"""The fields of a `SessionView` that a recorded change of the session carries."""


def session_at(view: SessionView, body: Mapping[str, Any]) -> SessionView:
    """The session as it was at a recorded change."""
    values = {name: body[name] for name in SESSION_BODY}
    values["state"] = SessionState(values["state"])
    values["close_reason"] = CloseReason(values["close_reason"]) if values["close_reason"] else None
    return replace(view, **values, job_counts=JobCounts(**body["job_counts"]), idle_deadline=None, unused_deadline=None)


def accepted_view(view: JobView, priority: int, job_class: JobClass) -> JobView:
    """A job as it was accepted, with that priority and class, from what it is now."""
    return replace(
        view,
        job_class=job_class,
        state=JobState.QUEUED,
        reason=None,
        detail="",
        priority=priority,
        start_time=None,
        end_time=None,
        attempts=0,
        charged_ns=0,
        epoch=None,
        # A session's deadline: a job that was sent to it after its expiry had it from the start.
        cache_deadline=view.cache_deadline if job_class is JobClass.FAIR_SHARE else None,
        result_bytes=None,
        queue_position=None,
    )


def _session_row(record: SessionRecord, *, live: bool) -> tuple[str | int | None, ...]:
    return (
        record.state.value,
        record.close_reason.value if record.close_reason is not None else None,
        record.active,
        record.accepting_jobs,
        record.start_time,
        record.activate_time,
        record.expire_time,
        record.close_time,
        record.cache_deadline,
        record.first_job,
        record.last_job_start_time,
        record.last_job_end_time,
        record.run_time_ns,
        record.held_time_ns,
        record.first_epoch,
        record.last_epoch,
        json.dumps(record.clocks) if live else None,
        record.number,
    )


def _started_run(event: ev.RunStarted, now: int, create_time: int) -> RunView:
    other = event.runner_up
    return RunView(
        job=event.job,
        attempt=event.attempt,
        device=event.device,
        user=event.user,
        session=event.session,
        job_class=event.job_class,
        rule=event.rule,
        start_time=now,
        end_time=None,
        outcome=None,
        estimate_ns=event.estimate,
        limit_ns=event.limit,
        epoch=event.epoch,
        charged_ns=0,
        chosen_node=other.node if other else None,
        chosen_usage=other.usage_per_share if other else None,
        runner_up=other.passed if other else None,
        runner_up_usage=other.passed_usage_per_share if other else None,
        runner_up_user=other.user if other else None,
        create_time=create_time,
    )

"""The scheduler: one instant after the other (semantics 2).

Law: at one `now`, first the runs that end, by device name; then every deadline that is due; then the commands in their
order; then each free device, by name, picks its next job. A deadline that a command or a dispatch creates and that is
already due is handled before what comes next. Same inputs, same outputs, bit for bit.
"""

from collections.abc import Callable, KeysView, Mapping, Sequence
from typing import Any, Final

from _fastqueue import BATCH_FITS_NOTHING, HELD, NOTHING, Queue
from cadenza_server.model.commands import (
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
from cadenza_server.model.errors import Refusal
from cadenza_server.model.events import Event, JobPriorityChanged, Outcome, SharesChanged
from cadenza_server.model.settings import HALF_LIFE_DEFAULT, DeviceSettings
from cadenza_server.model.words import CalibrationRule, JobClass, JobReason, RunOutcome, SessionMode
from cadenza_server.scheduling.admission import Admission, Target
from cadenza_server.scheduling.calibrations import Calibrations
from cadenza_server.scheduling.company import ALONE, Company
from cadenza_server.scheduling.deadlines import DeadlineKind
from cadenza_server.scheduling.devices import Device
from cadenza_server.scheduling.forecast import forecast_starts
from cadenza_server.scheduling.jobs import Job, JobEvent
from cadenza_server.scheduling.ledger import Ledger
from cadenza_server.scheduling.memory import Restoration, device_record, session_record, take_out
from cadenza_server.scheduling.reservations import Reservation, Reservations
from cadenza_server.scheduling.runs import Runs
from cadenza_server.scheduling.sessions import Ending, Session, Sessions
from cadenza_server.scheduling.shares import Node, NodeKind
from cadenza_server.scheduling.state import DeviceRecord, SessionRecord, State
from cadenza_server.scheduling.views import (
    DeviceView,
    JobView,
    NodeView,
    SessionView,
    view_device,
    view_job,
    view_node,
    view_session,
)


class Scheduler:
    """Decides which job a device runs, and when sessions, reservations and calibrations begin and end.

    `devices`: settings by name; they are fixed. `shares`: weights by path; others have 1. `half_life`: of usage, in
    nanoseconds. `start`: the time from which on the first automatic calibrations count. `remember_final`: names of
    ended jobs, sessions and reservations stay known, so that asking something of them is refused for the right reason;
    without it they are unknown once they have ended, and memory stays bounded. Raises `Refusal` for shares that are no
    positive number or whose path is none. Not thread-safe: one owner.
    """

    def __init__(
        self,
        devices: Mapping[str, DeviceSettings],
        *,
        shares: Mapping[str, float] | None = None,
        half_life: int = HALF_LIFE_DEFAULT,
        start: int = 0,
        remember_final: bool = False,
        _queue: Callable[[int], Queue] = Queue,
        _state: State | None = None,
    ) -> None:
        ledger = Ledger(_queue(half_life), start, remember_final)
        self._ledger: Final = ledger
        self._half_life: Final = half_life
        self._admission: Final = Admission(ledger)
        self._sessions: Final = Sessions(ledger)
        self._reservations: Final = Reservations(ledger, self._sessions)
        self._calibrations: Final = Calibrations(ledger)
        self._runs: Final = Runs(ledger, self._sessions, self._calibrations)
        handlers: dict[DeadlineKind, Callable[[Any], None]] = {
            DeadlineKind.ESTIMATE: self._runs.outlast,
            DeadlineKind.EXPIRY: self._expire,
            DeadlineKind.IDLE: self._sessions.let_go,
            DeadlineKind.UNUSED: self._sessions.unused,
            DeadlineKind.CACHE: self._sessions.cache_expired,
            DeadlineKind.RESERVATION_END: self._reservations.end,
            DeadlineKind.RESERVATION_START: self._reservations.start,
            DeadlineKind.CALIBRATION: self._calibrations.submit,
        }
        self._deadline_handlers: Final = handlers
        self._command_handlers: Final[Mapping[type, Callable[[Any], None]]] = {
            SubmitJob: self._submit_job,
            SubmitJobs: self._submit_jobs,
            SetPriority: self._set_priority,
            CancelJob: self._cancel_job,
            CreateSession: self._create_session,
            CloseSession: self._close_session,
            CancelSession: self._cancel_session,
            CreateReservation: self._create_reservation,
            DeleteReservation: self._delete_reservation,
            SetShares: self._set_shares,
            RunEnded: self._end_run,
            SetDeviceReady: self._set_device_ready,
            Resumed: self._resume,
        }
        for path, weight in (shares or {}).items():
            self._admission.shares(path, weight)
            self._set_weight(path, weight)
        for rank, (name, settings) in enumerate(sorted(devices.items())):
            outside = settings.calibration is CalibrationRule.OUTSIDE_DEDICATED
            ledger.devices[name] = Device(name, rank, ledger.queue.add_device(outside), settings)
        self._devices: Final = tuple(ledger.devices.values())
        if _state is not None:
            restoration = Restoration(ledger, self._sessions, self._reservations, self._calibrations, self._runs)
            restoration.put_back(_state)
        else:
            for device in ledger.devices.values():
                self._calibrations.start_timer(device, start)

    @classmethod
    def restore(
        cls, state: State, *, remember_final: bool = False, _queue: Callable[[int], Queue] = Queue
    ) -> "Scheduler":
        """Go on from a state: with its runs as if they went on, so that `Resumed` can put them back. What had ended
        before is not in it. Raises `ValueError` if its parts do not belong together."""
        return cls(
            {device.device: device.settings for device in state.devices},
            half_life=state.half_life,
            start=state.now,
            remember_final=remember_final,
            _queue=_queue,
            _state=state,
        )

    # --- the door -----------------------------------------------------------------------------------------------

    def apply(self, commands: Sequence[Command], now: int) -> Outcome:
        """Handle one instant. `now`: nanoseconds; raises `ValueError` if it lies before that of the call before."""
        ledger = self._ledger
        if now < ledger.now:
            raise ValueError(f"time went back from {ledger.now} to {now} ns: `now` never goes back")
        ledger.now = now
        events: list[Event] = []
        ledger.events = events
        answers: list[Refusal | tuple[Event, ...]] = [()] * len(commands)
        deadlines = ledger.deadlines
        order: Sequence[int] = range(len(commands))
        if len(commands) > 1 and any(type(command) in _BEFORE_DEADLINES for command in commands):
            order = sorted(order, key=_turns(commands))
        for i in order:
            command = commands[i]
            if deadlines.first <= now and type(command) not in _BEFORE_DEADLINES:
                self._fire_due()
            answers[i] = self._execute(command)
        if deadlines.first <= now:
            self._fire_due()
        pick = ledger.queue.pick
        for device in self._devices:
            if device.running is None and device.ready and (answer := pick(device.handle, now)) != NOTHING:
                self._dispatch(device, answer)
        return Outcome(events=events, answers=answers)

    def next_deadline(self) -> int | None:
        """When the next deadline is due, in nanoseconds: call `apply([], now)` then. None: there is none."""
        return self._ledger.deadlines.next_due()

    def _execute(self, command: Command) -> Refusal | tuple[Event, ...]:
        events = self._ledger.events
        before = len(events)
        try:
            self._command_handlers[type(command)](command)
        except Refusal as refusal:
            return refusal
        return tuple(events[before:])

    def _fire_due(self) -> None:
        ledger = self._ledger
        while (deadline := ledger.deadlines.take_due(ledger.now)) is not None:
            self._deadline_handlers[deadline.kind](deadline.owner)

    def _dispatch(self, device: Device, answer: int) -> None:
        """Do what the queue has picked for a free device, until it has a job or stays free (3)."""
        ledger = self._ledger
        while True:
            if answer >= 0:
                self._runs.start(device, ledger.places[answer])
                break
            session = device.active
            if answer == NOTHING or session is None:
                break
            if answer == HELD:
                if not session.batch and device.held_since is None:
                    device.held_since = ledger.now
                break
            if answer == BATCH_FITS_NOTHING:
                self._sessions.expire(session, ledger.now)
            else:
                self._sessions.let_go(session)
            self._fire_due()
            answer = ledger.queue.pick(device.handle, ledger.now)
        if ledger.deadlines.first <= ledger.now:
            self._fire_due()

    def _expire(self, session: Session) -> None:
        self._sessions.expire(session, self._ledger.now if session.expires_at is None else session.expires_at)

    # --- what it remembers, and what people look at --------------------------------------------------------------

    def state(self) -> State:
        """Return all that a restart needs; costs time for every live thing."""
        return take_out(self._ledger, self._half_life)

    def device_record(self, name: str) -> DeviceRecord | None:
        """Return what `state()` says of one device; None if there is no such device."""
        device = self._ledger.devices.get(name)
        return None if device is None else device_record(device)

    def session_record(self, name: str) -> SessionRecord | None:
        """Return what `state()` says of one session; None if it is not known (any more)."""
        session = self._ledger.sessions.get(name)
        return None if session is None else session_record(session)

    def device_view(self, name: str) -> DeviceView | None:
        """Return a device as people see it; None if there is no such device."""
        device = self._ledger.devices.get(name)
        return None if device is None else view_device(device, self._ledger.queue)

    def session_view(self, name: str) -> SessionView | None:
        """Return a session as people see it; None if it is not known (any more)."""
        session = self._ledger.sessions.get(name)
        return None if session is None else view_session(session)

    def job_view(self, name: str) -> JobView | None:
        """Return a live job as people see it; None if there is no such job."""
        job = self._ledger.jobs.get(name)
        return None if job is None else view_job(job)

    def forecast_starts(self, device: str, now: int, count_max: int) -> list[int]:
        """Return the `seq` of up to `count_max` queued jobs in the order in which the device would start them if
        nothing came or went from `now` on; see `forecast.py`."""
        found = self._ledger.devices.get(device)
        return [] if found is None else forecast_starts(self._ledger, found, now, count_max)

    def shares_view(self, now: int) -> tuple[NodeView, ...]:
        """Return every account and user with usage decayed to `now`, accounts before what is below them."""
        return tuple(view_node(node, self._ledger.queue, now) for node in self._ledger.tree)

    @property
    def share_paths(self) -> KeysView[str]:
        """The paths of all accounts and users, in the order in which they came."""
        return self._ledger.tree.paths

    def node_view(self, path: str, now: int) -> NodeView | None:
        """Return one account or user, as `shares_view` does; None if there is no such path."""
        node = self._ledger.tree.find(path)
        return None if node is None else view_node(node, self._ledger.queue, now)

    # --- commands -----------------------------------------------------------------------------------------------

    def _submit_job(self, command: SubmitJob) -> None:
        self._enter_job(command, self._admission.submit(command, ALONE))

    def _submit_jobs(self, command: SubmitJobs) -> None:
        company = Company()
        target: Target | None = None
        targets = []
        for i, each in enumerate(command.jobs):
            try:
                found = self._admission.submit(each, company, target)
            except Refusal as refusal:
                refusal.field = f"jobs[{i}]" if refusal.field is None else f"jobs[{i}].{refusal.field}"
                raise
            company.names.add(each.job)
            if found is not target:
                target = found
                if each.job_class is not JobClass.CALIBRATION:
                    company.join(target.user)
            targets.append(target)
        for each, target in zip(command.jobs, targets, strict=True):
            self._enter_job(each, target)

    def _enter_job(self, command: SubmitJob, target: Target) -> None:
        ledger = self._ledger
        device, session, user = target.device, target.session, target.user
        settings = device.settings
        limit = settings.limit
        if command.limit is not None and command.limit < limit:
            limit = command.limit
        estimate = settings.default_estimate if command.estimate is None else command.estimate
        calibration = command.job_class is JobClass.CALIBRATION
        ledger.seq += 1
        job = Job(
            name=command.job,
            seq=ledger.seq,
            user=user,
            node=None if calibration else self._user_node(user),
            device=device,
            session=session,
            priority=command.priority,
            estimate=estimate if estimate < limit else limit,
            limit=limit,
            first=session is not None and not session.has_had_job,
            automatic=False,
        )
        if calibration:
            self._calibrations.came(device)
        ledger.submitted(job)
        if session is not None:
            self._sessions.job_came(session)

    def _set_priority(self, command: SetPriority) -> None:
        job = self._admission.set_priority(command)
        job.priority = command.priority
        if job.node is not None:
            self._ledger.queue.set_priority(job.handle, command.priority)
        self._ledger.events.append(JobPriorityChanged(job=job.name, priority=command.priority))

    def _cancel_job(self, command: CancelJob) -> None:
        job = self._admission.cancel_job(command)
        if job.device.running is job:
            self._runs.end(job.device, job, RunOutcome.CANCELLED)
            return
        self._ledger.queue.remove(job.handle)
        self._ledger.unplace(job)
        self._ledger.end(job, JobEvent.CANCEL, JobReason.CANCELLED_BY_USER)
        if job.node is None:
            self._calibrations.ended(job.device)
        elif job.session is not None:
            self._sessions.job_left(job.session, job.first)

    def _create_session(self, command: CreateSession) -> None:
        device, reservation, user = self._admission.create_session(command)
        ledger = self._ledger
        settings = device.settings
        batch = command.mode is SessionMode.BATCH
        ttl = settings.interactive_ttl_batch if batch else settings.interactive_ttl_dedicated
        node = self._user_node(user)
        ledger.sessions_created += 1
        self._sessions.create(
            Session(
                name=command.session,
                number=ledger.sessions_created,
                node=node,
                device=device,
                mode=command.mode,
                max_time=settings.max_time if command.max_time is None else min(command.max_time, settings.max_time),
                interactive_ttl=ttl if command.interactive_ttl is None else min(command.interactive_ttl, ttl),
                reservation=reservation,
                bound_to=command.reservation,
                handle=ledger.queue.add_session(device.handle, node.handle, batch),
            )
        )

    def _close_session(self, command: CloseSession) -> None:
        session = self._admission.session_of(command)
        self._sessions.end(session, Ending(command.pending or session.device.settings.on_close))

    def _cancel_session(self, command: CancelSession) -> None:
        self._sessions.end(self._admission.session_of(command), Ending.CANCEL)

    def _create_reservation(self, command: CreateReservation) -> None:
        device = self._admission.create_reservation(command)
        ledger = self._ledger
        ledger.reservations_created += 1
        self._reservations.create(
            Reservation(
                command.reservation, ledger.reservations_created, device, command.holder, command.start, command.end
            )
        )

    def _delete_reservation(self, command: DeleteReservation) -> None:
        self._reservations.end(self._admission.delete_reservation(command), deleted=True)

    def _set_shares(self, command: SetShares) -> None:
        self._admission.set_shares(command)
        self._set_weight(command.path, command.shares)
        self._ledger.events.append(SharesChanged(path=command.path, shares=command.shares))

    def _end_run(self, command: RunEnded) -> None:
        device = self._ledger.devices.get(command.device)
        job = None if device is None else device.running
        if device is not None and job is not None and job.name == command.job and job.attempts == command.attempt:
            self._runs.end(device, job, command.outcome)

    def _set_device_ready(self, command: SetDeviceReady) -> None:
        self._admission.device(command.device).ready = command.ready

    def _resume(self, command: Resumed) -> None:
        self._admission.down_from(command.down_from)
        slept = self._ledger.now - command.down_from
        self._sessions.slept(slept)
        self._calibrations.slept(slept)
        for device in self._ledger.devices.values():
            if device.running is not None:
                self._runs.end(device, device.running, RunOutcome.PUT_BACK)
            # The law does not say who pays for a held device while the server is down: nobody, as nobody could use it.
            self._ledger.end_hold(device, command.down_from)

    # --- the share tree -----------------------------------------------------------------------------------------

    def _user_node(self, path: str) -> Node:
        """Return the node of a user, who was checked; add it if it is new."""
        node = self._ledger.tree.find(path)
        if node is None or node.kind is not NodeKind.USER:
            node = self._add_node(path)
            node.kind = NodeKind.USER
        return node

    def _set_weight(self, path: str, shares: float) -> None:
        node = self._ledger.tree.find(path) or self._add_node(path)
        self._ledger.queue.set_shares(node.handle, shares)

    def _add_node(self, path: str) -> Node:
        node, new = self._ledger.tree.add(path)
        for each in new:
            self._reservations.node_added(each)
        return node


_BEFORE_DEADLINES: Final = (Resumed, RunEnded)


def _turns(commands: Sequence[Command]) -> Callable[[int], tuple[int, str]]:
    """Return what sorts positions of commands of one instant: a restart, ends by device, the others as they came."""

    def turn(position: int) -> tuple[int, str]:
        command = commands[position]
        if type(command) is RunEnded:
            return 1, command.device
        return (0, "") if type(command) is Resumed else (2, "")

    return turn

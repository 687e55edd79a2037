"""A session, its life cycle as data, and everything that changes it (semantics 5)."""

from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from _fastqueue import NEVER
from cadenza_server.model.events import (
    SessionChanged,
    SessionCreated,
    SessionDraining,
    SessionJobsEnded,
    SessionJobsReleased,
)
from cadenza_server.model.words import CloseReason, FirstJob, JobReason, OnExpiry, SessionMode, SessionState
from cadenza_server.scheduling.deadlines import Deadline, DeadlineKind
from cadenza_server.scheduling.devices import Device
from cadenza_server.scheduling.shares import Node

if TYPE_CHECKING:
    from cadenza_server.scheduling.jobs import Job
    from cadenza_server.scheduling.ledger import Ledger
    from cadenza_server.scheduling.reservations import Reservation


class SessionEvent(StrEnum):
    """What can happen to a session."""

    PICKED = "PICKED"
    """One of its jobs is picked by fair share."""
    LET_GO = "LET_GO"
    """Idle timeout, a reservation of someone else, or a batch that may start nothing before one."""
    UNUSED = "UNUSED"
    EXPIRED = "EXPIRED"
    RESERVATION_ENDED = "RESERVATION_ENDED"
    FIRST_JOB_CANCELLED = "FIRST_JOB_CANCELLED"
    ENDED_EMPTY = "ENDED_EMPTY"
    """Close or cancel, nothing left to run."""
    ENDED_WITH_WORK = "ENDED_WITH_WORK"
    """Close or cancel, something left to run."""
    EMPTIED = "EMPTIED"
    """The last queued or running job of a draining session has ended."""


_OPEN, _ACTIVE, _INACTIVE = SessionState.OPEN, SessionState.ACTIVE, SessionState.INACTIVE
_DRAINING, _CLOSED = SessionState.DRAINING, SessionState.CLOSED

SESSION_TRANSITIONS: Final[Mapping[tuple[SessionState, SessionEvent], SessionState]] = {
    (_OPEN, SessionEvent.PICKED): _ACTIVE,
    (_INACTIVE, SessionEvent.PICKED): _ACTIVE,
    (_DRAINING, SessionEvent.PICKED): _DRAINING,
    (_ACTIVE, SessionEvent.LET_GO): _INACTIVE,
    (_DRAINING, SessionEvent.LET_GO): _DRAINING,
    (_OPEN, SessionEvent.UNUSED): _CLOSED,
    (_ACTIVE, SessionEvent.EXPIRED): _CLOSED,
    (_INACTIVE, SessionEvent.EXPIRED): _CLOSED,
    (_DRAINING, SessionEvent.EXPIRED): _CLOSED,
    (_OPEN, SessionEvent.RESERVATION_ENDED): _CLOSED,
    (_ACTIVE, SessionEvent.RESERVATION_ENDED): _CLOSED,
    (_INACTIVE, SessionEvent.RESERVATION_ENDED): _CLOSED,
    (_DRAINING, SessionEvent.RESERVATION_ENDED): _CLOSED,
    (_OPEN, SessionEvent.FIRST_JOB_CANCELLED): _CLOSED,
    (_ACTIVE, SessionEvent.FIRST_JOB_CANCELLED): _CLOSED,
    (_INACTIVE, SessionEvent.FIRST_JOB_CANCELLED): _CLOSED,
    (_DRAINING, SessionEvent.FIRST_JOB_CANCELLED): _CLOSED,
    (_OPEN, SessionEvent.ENDED_EMPTY): _CLOSED,
    (_ACTIVE, SessionEvent.ENDED_EMPTY): _CLOSED,
    (_INACTIVE, SessionEvent.ENDED_EMPTY): _CLOSED,
    (_OPEN, SessionEvent.ENDED_WITH_WORK): _DRAINING,
    (_ACTIVE, SessionEvent.ENDED_WITH_WORK): _DRAINING,
    (_INACTIVE, SessionEvent.ENDED_WITH_WORK): _DRAINING,
    (_DRAINING, SessionEvent.EMPTIED): _CLOSED,
}
"""From a state by an event to a state (5.1). What is not in it cannot happen: an `OPEN` session has no expiry yet."""


class Ending(StrEnum):
    """How a session is ended by its owner, the weakest first (5.4)."""

    DRAIN = "DRAIN"
    FAIL_QUEUED = "FAIL_QUEUED"
    CANCEL = "CANCEL"


_STRENGTH: Final = {ending: strength for strength, ending in enumerate(Ending)}
_ENDING_FATE: Final[Mapping[Ending, JobReason | None]] = {
    Ending.DRAIN: None,
    Ending.FAIL_QUEUED: JobReason.SESSION_CLOSED,
    Ending.CANCEL: JobReason.SESSION_CANCELLED,
}
_ENDING_REASON: Final[Mapping[Ending, CloseReason]] = {
    Ending.DRAIN: CloseReason.CLOSED_BY_USER,
    Ending.FAIL_QUEUED: CloseReason.CLOSED_BY_USER,
    Ending.CANCEL: CloseReason.CANCELLED_BY_USER,
}


class Session:
    """One session. Times and lengths are nanoseconds.

    `bound_to`: the name of its reservation; after a restart that is all that is left of one that has ended.
    `queued`: its queued jobs by name, also those that an expiry has released. `running`: its job that is on the device.
    `reason`: what it closed with; while it drains, what it will close with. `fate`: why a job fails that comes back to
    its queue now; None: it is queued again. `released`: what was queued at its expiry became fair-share jobs;
    `takes_late_jobs`: so does what is submitted from then on, until the cache deadline.
    """

    __slots__ = (
        "batch",
        "bound_to",
        "cache_deadline",
        "device",
        "expires_at",
        "expiry",
        "fate",
        "handle",
        "has_had_job",
        "idle",
        "idle_left",
        "interactive_ttl",
        "max_time",
        "name",
        "node",
        "number",
        "queued",
        "reason",
        "released",
        "reservation",
        "running",
        "state",
        "takes_late_jobs",
        "unused",
    )

    def __init__(
        self,
        name: str,
        number: int,
        node: Node,
        device: Device,
        mode: SessionMode,
        max_time: int,
        interactive_ttl: int,
        reservation: "Reservation | None",
        bound_to: str | None,
        handle: int,
    ) -> None:
        self.name: Final = name
        self.number: Final = number
        self.node: Final = node
        self.device: Final = device
        self.batch: Final = mode is SessionMode.BATCH
        self.max_time: Final = max_time
        self.interactive_ttl: Final = interactive_ttl
        self.reservation: Final = reservation
        self.bound_to: Final = bound_to
        self.handle: Final = handle
        self.state = SessionState.OPEN
        self.reason: CloseReason | None = None
        self.fate: JobReason | None = None
        self.has_had_job = False
        self.released = False
        self.takes_late_jobs = False
        self.queued: dict[str, Job] = {}
        self.running: Job | None = None
        self.expires_at: int | None = None
        self.cache_deadline: int | None = None
        self.expiry: Deadline | None = None
        self.unused: Deadline | None = None
        self.idle: Deadline | None = None
        self.idle_left: int | None = None

    @property
    def mode(self) -> SessionMode:
        """How it uses the device."""
        return SessionMode.BATCH if self.batch else SessionMode.DEDICATED

    @property
    def active(self) -> bool:
        """Whether it has the device now."""
        return self.device.active is self

    @property
    def in_window(self) -> bool:
        """Whether no reservation keeps it waiting: it is bound to none, or to one that is open (8)."""
        return self.reservation is None or self.reservation.started

    @property
    def over(self) -> bool:
        """Whether nothing can happen to it any more."""
        return (
            self.state is SessionState.CLOSED
            and self.running is None
            and (self.cache_deadline is None or self.fate is not None)
        )

    @property
    def takes_jobs(self) -> bool:
        """Whether a job may be submitted now; after an expiry until the cache deadline, unless it was ended before."""
        return self.state.accepts_jobs or (self.takes_late_jobs and self.fate is None)


class Sessions:
    """What is done with sessions. Everything is checked before."""

    __slots__ = ("_ledger",)

    def __init__(self, ledger: "Ledger") -> None:
        self._ledger: Final = ledger

    def create(self, session: Session) -> None:
        """Enter a new session."""
        ledger = self._ledger
        reservation = session.reservation
        self.enter(session)
        ledger.events.append(
            SessionCreated(
                session=session.name,
                user=session.node.path,
                device=session.device.name,
                mode=session.mode,
                max_time=session.max_time,
                interactive_ttl=session.interactive_ttl,
                reservation=None if reservation is None else reservation.name,
            )
        )
        self._start_unused(session)

    def enter(self, session: Session) -> None:
        """Put a session into the tables: a new one, or one that is restored."""
        self._ledger.sessions[session.name] = session
        if session.state is not SessionState.CLOSED:
            if session.reservation is not None:
                session.reservation.sessions[session.name] = session
            self._ledger.queue.set_standing(session.handle, session.in_window)

    def window_opened(self, session: Session) -> None:
        """The window of the reservation that it is bound to has started."""
        self._ledger.queue.set_standing(session.handle, True)
        if session.state is SessionState.OPEN and not session.queued and session.reservation is not None:
            # Not from now on: after a restart the window starts late, and this clock does not move (10).
            self._start_unused(session, session.reservation.start)

    def job_came(self, session: Session) -> None:
        """A job was submitted: clocks that wait for one stop."""
        session.has_had_job = True
        if session.unused is not None:
            self._stop_unused(session)
        if session.idle is not None or session.idle_left is not None:
            self._stop_idle(session)

    def job_left(self, session: Session, first_cancelled: bool = False) -> None:
        """A job of it has ended: see whether anything is left. `first_cancelled`: it was the first job, and ended by a
        cancel of this job (5.6)."""
        state = session.state
        if first_cancelled and state is not SessionState.CLOSED and _needs_first_job(session):
            self._fail_queued(session, JobReason.FIRST_JOB_CANCELLED)
            self._close(session, SessionEvent.FIRST_JOB_CANCELLED, CloseReason.FIRST_JOB_CANCELLED)
        elif session.queued or session.running is not None:
            return
        elif state is SessionState.ACTIVE:
            self._start_idle(session)
        elif state is SessionState.DRAINING:
            self._close(session, SessionEvent.EMPTIED, session.reason)
        elif state is SessionState.OPEN:
            self._start_unused(session)
        elif state is SessionState.CLOSED:
            self._forget(session)

    def activate(self, session: Session) -> None:
        """Fair share has picked a job of it: it has the device from now on."""
        ledger = self._ledger
        session.device.active = session
        ledger.queue.activate(session.handle)
        if session.expires_at is None:
            session.expires_at = ledger.now + session.max_time
            self._start_expiry(session)
        self._step(session, SessionEvent.PICKED)

    def let_go(self, session: Session) -> None:
        """Take the device from it."""
        self._stop_idle(session)
        self._leave_device(session)
        self._step(session, SessionEvent.LET_GO)

    def unused(self, session: Session) -> None:
        """It had no queued job for its device's `unused_ttl`."""
        session.unused = None
        self._close(session, SessionEvent.UNUSED, CloseReason.UNUSED)

    def expire(self, session: Session, expiry: int) -> None:
        """Its time is over, at `expiry` (5.5)."""
        ledger = self._ledger
        self._leave_device(session)
        if session.device.settings.on_expiry is OnExpiry.FAIL:
            self._fail_queued(session, JobReason.SESSION_EXPIRED)
        elif session.fate is None:
            session.released = True
            session.takes_late_jobs = session.state is not SessionState.DRAINING
            session.cache_deadline = expiry + session.device.settings.session_cache_ttl
            ledger.events.append(
                SessionJobsReleased(
                    session=session.name,
                    device=session.device.name,
                    count=ledger.queue.release_jobs(session.handle),
                    cache_deadline=session.cache_deadline,
                )
            )
            self._start_cache(session)
        self._close(session, SessionEvent.EXPIRED, CloseReason.EXPIRED)

    def cache_expired(self, session: Session) -> None:
        """What an expired session left over has lost its cached data."""
        self._fail_queued(session, JobReason.SESSION_CACHE_EXPIRED)
        self._forget(session)

    def reservation_ended(self, session: Session) -> None:
        """The reservation that it is bound to has ended."""
        self._fail_queued(session, JobReason.RESERVATION_ENDED)
        self._close(session, SessionEvent.RESERVATION_ENDED, CloseReason.RESERVATION_ENDED)

    def end(self, session: Session, ending: Ending) -> None:
        """Close or cancel it; what is not stronger than what was asked before changes nothing (5.4)."""
        state = session.state
        if state is SessionState.CLOSED:
            return
        if state is SessionState.DRAINING and _STRENGTH[ending] <= _STRENGTH[_asked(session)]:
            return
        reason = _ENDING_REASON[ending]
        fate = _ENDING_FATE[ending]
        if fate is not None:
            self._fail_queued(session, fate)
        if session.queued or session.running is not None:
            session.reason = reason
            self._ledger.events.append(SessionDraining(session=session.name, reason=reason))
            if state is SessionState.DRAINING:
                self._tell(session)
            else:
                self._step(session, SessionEvent.ENDED_WITH_WORK)
        elif state is SessionState.DRAINING:
            self._close(session, SessionEvent.EMPTIED, reason)
        else:
            self._close(session, SessionEvent.ENDED_EMPTY, reason)

    def calibration_started(self, device: Device) -> None:
        """Pause the idle clock of the device's active session (5.2)."""
        session = device.active
        if session is not None and session.idle is not None:
            session.idle_left = session.idle.due - self._ledger.now
            self._ledger.deadlines.cancel(session.idle)
            session.idle = None

    def calibration_ended(self, device: Device) -> None:
        """Let the idle clock of the device's active session go on."""
        session = device.active
        if session is not None and session.idle_left is not None:
            self._set_idle(session, self._ledger.now + session.idle_left)
            session.idle_left = None

    def slept(self, length: int) -> None:
        """The server was down for so long: idle clocks move by it (10)."""
        for device in self._ledger.devices.values():
            session = device.active
            if session is not None and session.idle is not None:
                due = session.idle.due + length
                self._ledger.deadlines.cancel(session.idle)
                self._set_idle(session, due)

    def resume_clocks(self, session: Session, *, unused: int | None, idle: int | None) -> None:
        """Set the clocks of a session that is restored; `unused` and `idle`: when these two are due, if they run."""
        if session.state is not SessionState.CLOSED:
            self._start_expiry(session)
        else:
            self._start_cache(session)
        if unused is not None:
            session.unused = self._ledger.deadlines.add(DeadlineKind.UNUSED, unused, (session.number, 0), session)
        if idle is not None:
            self._set_idle(session, idle)

    def _step(self, session: Session, event: SessionEvent) -> None:
        session.state = SESSION_TRANSITIONS[session.state, event]
        self._tell(session)

    def _tell(self, session: Session) -> None:
        """Say what has become of it: also of a draining one that gets or loses the device."""
        self._ledger.events.append(
            SessionChanged(
                session=session.name,
                device=session.device.name,
                state=session.state,
                active=session.active,
                reason=session.reason if session.state is SessionState.CLOSED else None,
                expires_at=session.expires_at,
                accepting_jobs=session.state.accepts_jobs,
            )
        )

    def _close(self, session: Session, event: SessionEvent, reason: CloseReason | None) -> None:
        self._stop_unused(session)
        self._stop_idle(session)
        if session.expiry is not None:
            if session.expiry.position >= 0:
                self._ledger.deadlines.cancel(session.expiry)
            session.expiry = None
        self._leave_device(session)
        self._ledger.queue.remove_session(session.handle)
        if session.reservation is not None:
            del session.reservation.sessions[session.name]
        session.reason = reason
        self._step(session, event)
        self._forget(session)

    def _leave_device(self, session: Session) -> None:
        device = session.device
        if device.active is session:
            self._ledger.end_hold(device)
            device.active = None
            self._ledger.queue.deactivate(device.handle)

    def _fail_queued(self, session: Session, reason: JobReason) -> None:
        """End all its queued jobs alike; the same awaits a job that comes back later, unless something else does."""
        ledger = self._ledger
        if session.fate is None:
            session.fate = reason
        queued = session.queued
        if not queued:
            return
        if session.released:
            for job in queued.values():
                ledger.queue.remove(job.handle)
        else:
            ledger.queue.drop_jobs(session.handle)
        jobs, places = ledger.jobs, ledger.places
        for name, job in queued.items():
            del jobs[name]
            del places[job.handle]
        if ledger.keeps_ended:
            ledger.ended.update(dict.fromkeys(queued, session.node.path))
        ledger.events.append(
            SessionJobsEnded(
                session=session.name,
                device=session.device.name,
                state=reason.state,
                reason=reason,
                count=len(queued),
            )
        )
        session.queued = {}

    def _forget(self, session: Session) -> None:
        """Forget a closed session to which nothing can happen any more."""
        if session.over and not self._ledger.keeps_ended:
            del self._ledger.sessions[session.name]

    def _start_expiry(self, session: Session) -> None:
        due = session.expires_at
        if due is not None:
            session.expiry = self._ledger.deadlines.add(DeadlineKind.EXPIRY, due, (session.number, 0), session)
            if session.batch:
                end = NEVER if session.reservation is None else session.reservation.end
                self._ledger.queue.set_fit_deadline(session.handle, min(due, end))

    def _start_cache(self, session: Session) -> None:
        due = session.cache_deadline
        if due is not None and session.fate is None:
            self._ledger.deadlines.add(DeadlineKind.CACHE, due, (session.number, 0), session)

    def _start_unused(self, session: Session, since: int | None = None) -> None:
        """Start it `since` an instant; None: now."""
        if session.in_window:
            due = (self._ledger.now if since is None else since) + session.device.settings.unused_ttl
            session.unused = self._ledger.deadlines.add(DeadlineKind.UNUSED, due, (session.number, 0), session)

    def _stop_unused(self, session: Session) -> None:
        if session.unused is not None:
            self._ledger.deadlines.cancel(session.unused)
            session.unused = None

    def _start_idle(self, session: Session) -> None:
        if session.device.calibrates:
            session.idle_left = session.interactive_ttl
        else:
            self._set_idle(session, self._ledger.now + session.interactive_ttl)

    def _set_idle(self, session: Session, due: int) -> None:
        session.idle = self._ledger.deadlines.add(DeadlineKind.IDLE, due, (session.number, 0), session)

    def _stop_idle(self, session: Session) -> None:
        session.idle_left = None
        if session.idle is not None:
            if session.idle.position >= 0:
                self._ledger.deadlines.cancel(session.idle)
            session.idle = None


def _needs_first_job(session: Session) -> bool:
    return session.device.settings.first_job is FirstJob.REQUIRED


def _asked(session: Session) -> Ending:
    """Return how a draining session was ended."""
    if session.reason is CloseReason.CANCELLED_BY_USER:
        return Ending.CANCEL
    return Ending.DRAIN if session.fate is None else Ending.FAIL_QUEUED

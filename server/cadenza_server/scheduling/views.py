"""What people may look at: live figures of devices, sessions, jobs and usage, made when asked for."""

from dataclasses import dataclass

from _fastqueue import Queue
from cadenza_server.model.words import CloseReason, JobClass, JobState, SessionMode, SessionState
from cadenza_server.scheduling.devices import Device
from cadenza_server.scheduling.jobs import Job
from cadenza_server.scheduling.sessions import Session
from cadenza_server.scheduling.shares import Node, NodeKind


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceView:
    """A device now. Times are nanoseconds."""

    device: str
    ready: bool
    epoch: int
    running: str | None
    """The job that it runs."""
    running_since: int | None
    active_session: str | None
    held_since: int | None
    """Since when a dedicated session holds it idle."""
    reservation: str | None
    """The one whose window is open."""
    next_reservation: str | None
    next_calibration: int | None
    """When it will submit a calibration itself."""
    queued_calibration: int
    queued_session: int
    queued_fair_share: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionView:
    """A session now. Times and lengths are nanoseconds; `idle_due` is None while its clock does not run."""

    session: str
    user: str
    device: str
    mode: SessionMode
    state: SessionState
    reason: CloseReason | None
    active: bool
    accepting_jobs: bool
    queued: int
    running: str | None
    max_time: int
    interactive_ttl: int
    reservation: str | None
    expires_at: int | None
    idle_due: int | None
    unused_due: int | None
    cache_deadline: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobView:
    """A live job now. Lengths are nanoseconds."""

    job: str
    seq: int
    user: str
    device: str
    session: str | None
    job_class: JobClass
    state: JobState
    priority: int
    estimate: int
    limit: int
    attempts: int
    losses: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeView:
    """An account or user: its weight and its usage, decayed to now, in device seconds."""

    path: str
    kind: NodeKind
    shares: float
    settled: float
    in_flight: float


def view_device(device: Device, queue: Queue) -> DeviceView:
    """Look at a device."""
    running = device.running
    calibration, session, fair_share = queue.counts(device.handle)
    return DeviceView(
        device=device.name,
        ready=device.ready,
        epoch=device.epoch,
        running=None if running is None else running.name,
        running_since=None if running is None else device.run_start,
        active_session=None if device.active is None else device.active.name,
        held_since=device.held_since,
        reservation=None if device.window is None else device.window.name,
        next_reservation=device.ahead[0].name if device.ahead else None,
        next_calibration=None if device.calibration is None else device.calibration.due,
        queued_calibration=calibration,
        queued_session=session,
        queued_fair_share=fair_share,
    )


def view_session(session: Session) -> SessionView:
    """Look at a session."""
    return SessionView(
        session=session.name,
        user=session.node.path,
        device=session.device.name,
        mode=session.mode,
        state=session.state,
        reason=session.reason,
        active=session.active,
        accepting_jobs=session.state.accepts_jobs,
        queued=len(session.queued),
        running=None if session.running is None else session.running.name,
        max_time=session.max_time,
        interactive_ttl=session.interactive_ttl,
        reservation=session.bound_to,
        expires_at=session.expires_at,
        idle_due=None if session.idle is None else session.idle.due,
        unused_due=None if session.unused is None else session.unused.due,
        cache_deadline=session.cache_deadline,
    )


def view_job(job: Job) -> JobView:
    """Look at a job."""
    return JobView(
        job=job.name,
        seq=job.seq,
        user=job.user,
        device=job.device.name,
        session=None if job.session is None else job.session.name,
        job_class=job.job_class,
        state=job.state,
        priority=job.priority,
        estimate=job.estimate,
        limit=job.limit,
        attempts=job.attempts,
        losses=job.losses,
    )


def view_node(node: Node, queue: Queue, now: int) -> NodeView:
    """Look at an account or user."""
    settled, in_flight = queue.usage(node.handle, now)
    return NodeView(
        path=node.path,
        kind=node.kind,
        shares=queue.shares(node.handle),
        settled=settled,
        in_flight=in_flight,
    )

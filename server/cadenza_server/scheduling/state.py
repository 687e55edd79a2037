"""What the scheduler remembers, as plain values: what the store has to hold so that a restart goes on from it (10).

Times and lengths are nanoseconds. `Scheduler.state()` takes it out, `Scheduler.restore` puts it back.
"""

from dataclasses import dataclass
from typing import NamedTuple

from cadenza_server.model.settings import DeviceSettings
from cadenza_server.model.words import CloseReason, JobReason, SessionMode, SessionState
from cadenza_server.scheduling.shares import NodeKind


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRecord:
    """A path of the share tree, "" for the root. Its settled usage is `settled * 2**exponent`."""

    path: str
    kind: NodeKind
    shares: float
    settled: float
    exponent: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """A run that goes on. `estimate` is with all doublings."""

    start: int
    estimate: int


class JobRecord(NamedTuple):
    """A job that is queued or runs. There may be a million: a tuple is made in a third of a dataclass's time."""

    job: str
    seq: int
    user: str
    device: str
    session: str | None
    calibration: bool
    priority: int
    estimate: int
    """Without doublings."""
    limit: int
    first: bool
    automatic: bool
    attempts: int
    """How many runs it has had, the one that goes on included."""
    losses: int
    """How many of them lost their worker."""
    run: RunRecord | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRecord:
    """A session that is not closed, or is closed and still has something to come: a running job, or (after an expiry
    with `FAIR_SHARE`) its cache deadline."""

    session: str
    number: int
    """In order of creation."""
    user: str
    device: str
    mode: SessionMode
    max_time: int
    interactive_ttl: int
    reservation: str | None
    state: SessionState
    active: bool
    """It has the device now; also a draining one."""
    reason: CloseReason | None
    """What it closed with; of a draining one, what it will close with."""
    fate: JobReason | None
    """Why a job of it fails that comes back to the queue now (4)."""
    has_had_job: bool
    released: bool
    """It expired, and what was queued became fair-share jobs (5.5)."""
    takes_late_jobs: bool
    """A job may still be submitted, as a fair-share job, until the cache deadline (5.5)."""
    expires_at: int | None
    unused_due: int | None
    idle_due: int | None
    idle_left: int | None
    """What is left of the idle clock, while it pauses for a calibration."""
    cache_deadline: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReservationRecord:
    """A reservation that has not ended."""

    reservation: str
    number: int
    """In order of creation."""
    device: str
    holder: str
    start: int
    end: int
    started: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRecord:
    """A device. One that is new at a restart has its name and settings only."""

    device: str
    settings: DeviceSettings
    ready: bool = True
    epoch: int = 0
    automatic: int = 0
    """How many calibrations it has submitted itself."""
    calibration_due: int | None = None
    """When it submits the next one."""
    held_since: int | None = None
    """Since when its active session holds it idle at its owner's cost (6)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """All of it. `seq`, `sessions_created` and `reservations_created` are the last numbers given."""

    now: int
    half_life: int
    seq: int
    sessions_created: int
    reservations_created: int
    nodes: tuple[NodeRecord, ...]
    """Accounts before what is below them."""
    devices: tuple[DeviceRecord, ...]
    reservations: tuple[ReservationRecord, ...]
    sessions: tuple[SessionRecord, ...]
    jobs: tuple[JobRecord, ...]
    """By seq."""

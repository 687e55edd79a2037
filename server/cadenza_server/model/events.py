"""What the scheduler decided. An event happens at the `now` of the call that returned it; the order is the order in
which things happened. Store, watchers and history are made from events alone.
"""

from cadenza_server.model.errors import Refusal
from cadenza_server.model.value import value
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


@value
class JobQueued:
    """A job was accepted. Also the automatic calibrations of a device (`automatic`)."""

    job: str
    seq: int
    user: str
    device: str
    session: str | None
    job_class: JobClass
    priority: int
    estimate: int
    limit: int
    first: bool
    """It is its session's first job (5.6)."""
    automatic: bool = False
    cache_deadline: int | None = None
    """It was submitted to an expired session: it fails if it is still queued then (5.5)."""


@value
class JobPriorityChanged:
    """A queued job has another priority."""

    job: str
    priority: int


@value
class RunnerUp:
    """What a fair-share pick was chosen over: the siblings that were compared and their u/w (6)."""

    node: str
    """Path of the node on the chosen side."""
    usage_per_share: float
    passed: str
    """Path of the sibling that came second."""
    passed_usage_per_share: float
    user: str
    """The user below `passed` whose candidate came second."""


@value
class RunStarted:
    """A device took a job up."""

    job: str
    attempt: int
    """1 for the first run of the job; every run has its own number, put-back runs included."""
    device: str
    user: str
    session: str | None
    job_class: JobClass
    rule: Rule
    estimate: int
    limit: int
    epoch: int
    runner_up: RunnerUp | None = None


@value
class EstimateDoubled:
    """A run outlasted its estimate (6); what it is charged in flight has doubled."""

    job: str
    device: str
    estimate: int


@value
class RunFinished:
    """A run is over. The job's own fate follows as `JobEnded` or `JobRequeued`. If `outcome` is CANCELLED, the worker
    still has to be stopped."""

    job: str
    attempt: int
    device: str
    user: str
    session: str | None
    start: int
    end: int
    outcome: RunOutcome
    charged: int
    """Device nanoseconds settled on the user: the run's length, or 0 (calibration, lost worker, put back)."""


@value
class JobEnded:
    """One job reached a final state, from the queue or from a run."""

    job: str
    device: str
    session: str | None
    state: JobState
    reason: JobReason | None


@value
class JobRequeued:
    """A job is back in its place after its worker was lost, or its run was put back."""

    job: str
    device: str
    session: str | None
    job_class: JobClass
    attempts_lost: int


@value
class SessionCreated:
    """A session was opened; its state is OPEN."""

    session: str
    user: str
    device: str
    mode: SessionMode
    max_time: int
    interactive_ttl: int
    reservation: str | None


@value
class SessionChanged:
    """A session changed its state, or while it drains, what it has or will close with: `active` says whether it has the
    device. `reason` with CLOSED. `expires_at` is known once it has first been active."""

    session: str
    device: str
    state: SessionState
    active: bool
    reason: CloseReason | None = None
    expires_at: int | None = None
    accepting_jobs: bool = True


@value
class SessionDraining:
    """A close or cancel was asked of a session that has work left, or a stronger one of a draining session; `reason` is
    what it will close with."""

    session: str
    reason: CloseReason


@value
class SessionJobsEnded:
    """Every job of the session that was queued (as a session job, or as what an expiry left over) ended alike: one
    event, however many."""

    session: str
    device: str
    state: JobState
    reason: JobReason
    count: int


@value
class SessionJobsReleased:
    """The session expired: every queued job of it is now a fair-share job of its owner, until `cache_deadline`."""

    session: str
    device: str
    count: int
    cache_deadline: int


@value
class HoldEnded:
    """A piece of time for which a dedicated session held its device idle; charged to its owner (6)."""

    session: str
    user: str
    device: str
    start: int
    end: int


@value
class UsageSettled:
    """The settled usage of a user and of each account above it, after a charge: what a restart needs, bit for bit.
    Each entry is (path, settled, exponent); the value is settled * 2**exponent. The path of the root is ""."""

    nodes: tuple[tuple[str, float, int], ...]


@value
class SharesChanged:
    """A node of the share tree has another weight."""

    path: str
    shares: float


@value
class ReservationCreated:
    """A reservation was accepted."""

    reservation: str
    device: str
    holder: str
    start: int
    end: int


@value
class ReservationStarted:
    """A window opened."""

    reservation: str
    device: str


@value
class ReservationEnded:
    """A window closed, or the reservation was deleted before or inside it (`deleted`)."""

    reservation: str
    device: str
    deleted: bool


@value
class EpochStarted:
    """A calibration succeeded: the device has a new epoch (9)."""

    device: str
    epoch: int


Event = (
    JobQueued
    | JobPriorityChanged
    | RunStarted
    | EstimateDoubled
    | RunFinished
    | JobEnded
    | JobRequeued
    | SessionCreated
    | SessionChanged
    | SessionDraining
    | SessionJobsEnded
    | SessionJobsReleased
    | HoldEnded
    | UsageSettled
    | SharesChanged
    | ReservationCreated
    | ReservationStarted
    | ReservationEnded
    | EpochStarted
)


@value
class Outcome:
    """What one instant brought."""

    events: list[Event]
    """All of it, in order."""
    answers: list[Refusal | tuple[Event, ...]]
    """For each command, in order: why it was refused, or the events that it caused by itself (dispatch is not its)."""

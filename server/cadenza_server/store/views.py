"""What people are shown of the store: frozen values, made from committed rows only.

Times are nanoseconds since the epoch, lengths nanoseconds (`_ns`); None where the thing has not happened or is not
known. The words are those of the law (`model.words`).
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

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

T = TypeVar("T")


class ProgramKind(StrEnum):
    """What kind of program a job runs."""

    SAMPLER = "SAMPLER"
    ESTIMATOR = "ESTIMATOR"
    CALIBRATION = "CALIBRATION"


class ReservationState(StrEnum):
    """Where a reservation is in its life (8)."""

    SCHEDULED = "SCHEDULED"
    ACTIVE = "ACTIVE"
    ENDED = "ENDED"
    DELETED = "DELETED"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobView:
    """A job. `session` stays when the job outlives its session as a fair-share job."""

    job: str
    user: str
    device: str
    session: str | None
    job_class: JobClass
    program_kind: ProgramKind
    state: JobState
    reason: JobReason | None
    detail: str
    seq: int
    first: bool
    priority: int
    tags: tuple[str, ...]
    limit_ns: int
    estimate_ns: int
    """What it was queued with; `estimate_hint_ns` is what the client guessed."""
    estimate_hint_ns: int | None
    create_time: int
    start_time: int | None
    """Of its latest run."""
    end_time: int | None
    attempts: int
    """Runs started, put-back ones included."""
    charged_ns: int
    epoch: int | None
    """In which its latest run started."""
    cache_deadline: int | None
    """Left over from an expired session: it fails if it is still queued then."""
    result_bytes: int | None
    queue_position: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    """One execution of a job and the decision behind it. `outcome` None: it has not ended."""

    job: str
    attempt: int
    device: str
    user: str
    session: str | None
    job_class: JobClass
    rule: Rule
    start_time: int
    end_time: int | None
    outcome: RunOutcome | None
    estimate_ns: int
    limit_ns: int
    epoch: int
    charged_ns: int
    chosen_node: str | None
    chosen_usage: float | None
    """Decayed u/w, in device seconds, of the node that was chosen where it and the runner-up parted."""
    runner_up: str | None
    runner_up_usage: float | None
    runner_up_user: str | None
    create_time: int
    """When the job was submitted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobCounts:
    """How many jobs of a session are in each state."""

    queued: int = 0
    running: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionView:
    """A session with the settings in force for it."""

    session: str
    user: str
    device: str
    mode: SessionMode
    state: SessionState
    close_reason: CloseReason | None
    """Of CLOSED; of DRAINING: what it will close with."""
    active: bool
    accepting_jobs: bool
    reservation: str | None
    max_time_ns: int
    interactive_ttl_ns: int
    create_time: int
    start_time: int | None
    """When it first became active."""
    activate_time: int | None
    """When it last became active."""
    expire_time: int | None
    close_time: int | None
    cache_deadline: int | None
    first_job: str | None
    last_job_start_time: int | None
    last_job_end_time: int | None
    run_time_ns: int
    held_time_ns: int
    first_epoch: int | None
    last_epoch: int | None
    job_counts: JobCounts
    idle_deadline: int | None = None
    """When it becomes INACTIVE if no job comes; known for the live session only."""
    unused_deadline: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReservationView:
    """A reservation. `end_time` is when it ended if it was ended early."""

    reservation: str
    device: str
    holder: str
    start_time: int
    end_time: int
    state: ReservationState
    description: str
    create_time: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFilter:
    """Which jobs to list; what is empty or None does not restrict. Conditions are combined with *and*."""

    states: frozenset[JobState] = frozenset()
    device: str | None = None
    session: str | None = None
    user: str | None = None
    """A user, or an account: all users below it."""
    owner: str | None = None
    """Exactly this user, whatever `user` says."""
    tags: frozenset[str] = frozenset()
    """All of them."""
    job_class: JobClass | None = None
    program_kind: ProgramKind | None = None
    created_from: int | None = None
    created_before: int | None = None
    skip: int = 0
    oldest_first: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFilter:
    """Which runs to list. `running`: whether runs that have not ended are among `outcomes` (both empty: any).

    `user` and `owner` are those of a `JobFilter`.
    """

    job: str | None = None
    device: str | None = None
    session: str | None = None
    user: str | None = None
    owner: str | None = None
    started_from: int | None = None
    started_before: int | None = None
    outcomes: frozenset[RunOutcome] = frozenset()
    running: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionFilter:
    """Which sessions to list. `user` and `owner` are those of a `JobFilter`."""

    states: frozenset[SessionState] = frozenset()
    device: str | None = None
    user: str | None = None
    owner: str | None = None
    mode: SessionMode | None = None
    created_from: int | None = None
    created_before: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReservationFilter:
    """Which reservations to list. `covering`: those whose holder is this path or an account above it."""

    device: str | None = None
    covering: str | None = None
    states: frozenset[ReservationState] = frozenset()


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Some of a list. `next_page_token` is empty on the last page."""

    items: tuple[T, ...]
    next_page_token: str

"""What can be asked of the scheduler. Every name is given by the caller: the scheduler invents none.

Times and lengths are integer nanoseconds. The scheduler checks all of it (semantics 1, 4, 5, 8) and answers with a
`Refusal` for the first thing that is wrong: NOT_FOUND, PERMISSION_DENIED, INVALID_ARGUMENT, ALREADY_EXISTS,
FAILED_PRECONDITION, in this order.
"""

from dataclasses import dataclass

from cadenza_server.model.value import value
from cadenza_server.model.words import JobClass, Pending, RunOutcome, SessionMode


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: a user's path, and whether as an operator."""

    path: str
    operator: bool = False


@value
class SubmitJob:
    """Queue one job. A session job takes user and device from its session; if they are given they must agree."""

    job: str
    caller: Caller
    job_class: JobClass = JobClass.FAIR_SHARE
    user: str | None = None
    """Whose job it is; None: the session's owner, or the caller. Only an operator submits for others."""
    device: str | None = None
    session: str | None = None
    priority: int = 0
    estimate: int | None = None
    """What the predictor says; None: the device's `default_estimate` (7)."""
    limit: int | None = None
    """`max_execution_time`; None: the device's limit, which also caps it (4)."""


@value
class SubmitJobs:
    """Queue many jobs or none: the first refusal refuses all, its `field` begins with `jobs[i]`."""

    jobs: tuple[SubmitJob, ...]


@value
class SetPriority:
    """Change the priority of a queued job; it then stands where it would had it been submitted so (4)."""

    job: str
    caller: Caller
    priority: int


@value
class CancelJob:
    """Cancel a queued or running job (4)."""

    job: str
    caller: Caller


@value
class CreateSession:
    """Open a session (5). `max_time` and `interactive_ttl` are capped by the device's; None: the device's."""

    session: str
    caller: Caller
    device: str
    mode: SessionMode = SessionMode.DEDICATED
    user: str | None = None
    max_time: int | None = None
    interactive_ttl: int | None = None
    reservation: str | None = None


@value
class CloseSession:
    """Close a session (5.4). `pending` None: the device's `on_close`."""

    session: str
    caller: Caller
    pending: Pending | None = None


@value
class CancelSession:
    """Cancel a session and its queued jobs (5.4)."""

    session: str
    caller: Caller


@value
class CreateReservation:
    """Reserve a device for an account or user (8). Operators only."""

    reservation: str
    caller: Caller
    device: str
    holder: str
    start: int
    end: int


@value
class DeleteReservation:
    """Remove a reservation, or end it now if it has started (8). Operators only."""

    reservation: str
    caller: Caller


@value
class SetShares:
    """Give a node of the share tree its weight from now on (6). Operators only."""

    path: str
    caller: Caller
    shares: float


@value
class RunEnded:
    """A run ended on its device. Never refused if it names the device's run; else it is a late report and ignored."""

    device: str
    job: str
    attempt: int
    outcome: RunOutcome


@value
class SetDeviceReady:
    """A device's worker can take a run up, or cannot. A device that is not ready is not free (4: a run starts when the
    worker takes the job up). Devices are ready from the start unless the scheduler is told otherwise."""

    device: str
    ready: bool


@value
class Resumed:
    """The server is back; it was down from `down_from` until now (10). The first command after a restart."""

    down_from: int


Command = (
    SubmitJob
    | SubmitJobs
    | SetPriority
    | CancelJob
    | CreateSession
    | CloseSession
    | CancelSession
    | CreateReservation
    | DeleteReservation
    | SetShares
    | RunEnded
    | SetDeviceReady
    | Resumed
)

"""What watchers are told, and what histories list: one change a notice.

Event numbers come from one counter of the store, so they only grow; gaps mean nothing. The last number that a watcher
saw is its resume token.
"""

from dataclasses import dataclass

from cadenza_server.model.words import JobReason, JobState, SessionState
from cadenza_server.store.views import JobView, RunView, SessionView


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSnapshot:
    """The job as it is; its serialised result if it succeeded, results were asked for and it is small."""

    job: JobView
    result: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSnapshot:
    """The session as it is."""

    session: SessionView


@dataclass(frozen=True, slots=True, kw_only=True)
class JobAccepted:
    """A job is queued: the job as it was accepted."""

    job: JobView


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStarted:
    """A run started."""

    run: RunView


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRequeued:
    """A job is back in its place; the run that ended (WORKER_LOST or PUT_BACK)."""

    run: RunView


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEnded:
    """A job came to its final state; its last run if it ever ran; its result as in `JobSnapshot`."""

    job: JobView
    run: RunView | None
    result: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPriorityChanged:
    """A queued job has another priority."""

    job: str
    priority: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JobReleased:
    """A queued job became a fair-share job as its session expired."""

    job: str
    cache_deadline: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionChanged:
    """A session was created (`previous` None), or its state or activity changed: the session after the change."""

    session: SessionView
    previous: SessionState | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionJobsEnded:
    """All queued jobs of a session ended alike. Watchers and histories of a job get `JobEnded` instead."""

    session: str
    state: JobState
    reason: JobReason
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionJobsReleased:
    """All queued jobs of a session became fair-share jobs. Watchers of a job get `JobReleased` instead."""

    session: str
    cache_deadline: int
    count: int


Change = (
    JobSnapshot
    | SessionSnapshot
    | JobAccepted
    | JobStarted
    | JobRequeued
    | JobEnded
    | JobPriorityChanged
    | JobReleased
    | SessionChanged
    | SessionJobsEnded
    | SessionJobsReleased
)


@dataclass(frozen=True, slots=True)
class Notice:
    """One change. Of a snapshot, the number is that of the last change that it contains."""

    event_number: int
    time: int
    change: Change

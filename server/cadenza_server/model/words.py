"""The words of the law as enumerations (semantics 1, 4, 5, 9). Their values are what JSON, tables and logs show."""

from enum import StrEnum


class JobClass(StrEnum):
    """What a job is served as (1)."""

    CALIBRATION = "CALIBRATION"
    SESSION = "SESSION"
    FAIR_SHARE = "FAIR_SHARE"


class JobState(StrEnum):
    """Where a job is in its life (4)."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def is_final(self) -> bool:
        """Whether it never changes again."""
        return self not in (JobState.QUEUED, JobState.RUNNING)


class JobReason(StrEnum):
    """Why a job failed or was cancelled (4)."""

    EXECUTION_ERROR = "EXECUTION_ERROR"
    WORKER_LOST = "WORKER_LOST"
    SESSION_CLOSED = "SESSION_CLOSED"
    SESSION_EXPIRED = "SESSION_EXPIRED"
    SESSION_CACHE_EXPIRED = "SESSION_CACHE_EXPIRED"
    FIRST_JOB_CANCELLED = "FIRST_JOB_CANCELLED"
    RESERVATION_ENDED = "RESERVATION_ENDED"
    CANCELLED_BY_USER = "CANCELLED_BY_USER"
    SESSION_CANCELLED = "SESSION_CANCELLED"
    RAN_TOO_LONG = "RAN_TOO_LONG"

    @property
    def state(self) -> JobState:
        """The final state that goes with the reason."""
        return JobState.CANCELLED if self in _CANCELLED else JobState.FAILED


_CANCELLED = frozenset({JobReason.CANCELLED_BY_USER, JobReason.SESSION_CANCELLED, JobReason.RAN_TOO_LONG})


class SessionMode(StrEnum):
    """How a session uses the device (1)."""

    DEDICATED = "DEDICATED"
    BATCH = "BATCH"


class SessionState(StrEnum):
    """Where a session is in its life (5.1)."""

    OPEN = "OPEN"
    ACTIVE = "ACTIVE"
    INACTIVE = "INACTIVE"
    DRAINING = "DRAINING"
    CLOSED = "CLOSED"

    @property
    def accepts_jobs(self) -> bool:
        """`accepting_jobs` of 5.1."""
        return self in (SessionState.OPEN, SessionState.ACTIVE, SessionState.INACTIVE)


class CloseReason(StrEnum):
    """Why a session closed (5.1)."""

    UNUSED = "UNUSED"
    EXPIRED = "EXPIRED"
    RESERVATION_ENDED = "RESERVATION_ENDED"
    FIRST_JOB_CANCELLED = "FIRST_JOB_CANCELLED"
    CLOSED_BY_USER = "CLOSED_BY_USER"
    CANCELLED_BY_USER = "CANCELLED_BY_USER"


class Pending(StrEnum):
    """What a close does with jobs that are still queued (5.4)."""

    DRAIN = "DRAIN"
    FAIL_QUEUED = "FAIL_QUEUED"


class OnExpiry(StrEnum):
    """What an expiry does with jobs that are still queued (5.5)."""

    FAIR_SHARE = "FAIR_SHARE"
    FAIL = "FAIL"


class FirstJob(StrEnum):
    """Whether the others need the session's first job (5.6)."""

    REQUIRED = "REQUIRED"
    INDEPENDENT = "INDEPENDENT"


class CalibrationRule(StrEnum):
    """When a calibration may run (9)."""

    BEFORE_SESSIONS = "BEFORE_SESSIONS"
    OUTSIDE_DEDICATED = "OUTSIDE_DEDICATED"


class Rule(StrEnum):
    """Which rule of dispatch chose a run (3)."""

    CALIBRATION = "CALIBRATION"
    ACTIVE_SESSION = "ACTIVE_SESSION"
    FAIR_SHARE = "FAIR_SHARE"


class RunOutcome(StrEnum):
    """How a run ended (4, 6, 10)."""

    SUCCEEDED = "SUCCEEDED"
    EXECUTION_ERROR = "EXECUTION_ERROR"
    RAN_TOO_LONG = "RAN_TOO_LONG"
    CANCELLED = "CANCELLED"
    """Stopped because its job was cancelled."""
    WORKER_LOST = "WORKER_LOST"
    PUT_BACK = "PUT_BACK"
    """Interrupted by a stop or a crash of the server: back in its place, charged nothing, not an attempt."""

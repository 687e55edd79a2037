"""How much may wait: queued jobs of a user and of all, sessions of a user. Counted as things happen, never by looking.

A command is counted from the moment it is entered, so that calls which come together cannot pass a limit together.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from cadenza_server.model.commands import Command, CreateSession, SubmitJob, SubmitJobs
from cadenza_server.model.errors import Code, Refusal
from cadenza_server.model.words import JobClass


@dataclass(frozen=True, slots=True, kw_only=True)
class Quotas:
    """The limits; None: none."""

    queued_jobs_max: int | None = None
    queued_jobs_per_user_max: int | None = None
    sessions_per_user_max: int | None = None
    watch_backlog_max: int = 10_000
    """Changes that may wait for one watch."""


class Owned(Protocol):
    """A session, as far as it counts here."""

    user: str


class Occupancy:
    """What waits now, as recorded: by user, those who have nothing left out."""

    __slots__ = ("queued", "queued_total", "sessions", "sessions_total")

    def __init__(self) -> None:
        self.queued: dict[str, int] = {}
        self.queued_total = 0
        self.sessions: dict[str, int] = {}
        """That are not CLOSED."""
        self.sessions_total = 0

    def queue(self, user: str, count: int) -> None:
        """So many more jobs of the user are queued."""
        self.queued_total += count
        _add(self.queued, user, count)

    def open(self, user: str, count: int) -> None:
        """So many more sessions of the user are not CLOSED."""
        self.sessions_total += count
        _add(self.sessions, user, count)


class Doorkeeper:
    """Checks what is entered against the quotas. `settle` when all that was entered is recorded."""

    def __init__(self, quotas: Quotas) -> None:
        self._quotas: Final = quotas
        self._entering = Occupancy()

    @property
    def entering_jobs(self) -> int:
        """Let in, and not recorded yet."""
        return self._entering.queued_total

    def let_in(self, command: Command, occupied: Occupancy, sessions: Mapping[str, Owned]) -> None:
        """Count what a command adds. `sessions`: those that live. Raises `Refusal` RESOURCE_EXHAUSTED, and
        then nothing is counted. Calibrations are let in always: only operators ask for them."""
        match command:
            case SubmitJob() | SubmitJobs():
                jobs = command.jobs if isinstance(command, SubmitJobs) else (command,)
                asked: dict[str, int] = {}
                for job in jobs:
                    if job.job_class is not JobClass.CALIBRATION:
                        user = _owner(job, sessions)
                        asked[user] = asked.get(user, 0) + 1
                self._check_jobs(asked, occupied)
                for user, count in asked.items():
                    self._entering.queue(user, count)
            case CreateSession():
                user = command.user or command.caller.path
                most = self._quotas.sessions_per_user_max
                have = occupied.sessions.get(user, 0) + self._entering.sessions.get(user, 0)
                if most is not None and have >= most:
                    raise _over(
                        "QUOTA_USER_SESSIONS",
                        "sessions_per_user_max",
                        f"{user} has {have} sessions that are not closed, and may have {most}: close one, or wait",
                    )
                self._entering.open(user, 1)

    def settle(self) -> None:
        """All that was let in is recorded now, or refused."""
        if self._entering.queued_total or self._entering.sessions:
            self._entering = Occupancy()

    def _check_jobs(self, asked: dict[str, int], occupied: Occupancy) -> None:
        most = self._quotas.queued_jobs_max
        have = occupied.queued_total + self._entering.queued_total
        if most is not None and asked and have + sum(asked.values()) > most:
            raise _over(
                "QUOTA_SERVER_JOBS",
                "queued_jobs_max",
                f"{have} jobs are queued and this server takes {most}: submit again when some have run",
            )
        most = self._quotas.queued_jobs_per_user_max
        if most is None:
            return
        for user, count in asked.items():
            have = occupied.queued.get(user, 0) + self._entering.queued.get(user, 0)
            if have + count > most:
                raise _over(
                    "QUOTA_USER_JOBS",
                    "queued_jobs_per_user_max",
                    f"{user} has {have} queued jobs and may have {most}: submit again when some have run",
                )


def _owner(job: SubmitJob, sessions: Mapping[str, Owned]) -> str:
    own = job.user or job.caller.path
    # Of another user's session nothing is told, not even how full it is: the scheduler refuses the job.
    session = sessions.get(job.session) if job.session is not None and job.caller.operator else None
    return own if session is None else session.user


def _over(reason: str, limit: str, message: str) -> Refusal:
    return Refusal(Code.RESOURCE_EXHAUSTED, reason, message, metadata={"limit": limit})


def _add(counts: dict[str, int], user: str, count: int) -> None:
    after = counts.get(user, 0) + count
    if after:
        counts[user] = after
    else:
        counts.pop(user, None)

"""A job that is queued or runs, and its life cycle as data (semantics 4)."""

from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from cadenza_server.model.words import JobClass, JobReason, JobState, RunOutcome

if TYPE_CHECKING:
    from cadenza_server.scheduling.devices import Device
    from cadenza_server.scheduling.sessions import Session
    from cadenza_server.scheduling.shares import Node


class JobEvent(StrEnum):
    """What can happen to a job."""

    START = "START"
    SUCCEED = "SUCCEED"
    FAIL = "FAIL"
    CANCEL = "CANCEL"
    COME_BACK = "COME_BACK"
    """Its worker was lost, or its run put back."""


JOB_TRANSITIONS: Final[Mapping[tuple[JobState, JobEvent], JobState]] = {
    (JobState.QUEUED, JobEvent.START): JobState.RUNNING,
    (JobState.QUEUED, JobEvent.FAIL): JobState.FAILED,
    (JobState.QUEUED, JobEvent.CANCEL): JobState.CANCELLED,
    (JobState.RUNNING, JobEvent.SUCCEED): JobState.SUCCEEDED,
    (JobState.RUNNING, JobEvent.FAIL): JobState.FAILED,
    (JobState.RUNNING, JobEvent.CANCEL): JobState.CANCELLED,
    (JobState.RUNNING, JobEvent.COME_BACK): JobState.QUEUED,
}
"""From a state by an event to a state. What is not in it cannot happen."""

RUN_ENDS: Final[Mapping[RunOutcome, tuple[JobEvent, JobReason | None]]] = {
    RunOutcome.SUCCEEDED: (JobEvent.SUCCEED, None),
    RunOutcome.EXECUTION_ERROR: (JobEvent.FAIL, JobReason.EXECUTION_ERROR),
    RunOutcome.RAN_TOO_LONG: (JobEvent.CANCEL, JobReason.RAN_TOO_LONG),
    RunOutcome.CANCELLED: (JobEvent.CANCEL, JobReason.CANCELLED_BY_USER),
}
"""What a run that is over for good does to its job. After the other outcomes the job may come back."""


def ending(reason: JobReason) -> JobEvent:
    """Return the event by which a job ends for this reason."""
    return JobEvent.CANCEL if reason.state is JobState.CANCELLED else JobEvent.FAIL


class Job:
    """A live job. `node` is its user in the share tree, None for a calibration. `handle` is its place in the queue, -1
    while it runs. `attempts` counts its runs, `losses` those that lost their worker. Lengths are nanoseconds."""

    __slots__ = (
        "attempts",
        "automatic",
        "device",
        "estimate",
        "first",
        "handle",
        "limit",
        "losses",
        "name",
        "node",
        "priority",
        "seq",
        "session",
        "state",
        "user",
    )

    def __init__(
        self,
        name: str,
        seq: int,
        user: str,
        node: "Node | None",
        device: "Device",
        session: "Session | None",
        priority: int,
        estimate: int,
        limit: int,
        first: bool,
        automatic: bool,
    ) -> None:
        self.name: Final = name
        self.seq: Final = seq
        self.user: Final = user
        self.node: Final = node
        self.device: Final = device
        self.session: Final = session
        self.priority = priority
        self.estimate: Final = estimate
        self.limit: Final = limit
        self.first: Final = first
        self.automatic: Final = automatic
        self.attempts = 0
        self.losses = 0
        self.handle = -1
        self.state = JobState.QUEUED

    @property
    def job_class(self) -> JobClass:
        """What it is served as: a session's job is a fair-share job once its session has released it (5.5)."""
        if self.node is None:
            return JobClass.CALIBRATION
        if self.session is None or self.session.released:
            return JobClass.FAIR_SHARE
        return JobClass.SESSION

    def step(self, event: JobEvent) -> None:
        """Change the state by the table."""
        self.state = JOB_TRANSITIONS[self.state, event]

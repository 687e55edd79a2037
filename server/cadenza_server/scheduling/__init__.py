"""The scheduler that obeys semantics.md: pure, over the compiled queue. `Scheduler` is the door, `State` its memory."""

from cadenza_server.scheduling.scheduler import Scheduler
from cadenza_server.scheduling.shares import NodeKind
from cadenza_server.scheduling.state import (
    DeviceRecord,
    JobRecord,
    NodeRecord,
    ReservationRecord,
    RunRecord,
    SessionRecord,
    State,
)
from cadenza_server.scheduling.views import DeviceView, JobView, NodeView, SessionView

__all__ = [
    "DeviceRecord",
    "DeviceView",
    "JobRecord",
    "JobView",
    "NodeKind",
    "NodeRecord",
    "NodeView",
    "ReservationRecord",
    "RunRecord",
    "Scheduler",
    "SessionRecord",
    "SessionView",
    "State",
]

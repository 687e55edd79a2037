"""The asyncio shell around the scheduler: one writer, watches, reads. What other parts may use is listed here.

Results that ride on notices are at most `INLINE_RESULT_BYTES_MAX` long.
"""

from typing import Final

from cadenza_server.engine.engine import Device, DevicePlan, Engine
from cadenza_server.engine.ids import Ids, TimeOrderedIds
from cadenza_server.engine.notices import (
    Change,
    JobAccepted,
    JobEnded,
    JobPriorityChanged,
    JobReleased,
    JobRequeued,
    JobSnapshot,
    JobStarted,
    Notice,
    SessionChanged,
    SessionJobsEnded,
    SessionJobsReleased,
    SessionSnapshot,
)
from cadenza_server.engine.views import DeviceView, JobContent, RequestKey, UsageView
from cadenza_server.store.views import (
    JobCounts,
    JobFilter,
    JobView,
    Page,
    ProgramKind,
    ReservationFilter,
    ReservationState,
    ReservationView,
    RunFilter,
    RunView,
    SessionFilter,
    SessionView,
)

INLINE_RESULT_BYTES_MAX: Final = 64 * 1024

__all__ = [
    "INLINE_RESULT_BYTES_MAX",
    "Change",
    "Device",
    "DevicePlan",
    "DeviceView",
    "Engine",
    "Ids",
    "JobAccepted",
    "JobContent",
    "JobCounts",
    "JobEnded",
    "JobFilter",
    "JobPriorityChanged",
    "JobReleased",
    "JobRequeued",
    "JobSnapshot",
    "JobStarted",
    "JobView",
    "Notice",
    "Page",
    "ProgramKind",
    "RequestKey",
    "ReservationFilter",
    "ReservationState",
    "ReservationView",
    "RunFilter",
    "RunView",
    "SessionChanged",
    "SessionFilter",
    "SessionJobsEnded",
    "SessionJobsReleased",
    "SessionSnapshot",
    "SessionView",
    "TimeOrderedIds",
    "UsageView",
]

"""The asyncio shell around the scheduler: one writer, watches, reads. What other parts may use is listed here."""

from cadenza_server.engine.engine import Engine
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
from cadenza_server.engine.observer import Observer
from cadenza_server.engine.predictor import make_workload
from cadenza_server.engine.quotas import Quotas
from cadenza_server.engine.recorder import INLINE_RESULT_BYTES_MAX
from cadenza_server.engine.retention import Retention
from cadenza_server.engine.views import DeviceView, EstimateError, Figures, JobContent, RequestKey, UsageView
from cadenza_server.engine.writer import Device, DevicePlan, stopping
from cadenza_server.store.reads import ResultPiece
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

__all__ = [
    "INLINE_RESULT_BYTES_MAX",
    "Change",
    "Device",
    "DevicePlan",
    "DeviceView",
    "Engine",
    "EstimateError",
    "Figures",
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
    "Observer",
    "Page",
    "ProgramKind",
    "Quotas",
    "RequestKey",
    "ReservationFilter",
    "ReservationState",
    "ReservationView",
    "ResultPiece",
    "Retention",
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
    "make_workload",
    "stopping",
]

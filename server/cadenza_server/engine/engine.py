"""The asyncio shell: one writer that turns calls, run reports and time into commands, and events into everything else.

(The bodies follow; the surface stands.)
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from cadenza_server.clock import Clock
from cadenza_server.engine.ids import Ids
from cadenza_server.engine.notices import Notice
from cadenza_server.engine.views import DeviceView, JobContent, RequestKey, UsageView
from cadenza_server.model.commands import Caller, Command, SubmitJob
from cadenza_server.model.events import Event
from cadenza_server.model.settings import HALF_LIFE_DEFAULT, DeviceSettings
from cadenza_server.store.store import Store
from cadenza_server.store.views import (
    JobFilter,
    JobView,
    Page,
    ReservationFilter,
    ReservationView,
    RunFilter,
    RunView,
    SessionFilter,
    SessionView,
)

if TYPE_CHECKING:
    from cadenza_server.execution import Assignment, RunReport


class Device(Protocol):
    """What the engine needs of `execution.Device`."""

    async def start(self) -> None:
        """Start the workers; `ready` is called when the first is warm."""

    def run(self, assignment: "Assignment") -> None:
        """Take one run up; returns at once."""

    def stop_run(self, job: str, attempt: int) -> None:
        """Stop it; no report follows for this attempt."""

    async def stop(self) -> None:
        """End the workers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicePlan:
    """A configured device: its settings, and how to build it with the engine's two callbacks (report, ready)."""

    settings: DeviceSettings
    profile: str
    build: Callable[[Callable[["RunReport"], None], Callable[[str, bool], None]], Device]


class Engine:
    """The one writer. All methods are to be called on the event loop that `start` ran on.

    Every call may raise `Refusal` UNAVAILABLE: STOPPING, or STORE_UNAVAILABLE while the store cannot commit.
    `caller` on a read: refuse (PERMISSION_DENIED, NOT_OWNER) unless the thing is the caller's or the caller is an
    operator; None: do not check.
    """

    def __init__(
        self,
        *,
        store: Store,
        devices: Mapping[str, DevicePlan],
        clock: Clock,
        ids: Ids,
        shares: Mapping[str, float] | None = None,
        half_life: int = HALF_LIFE_DEFAULT,
    ) -> None:
        raise NotImplementedError

    async def start(self) -> None:
        """Open the store, take up what it holds, start the devices. Raises `StoreError` with a sentence."""
        raise NotImplementedError

    async def stop(self, grace_seconds: float = 5.0) -> None:
        """Take no more commands, let runs end within the grace, put the others back, end watches, close the store."""
        raise NotImplementedError

    # --- commands -----------------------------------------------------------------------------------------------
    async def submit(
        self, jobs: Sequence[SubmitJob], contents: Sequence[JobContent], request: RequestKey | None = None
    ) -> tuple[JobView, ...]:
        """Queue jobs, all or none, in order; returns when they are on disk, with the jobs as they were accepted."""
        raise NotImplementedError

    async def execute(
        self, command: Command, *, request: RequestKey | None = None, description: str = ""
    ) -> tuple[Event, ...]:
        """Enter any other command; returns what it caused, after the commit that holds it. `description` is kept with
        a new reservation. Reads that follow show its effects."""
        raise NotImplementedError

    # --- watches ------------------------------------------------------------------------------------------------
    def watch_job(
        self, job: str, *, after: int | None = None, include_results: bool = False, caller: Caller | None = None
    ) -> AsyncIterator[Notice]:
        """A `JobSnapshot` (without `after`), or every change after that event number; then live; ends after the
        final state. Refusals are raised by the first step: UNKNOWN_JOB, NOT_OWNER, RESUME_TOO_OLD; later ones may be
        WATCH_TOO_SLOW and STOPPING."""
        raise NotImplementedError

    def watch_session(
        self,
        session: str,
        *,
        after: int | None = None,
        include_results: bool = False,
        exclude_jobs: bool = False,
        caller: Caller | None = None,
    ) -> AsyncIterator[Notice]:
        """The same for a session and its jobs; ends when it is CLOSED, none of its jobs is queued or running and no
        cache deadline is ahead."""
        raise NotImplementedError

    # --- reads: committed state, on a reader thread -----------------------------------------------------------------
    async def get_job(self, job: str, *, caller: Caller | None = None) -> JobView:
        """One job, `queue_position` included if it is cheap. UNKNOWN_JOB."""
        raise NotImplementedError

    async def list_jobs(self, where: JobFilter, *, page_size: int = 100, page_token: str = "") -> Page[JobView]:
        """Jobs by `seq`, the newest first unless asked otherwise. INVALID_PAGE_TOKEN."""
        raise NotImplementedError

    async def get_result(self, job: str, *, caller: Caller | None = None) -> bytes:
        """The serialised result. UNKNOWN_JOB, RESULT_NOT_READY, NO_RESULT, RESULT_DELETED."""
        raise NotImplementedError

    async def get_program(self, job: str, *, caller: Caller | None = None) -> bytes:
        """The serialised program as it was submitted. UNKNOWN_JOB."""
        raise NotImplementedError

    async def list_job_events(
        self, job: str, *, page_size: int = 100, page_token: str = "", caller: Caller | None = None
    ) -> Page[Notice]:
        """The history of a job, the oldest first, without results."""
        raise NotImplementedError

    async def list_runs(self, where: RunFilter, *, page_size: int = 100, page_token: str = "") -> Page[RunView]:
        """Runs in the order of their starts."""
        raise NotImplementedError

    async def get_session(self, session: str, *, caller: Caller | None = None) -> SessionView:
        """One session. UNKNOWN_SESSION."""
        raise NotImplementedError

    async def list_sessions(
        self, where: SessionFilter, *, page_size: int = 100, page_token: str = ""
    ) -> Page[SessionView]:
        """Sessions, the newest first."""
        raise NotImplementedError

    async def list_session_events(
        self, session: str, *, page_size: int = 100, page_token: str = "", caller: Caller | None = None
    ) -> Page[Notice]:
        """The history of a session without that of its jobs, the oldest first."""
        raise NotImplementedError

    async def get_reservation(self, reservation: str) -> ReservationView:
        """One reservation. UNKNOWN_RESERVATION."""
        raise NotImplementedError

    async def list_reservations(
        self, where: ReservationFilter, *, page_size: int = 100, page_token: str = ""
    ) -> Page[ReservationView]:
        """Reservations by start, then creation."""
        raise NotImplementedError

    # --- live views -----------------------------------------------------------------------------------------------
    def now(self) -> int:
        """The scheduler's time."""
        raise NotImplementedError

    def device(self, name: str) -> Device:
        """The device itself, for its description. UNKNOWN_DEVICE."""
        raise NotImplementedError

    def device_view(self, name: str) -> DeviceView:
        """A device as it is now. UNKNOWN_DEVICE."""
        raise NotImplementedError

    def device_names(self) -> tuple[str, ...]:
        """All devices, by name."""
        raise NotImplementedError

    def usage_views(self, parent: str | None = None, *, device: str | None = None) -> tuple[UsageView, ...]:
        """The share tree (below and with `parent`), in the order of paths. `device`: count its jobs only. UNKNOWN_PATH,
        UNKNOWN_DEVICE."""
        raise NotImplementedError

    def usage_view(self, path: str) -> UsageView:
        """One node of it. UNKNOWN_PATH."""
        raise NotImplementedError

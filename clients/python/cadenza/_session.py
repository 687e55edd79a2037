"""Sessions and batches: jobs that are prioritised together on one device."""

import logging
import threading
from collections.abc import Callable, Sequence
from contextvars import ContextVar, Token
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

from cadenza._backend import CadenzaBackend
from cadenza._codec import CircuitWriter
from cadenza._errors import CadenzaError, InvalidRequestError, NotFoundError, refuse_elsewhere
from cadenza._follower import SessionFollower
from cadenza._job import Job
from cadenza._requests import Pending, SessionModeName, job_spec
from cadenza._reservation import Reservation
from cadenza._times import Length, read_seconds, read_time
from cadenza.v1 import session_pb2
from cadenza.v1.program_pb2 import Program

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

    from cadenza._service import CadenzaService

logger: Final = logging.getLogger("cadenza")

_MODES: Final[dict[int, SessionModeName]] = {
    session_pb2.SESSION_MODE_DEDICATED: "dedicated",
    session_pb2.SESSION_MODE_BATCH: "batch",
}
_STATES: Final = {
    session_pb2.SESSION_STATE_OPEN: "open",
    session_pb2.SESSION_STATE_ACTIVE: "active",
    session_pb2.SESSION_STATE_INACTIVE: "inactive",
    session_pb2.SESSION_STATE_DRAINING: "pending_closed",
    session_pb2.SESSION_STATE_CLOSED: "closed",
}

_current: ContextVar["Session | None"] = ContextVar("cadenza_session", default=None)


def current_session() -> "Session | None":
    """The session whose `with` block this is; None outside of any."""
    return _current.get()


class Session:
    """Iterative work on one device: while the session is active, the device waits for its next job.

    `max_time`: how long it lasts from its first run, in seconds or as `2h 30m`. `interactive_ttl`: how long it may be
    idle before it lets go of the device. Both default to the device's, which is their cap. `reservation`: bind it to
    one, by id or `Reservation`; it then runs inside the window only.

    As a context manager it is the `mode` of primitives that name none, and its end closes it: what is queued still
    runs. Raises `CadenzaError`, as all methods do.
    """

    _mode: ClassVar[SessionModeName] = "dedicated"

    def __init__(
        self,
        backend: CadenzaBackend,
        max_time: Length | None = None,
        *,
        interactive_ttl: Length | None = None,
        reservation: Reservation | str | None = None,
    ) -> None:
        if not isinstance(backend, CadenzaBackend):
            raise InvalidRequestError(
                f"a session needs a backend of a CadenzaService, not {type(backend).__name__}: "
                "get one with service.backend(name)",
                code="INVALID_ARGUMENT",
                field="backend",
            )
        created = backend.service.client.create_session(
            backend.name,
            mode=self._mode,
            max_time=max_time,
            interactive_ttl=interactive_ttl,
            reservation_id=reservation.reservation_id if isinstance(reservation, Reservation) else reservation or "",
        )
        self._attach(backend, created.session_id)

    def _attach(self, backend: CadenzaBackend, session_id: str) -> None:
        self._backend = backend
        self._session_id = session_id
        self._follower = SessionFollower(backend.service.client, session_id)
        self._known: frozenset[bytes] = frozenset()
        self._lock = threading.Lock()
        self._token: Token[Session | None] | None = None

    @classmethod
    def from_id(
        cls,
        session_id: str,
        service: "CadenzaService",
        use_fractional_gates: bool | None = None,
        calibration_id: None = None,
    ) -> Self:
        """A handle of a session that exists. Raises `NotFoundError`, and `InvalidRequestError` for the other mode.

        `use_fractional_gates` changes nothing: devices offer all gates that they have. A device has one calibration at
        a time, so `calibration_id` must be None.
        """
        refuse_elsewhere(calibration_id=calibration_id)
        del use_fractional_gates
        session = service.client.get_session(session_id)
        mode = _MODES[session.mode]
        if mode != cls._mode:
            raise InvalidRequestError(
                f"session {session_id} has execution mode {mode} instead of {cls._mode}: use "
                f"{'Batch' if mode == 'batch' else 'Session'}.from_id or service.session(id)",
                code="INVALID_ARGUMENT",
                field="session_id",
            )
        return cls._from_message(session, service)

    @classmethod
    def _from_message(cls, session: session_pb2.Session, service: "CadenzaService") -> Self:
        made = cls.__new__(cls)
        made._attach(service.backend(session.device), session.session_id)
        return made

    def __repr__(self) -> str:
        return f"<{type(self).__name__}({self._session_id!r}, {self._backend.name!r})>"

    @property
    def session_id(self) -> str:
        """Its id; `from_id` makes a handle of it again."""
        return self._session_id

    @property
    def service(self) -> "CadenzaService":
        """The service that it belongs to."""
        return self._backend.service

    def backend(self) -> str:
        """The name of its device."""
        name: str = self._backend.name
        return name

    def close(self, pending: Pending = "drain") -> None:
        """Accept no more jobs. `pending`: queued jobs still run (`drain`), or fail with SESSION_CLOSED (`fail`)."""
        self.service.client.close_session(self._session_id, pending)

    def cancel(self) -> None:
        """Accept no more jobs and cancel those queued; a running one runs on."""
        self.service.client.cancel_session(self._session_id)

    def status(self) -> str:
        """`Pending`, `In progress, accepting new jobs`, `In progress, not accepting new jobs`, or `Closed`."""
        return _describe(self._fetch())

    def usage(self) -> float:
        """Device seconds charged for its jobs and for holding the device."""
        session = self._fetch()
        return read_seconds(session.run_time) + read_seconds(session.held_time)

    def details(self) -> dict[str, Any]:
        """Its facts by the keys of qiskit_ibm_runtime (seconds, local time, None: not yet), and some of our own.

        Beside those: `close_reason`, `held_time`, `first_epoch` and `last_epoch` of its runs, `epoch_changed` (they
        differ: the device was calibrated in between), `jobs` by state, `reservation_id`.
        """
        session = self._fetch()
        settings, counts = session.settings, session.job_counts
        max_time = read_seconds(settings.max_time)

        def moment(field: str) -> Any:
            value: Timestamp = getattr(session, field)
            return read_time(value) if session.HasField(field) else None  # type: ignore[arg-type]

        return {
            "id": session.session_id,
            "backend_name": session.device,
            "interactive_timeout": read_seconds(settings.interactive_ttl),
            "max_time": max_time,
            "active_timeout": max_time,
            "state": _STATES.get(session.state),
            "accepting_jobs": session.accepting_jobs,
            "last_job_started": moment("last_job_start_time"),
            "last_job_completed": moment("last_job_end_time"),
            "started_at": moment("start_time"),
            "closed_at": moment("close_time"),
            "activated_at": moment("activate_time"),
            "mode": _MODES.get(session.mode),
            "usage_time": read_seconds(session.run_time) + read_seconds(session.held_time),
            "timestamps": [
                {"status": _STATES.get(event.session_changed.session.state), "timestamp": read_time(event.time)}
                for event in self.service.client.list_session_events(session.session_id)
                if event.HasField("session_changed")
            ],
            "created_at": moment("create_time"),
            "expires_at": moment("expire_time"),
            "close_reason": session_pb2.SessionCloseReason.Name(session.close_reason).removeprefix(
                "SESSION_CLOSE_REASON_"
            )
            if session.close_reason
            else None,
            "held_time": read_seconds(session.held_time),
            "first_epoch": session.first_epoch if session.HasField("first_epoch") else None,
            "last_epoch": session.last_epoch if session.HasField("last_epoch") else None,
            "epoch_changed": session.first_epoch != session.last_epoch,
            "jobs": {
                "queued": counts.queued,
                "running": counts.running,
                "succeeded": counts.succeeded,
                "failed": counts.failed,
                "cancelled": counts.cancelled,
            },
            "reservation_id": session.reservation_id or None,
        }

    def _submit(
        self,
        encode: Callable[[CircuitWriter], Program],
        *,
        priority: int = 0,
        tags: Sequence[str] = (),
        max_execution_time: Length | None = None,
        estimate_hint: Length | None = None,
    ) -> Job:
        """Submit what `encode` writes: circuits that the session holds go by digest. The primitives call this."""
        client, version = self.service.client, self.service.qpy_version
        with self._follower.submitting():
            while True:
                known = self._known
                writer = CircuitWriter(known, version, self._backend._cycle)
                try:
                    spec = job_spec(
                        encode(writer),
                        session_id=self._session_id,
                        priority=priority,
                        tags=tags,
                        max_execution_time=max_execution_time,
                        estimate_hint=estimate_hint,
                    )
                    found = client.submit_job_spec_for_end(spec)
                except NotFoundError as error:
                    if error.reason != "UNKNOWN_CIRCUIT" or not writer.named:
                        raise
                    with self._lock:
                        self._known -= known
                else:
                    if writer.sent:
                        with self._lock:
                            self._known |= writer.sent
                    return Job(self.service, self._follower.claim(found))

    def _fetch(self) -> session_pb2.Session:
        return self.service.client.get_session(self._session_id)

    def __enter__(self) -> Self:
        self._token = _current.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._token is not None:
            _current.reset(self._token)
            self._token = None
        try:
            self.close()
        except CadenzaError as problem:
            if error is None:
                raise
            logger.warning("session %s could not be closed: %s", self._session_id, problem)


class Batch(Session):
    """Independent jobs in any order, the shortest first. It never holds the device. Otherwise as `Session`."""

    _mode = "batch"


def make_session(session: session_pb2.Session, service: "CadenzaService") -> Session:
    """A `Session` or a `Batch`, by its mode."""
    return (Batch if _MODES[session.mode] == "batch" else Session)._from_message(session, service)


def _describe(session: session_pb2.Session) -> str:
    """The strings of qiskit_ibm_runtime."""
    match session.state:
        case session_pb2.SESSION_STATE_OPEN | session_pb2.SESSION_STATE_INACTIVE:
            return "Pending"
        case session_pb2.SESSION_STATE_CLOSED:
            return "Closed"
        case _ if session.accepting_jobs:
            return "In progress, accepting new jobs"
        case _:
            return "In progress, not accepting new jobs"

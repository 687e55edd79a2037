"""The way in for Qiskit's users: the devices, jobs, sessions and reservations of one server."""

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from qiskit.providers import QiskitBackendNotFoundError

from cadenza._backend import CadenzaBackend, pending_jobs
from cadenza._client import Client
from cadenza._codec import choose_qpy_version
from cadenza._errors import InvalidRequestError, NotFoundError, refuse_elsewhere
from cadenza._job import Job
from cadenza._local import private_server
from cadenza._requests import JobStateName, ProgramKindName
from cadenza._reservation import Reservation, read_reservation
from cadenza._session import Session, make_session
from cadenza._times import Instant, Length, make_timestamp, parse_length
from cadenza._transport import Tls, default_user
from cadenza.v1.device_pb2 import DEVICE_STATE_OFFLINE, Device
from cadenza.v1.server_service_pb2 import GetServerInfoResponse, ServerInfo, ServerLimits


class BackendNotFoundError(NotFoundError, QiskitBackendNotFoundError):  # type: ignore[misc]
    """There is no such device: a `NotFoundError` that is also Qiskit's own."""

    def __init__(self, message: str, **facts: Any) -> None:
        NotFoundError.__init__(self, message, **facts)

    def __str__(self) -> str:
        return NotFoundError.__str__(self)


class CadenzaService:
    """A connection to a server.

    `target`: `HOST:PORT`; default `CADENZA_TARGET`, else `127.0.0.1:50051`. `user`: a path such as `lab/alice`, for
    servers that trust names; default `CADENZA_USER`, else the operating system's user name. `token`: for servers with
    tokens; default `CADENZA_TOKEN`. `tls`: a `Tls`, a path to the CA's certificate, True for the system's authorities,
    or False; default what `CADENZA_TLS`, `CADENZA_TLS_CA` and so on say, as on the command line.
    `client`: use this one instead.

    Nothing is sent before it is needed. All methods raise `CadenzaError`.
    """

    def __init__(
        self,
        target: str | None = None,
        user: str | None = None,
        token: str | None = None,
        tls: Tls | bool | Path | str | None = None,
        *,
        client: Client | None = None,
    ) -> None:
        self.client = client or Client(target, user=user, token=token, tls=tls)
        """The plain client, for what Qiskit has no name for: shares, runs, priorities, calibrations."""
        self._finalizer = weakref.finalize(self, self.client.close)

    @classmethod
    @contextmanager
    def local(cls, config: Path | str | None = None, *, user: str | None = None) -> Iterator[Self]:
        """A private server for the length of a `with` block, with data that is thrown away.

        `config`: a TOML file; None: two devices, `aer` and `aer_noisy`. `user`: who calls; the default is an operator.
        Raises `ServerStartError` if it does not come up.
        """
        with (
            private_server(config) as target,
            cls(client=Client(target, user=user or default_user(), token="", tls=False)) as service,
        ):
            yield service

    def close(self) -> None:
        """Close the connection. Jobs go on; sessions go on until they are closed or run out."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<CadenzaService({self.client.target!r})>"

    # --- devices ------------------------------------------------------------------------------------------------------

    def backends(
        self,
        name: str | None = None,
        min_num_qubits: int | None = None,
        instance: None = None,
        dynamic_circuits: bool | None = None,
        filters: Callable[[CadenzaBackend], bool] | None = None,
        *,
        use_fractional_gates: bool | None = None,
        calibration_id: None = None,
        include_mocks: bool = False,
        **kwargs: Any,
    ) -> list[CadenzaBackend]:
        """The devices, by name.

        `dynamic_circuits`: those that do, or do not, run circuits with control flow. `kwargs`: attributes of the
        backend, of its configuration or of its status, such as `simulator=True`, `operational=True`, `n_qubits=5`.
        Where all devices are simulators, `simulator=False` finds the noisy ones: they stand in for processors.
        There are no instances, no earlier calibrations and no mocks, so `instance` and `calibration_id` must be None
        and `include_mocks` changes nothing; nor does `use_fractional_gates`: devices offer all gates that they have.
        """
        refuse_elsewhere(instance=instance, calibration_id=calibration_id)
        del include_mocks
        del use_fractional_gates
        if dynamic_circuits is not None:
            kwargs["dynamic_circuits"] = dynamic_circuits
        found = []
        devices = self.client.list_devices()
        if kwargs.get("simulator") is False and all(device.simulator for device in devices):
            del kwargs["simulator"]
            devices = [device for device in devices if device.noisy]
        for device in devices:
            if (name is not None and device.name != name) or device.num_qubits < (min_num_qubits or 0):
                continue
            backend = CadenzaBackend(self, device)
            if _has(backend, kwargs) and (filters is None or filters(backend)):
                found.append(backend)
        return found

    def backend(
        self,
        name: str,
        instance: None = None,
        use_fractional_gates: bool | None = None,
        calibration_id: None = None,
    ) -> CadenzaBackend:
        """The device of this name. Raises a `NotFoundError` that is also Qiskit's `QiskitBackendNotFoundError`.

        There are no instances and a device has one calibration at a time, so `instance` and `calibration_id` must be
        None; `use_fractional_gates` changes nothing.
        """
        refuse_elsewhere(instance=instance, calibration_id=calibration_id)
        del use_fractional_gates
        try:
            return CadenzaBackend(self, self.client.get_device(name))
        except NotFoundError as error:
            raise BackendNotFoundError(
                error.message, code=error.code, reason=error.reason, field=error.field, metadata=error.metadata
            ) from None

    def least_busy(
        self,
        min_num_qubits: int | None = None,
        instance: None = None,
        filters: Callable[[CadenzaBackend], bool] | None = None,
        use_fractional_gates: bool | None = None,
        **kwargs: Any,
    ) -> CadenzaBackend:
        """The device with the fewest pending jobs, by name between equals; never one that is offline.

        Arguments as for `backends`. Raises Qiskit's `QiskitBackendNotFoundError` if none matches.
        """
        refuse_elsewhere(instance=instance)
        del use_fractional_gates
        found = [
            backend
            for backend in self.backends(min_num_qubits=min_num_qubits, filters=filters, **kwargs)
            if backend._device.state != DEVICE_STATE_OFFLINE
        ]
        if not found:
            raise BackendNotFoundError(
                _explain_no_match(self.client.list_devices(), kwargs), code="NOT_FOUND", reason="UNKNOWN_DEVICE"
            )
        return min(found, key=lambda backend: (pending_jobs(backend._device), backend.name))

    # --- jobs and sessions --------------------------------------------------------------------------------------------

    def job(self, job_id: str) -> Job:
        """A handle of a job that exists. Raises `NotFoundError`."""
        return Job.unfollowed(self, self.client.get_job(job_id))

    def jobs(
        self,
        limit: int | None = 10,
        skip: int = 0,
        backend_name: str | None = None,
        pending: bool | None = None,
        program_id: ProgramKindName | None = None,
        instance: None = None,
        job_tags: list[str] | None = None,
        session_id: str | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        descending: bool = True,
        include_mocks: bool = False,
    ) -> list[Job]:
        """Jobs, the newest first (`descending`); an operator gets everybody's.

        `limit`: how many at most; None: all. `pending`: True for those not ended, False for those that have.
        `program_id`: `sampler`, `estimator` or `calibration`. `job_tags`: all of them. Times without a zone are local;
        `created_after` counts from its instant on, `created_before` up to, and without, its instant. There are no
        instances, so `instance` must be None, and no mocks, so `include_mocks` changes nothing.
        """
        refuse_elsewhere(instance=instance)
        del include_mocks
        if pending not in (None, True, False) or isinstance(job_tags, str):
            raise InvalidRequestError(
                "pending must be True, False or None, and job_tags a list of texts",
                code="INVALID_ARGUMENT",
                field="pending" if pending not in (None, True, False) else "job_tags",
            )
        states: dict[bool | None, tuple[JobStateName, ...]] = {
            None: (),
            True: ("queued", "running"),
            False: ("succeeded", "failed", "cancelled"),
        }
        found = self.client.list_jobs(
            states=states[pending],
            device=backend_name or "",
            session_id=session_id or "",
            tags=job_tags or (),
            program_kind=program_id,
            created_from=created_after,
            created_before=created_before,
            skip=skip,
            oldest_first=not descending,
            limit=limit,
        )
        return [Job.unfollowed(self, job) for job in found]

    def session(self, session_id: str) -> Session:
        """A handle of a session that exists: a `Session` or a `Batch`. Raises `NotFoundError`."""
        return make_session(self.client.get_session(session_id), self)

    # --- reservations -------------------------------------------------------------------------------------------------

    def reservations(self, backend_name: str | None = None, holder: str | None = None) -> list[Reservation]:
        """Reservations that are not over, by start. `holder`: those that cover this user or account."""
        found = self.client.list_reservations(device=backend_name or "", holder=holder or "")
        return [read_reservation(message) for message in found]

    def reserve(
        self,
        backend: CadenzaBackend | str,
        start: Instant,
        end: Instant | None = None,
        *,
        duration: Length | None = None,
        holder: str | None = None,
        description: str = "",
    ) -> Reservation:
        """Reserve a device; operators only. Give `end` or `duration`. `holder`: an account or user path; default: you.

        Raises `PreconditionError` if the window overlaps another.
        """
        if (end is None) == (duration is None):
            raise InvalidRequestError(
                "give either the end of the reservation or its duration", code="INVALID_ARGUMENT", field="end"
            )
        if duration is not None:
            begin = make_timestamp(start).ToNanoseconds()
            end = (
                (begin + parse_length(duration)) / 1e9
                if not isinstance(start, datetime)
                else start + timedelta(microseconds=parse_length(duration) / 1_000)
            )
        assert end is not None
        message = self.client.create_reservation(
            backend if isinstance(backend, str) else backend.name,
            holder or self.user,
            start,
            end,
            description=description,
        )
        return read_reservation(message)

    def delete_reservation(self, reservation: Reservation | str) -> Reservation:
        """Delete a reservation that has not started, or end one that has, now; operators only."""
        name = reservation if isinstance(reservation, str) else reservation.reservation_id
        return read_reservation(self.client.delete_reservation(name))

    # --- the server ---------------------------------------------------------------------------------------------------

    @property
    def target(self) -> str:
        """Where the server is."""
        return self.client.target

    @cached_property
    def server(self) -> ServerInfo:
        """The server's version and what it takes."""
        return self._info.server

    @property
    def limits(self) -> ServerLimits:
        """What the server takes at most."""
        return self.server.limits

    @property
    def user(self) -> str:
        """Who calls, as the server sees it: a path in the share tree."""
        return self._info.caller.user

    @cached_property
    def qpy_version(self) -> int:
        """The QPY version that circuits are sent in: the newest that both sides know."""
        return choose_qpy_version(self.server.qpy_version_min, self.server.qpy_version_max)

    @cached_property
    def _info(self) -> GetServerInfoResponse:
        return self.client.get_server_info()


def _explain_no_match(devices: Sequence[Device], asked: Mapping[str, Any]) -> str:
    """What devices there are, for whom none of them fits."""
    there = ", ".join(
        f"{device.name} ({device.num_qubits} qubits{', offline' if device.state == DEVICE_STATE_OFFLINE else ''})"
        for device in devices
    )
    said = f"No backend matches the criteria. There are: {there or 'none'}"
    if asked.get("simulator") is False and devices and all(device.simulator for device in devices):
        return f"{said}; all of them are simulators, and no noisy one fits: leave out simulator=False"
    return said


def _has(backend: CadenzaBackend, wanted: dict[str, Any]) -> bool:
    if not wanted:
        return True
    status = backend.status().to_dict() if any(not hasattr(backend, name) for name in wanted) else {}
    for name, value in wanted.items():
        if not hasattr(backend, name) and name not in status:
            raise InvalidRequestError(
                f"backends have no {name!r} to filter by: use an attribute of the backend, or "
                f"{', '.join(status)}; or filters=lambda backend: ...",
                code="INVALID_ARGUMENT",
                field=name,
            )
        if getattr(backend, name, status.get(name)) != value:
            return False
    return True

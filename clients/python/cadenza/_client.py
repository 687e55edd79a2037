"""The plain blocking client: every RPC with plain arguments, for people and programs without Qiskit."""

import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from cadenza import _requests as requests
from cadenza._errors import CadenzaError, refuse_wrong_arguments
from cadenza._submissions import Submissions
from cadenza._times import Instant, Length
from cadenza._transport import TIMEOUT_DEFAULT, Endpoint, Retry, Tls, Transport, Watch
from cadenza.v1 import (
    device_pb2,
    device_service_pb2,
    device_service_pb2_grpc,
    event_pb2,
    job_pb2,
    job_service_pb2,
    job_service_pb2_grpc,
    program_pb2,
    reservation_pb2,
    reservation_service_pb2,
    reservation_service_pb2_grpc,
    result_pb2,
    server_service_pb2,
    server_service_pb2_grpc,
    session_pb2,
    session_service_pb2,
    session_service_pb2_grpc,
    share_pb2,
    share_service_pb2,
    share_service_pb2_grpc,
)

Page = TypeVar("Page", bound="PageMessage", covariant=True)
Item = TypeVar("Item")


class PageMessage(Protocol):
    """A page of a list."""

    @property
    def next_page_token(self) -> str:
        """Empty: this was the last."""


@refuse_wrong_arguments
class Client:
    """A blocking client of one server. Safe to use from several threads.

    `target`: `HOST:PORT`; default `CADENZA_TARGET`, else `127.0.0.1:50051`. `user`: a path such as `lab/alice`, for
    servers that trust names; default `CADENZA_USER`, else the operating system's user name. `token`: for servers with
    tokens; default `CADENZA_TOKEN`. `tls`: a `Tls`, a path to the CA's certificate, True for the system's authorities,
    or False; default what `CADENZA_TLS`, `CADENZA_TLS_CA` and so on say, as on the command line.
    `timeout_s`: seconds that a call may take, watches and results excepted. `new_id` makes request ids.

    Messages are those of `cadenza.v1`. Names of enum values are given in lower case without prefix (`"queued"`).
    Lengths of time are seconds, text such as `2h 30m`, or `timedelta`; points of time are `datetime` (without a zone:
    local time) or seconds since 1970. Lists are complete unless `limit` says how many at most.

    Every call may raise `CadenzaError`: a subclass that follows the gRPC code, with the server's `reason`. While the
    server is unavailable, calls are tried again for some seconds; calls that change something carry a request id, so
    that a repetition gets the first answer.
    """

    def __init__(
        self,
        target: str | None = None,
        *,
        user: str | None = None,
        token: str | None = None,
        tls: Tls | bool | Path | str | None = None,
        timeout_s: float | None = TIMEOUT_DEFAULT,
        retry: Retry | None = None,
        new_id: Callable[[], str] = lambda: uuid.uuid4().hex,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        endpoint = Endpoint.make(target, user, token, tls)
        self._transport = Transport(endpoint, retry or Retry(), timeout_s, sleep)
        self._call = self._transport.call
        self._new_id = new_id
        channel = self._transport.channel
        self._server = server_service_pb2_grpc.ServerServiceStub(channel)
        self._devices = device_service_pb2_grpc.DeviceServiceStub(channel)
        self._sessions = session_service_pb2_grpc.SessionServiceStub(channel)
        self._jobs = job_service_pb2_grpc.JobServiceStub(channel)
        self._reservations = reservation_service_pb2_grpc.ReservationServiceStub(channel)
        self._shares = share_service_pb2_grpc.ShareServiceStub(channel)
        self._submissions = Submissions(self._transport, self._jobs.SubmitJobStream, timeout_s)

    @property
    def target(self) -> str:
        """Where the server is."""
        return self._transport.endpoint.target

    @property
    def user(self) -> str | None:
        """Who calls; None if a token says it (`get_server_info` tells)."""
        return self._transport.endpoint.user

    def close(self) -> None:
        """Close the connection."""
        self._submissions.close()
        self._transport.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- server -------------------------------------------------------------------------------------------------------

    def get_server_info(self) -> server_service_pb2.GetServerInfoResponse:
        """The server's version, limits and time, and who the caller is."""
        return self._call(self._server.GetServerInfo, server_service_pb2.GetServerInfoRequest())

    # --- devices ------------------------------------------------------------------------------------------------------

    def list_devices(self) -> list[device_pb2.Device]:
        """All devices by name, without their properties."""
        request = device_service_pb2.ListDevicesRequest()
        return self._list(self._devices.ListDevices, request, lambda page: page.devices)

    def get_device(self, name: str) -> device_pb2.Device:
        """A device as it is now, with its properties."""
        return self._call(self._devices.GetDevice, device_service_pb2.GetDeviceRequest(name=name)).device

    def submit_calibration(
        self,
        device: str,
        *,
        calibration: program_pb2.CalibrationJob | None = None,
        duration: Length | None = None,
        job_id: str = "",
        tags: Sequence[str] = (),
        max_execution_time: Length | None = None,
    ) -> job_pb2.Job:
        """Submit a calibration job; operators only. Default: the device's own measurement and duration."""
        request = requests.submit_calibration(
            self._new_id(), device, calibration, duration, job_id, tags, max_execution_time
        )
        return self._call(self._devices.SubmitCalibration, request).job

    # --- sessions -----------------------------------------------------------------------------------------------------

    def create_session(
        self,
        device: str,
        *,
        mode: requests.SessionModeName = "dedicated",
        max_time: Length | None = None,
        interactive_ttl: Length | None = None,
        reservation_id: str = "",
        session_id: str = "",
    ) -> session_pb2.Session:
        """Create a session. Times default to the device's, and are capped by them."""
        request = requests.create_session(
            self._new_id(), device, mode, max_time, interactive_ttl, reservation_id, session_id
        )
        return self._call(self._sessions.CreateSession, request).session

    def get_session(self, session_id: str) -> session_pb2.Session:
        """A session as it is now."""
        request = session_service_pb2.GetSessionRequest(session_id=session_id)
        return self._call(self._sessions.GetSession, request).session

    def list_sessions(
        self,
        *,
        states: Iterable[requests.SessionStateName] = (),
        device: str = "",
        user: str = "",
        mode: requests.SessionModeName | None = None,
        created_from: Instant | None = None,
        created_before: Instant | None = None,
        limit: int | None = None,
    ) -> list[session_pb2.Session]:
        """Sessions, the newest first."""
        request = requests.list_sessions(states, device, user, mode, created_from, created_before)
        return self._list(self._sessions.ListSessions, request, lambda page: page.sessions, limit)

    def close_session(self, session_id: str, pending: requests.Pending | None = None) -> session_pb2.Session:
        """Close a session. `pending`: what becomes of queued jobs; None: as the session's profile says."""
        request = requests.close_session(self._new_id(), session_id, pending)
        return self._call(self._sessions.CloseSession, request).session

    def cancel_session(self, session_id: str) -> session_pb2.Session:
        """Cancel a session and its queued jobs; a running job runs on."""
        request = session_service_pb2.CancelSessionRequest(request_id=self._new_id(), session_id=session_id)
        return self._call(self._sessions.CancelSession, request).session

    def watch_session(
        self,
        session_id: str,
        *,
        after: int | None = None,
        include_results: bool = False,
        exclude_jobs: bool = False,
        skip_superseded: bool = False,
        timeout_s: float | None = None,
    ) -> Watch:
        """Every change of a session and of its jobs, as they happen: an iterator of `Event` that `close()` ends.

        `after`: the last event number seen before; None: begin with a snapshot. `skip_superseded`: without those
        changes of a job that come together with its end. Broken connections go on by themselves.
        """
        request = session_service_pb2.WatchSessionRequest(
            session_id=session_id,
            include_results=include_results,
            exclude_jobs=exclude_jobs,
            skip_superseded=skip_superseded,
        )
        return Watch(self._transport, self._sessions.WatchSession, request, after, timeout_s)

    def list_session_events(self, session_id: str, *, limit: int | None = None) -> list[event_pb2.Event]:
        """The history of a session, without its jobs."""
        request = session_service_pb2.ListSessionEventsRequest(session_id=session_id)
        return self._list(self._sessions.ListSessionEvents, request, lambda page: page.events, limit)

    # --- jobs ---------------------------------------------------------------------------------------------------------

    def submit_job(
        self,
        program: program_pb2.Program,
        *,
        device: str = "",
        session_id: str = "",
        priority: int = 0,
        tags: Sequence[str] = (),
        max_execution_time: Length | None = None,
        estimate_hint: Length | None = None,
        job_id: str = "",
    ) -> job_pb2.Job:
        """Submit one job, to a device or a session. When it returns, the job is on disk and queued."""
        spec = requests.job_spec(program, device, session_id, priority, tags, max_execution_time, estimate_hint, job_id)
        return self.submit_job_spec(spec)

    def submit_job_spec(self, spec: job_pb2.JobSpec) -> job_pb2.Job:
        """Submit one job."""
        found = self._submit(spec, include_end=False)
        assert isinstance(found, job_pb2.Job)
        return found

    def submit_job_spec_for_end(self, spec: job_pb2.JobSpec) -> job_pb2.Job | event_pb2.JobEnded:
        """Submit one job; its end with its result, if that comes with the answer, as it may for a job of some
        milliseconds that starts at once."""
        return self._submit(spec, include_end=True)

    def _submit(self, spec: job_pb2.JobSpec, *, include_end: bool) -> job_pb2.Job | event_pb2.JobEnded:
        request_id = self._new_id()
        found = self._submissions.submit(request_id, spec, include_end=include_end)
        if found is None:
            request = job_service_pb2.SubmitJobRequest(request_id=request_id, job=spec)
            found = self._call(self._jobs.SubmitJob, request).job
        return found

    def submit_jobs(self, specs: Sequence[job_pb2.JobSpec]) -> list[job_service_pb2.SubmittedJob]:
        """Submit many jobs at once, all or none (see `cadenza.job_spec`); the first wrong one refuses all."""
        request = job_service_pb2.SubmitJobsRequest(request_id=self._new_id(), jobs=specs)
        return list(self._call(self._jobs.SubmitJobs, request).jobs)

    def get_job(self, job_id: str) -> job_pb2.Job:
        """A job as it is now."""
        return self._call(self._jobs.GetJob, job_service_pb2.GetJobRequest(job_id=job_id)).job

    def list_jobs(
        self,
        *,
        states: Iterable[requests.JobStateName] = (),
        device: str = "",
        session_id: str = "",
        user: str = "",
        tags: Sequence[str] = (),
        job_class: requests.JobClassName | None = None,
        program_kind: requests.ProgramKindName | None = None,
        created_from: Instant | None = None,
        created_before: Instant | None = None,
        skip: int = 0,
        oldest_first: bool = False,
        limit: int | None = None,
    ) -> list[job_pb2.Job]:
        """Jobs, the newest first; those of others only for operators."""
        request = requests.list_jobs(
            states,
            device,
            session_id,
            user,
            tags,
            job_class,
            program_kind,
            created_from,
            created_before,
            skip,
            oldest_first,
        )
        return self._list(self._jobs.ListJobs, request, lambda page: page.jobs, limit)

    def update_job_priority(self, job_id: str, priority: int) -> job_pb2.Job:
        """Change the priority of a queued job, -100 to 100; it orders its owner's own jobs."""
        request = job_service_pb2.UpdateJobPriorityRequest(request_id=self._new_id(), job_id=job_id, priority=priority)
        return self._call(self._jobs.UpdateJobPriority, request).job

    def cancel_job(self, job_id: str) -> job_pb2.Job:
        """Cancel a job at once, queued or running."""
        request = job_service_pb2.CancelJobRequest(request_id=self._new_id(), job_id=job_id)
        return self._call(self._jobs.CancelJob, request).job

    def watch_job(
        self,
        job_id: str,
        *,
        after: int | None = None,
        include_results: bool = False,
        timeout_s: float | None = None,
    ) -> Watch:
        """Every change of a job up to its final state, as they happen: an iterator of `Event` that `close()` ends.

        `after`: the last event number seen before; None: begin with a snapshot. Broken connections go on by themselves.
        """
        request = job_service_pb2.WatchJobRequest(job_id=job_id, include_results=include_results)
        return Watch(self._transport, self._jobs.WatchJob, request, after, timeout_s)

    def get_job_result(self, job_id: str) -> result_pb2.JobResult:
        """The result of a job that succeeded, of any size."""
        request = job_service_pb2.StreamJobResultRequest(job_id=job_id)
        pieces = bytearray()
        failures = 0
        while True:
            request.offset = len(pieces)
            try:
                for piece in self._transport.stream(self._jobs.StreamJobResult, request):
                    pieces += piece.data
                    failures = 0
            except CadenzaError as error:
                failures += 1
                self._transport.pause_or_raise(error, failures)
            else:
                return result_pb2.JobResult.FromString(bytes(pieces))

    def get_job_payload(self, job_id: str) -> program_pb2.Program:
        """What a job executes, as it was submitted."""
        request = job_service_pb2.GetJobPayloadRequest(job_id=job_id)
        return self._call(self._jobs.GetJobPayload, request).program

    def list_job_events(self, job_id: str, *, limit: int | None = None) -> list[event_pb2.Event]:
        """The history of a job, without results."""
        request = job_service_pb2.ListJobEventsRequest(job_id=job_id)
        return self._list(self._jobs.ListJobEvents, request, lambda page: page.events, limit)

    def list_runs(
        self,
        *,
        job_id: str = "",
        device: str = "",
        session_id: str = "",
        user: str = "",
        started_from: Instant | None = None,
        started_before: Instant | None = None,
        outcomes: Iterable[requests.RunOutcomeName] = (),
        limit: int | None = None,
    ) -> list[job_pb2.Run]:
        """Runs with the decisions behind them, in the order of their starts; those of others only for operators."""
        request = requests.list_runs(job_id, device, session_id, user, started_from, started_before, outcomes)
        return self._list(self._jobs.ListRuns, request, lambda page: page.runs, limit)

    # --- reservations -------------------------------------------------------------------------------------------------

    def create_reservation(
        self,
        device: str,
        holder: str,
        start: Instant,
        end: Instant,
        *,
        description: str = "",
        reservation_id: str = "",
    ) -> reservation_pb2.Reservation:
        """Reserve a device for an account or user; operators only."""
        request = requests.create_reservation(self._new_id(), device, holder, start, end, description, reservation_id)
        return self._call(self._reservations.CreateReservation, request).reservation

    def get_reservation(self, reservation_id: str) -> reservation_pb2.Reservation:
        """A reservation as it is now."""
        request = reservation_service_pb2.GetReservationRequest(reservation_id=reservation_id)
        return self._call(self._reservations.GetReservation, request).reservation

    def list_reservations(
        self,
        *,
        device: str = "",
        holder: str = "",
        states: Iterable[requests.ReservationStateName] = (),
        limit: int | None = None,
    ) -> list[reservation_pb2.Reservation]:
        """Reservations by start; those that are over only if `states` names them."""
        request = requests.list_reservations(device, holder, states)
        return self._list(self._reservations.ListReservations, request, lambda page: page.reservations, limit)

    def delete_reservation(self, reservation_id: str) -> reservation_pb2.Reservation:
        """Delete a reservation that has not started, or end one that has, now; operators only."""
        request = reservation_service_pb2.DeleteReservationRequest(
            request_id=self._new_id(), reservation_id=reservation_id
        )
        return self._call(self._reservations.DeleteReservation, request).reservation

    # --- shares -------------------------------------------------------------------------------------------------------

    def list_shares(self, *, parent: str = "", device: str = "") -> list[share_pb2.ShareNode]:
        """The share tree in the order of its paths, usages in device seconds. `device`: counts its jobs only."""
        request = share_service_pb2.ListSharesRequest(parent=parent, device=device)
        return self._list(self._shares.ListShares, request, lambda page: page.nodes)

    def get_shares(self, path: str) -> share_pb2.ShareNode:
        """One node of the share tree."""
        return self._call(self._shares.GetShares, share_service_pb2.GetSharesRequest(path=path)).node

    def set_shares(self, shares: Mapping[str, float]) -> list[share_pb2.ShareNode]:
        """Set the shares of paths from now on, all or none; operators only."""
        return list(self._call(self._shares.SetShares, requests.set_shares(self._new_id(), shares)).nodes)

    def _list(
        self,
        method: Callable[..., Page],
        request: Any,
        items: Callable[[Page], Iterable[Item]],
        limit: int | None = None,
    ) -> list[Item]:
        found: list[Item] = []
        while limit is None or len(found) < limit:
            request.page_size = requests.PAGE_SIZE if limit is None else min(limit - len(found), requests.PAGE_SIZE)
            page = self._call(method, request)
            found.extend(items(page))
            request.page_token = page.next_page_token
            if not page.next_page_token:
                break
        return found

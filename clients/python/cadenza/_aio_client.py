"""The plain asyncio client: as `_client.py`, with `await`."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from cadenza import _requests as requests
from cadenza._client import PageMessage
from cadenza._errors import CadenzaError, refuse_wrong_arguments
from cadenza._times import Instant, Length
from cadenza._transport import TIMEOUT_DEFAULT, AsyncTransport, Endpoint, Retry, Tls
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

Page = TypeVar("Page", bound=PageMessage)
Item = TypeVar("Item")


@refuse_wrong_arguments
class AsyncClient:
    """An asyncio client of one server: the methods, arguments and errors of `Client`, with `await` before each.

    Use it within one event loop, best as `async with AsyncClient() as client:`. `watch_job` and `watch_session` are
    asynchronous iterators.
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
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        endpoint = Endpoint.make(target, user, token, tls)
        self._transport = AsyncTransport(endpoint, retry or Retry(), timeout_s, sleep)
        self._call = self._transport.call
        self._new_id = new_id

    @cached_property
    def _server(self) -> "server_service_pb2_grpc.ServerServiceAsyncStub":
        return server_service_pb2_grpc.ServerServiceStub(self._transport.channel)

    @cached_property
    def _devices(self) -> "device_service_pb2_grpc.DeviceServiceAsyncStub":
        return device_service_pb2_grpc.DeviceServiceStub(self._transport.channel)

    @cached_property
    def _sessions(self) -> "session_service_pb2_grpc.SessionServiceAsyncStub":
        return session_service_pb2_grpc.SessionServiceStub(self._transport.channel)

    @cached_property
    def _jobs(self) -> "job_service_pb2_grpc.JobServiceAsyncStub":
        return job_service_pb2_grpc.JobServiceStub(self._transport.channel)

    @cached_property
    def _reservations(self) -> "reservation_service_pb2_grpc.ReservationServiceAsyncStub":
        return reservation_service_pb2_grpc.ReservationServiceStub(self._transport.channel)

    @cached_property
    def _shares(self) -> "share_service_pb2_grpc.ShareServiceAsyncStub":
        return share_service_pb2_grpc.ShareServiceStub(self._transport.channel)

    @property
    def target(self) -> str:
        """Where the server is."""
        return self._transport.endpoint.target

    @property
    def user(self) -> str | None:
        """Who calls; None if a token says it (`get_server_info` tells)."""
        return self._transport.endpoint.user

    async def close(self) -> None:
        """Close the connection."""
        await self._transport.close()

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # --- server -------------------------------------------------------------------------------------------------------

    async def get_server_info(self) -> server_service_pb2.GetServerInfoResponse:
        """The server's version, limits and time, and who the caller is."""
        return await self._call(self._server.GetServerInfo, server_service_pb2.GetServerInfoRequest())

    # --- devices ------------------------------------------------------------------------------------------------------

    async def list_devices(self) -> list[device_pb2.Device]:
        """All devices by name, without their properties."""
        request = device_service_pb2.ListDevicesRequest()
        return await self._list(self._devices.ListDevices, request, lambda page: page.devices)

    async def get_device(self, name: str) -> device_pb2.Device:
        """A device as it is now, with its properties."""
        return (await self._call(self._devices.GetDevice, device_service_pb2.GetDeviceRequest(name=name))).device

    async def submit_calibration(
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
        return (await self._call(self._devices.SubmitCalibration, request)).job

    # --- sessions -----------------------------------------------------------------------------------------------------

    async def create_session(
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
        return (await self._call(self._sessions.CreateSession, request)).session

    async def get_session(self, session_id: str) -> session_pb2.Session:
        """A session as it is now."""
        request = session_service_pb2.GetSessionRequest(session_id=session_id)
        return (await self._call(self._sessions.GetSession, request)).session

    async def list_sessions(
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
        return await self._list(self._sessions.ListSessions, request, lambda page: page.sessions, limit)

    async def close_session(self, session_id: str, pending: requests.Pending | None = None) -> session_pb2.Session:
        """Close a session. `pending`: what becomes of queued jobs; None: as the session's profile says."""
        request = requests.close_session(self._new_id(), session_id, pending)
        return (await self._call(self._sessions.CloseSession, request)).session

    async def cancel_session(self, session_id: str) -> session_pb2.Session:
        """Cancel a session and its queued jobs; a running job runs on."""
        request = session_service_pb2.CancelSessionRequest(request_id=self._new_id(), session_id=session_id)
        return (await self._call(self._sessions.CancelSession, request)).session

    def watch_session(
        self,
        session_id: str,
        *,
        after: int | None = None,
        include_results: bool = False,
        exclude_jobs: bool = False,
    ) -> AsyncIterator[event_pb2.Event]:
        """Every change of a session and of its jobs, as they happen.

        `after`: the last event number seen before; None: begin with a snapshot. Broken connections go on by themselves.
        """
        request = session_service_pb2.WatchSessionRequest(
            session_id=session_id, include_results=include_results, exclude_jobs=exclude_jobs
        )
        return self._transport.watch(self._sessions.WatchSession, request, after)

    async def list_session_events(self, session_id: str, *, limit: int | None = None) -> list[event_pb2.Event]:
        """The history of a session, without its jobs."""
        request = session_service_pb2.ListSessionEventsRequest(session_id=session_id)
        return await self._list(self._sessions.ListSessionEvents, request, lambda page: page.events, limit)

    # --- jobs ---------------------------------------------------------------------------------------------------------

    async def submit_job(
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
        return await self.submit_job_spec(spec)

    async def submit_job_spec(self, spec: job_pb2.JobSpec) -> job_pb2.Job:
        """Submit one job."""
        return (
            await self._call(
                self._jobs.SubmitJob, job_service_pb2.SubmitJobRequest(request_id=self._new_id(), job=spec)
            )
        ).job

    async def submit_jobs(self, specs: Sequence[job_pb2.JobSpec]) -> list[job_service_pb2.SubmittedJob]:
        """Submit many jobs at once, all or none (see `cadenza.job_spec`); the first wrong one refuses all."""
        request = job_service_pb2.SubmitJobsRequest(request_id=self._new_id(), jobs=specs)
        return list((await self._call(self._jobs.SubmitJobs, request)).jobs)

    async def get_job(self, job_id: str) -> job_pb2.Job:
        """A job as it is now."""
        return (await self._call(self._jobs.GetJob, job_service_pb2.GetJobRequest(job_id=job_id))).job

    async def list_jobs(
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
        return await self._list(self._jobs.ListJobs, request, lambda page: page.jobs, limit)

    async def update_job_priority(self, job_id: str, priority: int) -> job_pb2.Job:
        """Change the priority of a queued job, -100 to 100; it orders its owner's own jobs."""
        request = job_service_pb2.UpdateJobPriorityRequest(request_id=self._new_id(), job_id=job_id, priority=priority)
        return (await self._call(self._jobs.UpdateJobPriority, request)).job

    async def cancel_job(self, job_id: str) -> job_pb2.Job:
        """Cancel a job at once, queued or running."""
        request = job_service_pb2.CancelJobRequest(request_id=self._new_id(), job_id=job_id)
        return (await self._call(self._jobs.CancelJob, request)).job

    def watch_job(
        self,
        job_id: str,
        *,
        after: int | None = None,
        include_results: bool = False,
    ) -> AsyncIterator[event_pb2.Event]:
        """Every change of a job up to its final state, as they happen.

        `after`: the last event number seen before; None: begin with a snapshot. Broken connections go on by themselves.
        """
        request = job_service_pb2.WatchJobRequest(job_id=job_id, include_results=include_results)
        return self._transport.watch(self._jobs.WatchJob, request, after)

    async def get_job_result(self, job_id: str) -> result_pb2.JobResult:
        """The result of a job that succeeded, of any size."""
        request = job_service_pb2.StreamJobResultRequest(job_id=job_id)
        pieces = bytearray()
        failures = 0
        while True:
            request.offset = len(pieces)
            try:
                async for piece in self._transport.stream(self._jobs.StreamJobResult, request):
                    pieces += piece.data
                    failures = 0
            except CadenzaError as error:
                failures += 1
                await self._transport.pause_or_raise(error, failures)
            else:
                return result_pb2.JobResult.FromString(bytes(pieces))

    async def get_job_payload(self, job_id: str) -> program_pb2.Program:
        """What a job executes, as it was submitted."""
        request = job_service_pb2.GetJobPayloadRequest(job_id=job_id)
        return (await self._call(self._jobs.GetJobPayload, request)).program

    async def list_job_events(self, job_id: str, *, limit: int | None = None) -> list[event_pb2.Event]:
        """The history of a job, without results."""
        request = job_service_pb2.ListJobEventsRequest(job_id=job_id)
        return await self._list(self._jobs.ListJobEvents, request, lambda page: page.events, limit)

    async def list_runs(
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
        return await self._list(self._jobs.ListRuns, request, lambda page: page.runs, limit)

    # --- reservations -------------------------------------------------------------------------------------------------

    async def create_reservation(
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
        return (await self._call(self._reservations.CreateReservation, request)).reservation

    async def get_reservation(self, reservation_id: str) -> reservation_pb2.Reservation:
        """A reservation as it is now."""
        request = reservation_service_pb2.GetReservationRequest(reservation_id=reservation_id)
        return (await self._call(self._reservations.GetReservation, request)).reservation

    async def list_reservations(
        self,
        *,
        device: str = "",
        holder: str = "",
        states: Iterable[requests.ReservationStateName] = (),
        limit: int | None = None,
    ) -> list[reservation_pb2.Reservation]:
        """Reservations by start; those that are over only if `states` names them."""
        request = requests.list_reservations(device, holder, states)
        return await self._list(self._reservations.ListReservations, request, lambda page: page.reservations, limit)

    async def delete_reservation(self, reservation_id: str) -> reservation_pb2.Reservation:
        """Delete a reservation that has not started, or end one that has, now; operators only."""
        request = reservation_service_pb2.DeleteReservationRequest(
            request_id=self._new_id(), reservation_id=reservation_id
        )
        return (await self._call(self._reservations.DeleteReservation, request)).reservation

    # --- shares -------------------------------------------------------------------------------------------------------

    async def list_shares(self, *, parent: str = "", device: str = "") -> list[share_pb2.ShareNode]:
        """The share tree in the order of its paths, usages in device seconds. `device`: counts its jobs only."""
        request = share_service_pb2.ListSharesRequest(parent=parent, device=device)
        return await self._list(self._shares.ListShares, request, lambda page: page.nodes)

    async def get_shares(self, path: str) -> share_pb2.ShareNode:
        """One node of the share tree."""
        return (await self._call(self._shares.GetShares, share_service_pb2.GetSharesRequest(path=path))).node

    async def set_shares(self, shares: Mapping[str, float]) -> list[share_pb2.ShareNode]:
        """Set the shares of paths from now on, all or none; operators only."""
        return list((await self._call(self._shares.SetShares, requests.set_shares(self._new_id(), shares))).nodes)

    async def _list(
        self,
        method: Callable[..., Awaitable[Page]],
        request: Any,
        items: Callable[[Page], Iterable[Item]],
        limit: int | None = None,
    ) -> list[Item]:
        found: list[Item] = []
        while limit is None or len(found) < limit:
            request.page_size = requests.PAGE_SIZE if limit is None else min(limit - len(found), requests.PAGE_SIZE)
            page = await self._call(method, request)
            found.extend(items(page))
            request.page_token = page.next_page_token
            if not page.next_page_token:
                break
        return found

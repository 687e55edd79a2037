"""Sends the operations of a plan, each at its time, whatever became of those before."""

import asyncio
import gc
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import grpc
from cadenza.v1 import (
    job_pb2,
    job_service_pb2,
    job_service_pb2_grpc,
    session_pb2,
    session_service_pb2,
    session_service_pb2_grpc,
)

from cadenza_loadtest.connection import Connection, describe
from cadenza_loadtest.measurement import Measurement, Packed
from cadenza_loadtest.plan import Operation
from cadenza_loadtest.scenario import JobShape, Scenario, Traffic

OUTSTANDING_MAX: Final = 20_000
"""Operations under way in a process; what would go beyond is counted as not sent."""

TIMEOUT_S: Final = 60.0
"""Of a single call."""

STOP_CHECK_S: Final = 0.2
"""How long a request to stop may wait."""

LATE_S: Final = 0.001
"""Behind the plan by more than this, every now and then the loop turns before the next operation is sent."""

AT_ONCE: Final = 64
"""Calls at once before and after the test."""


@dataclass(frozen=True, slots=True)
class Part:
    """What one process does."""

    scenario: Scenario
    connection: Connection
    operations: Sequence[Operation]
    devices: tuple[str, ...]
    tag: str
    """All jobs of a test carry it."""
    start: float
    """When the clock of the plan starts, by `time.time()`."""
    connections: int
    cleanup: bool


@dataclass(slots=True)
class _Left:
    """What would stay on the server: jobs and sessions, with the user of each."""

    jobs: dict[str, int] = field(default_factory=dict)
    sessions: dict[str, int] = field(default_factory=dict)


def make_program(shape: JobShape) -> str:
    """A GHZ circuit of `shape.qubits` as OpenQASM 3, filled up to `shape.payload_bytes`."""
    last = shape.qubits - 1
    lines = [
        "OPENQASM 3.0;",
        'include "stdgates.inc";',
        f"qubit[{shape.qubits}] q;",
        f"bit[{shape.qubits}] meas;",
        "h q[0];",
        *(f"cx q[{qubit}], q[{qubit + 1}];" for qubit in range(last)),
        "meas = measure q;",
    ]
    text = "\n".join(lines) + "\n"
    return text + "//" + "." * (shape.payload_bytes - len(text) - 2) if len(text) + 2 < shape.payload_bytes else text


class Stop(Protocol):
    """Set when the test shall end early (a `multiprocessing.Event`)."""

    def is_set(self) -> bool:
        """Whether it shall."""
        ...


_stop: Stop | None = None


def accept_stop(stop: Stop) -> None:
    """Begin a process that drives: Ctrl-C is its parent's to handle, which sets `stop`."""
    global _stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _stop = stop


def drive(part: Part) -> Packed:
    """Do the part, in this process. Returns what was measured."""
    gc.freeze()

    async def run() -> Packed:
        # made in here: channels belong to the loop that is current when they are opened
        return await _Driver(part).run()

    return asyncio.run(run())


@asynccontextmanager
async def prepare(part: Part, say: Callable[[str], None]) -> AsyncIterator[Measurement]:
    """Queue the jobs, open the sessions and the watches that are there before the clock starts; take them away at the
    end, if the part says so. Gives what is measured of them.
    """
    driver = _Driver(part)
    try:
        await driver.prepare(say)
        yield driver.measured
    finally:
        await driver.end()


class _Driver:
    def __init__(self, part: Part) -> None:
        self._part = part
        self.measured = Measurement()
        self._left = _Left()
        self._tasks: set[asyncio.Task[None]] = set()
        self._watching: list[asyncio.Task[None]] = []
        self._channels = [part.connection.open() for _ in range(part.connections)]
        self._jobs = [job_service_pb2_grpc.JobServiceStub(channel) for channel in self._channels]
        self._sessions = [session_service_pb2_grpc.SessionServiceStub(channel) for channel in self._channels]
        self._spec = job_pb2.JobSpec(tags=[part.tag])
        self._spec.program.sampler.pubs.add(shots=part.scenario.job.shots).circuit.openqasm3 = make_program(
            part.scenario.job
        )

    async def run(self) -> Packed:
        scenario, start = self._part.scenario, self._part.start
        await asyncio.gather(*(channel.channel_ready() for channel in self._channels))
        # the offset is taken once: a wall clock that is set meanwhile moves nothing
        zero = time.perf_counter() + (start - time.time())
        for operation in self._part.operations:
            delay = zero + operation.at_s - time.perf_counter()
            while delay > 0 and not self._stopped():
                await asyncio.sleep(min(delay, STOP_CHECK_S))
                delay = zero + operation.at_s - time.perf_counter()
            if self._stopped():
                break
            if delay <= -LATE_S and len(self._tasks) % 64 == 0:
                # behind the plan: still let the calls that are under way go on
                await asyncio.sleep(0)
            name = scenario.traffic[operation.traffic].name
            if len(self._tasks) >= OUTSTANDING_MAX:
                self.measured.counts[f"{name}_unsent"] += 1
                continue
            task = asyncio.create_task(self._do(operation, zero), name=name)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        end = time.perf_counter() + scenario.settle_s
        while self._tasks and time.perf_counter() < end and not self._stopped():
            await asyncio.wait(self._tasks, timeout=STOP_CHECK_S)
        stopped = self._stopped()
        for task in (unfinished := list(self._tasks)):
            task.cancel()
            if not stopped:  # what a Ctrl-C cuts off has not failed
                self.measured.counts[f"{task.get_name()}_unfinished"] += 1
                self.measured.errors[f"{task.get_name()}: not done {scenario.settle_s:g} s after the end"] += 1
        await asyncio.gather(*unfinished, return_exceptions=True)
        await self.end()
        return self.measured.pack()

    @staticmethod
    def _stopped() -> bool:
        return _stop is not None and _stop.is_set()

    async def prepare(self, say: Callable[[str], None]) -> None:
        scenario = self._part.scenario
        wanted = scenario.prepare
        if wanted.jobs_per_user:
            say(f"queueing {wanted.jobs_per_user} jobs each of {scenario.users} users")
            await _at_once(self._queue(user, wanted.jobs_per_user) for user in range(scenario.users))
        if wanted.open_sessions:
            say(f"opening {wanted.open_sessions} sessions")
            await _at_once(self._open(number % scenario.users) for number in range(wanted.open_sessions))
        followed = list(self._left.jobs.items())[-wanted.watches :] if wanted.watches else []
        for job, user in followed:
            self._watching.append(asyncio.create_task(self._watch(job, user)))

    async def end(self) -> None:
        """Cancel what is left, if asked to, and hang up."""
        for task in self._watching:
            task.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)
        if self._part.cleanup:
            await _at_once(self._cancel_session(*left) for left in list(self._left.sessions.items()))
            await _at_once(self._cancel_job(*left) for left in list(self._left.jobs.items()))
        for channel in self._channels:
            await channel.close()

    # --- operations ---------------------------------------------------------------------------------------------------

    async def _do(self, operation: Operation, zero: float) -> None:
        traffic = self._part.scenario.traffic[operation.traffic]
        due = zero + operation.at_s
        self.measured.record("generator_lag", time.perf_counter() - due, operation.at_s)
        self.measured.counts[f"{traffic.name}_sent"] += 1
        try:
            if traffic.kind == "job":
                await self._send_job(traffic, operation, due)
            elif traffic.kind == "jobs":
                await self._send_jobs(traffic, operation.user, due, zero, "")
            elif traffic.kind == "batch":
                await self._send_batch(traffic, operation.user, due, zero)
            else:
                await self._send_session(traffic, operation.user, due, zero)
        except grpc.RpcError as error:
            self.measured.counts[f"{traffic.name}_errors"] += 1
            self.measured.errors[f"{traffic.name}: {describe(error)}"] += 1
        else:
            self.measured.counts[f"{traffic.name}_done"] += 1

    async def _send_job(self, traffic: Traffic, operation: Operation, due: float) -> None:
        job = await self._submit(operation.user, "")
        self.measured.record(f"{traffic.name}_submit", time.perf_counter() - due, operation.at_s)
        if operation.followed:
            await self._await_end(job, operation.user)
            self.measured.record(f"{traffic.name}_result", time.perf_counter() - due, operation.at_s)

    async def _send_jobs(self, traffic: Traffic, user: int, due: float, zero: float, session: str) -> None:
        await self._queue(user, traffic.jobs, session)
        self.measured.record(f"{traffic.name}_submit", time.perf_counter() - due, due - zero)

    async def _send_batch(self, traffic: Traffic, user: int, due: float, zero: float) -> None:
        session = await self._open(user, session_pb2.SESSION_MODE_BATCH)
        await self._send_jobs(traffic, user, due, zero, session)
        await self._close(session, user)

    async def _send_session(self, traffic: Traffic, user: int, due: float, zero: float) -> None:
        session = await self._open(user)
        self.measured.record(f"{traffic.name}_open", time.perf_counter() - due, due - zero)
        begin = due
        for _ in range(traffic.jobs):
            # within a session the next job is due when the program has thought about the last result
            job = await self._submit(user, session)
            self.measured.record(f"{traffic.name}_submit", time.perf_counter() - begin, begin - zero)
            await self._await_end(job, user)
            self.measured.record(f"{traffic.name}_iteration", time.perf_counter() - begin, begin - zero)
            if traffic.think_s:
                await asyncio.sleep(traffic.think_s)
            begin = time.perf_counter()
        await self._close(session, user)
        self._left.sessions.pop(session, None)
        self.measured.record(f"{traffic.name}_session", time.perf_counter() - due, due - zero)

    # --- calls --------------------------------------------------------------------------------------------------------

    def _fill(self, spec: job_pb2.JobSpec, user: int, session: str) -> job_pb2.JobSpec:
        spec.CopyFrom(self._spec)
        if session:
            spec.session_id = session
        else:
            spec.device = self._device_of(user)
        return spec

    def _device_of(self, user: int) -> str:
        return self._part.devices[user % len(self._part.devices)]

    async def _call(self, stubs: Sequence[Any], method: str, user: int, request: object) -> Any:
        metadata = self._part.connection.metadata(self._part.scenario.path_of(user))
        return await getattr(stubs[user % len(stubs)], method)(request, metadata=metadata, timeout=TIMEOUT_S)

    async def _submit(self, user: int, session: str) -> str:
        request = job_service_pb2.SubmitJobRequest()
        self._fill(request.job, user, session)
        job: str = (await self._call(self._jobs, "SubmitJob", user, request)).job.job_id
        self._left.jobs[job] = user
        return job

    async def _queue(self, user: int, count: int, session: str = "") -> None:
        request = job_service_pb2.SubmitJobsRequest()
        for _ in range(count):
            self._fill(request.jobs.add(), user, session)
        for job in (await self._call(self._jobs, "SubmitJobs", user, request)).jobs:
            if not session:
                self._left.jobs[job.job_id] = user

    async def _open(
        self, user: int, mode: "session_pb2.SessionMode.ValueType" = session_pb2.SESSION_MODE_DEDICATED
    ) -> str:
        request = session_service_pb2.CreateSessionRequest(device=self._device_of(user), mode=mode)
        session: str = (await self._call(self._sessions, "CreateSession", user, request)).session.session_id
        self._left.sessions[session] = user
        return session

    async def _close(self, session: str, user: int) -> None:
        request = session_service_pb2.CloseSessionRequest(
            session_id=session, pending=session_pb2.PENDING_TREATMENT_DRAIN
        )
        await self._call(self._sessions, "CloseSession", user, request)

    async def _await_end(self, job: str, user: int) -> None:
        await self._follow(job, user, include_results=True)
        self._left.jobs.pop(job, None)

    async def _watch(self, job: str, user: int) -> None:
        try:
            await self._follow(job, user, include_results=False)
        except grpc.RpcError as error:
            self.measured.errors[f"watches: {describe(error)}"] += 1

    async def _follow(self, job: str, user: int, *, include_results: bool) -> None:
        request = job_service_pb2.WatchJobRequest(job_id=job, include_results=include_results)
        metadata = self._part.connection.metadata(self._part.scenario.path_of(user))
        async for _ in self._jobs[user % len(self._jobs)].WatchJob(request, metadata=metadata):
            pass

    async def _cancel_job(self, job: str, user: int) -> None:
        await self._cancel(self._jobs, "CancelJob", user, job_service_pb2.CancelJobRequest(job_id=job))

    async def _cancel_session(self, session: str, user: int) -> None:
        request = session_service_pb2.CancelSessionRequest(session_id=session)
        await self._cancel(self._sessions, "CancelSession", user, request)

    async def _cancel(self, stubs: Sequence[Any], method: str, user: int, request: object) -> None:
        try:
            await self._call(stubs, method, user, request)
        except grpc.RpcError as error:
            # most have ended by themselves
            if error.code() not in (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.NOT_FOUND):
                self.measured.errors[f"cleanup: {describe(error)}"] += 1


async def _at_once(calls: Iterable[Any]) -> None:
    """Await all, some at a time."""
    waiting = iter(calls)

    async def work() -> None:
        for call in waiting:
            await call

    await asyncio.gather(*(work() for _ in range(AT_ONCE)))

"""The engine on a real store and the real scheduler, with devices that a test plays by hand and a clock that it turns."""

import asyncio
import hashlib
import random
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from cadenza.v1 import circuit_pb2, program_pb2

from cadenza_server.clock import VirtualClock
from cadenza_server.engine import (
    DevicePlan,
    Engine,
    JobAccepted,
    JobContent,
    JobEnded,
    JobFilter,
    JobSnapshot,
    JobStarted,
    Notice,
    ProgramKind,
    RequestKey,
    RunFilter,
    SessionChanged,
    SessionJobsEnded,
    SessionSnapshot,
    TimeOrderedIds,
)
from cadenza_server.execution.runs import Assignment, RunReport
from cadenza_server.model.commands import (
    Caller,
    CancelJob,
    CancelSession,
    CloseSession,
    CreateReservation,
    CreateSession,
    DeleteReservation,
    SetPriority,
    SetShares,
    SubmitJob,
)
from cadenza_server.model.errors import Code, Refusal
from cadenza_server.model.settings import RUNTIME_2023, SECOND
from cadenza_server.model.words import (
    CloseReason,
    JobClass,
    JobReason,
    JobState,
    Pending,
    Rule,
    RunOutcome,
    SessionState,
)
from cadenza_server.store import Store, StoreError, StoreInUse

START = 1_000 * SECOND
ALICE = Caller("lab/alice")
BOB = Caller("lab/bob")
OPERATOR = Caller("root", operator=True)


class HandDevice:
    """A device whose runs the test ends itself."""

    def __init__(self, report: Callable[[RunReport], None], ready: Callable[[str, bool], None]) -> None:
        self._report = report
        self._ready = ready
        self.assignments: list[Assignment] = []
        self.stopped: list[tuple[str, int]] = []
        self.running: Assignment | None = None

    async def start(self) -> None:
        self._ready("aer", True)

    def run(self, assignment: Assignment) -> None:
        assert self.running is None
        self.running = assignment
        self.assignments.append(assignment)

    def stop_run(self, job: str, attempt: int) -> None:
        self.stopped.append((job, attempt))
        self.running = None

    async def stop(self) -> None:
        self.running = None

    def end(self, outcome: RunOutcome = RunOutcome.SUCCEEDED, result: bytes | None = b"result", detail: str = "") -> None:
        assert self.running is not None
        run, self.running = self.running, None
        self._report(
            RunReport(device="aer", job=run.job, attempt=run.attempt, outcome=outcome, detail=detail, result=result)
        )

    def late(self, run: Assignment) -> None:
        self._report(
            RunReport(device="aer", job=run.job, attempt=run.attempt, outcome=RunOutcome.SUCCEEDED, result=b"late")
        )


class Home:
    """One engine at a time on one data directory."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.clock = VirtualClock(START)
        self.ids = TimeOrderedIds(self.clock, random.Random(1))
        self.device: HandDevice
        self.engine: Engine
        self.store: Store

    async def open(self, **arguments: Any) -> Engine:
        def build(report: Callable[[RunReport], None], ready: Callable[[str, bool], None]) -> HandDevice:
            self.device = HandDevice(report, ready)
            return self.device

        self.store = Store(self.data_dir)
        self.engine = Engine(
            store=self.store,
            devices={"aer": DevicePlan(settings=RUNTIME_2023, profile="runtime-2023", build=build)},
            clock=self.clock,
            ids=self.ids,
            **arguments,
        )
        await self.engine.start()
        return self.engine

    async def crash(self) -> None:
        """What a kill -9 leaves: the store as it is, with nothing said."""
        await self.store.close()

    async def submit(self, caller: Caller = ALICE, **arguments: Any) -> str:
        content = arguments.pop("content", None) or content_of(b"program")
        arguments.setdefault("device", "aer")
        arguments.setdefault("job", "")
        (view,) = await self.engine.submit([SubmitJob(caller=caller, **arguments)], [content])
        return view.job

    async def session(self, name: str = "s", **arguments: Any) -> str:
        arguments.setdefault("caller", ALICE)
        await self.engine.execute(CreateSession(session=name, device="aer", **arguments))
        return name


def content_of(program: bytes = b"program", **arguments: Any) -> JobContent:
    return JobContent(program=program, program_kind=ProgramKind.SAMPLER, **arguments)


def program_with(*circuits: circuit_pb2.Circuit) -> bytes:
    pubs = [program_pb2.SamplerPub(circuit=circuit) for circuit in circuits]
    return program_pb2.Program(sampler=program_pb2.SamplerJob(pubs=pubs)).SerializeToString()


async def settle(condition: Callable[[], bool]) -> None:
    """Let the event loop and the commit thread work until something is so."""
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


async def wait_state(engine: Engine, job: str, *states: JobState) -> None:
    async with asyncio.timeout(5):
        while (await engine.get_job(job)).state not in states:
            await asyncio.sleep(0.001)


async def collect(watch: AsyncIterator[Notice]) -> list[Notice]:
    async with asyncio.timeout(5):
        return [notice async for notice in watch]


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[Home]:
    home = Home(tmp_path)
    await home.open()
    yield home
    await home.engine.stop(0)


async def test_a_submitted_job_runs_and_its_result_can_be_read(home: Home) -> None:
    job = await home.submit()
    assert job.startswith("job-")
    assert home.device.running is not None
    assert home.device.running.program == b"program"
    home.device.end(result=b"counts")
    await wait_state(home.engine, job, JobState.SUCCEEDED)
    assert await home.engine.get_result(job) == b"counts"
    view = await home.engine.get_job(job)
    assert (view.attempts, view.result_bytes, view.user) == (1, 6, "lab/alice")
    (run,) = (await home.engine.list_runs(RunFilter(job=job))).items
    assert (run.rule, run.outcome) == (Rule.FAIR_SHARE, RunOutcome.SUCCEEDED)

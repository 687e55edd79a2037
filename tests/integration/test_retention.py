"""Results that are deleted: the old ones, or the oldest of too many, and never a young one."""

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cadenza_server.clock import VirtualClock
from cadenza_server.engine import (
    DevicePlan,
    Engine,
    JobContent,
    ProgramKind,
    RequestKey,
    Retention,
    TimeOrderedIds,
)
from cadenza_server.execution.runs import Assignment, RunReport
from cadenza_server.model.commands import Caller, CancelJob, CancelSession, CreateSession, SubmitJob
from cadenza_server.model.errors import Code, Refusal
from cadenza_server.model.events import SessionCreated
from cadenza_server.model.settings import RUNTIME_2023, SECOND
from cadenza_server.model.words import RunOutcome
from cadenza_server.store import Store
from cadenza_server.store.check import check
from cadenza_server.store.store import FILE_NAME

HOUR = 3_600 * SECOND
ANN = Caller("lab/ann")


class PromptDevice:
    """Every run ends at once, with 100 bytes."""

    def __init__(self, report: Callable[[RunReport], None], ready: Callable[[str, bool], None]) -> None:
        self._report = report
        self._ready = ready

    async def start(self) -> None:
        self._ready("aer", True)  # `held` never is

    def run(self, assignment: Assignment) -> None:
        ended = RunReport(
            device="aer",
            job=assignment.job,
            attempt=assignment.attempt,
            outcome=RunOutcome.SUCCEEDED,
            detail="",
            result=b"x" * 100,
        )
        asyncio.get_running_loop().call_soon(self._report, ended)

    def stop_run(self, job: str, attempt: int) -> None:
        pass

    async def stop(self) -> None:
        pass


class Home:
    """An engine whose time the test moves."""

    def __init__(self, data_dir: Path, **retention: Any) -> None:
        self.data_dir = data_dir
        self.clock = VirtualClock(1_000 * HOUR)
        self.retention = Retention(**retention)
        self.settings = RUNTIME_2023
        self.engine: Engine

    async def open(self) -> None:
        self.engine = Engine(
            store=Store(self.data_dir),
            devices={
                name: DevicePlan(settings=self.settings, profile="runtime-2023", build=PromptDevice)
                for name in ("aer", "held")
            },
            clock=self.clock,
            ids=TimeOrderedIds(self.clock, random.Random(1)),
            retention=self.retention,
        )
        await self.engine.start()

    async def run(self, name: str) -> None:
        content = JobContent(program=b"program", program_kind=ProgramKind.SAMPLER)
        await self.engine.submit([SubmitJob(job=name, caller=ANN, device="aer")], [content])
        async with asyncio.timeout(5):
            async for _ in self.engine.watch_job(name):
                pass

    async def is_kept(self, name: str) -> bool:
        try:
            assert await self.engine.get_result(name) == b"x" * 100
        except Refusal as refusal:
            if (refusal.code, refusal.reason) != (Code.NOT_FOUND, "RESULT_DELETED"):
                raise
            assert (await self.engine.get_job(name)).result_bytes is None
            return False
        return True

    async def clean(self) -> None:
        """Let the cleaner do its work, once from now on."""
        cleaner: Any = self.engine._cleaner
        if cleaner._task is not None:
            await asyncio.wait_for(cleaner._task, 5)
        self.clock.advance(61 * SECOND)
        await asyncio.wait_for(cleaner._task, 5)


async def test_results_go_when_they_are_too_old(tmp_path: Path) -> None:
    home = Home(tmp_path, age_max=2 * HOUR)
    await home.open()
    await home.run("old")
    home.clock.advance(HOUR)
    await home.run("young")
    await home.clean()
    assert [await home.is_kept("old"), await home.is_kept("young")] == [True, True]
    home.clock.advance(HOUR)
    await home.clean()
    assert [await home.is_kept("old"), await home.is_kept("young")] == [False, True]
    await home.engine.stop(0)
    assert check(tmp_path / FILE_NAME).is_sound


async def test_a_request_id_is_kept_for_a_day_and_as_long_as_its_job_or_session(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.settings = replace(RUNTIME_2023, max_time=100 * HOUR, unused_ttl=100 * HOUR)
    await home.open()
    engine = home.engine

    async def submit(request_id: str, device: str = "aer") -> str:
        request = RequestKey(caller=ANN.path, request_id=request_id, digest=b"same")
        content = JobContent(program=b"program", program_kind=ProgramKind.SAMPLER)
        (view,) = await engine.submit([SubmitJob(job="", caller=ANN, device=device)], [content], request)
        return view.job

    async def open_session(request_id: str) -> str:
        request = RequestKey(caller=ANN.path, request_id=request_id, digest=b"same")
        (created, *_) = await engine.execute(CreateSession(session="", caller=ANN, device="held"), request=request)
        assert isinstance(created, SessionCreated)
        return created.session

    ended = await submit("ended")
    async with asyncio.timeout(5):
        async for _ in engine.watch_job(ended):
            pass
    waits = await submit("waits", "held")
    session = await open_session("session")
    home.clock.advance(24 * HOUR - 1_000 * SECOND)
    await home.clean()
    assert [await submit("ended"), await submit("waits", "held")] == [ended, waits]
    home.clock.advance(HOUR)
    await home.clean()
    assert await submit("waits", "held") == waits
    assert await open_session("session") == session
    assert await submit("ended") != ended  # a call like any other
    await engine.execute(CancelJob(job=waits, caller=ANN))
    await engine.execute(CancelSession(session=session, caller=ANN))
    home.clock.advance(2 * HOUR)
    await home.clean()
    assert await submit("waits", "held") != waits
    assert await open_session("session") != session
    await engine.stop(0)
    assert check(tmp_path / FILE_NAME).is_sound


async def test_the_oldest_go_when_there_are_too_many_bytes_but_never_young_ones(tmp_path: Path) -> None:
    home = Home(tmp_path, bytes_max=250, age_min=HOUR)
    await home.open()
    names = [f"job-{index}" for index in range(5)]
    for name in names[:4]:
        await home.run(name)
    await home.clean()
    assert [await home.is_kept(name) for name in names[:4]] == [True] * 4
    assert home.engine.figures(0).result_bytes == 400
    home.clock.advance(HOUR)
    await home.run(names[4])
    await home.clean()
    assert [await home.is_kept(name) for name in names] == [False, False, False, True, True]
    assert home.engine.figures(0).result_bytes == 200
    await home.engine.stop(0)


@pytest.mark.parametrize("count", [250])
async def test_many_go_in_one_pass_and_bytes_are_counted_anew_after_a_restart(tmp_path: Path, count: int) -> None:
    home = Home(tmp_path, bytes_max=1_000)
    await home.open()
    for index in range(count):
        await home.run(f"job-{index}")
    await home.engine.stop(0)
    await home.open()
    assert home.engine.figures(0).result_bytes is None
    await home.clean()
    assert home.engine.figures(0).result_bytes == 1_000
    kept = [index for index in range(count) if await home.is_kept(f"job-{index}")]
    assert kept == list(range(count - 10, count))
    await home.engine.stop(0)

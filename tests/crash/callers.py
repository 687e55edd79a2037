"""Those who use the simulated server: each call carries a request_id, is repeated until it is answered (also by the
next server), and what was answered is remembered and never allowed to become untrue."""

import asyncio
import hashlib
import random

# ruff: noqa: PT017  (a refusal is an answer that is looked at, not what a test waits for)
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

from cadenza.v1 import circuit_pb2, program_pb2
from cadenza_server.engine import Engine, JobContent, JobEnded, JobFilter, Notice, ProgramKind, RequestKey
from cadenza_server.model.commands import (
    Caller,
    CancelJob,
    CancelSession,
    CloseSession,
    Command,
    CreateReservation,
    CreateSession,
    DeleteReservation,
    SetPriority,
    SetShares,
    SubmitJob,
)
from cadenza_server.model.errors import Code, Refusal
from cadenza_server.model.settings import SECOND
from cadenza_server.model.words import JobClass, JobState, Pending, RunOutcome, SessionMode
from cadenza_server.store.views import JobView

OPERATOR: Final = Caller("root", operator=True)
USERS: Final = tuple(Caller(path) for path in ("lab/alice", "lab/bob", "lab/deep/carol", "solo"))
UNTIMELY: Final = frozenset({"NAME_TAKEN", "RESUME_TOO_OLD", "REQUEST_ID_REUSED", "UNKNOWN_CIRCUIT", "NOT_OWNER"})
"""Refusals that no caller here ever deserves."""


@dataclass(slots=True)
class Told:
    """A job as callers were told of it."""

    job: str
    seq: int
    user: str
    device: str
    session: str | None
    outcome: RunOutcome
    """How it ends when it runs, if nothing else happens to it."""
    priority: int | None = None
    """None: somebody is changing it."""
    final: JobView | None = None
    result: bytes | None = None
    is_cancelled: bool = False


@dataclass(slots=True)
class Watching:
    """Somebody who watches a job, or a session with its jobs, across all servers."""

    job: str | None
    session: str | None
    first: int | None = None
    seen: list[tuple[int, str]] = field(default_factory=list)
    is_over: bool = False


@dataclass(slots=True)
class Memory:
    """All that anybody was told. It outlives every server."""

    devices: tuple[str, ...]
    jobs: dict[str, Told] = field(default_factory=dict)
    sessions: dict[str, tuple[Caller, str, bool]] = field(default_factory=dict)
    """Owner, device, and whether a circuit named CIRCUIT is with it."""
    ended_sessions: set[str] = field(default_factory=set)
    reservations: list[str] = field(default_factory=list)
    watches: list[Watching] = field(default_factory=list)
    shares: dict[str, float] = field(default_factory=dict)
    numbers: int = 0
    refusals: dict[str, int] = field(default_factory=dict)
    answers: int = 0
    repeated: int = 0

    def number(self) -> int:
        """A new one."""
        self.numbers += 1
        return self.numbers


@dataclass(slots=True)
class Action:
    """One call: it is repeated with the same key until there is an answer."""

    key: RequestKey
    call: Callable[[Engine, RequestKey], Awaitable[Any]]
    take: Callable[[Any], None]
    refused: Callable[[], None] = lambda: None


@dataclass(slots=True)
class Customer:
    """One caller. `pending` is what has no answer yet; `done` are calls with their answers, to be repeated at times."""

    memory: Memory
    caller: Caller
    source: random.Random
    pending: Action | None = None
    done: list[tuple[Action, Any]] = field(default_factory=list)

    async def live(self, engine: Engine) -> None:
        """Call again and again, until the server dies."""
        source = self.source
        while True:
            if self.pending is None:
                await asyncio.sleep(source.uniform(0, 2))
                self.pending = self._choose()
            action = self.pending
            if action is None:
                await self._look(engine)
                continue
            try:
                if source.random() < 0.1:  # the retry races the first call
                    answers = await asyncio.gather(*(action.call(engine, action.key) for _ in range(2)))
                    assert answers[0] == answers[1]
                    answer = answers[0]
                else:
                    answer = await action.call(engine, action.key)
            except Refusal as refusal:
                assert refusal.reason not in UNTIMELY, f"{refusal.reason}: {refusal}"
                if refusal.code is not Code.UNAVAILABLE:
                    self.memory.refusals[refusal.reason] = self.memory.refusals.get(refusal.reason, 0) + 1
                    action.refused()
                    self.pending = None
                    continue
                await asyncio.sleep(source.uniform(0.01, 2))
                continue
            action.take(answer)
            self.memory.answers += 1
            self.done.append((action, answer))
            self.pending = None
            if source.random() < 0.2:
                await self._repeat(engine)

    async def _repeat(self, engine: Engine) -> None:
        """A call that was answered before, by this server or an earlier one, has the same answer."""
        action, answer = self.source.choice(self.done[-20:])
        try:
            again = await action.call(engine, action.key)
        except Refusal as refusal:
            assert refusal.code is Code.UNAVAILABLE, f"{refusal.reason}: {refusal}"
            return
        assert again == answer, f"{action.key.request_id} was answered with {answer}, and now with {again}"
        self.memory.repeated += 1
        other = RequestKey(caller=action.key.caller, request_id=action.key.request_id, digest=b"other")
        try:
            await action.call(engine, other)
        except Refusal as refusal:
            assert refusal.reason == "REQUEST_ID_REUSED" or refusal.code is Code.UNAVAILABLE, refusal.reason
        else:
            raise AssertionError(f"{action.key.request_id} is answered for other content")

    async def _look(self, engine: Engine) -> None:
        """Read some jobs; what is final stays so."""
        try:
            page = await engine.list_jobs(JobFilter(owner=self.caller.path), page_size=50)
            for view in page.items:
                told = self.memory.jobs.get(view.job)
                if told is None or not view.state.is_final:
                    continue
                if told.final is None:
                    told.final = view
                assert told.final == view, f"{view.job} was {told.final}, and is {view}"
                if view.state is JobState.SUCCEEDED and told.result is None:
                    told.result = await engine.get_result(view.job, caller=self.caller)
        except Refusal as refusal:
            assert refusal.code is Code.UNAVAILABLE, f"{refusal.reason}: {refusal}"
            await asyncio.sleep(1)

    def _key(self) -> RequestKey:
        name = f"r{self.memory.number()}"
        return RequestKey(caller=self.caller.path, request_id=name, digest=name.encode())

    def _choose(self) -> Action | None:
        source, memory = self.source, self.memory
        if self.caller.operator:
            return source.choice((self._calibrate, self._reserve, self._unreserve, self._share, self._cancel))()
        mine = [name for name, (owner, _, _) in memory.sessions.items() if owner == self.caller]
        live = [name for name in mine if name not in memory.ended_sessions]
        dice = source.random()
        if dice < 0.25:
            return self._submit(source.randint(1, 4), None)
        if dice < 0.5 and live:
            return self._submit(source.randint(1, 3), source.choice(live))
        if dice < 0.6:
            return self._open()
        if dice < 0.66 and live:
            return self._close(source.choice(live))
        if dice < 0.74:
            return self._cancel()
        if dice < 0.8:
            return self._prioritise()
        return None

    # --- what they ask for ------------------------------------------------------------------------------------------
    def _submit(self, count: int, session: str | None) -> Action:
        source, memory = self.source, self.memory
        device = source.choice(memory.devices) if session is None else memory.sessions[session][1]
        jobs, contents, outcomes = [], [], []
        for _ in range(count):
            outcome = source.choices(
                (RunOutcome.SUCCEEDED, RunOutcome.EXECUTION_ERROR, RunOutcome.WORKER_LOST), (20, 2, 1)
            )[0]
            names_it = session is not None and memory.sessions[session][2] and source.random() < 0.5
            jobs.append(
                SubmitJob(
                    job=f"named-{memory.number()}" if source.random() < 0.3 else "",
                    caller=self.caller,
                    job_class=JobClass.FAIR_SHARE if session is None else JobClass.SESSION,
                    device=device,
                    session=session,
                    priority=0,
                    estimate=source.choice((None, source.randrange(1, 8 * SECOND))),
                    limit=source.choice((None, None, source.randrange(1, 10 * SECOND))),
                )
            )
            length = int(source.expovariate(1 / 2) * SECOND) + 1
            contents.append(_content(f"{length} {outcome} {memory.number()}", session, names_it=names_it))
            outcomes.append(outcome)

        async def call(engine: Engine, key: RequestKey) -> tuple[JobView, ...]:
            return await engine.submit(jobs, contents, key)

        def take(views: tuple[JobView, ...]) -> None:
            assert len(views) == count
            for view, job, outcome in zip(views, jobs, outcomes, strict=True):
                assert job.job in ("", view.job)
                told = Told(view.job, view.seq, view.user, view.device, view.session, outcome, view.priority)
                assert memory.jobs.setdefault(view.job, told) is told
            if session is not None:
                owner, where, _ = memory.sessions[session]
                memory.sessions[session] = (owner, where, True)
            if source.random() < 0.3:
                memory.watches.append(Watching(views[0].job, None))

        return Action(self._key(), call, take)

    def _execute(
        self, command: Command, take: Callable[[Any], None], refused: Callable[[], None] = lambda: None
    ) -> Action:
        async def call(engine: Engine, key: RequestKey) -> Any:
            return await engine.execute(command, request=key)

        return Action(self._key(), call, take, refused)

    def _open(self) -> Action:
        source, memory = self.source, self.memory
        name, device = f"s{memory.number()}", source.choice(memory.devices)
        command = CreateSession(
            session=name,
            caller=self.caller,
            device=device,
            mode=source.choice(list(SessionMode)),
            max_time=source.choice((None, source.randrange(1, 60 * SECOND))),
            interactive_ttl=source.choice((None, source.randrange(1, 10 * SECOND))),
            reservation=source.choice(memory.reservations) if memory.reservations and source.random() < 0.2 else None,
        )

        def take(_: Any) -> None:
            memory.sessions[name] = (self.caller, device, False)
            if source.random() < 0.5:
                memory.watches.append(Watching(None, name))

        return self._execute(command, take)

    def _close(self, name: str) -> Action:
        command: Command = CancelSession(session=name, caller=self.caller)
        if self.source.random() < 0.6:
            pending = self.source.choice((None, *Pending))
            command = CloseSession(session=name, caller=self.caller, pending=pending)
        return self._execute(command, lambda _: self.memory.ended_sessions.add(name))

    def _cancel(self) -> Action | None:
        mine = [job for job, told in self.memory.jobs.items() if told.user == self.caller.path or self.caller.operator]
        if not mine:
            return None
        told = self.memory.jobs[self.source.choice(mine[-10:])]

        def take(_: Any) -> None:
            told.is_cancelled = True

        return self._execute(CancelJob(job=told.job, caller=self.caller), take)

    def _prioritise(self) -> Action | None:
        mine = [job for job, told in self.memory.jobs.items() if told.user == self.caller.path]
        if not mine:
            return None
        told, priority = self.memory.jobs[self.source.choice(mine[-10:])], self.source.randint(-3, 3)
        before, told.priority = told.priority, None

        def take(_: Any) -> None:
            told.priority = priority

        def refused() -> None:
            told.priority = before

        return self._execute(SetPriority(job=told.job, caller=self.caller, priority=priority), take, refused)

    def _calibrate(self) -> Action:
        device, memory = self.source.choice(self.memory.devices), self.memory
        job = SubmitJob(job="", caller=self.caller, device=device, job_class=JobClass.CALIBRATION)
        program = program_pb2.Program(calibration=program_pb2.CalibrationJob()).SerializeToString()
        content = JobContent(program=program, program_kind=ProgramKind.CALIBRATION, min_duration_ns=2 * SECOND)

        async def call(engine: Engine, key: RequestKey) -> tuple[JobView, ...]:
            return await engine.submit([job], [content], key)

        def take(views: tuple[JobView, ...]) -> None:
            (view,) = views
            told = Told(view.job, view.seq, view.user, device, None, RunOutcome.SUCCEEDED)
            assert memory.jobs.setdefault(view.job, told) is told

        return Action(self._key(), call, take)

    def _reserve(self) -> Action:
        source, memory = self.source, self.memory
        name, ahead = f"w{memory.number()}", source.randrange(1, 60 * SECOND)
        device, holder = source.choice(memory.devices), source.choice(("lab", "solo", "lab/deep", "lab/alice"))
        length = source.randrange(1, 30 * SECOND)

        async def call(engine: Engine, key: RequestKey) -> Any:
            start = engine.now() + ahead
            command = CreateReservation(
                reservation=name, caller=self.caller, device=device, holder=holder, start=start, end=start + length
            )
            return await engine.execute(command, request=key)

        return Action(self._key(), call, lambda _: memory.reservations.append(name))

    def _unreserve(self) -> Action | None:
        if not self.memory.reservations:
            return None
        name = self.source.choice(self.memory.reservations)
        return self._execute(DeleteReservation(reservation=name, caller=self.caller), lambda _: None)

    def _share(self) -> Action:
        path, shares = self.source.choice(("lab", "solo", "lab/alice", "lab/deep")), float(self.source.randint(1, 5))
        command = SetShares(path=path, caller=self.caller, shares=shares)
        return self._execute(command, lambda _: self.memory.shares.__setitem__(path, shares))


async def watch(watching: Watching, engine: Engine, source: random.Random) -> None:
    """Follow it, resuming where the last server left off."""
    while not watching.is_over:
        after = watching.seen[-1][0] if watching.seen else watching.first
        try:
            if watching.job is not None:
                notices = engine.watch_job(watching.job, after=after)
            else:
                assert watching.session is not None
                notices = engine.watch_session(watching.session, after=after)
            async for notice in notices:
                _note(watching, notice)
                if source.random() < 0.05:
                    await asyncio.sleep(source.uniform(0, 5))
                    break  # the connection was cut
            else:
                watching.is_over = True
        except Refusal as refusal:
            assert refusal.reason not in UNTIMELY, f"{refusal.reason}: {refusal}"
            await asyncio.sleep(source.uniform(0.1, 2))


def _note(watching: Watching, notice: Notice) -> None:
    if watching.first is None:
        watching.first = notice.event_number
        return
    last = watching.seen[-1][0] if watching.seen else watching.first
    assert notice.event_number > last, f"event {notice.event_number} is told after {last}"
    change = notice.change
    ended = f" {change.job.state} {change.job.reason}" if isinstance(change, JobEnded) else ""
    watching.seen.append((notice.event_number, f"{type(change).__name__}{ended}"))


def told_of(notice: Notice) -> tuple[int, str]:
    """A notice as `Watching.seen` has it."""
    watching = Watching(None, None, first=0)
    _note(watching, notice)
    return watching.seen[0]


def _content(text: str, session: str | None, *, names_it: bool) -> JobContent:
    """A program with a circuit of its own, and with CIRCUIT, which is sent once a session and then named."""
    own = circuit_pb2.Circuit(openqasm3=text)
    pubs = [program_pb2.SamplerPub(circuit=own)]
    new = {hashlib.sha256(text.encode()).digest(): own.SerializeToString()}
    digests: frozenset[bytes] = frozenset()
    if session is not None:
        digest = hashlib.sha256(CIRCUIT.encode()).digest()
        if names_it:
            digests = frozenset({digest})
            pubs.append(program_pb2.SamplerPub(circuit=circuit_pb2.Circuit(digest=digest)))
        else:
            shared = circuit_pb2.Circuit(openqasm2=CIRCUIT)
            pubs.append(program_pb2.SamplerPub(circuit=shared))
            new[digest] = shared.SerializeToString()
    program = program_pb2.Program(sampler=program_pb2.SamplerJob(pubs=pubs)).SerializeToString()
    return JobContent(program=program, program_kind=ProgramKind.SAMPLER, new_circuits=new, digests=digests)


CIRCUIT: Final = "the circuit that a session sends once"

"""Those who use the simulated server: each call carries a request_id, is repeated until it is answered (also by the
next server), and what was answered is remembered and never allowed to become untrue."""

import asyncio
import hashlib
import random

# ruff: noqa: PT017  (a refusal is an answer that is looked at, not what a test waits for)
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from cadenza.v1 import (
    circuit_pb2,
    job_pb2,
    job_service_pb2,
    program_pb2,
    reservation_service_pb2,
    session_service_pb2,
    share_service_pb2,
)
from cadenza_server.api.conversion import PENDING, SESSION_MODES, to_timestamp
from cadenza_server.engine import Engine, JobEnded, JobFilter, Notice
from cadenza_server.model.commands import Caller
from cadenza_server.model.errors import Code, Refusal
from cadenza_server.model.settings import SECOND
from cadenza_server.model.words import JobState, RunOutcome
from cadenza_server.store.views import JobView
from google.protobuf import duration_pb2
from google.protobuf.message import Message

from tests.crash.network import Network, Request, UnansweredError, other_content

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
    length_ns: int = 0
    """How long it runs then."""
    priority: int | None = None
    """None: it cannot be told, as somebody changes it, or tried to (a request that was refused may arrive again)."""
    changes: int = 0
    """Of the priority, that were asked for."""
    changing: int = 0
    """Of them, those that may still take effect."""
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
    seqs: set[int] = field(default_factory=set)
    refusals: dict[str, int] = field(default_factory=dict)
    answers: int = 0
    repeated: int = 0

    def number(self) -> int:
        """A new one."""
        self.numbers += 1
        return self.numbers


@dataclass(slots=True)
class Action:
    """One call: it is repeated, byte by byte the same, until there is an answer."""

    request: Request
    take: Callable[[Any], None]
    """What to do with the essence of the answer."""


@dataclass(slots=True)
class Customer:
    """One caller. `pending` is what has no answer yet; `done` are calls that were answered, to be repeated at times."""

    memory: Memory
    caller: Caller
    source: random.Random
    pending: Action | None = None
    done: list[Action] = field(default_factory=list)

    async def live(self, network: Network) -> None:
        """Call again and again, until the server dies."""
        source = self.source
        while True:
            if self.pending is None:
                await asyncio.sleep(source.uniform(0, 2))
                self.pending = self._choose(network.skin.engine.now())
            if self.pending is None:
                await self._look(network)
                continue
            action = self.pending
            if not await self.ask(network):
                await asyncio.sleep(source.uniform(0.01, 2))
            elif source.random() < 0.2:
                await self._repeat(network, source.choice([*self.done[-20:], action]))

    async def ask(self, network: Network) -> bool:
        """Make the pending call; whether it has its answer."""
        action = self.pending
        assert action is not None
        try:
            data = await network.call(action.request)
        except UnansweredError:
            return False
        except Refusal as refusal:
            assert refusal.reason not in UNTIMELY, f"{refusal.reason}: {refusal}"
            if refusal.code is Code.UNAVAILABLE:
                return False
            self.memory.refusals[refusal.reason] = self.memory.refusals.get(refusal.reason, 0) + 1
        else:
            action.take(action.request.essence(data))
            self.memory.answers += 1
            self.done.append(action)
        self.pending = None
        return True

    async def _repeat(self, network: Network, action: Action) -> None:
        """A call that was answered before, by this server or an earlier one, has the same answer (the network compares
        them), and no other call has its request_id."""
        if action not in self.done:
            return  # it was refused
        try:
            await network.call(action.request)
            self.memory.repeated += 1
            await network.skin.answer(other_content(action.request))
        except UnansweredError:
            return
        except Refusal as refusal:
            assert refusal.reason == "REQUEST_ID_REUSED" or refusal.code is Code.UNAVAILABLE, refusal.reason
        else:
            raise AssertionError(f"{action.request.request_id} is answered for other content")

    async def _look(self, network: Network) -> None:
        """Read some jobs; what is final stays so."""
        engine = network.skin.engine
        try:
            page = await network.fetch(lambda: engine.list_jobs(JobFilter(owner=self.caller.path), page_size=50))
            for view in page.items:
                told = self.memory.jobs.get(view.job)
                if told is None or not view.state.is_final:
                    continue
                if told.final is None:
                    told.final = view
                assert told.final == view, f"{view.job} was {told.final}, and is {view}"
                if view.state is JobState.SUCCEEDED and told.result is None:
                    told.result = await network.fetch(partial(engine.get_result, view.job, caller=self.caller))
        except UnansweredError:
            return
        except Refusal as refusal:
            assert refusal.code is Code.UNAVAILABLE, f"{refusal.reason}: {refusal}"
            await asyncio.sleep(1)

    def _action(
        self,
        method: str,
        request: Any,
        response: type[Message],
        essence: Callable[[Any], Any],
        take: Callable[[Any], None],
    ) -> Action:
        """`essence`: of an answer, what is the same in each."""
        request.request_id = f"r{self.memory.number()}"

        def read(data: bytes) -> Any:
            return essence(response.FromString(data))

        data = request.SerializeToString()
        return Action(Request(self.caller.path, method, request.request_id, data, read), take)

    def _choose(self, now: int) -> Action | None:
        source, memory = self.source, self.memory
        if self.caller.operator:
            reserve = partial(self._reserve, now)
            return source.choice((self._calibrate, reserve, self._unreserve, self._share, self._cancel))()
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
        specs, outcomes, lengths = [], [], []
        for _ in range(count):
            outcome = source.choices(
                (RunOutcome.SUCCEEDED, RunOutcome.EXECUTION_ERROR, RunOutcome.WORKER_LOST), (20, 2, 1)
            )[0]
            names_it = session is not None and memory.sessions[session][2] and source.random() < 0.5
            length = int(source.expovariate(1 / 2) * SECOND) + 1
            spec = job_pb2.JobSpec(
                job_id=f"named-{memory.number()}" if source.random() < 0.3 else "",
                device="" if session is not None else device,
                session_id=session or "",
                program=_program(f"{length} {outcome} {memory.number()}", session, names_it=names_it),
            )
            if source.random() < 0.5:
                spec.estimate_hint.FromNanoseconds(source.randrange(1, 8 * SECOND))
            if source.random() < 0.3:
                spec.max_execution_time.FromNanoseconds(source.randrange(1, 10 * SECOND))
            specs.append(spec)
            outcomes.append(outcome)
            lengths.append(length)

        def take(accepted: tuple[tuple[str, int], ...]) -> None:
            assert len(accepted) == count
            for (job, seq), spec, outcome, length in zip(accepted, specs, outcomes, lengths, strict=True):
                assert spec.job_id in ("", job)
                self._remember(Told(job, seq, self.caller.path, device, session, outcome, length, 0))
            if session is not None:
                owner, where, _ = memory.sessions[session]
                memory.sessions[session] = (owner, where, True)
            if source.random() < 0.3:
                memory.watches.append(Watching(accepted[0][0], None))

        if count > 1:
            return self._action(
                "SubmitJobs",
                job_service_pb2.SubmitJobsRequest(jobs=specs),
                job_service_pb2.SubmitJobsResponse,
                lambda answer: tuple((job.job_id, job.seq) for job in answer.jobs),
                take,
            )
        return self._submit_one(specs[0], lambda accepted: take((accepted,)))

    def _submit_one(self, spec: job_pb2.JobSpec, take: Callable[[tuple[str, int]], None]) -> Action:
        def check(data: bytes) -> None:
            job = job_pb2.Job.FromString(data)
            assert job.state == job_pb2.JOB_STATE_QUEUED
            take((job.job_id, job.seq))

        # the whole job as it was accepted: nothing of it is another one when it is told again
        request, response = job_service_pb2.SubmitJobRequest(job=spec), job_service_pb2.SubmitJobResponse
        return self._action(
            "SubmitJob", request, response, lambda answer: answer.job.SerializeToString(deterministic=True), check
        )

    def _remember(self, told: Told) -> None:
        assert self.memory.jobs.setdefault(told.job, told) is told
        assert told.seq not in self.memory.seqs, f"{told.job} has the number of another job, {told.seq}"
        self.memory.seqs.add(told.seq)

    def _open(self) -> Action:
        source, memory = self.source, self.memory
        name, device = f"s{memory.number()}", source.choice(memory.devices)
        bound = memory.reservations and source.random() < 0.2
        request = session_service_pb2.CreateSessionRequest(
            session_id=name,
            device=device,
            mode=source.choice(list(SESSION_MODES.values())),
            reservation_id=source.choice(memory.reservations) if bound else "",
        )
        if source.random() < 0.5:
            request.max_time.FromNanoseconds(source.randrange(1, 60 * SECOND))
        if source.random() < 0.5:
            request.interactive_ttl.FromNanoseconds(source.randrange(1, 10 * SECOND))

        def take(_: Any) -> None:
            memory.sessions[name] = (self.caller, device, False)
            if source.random() < 0.5:
                memory.watches.append(Watching(None, name))

        return self._action("CreateSession", request, session_service_pb2.CreateSessionResponse, _session_essence, take)

    def _close(self, name: str) -> Action:
        def take(_: Any) -> None:
            self.memory.ended_sessions.add(name)

        if self.source.random() < 0.6:
            pending = self.source.choice(sorted(PENDING.values()))
            close = session_service_pb2.CloseSessionRequest(session_id=name, pending=pending)
            return self._action("CloseSession", close, session_service_pb2.CloseSessionResponse, _session_essence, take)
        cancel = session_service_pb2.CancelSessionRequest(session_id=name)
        return self._action("CancelSession", cancel, session_service_pb2.CancelSessionResponse, _session_essence, take)

    def _cancel(self) -> Action | None:
        mine = [job for job, told in self.memory.jobs.items() if told.user == self.caller.path or self.caller.operator]
        if not mine:
            return None
        told = self.memory.jobs[self.source.choice(mine[-10:])]

        def take(_: Any) -> None:
            told.is_cancelled = True

        request, response = job_service_pb2.CancelJobRequest(job_id=told.job), job_service_pb2.CancelJobResponse
        return self._action("CancelJob", request, response, _job_essence, take)

    def _prioritise(self) -> Action | None:
        mine = [job for job, told in self.memory.jobs.items() if told.user == self.caller.path]
        if not mine:
            return None
        told, priority = self.memory.jobs[self.source.choice(mine[-10:])], self.source.randint(-3, 3)
        told.priority = None
        # Of two that are under way at once either may be the later one, whichever was asked for or answered first.
        alone = told.changing == 0
        told.changes += 1
        told.changing += 1
        change = told.changes

        def take(_: Any) -> None:
            told.changing -= 1
            if alone and told.changes == change:
                told.priority = priority

        request = job_service_pb2.UpdateJobPriorityRequest(job_id=told.job, priority=priority)
        response = job_service_pb2.UpdateJobPriorityResponse
        return self._action("UpdateJobPriority", request, response, _job_essence, take)

    def _calibrate(self) -> Action:
        device = self.source.choice(self.memory.devices)
        program = program_pb2.Program(calibration=program_pb2.CalibrationJob(duration=duration_pb2.Duration(seconds=2)))

        def take(accepted: tuple[str, int]) -> None:
            job, seq = accepted
            self._remember(Told(job, seq, self.caller.path, device, None, RunOutcome.SUCCEEDED, 2 * SECOND))

        return self._submit_one(job_pb2.JobSpec(device=device, program=program), take)

    def _reserve(self, now: int) -> Action:
        source, memory = self.source, self.memory
        name, start = f"w{memory.number()}", now + source.randrange(1, 60 * SECOND)
        request = reservation_service_pb2.CreateReservationRequest(
            reservation_id=name,
            device=source.choice(memory.devices),
            holder=source.choice(("lab", "solo", "lab/deep", "lab/alice")),
            start_time=to_timestamp(start),
            end_time=to_timestamp(start + source.randrange(1, 30 * SECOND)),
        )
        response = reservation_service_pb2.CreateReservationResponse
        return self._action(
            "CreateReservation", request, response, _reservation_essence, lambda _: memory.reservations.append(name)
        )

    def _unreserve(self) -> Action | None:
        if not self.memory.reservations:
            return None
        request = reservation_service_pb2.DeleteReservationRequest(
            reservation_id=self.source.choice(self.memory.reservations)
        )
        response = reservation_service_pb2.DeleteReservationResponse
        return self._action("DeleteReservation", request, response, _reservation_essence, lambda _: None)

    def _share(self) -> Action:
        path, shares = self.source.choice(("lab", "solo", "lab/alice", "lab/deep")), float(self.source.randint(1, 5))
        request = share_service_pb2.SetSharesRequest()
        request.settings.add(path=path, shares=shares)
        return self._action(
            "SetShares",
            request,
            share_service_pb2.SetSharesResponse,
            lambda answer: tuple(node.path for node in answer.nodes),
            lambda _: self.memory.shares.__setitem__(path, shares),
        )


def _session_essence(answer: Any) -> object:
    session = answer.session
    return session.session_id, session.user, session.device, session.mode, session.create_time.ToNanoseconds()


def _job_essence(answer: Any) -> object:
    return answer.job.job_id, answer.job.seq, answer.job.user, answer.job.create_time.ToNanoseconds()


def _reservation_essence(answer: Any) -> object:
    window = answer.reservation
    return window.reservation_id, window.device, window.holder, window.start_time.ToNanoseconds()


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
                if source.random() < 0.02:
                    break  # the connection was cut, and this is lost on the way
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


def _program(text: str, session: str | None, *, names_it: bool) -> program_pb2.Program:
    """One with a circuit of its own, and with CIRCUIT, which is sent once a session and then named."""
    pubs = [program_pb2.SamplerPub(circuit=circuit_pb2.Circuit(openqasm3=f"{VERSION} {text}"))]
    if session is not None:
        digest = hashlib.sha256(CIRCUIT.encode()).digest()
        shared = circuit_pb2.Circuit(digest=digest) if names_it else circuit_pb2.Circuit(openqasm2=CIRCUIT)
        pubs.append(program_pb2.SamplerPub(circuit=shared))
    return program_pb2.Program(sampler=program_pb2.SamplerJob(pubs=pubs))


VERSION: Final = "OPENQASM 3.0;"
CIRCUIT: Final = "OPENQASM 2.0; the circuit that a session sends once"

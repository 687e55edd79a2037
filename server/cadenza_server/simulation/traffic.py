"""What a workload asks of the scheduler, as it goes: arrivals, and clients that answer to what they get.

All luck of an arrival, and of everything that will follow from it, is drawn when it arrives: so how much work comes,
and which, is the same under every policy. Each generator has streams of its own, one for each thing that it draws,
from the seed of the file and its name: adding, changing or removing one does not change the others.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from heapq import heappop, heappush
from itertools import accumulate
from random import Random
from typing import Final

from cadenza_server.model.commands import Caller, CloseSession, CreateSession, SubmitJob
from cadenza_server.model.events import JobEnded, SessionChanged
from cadenza_server.model.words import JobClass, JobState, Pending, SessionMode, SessionState
from cadenza_server.simulation.distributions import MILLISECOND, draw_count, draw_length, normal_quantile
from cadenza_server.simulation.listening import Handlers
from cadenza_server.simulation.step import Behaviour, Step
from cadenza_server.simulation.workload import Generator, Group, Kind, Process, Workload

OPERATOR: Final = Caller("operator", operator=True)
ATTEMPTS_MAX: Final = 16
"""So many runs of one job in a row can lose their worker at most."""

_Uniform = Callable[[], float]
_Act = Callable[[int, list[Step]], None]


class Traffic:
    """The commands of a workload, by time; at one time those of the generator that the file names first."""

    def __init__(self, workload: Workload) -> None:
        self._agenda: Final[list[tuple[int, int, int, _Act]]] = []
        self._clients: Final[dict[str, _Client]] = {}
        for rank, generator in enumerate(workload.generators):
            _Flow(generator, rank, workload.seed, self._agenda, self._clients)

    def handlers(self) -> Handlers:
        """Clients hear of their results and of the end of their sessions."""
        return {JobEnded: self._job_ended, SessionChanged: self._session_changed}

    def next_at(self) -> int | None:
        """When the next command comes, as far as is known now."""
        return self._agenda[0][0] if self._agenda else None

    def take(self, now: int) -> Sequence[Step]:
        """Return the commands that come at `now`."""
        agenda = self._agenda
        steps: list[Step] = []
        while agenda and agenda[0][0] == now:
            heappop(agenda)[3](now, steps)
        return steps

    def _job_ended(self, event: JobEnded, now: int) -> None:
        if event.session is not None and (client := self._clients.get(event.session)) is not None:
            client.result(now, event.state is JobState.SUCCEEDED)

    def _session_changed(self, event: SessionChanged, _: int) -> None:
        if event.state is SessionState.CLOSED:
            self._clients.pop(event.session, None)


class _Flow:
    """One generator at work: it has the next arrival on the agenda, and puts there what follows from each."""

    def __init__(
        self,
        generator: Generator,
        rank: int,
        seed: int,
        agenda: list[tuple[int, int, int, _Act]],
        clients: "dict[str, _Client]",
    ) -> None:
        self._generator: Final = generator
        self._rank: Final = rank
        self._seed: Final = seed
        self._agenda: Final = agenda
        self._clients: Final = clients
        self._entries = 0
        self._count = 0
        self._arrivals: Final = self._arrive()
        self._draw_user: Final = _chooser(generator.group, self._stream("user"))
        self._draw_device: Final = self._stream("device")
        self._draw_jobs: Final = self._stream("jobs")
        self._draw_think: Final = self._stream("think")
        self._draw_run: Final = self._stream("run")
        self._draw_estimate: Final = self._stream("estimate")
        self._draw_fails: Final = self._stream("fails")
        self._draw_lost: Final = self._stream("worker_lost")
        acts = {Kind.JOBS: self._job, Kind.SESSIONS: self._session, Kind.BATCHES: self._batch}
        self._make: Final = acts.get(generator.kind, self._job)
        self._next_user = OPERATOR
        self._next_device = ""
        self._schedule()

    def put(self, at: int, act: _Act) -> None:
        """Have `act` called at an instant."""
        self._entries += 1
        heappush(self._agenda, (at, self._rank, self._entries, act))

    def _stream(self, what: str) -> _Uniform:
        # Text seeds it through SHA-512, so the seed of hashes does not matter.
        return Random(f"{self._seed}/{self._generator.name}/{what}").random

    # --- arrivals -----------------------------------------------------------------------------------------------

    def _schedule(self) -> None:
        arrival = next(self._arrivals, None)
        if arrival is not None:
            at, self._next_user, self._next_device = arrival
            self.put(at, self._calibrate if self._generator.kind is Kind.CALIBRATIONS else self._arrived)

    def _arrived(self, now: int, steps: list[Step]) -> None:
        self._count += 1
        self._make(now, steps, self._next_user, self._next_device)
        self._schedule()

    def _arrive(self) -> Iterator[tuple[int, Caller, str]]:
        """Yield instants, users and devices, by time. A burst comes from one user for one device."""
        generator = self._generator
        gap = self._stream("arrivals")
        every, end = generator.every, generator.end
        devices = generator.devices
        at = generator.start / 1e9
        if generator.process is Process.REGULAR:
            number = 0
            while (now := generator.start + round(every * 1e3 * number) * MILLISECOND) < end:
                yield now, self._draw_user(), devices[int(self._draw_device() * len(devices))]
                number += 1
        elif generator.process is Process.POISSON:
            while True:
                at -= every * math.log1p(-gap())
                now = round(at * 1e3) * MILLISECOND
                if now >= end:
                    return
                yield now, self._draw_user(), devices[int(self._draw_device() * len(devices))]
        else:
            yield from self._arrive_in_bursts(gap, at)

    def _arrive_in_bursts(self, gap: _Uniform, at: float) -> Iterator[tuple[int, Caller, str]]:
        generator = self._generator
        size, spread = self._stream("size"), self._stream("spread")
        waiting: list[tuple[int, int, Caller, str]] = []
        number = 0
        now = 0
        while now < generator.end:
            at -= generator.every * math.log1p(-gap())
            now = round(at * 1e3) * MILLISECOND
            while waiting and waiting[0][0] <= now:
                arrival = heappop(waiting)
                if arrival[0] >= generator.end:
                    return
                yield arrival[0], arrival[2], arrival[3]
            user = self._draw_user()
            device = generator.devices[int(self._draw_device() * len(generator.devices))]
            for _ in range(draw_count(generator.size, size())):
                number += 1
                heappush(waiting, (now + draw_length(generator.spread, spread()), number, user, device))

    # --- what arrives -------------------------------------------------------------------------------------------

    def _behave(self) -> tuple[Behaviour, int | None]:
        """Return how the runs of the next job will go, and its estimate."""
        generator = self._generator
        run = draw_length(generator.run, self._draw_run()) or MILLISECOND
        behaviour = Behaviour(run)
        if generator.fails:
            behaviour.fails = self._draw_fails() < generator.fails
        if generator.worker_lost:
            lost: list[int] = []
            while len(lost) < ATTEMPTS_MAX and self._draw_lost() < generator.worker_lost:
                lost.append(max(1, round(self._draw_lost() * (run // MILLISECOND))) * MILLISECOND)
            behaviour.worker_lost = tuple(lost)
        error = generator.estimate_error
        if error is None:
            return behaviour, None
        if not error:
            return behaviour, run
        factor = math.exp(error * normal_quantile(self._draw_estimate() or 0.5))
        return behaviour, max(1, round(min(run * factor, 1e18) / MILLISECOND)) * MILLISECOND

    def _job(self, now: int, steps: list[Step], user: Caller, device: str) -> None:
        generator = self._generator
        name = f"{generator.name}.{self._count}"
        behaviour, estimate = self._behave()
        command = SubmitJob(
            job=name,
            caller=user,
            device=device,
            priority=generator.priority,
            estimate=estimate,
            limit=generator.limit,
        )
        steps.append(Step(now, name, command, behaviour))

    def _calibrate(self, now: int, steps: list[Step]) -> None:
        for device in self._generator.devices:
            self._count += 1
            name = f"{self._generator.name}.{self._count}"
            behaviour, _ = self._behave()
            command = SubmitJob(job=name, caller=OPERATOR, job_class=JobClass.CALIBRATION, device=device)
            steps.append(Step(now, name, command, behaviour))
        self._schedule()

    def _open(self, now: int, steps: list[Step], user: Caller, device: str, mode: SessionMode) -> str:
        generator = self._generator
        name = f"{generator.name}.{self._count}"
        command = CreateSession(
            session=name,
            caller=user,
            device=device,
            mode=mode,
            max_time=generator.max_time,
            interactive_ttl=generator.interactive_ttl,
        )
        steps.append(Step(now, name, command))
        return name

    def _session(self, now: int, steps: list[Step], user: Caller, device: str) -> None:
        generator = self._generator
        name = self._open(now, steps, user, device, SessionMode.DEDICATED)
        plan = [
            (*self._behave(), draw_length(generator.think, self._draw_think()))
            for _ in range(draw_count(generator.jobs, self._draw_jobs()))
        ]
        client = self._clients[name] = _Client(self, self._clients, name, user, plan, generator.limit)
        client.submit(now, steps)

    def _batch(self, now: int, steps: list[Step], user: Caller, device: str) -> None:
        generator = self._generator
        session = self._open(now, steps, user, device, SessionMode.BATCH)
        for i in range(draw_count(generator.jobs, self._draw_jobs())):
            behaviour, estimate = self._behave()
            steps.append(_session_job(now, f"{session}.{i + 1}", session, user, behaviour, estimate, generator.limit))
        steps.append(Step(now, session, CloseSession(session=session, caller=user, pending=Pending.DRAIN)))


class _Client:
    """Who iterates in a session: one job, its result, a thought, the next job, and a close at the end.

    A client whose job does not succeed closes at once, and one whose session closes goes away. `plan`: the jobs to
    come, in order, with the nanoseconds of thinking after each.
    """

    __slots__ = ("_clients", "_flow", "_limit", "_name", "_plan", "_position", "_user")

    def __init__(
        self,
        flow: _Flow,
        clients: "dict[str, _Client]",
        name: str,
        user: Caller,
        plan: Sequence[tuple[Behaviour, int | None, int]],
        limit: int | None,
    ) -> None:
        self._flow: Final = flow
        self._clients: Final = clients
        self._name: Final = name
        self._user: Final = user
        self._plan: Final = plan
        self._limit: Final = limit
        self._position = 0

    def submit(self, now: int, steps: list[Step]) -> None:
        """Submit the next job."""
        if self._clients.get(self._name) is not self:
            return
        behaviour, estimate, _ = self._plan[self._position]
        self._position += 1
        job = f"{self._name}.{self._position}"
        steps.append(_session_job(now, job, self._name, self._user, behaviour, estimate, self._limit))

    def result(self, now: int, succeeded: bool) -> None:
        """Get a result: think about it, then go on."""
        if succeeded and self._position < len(self._plan):
            self._flow.put(now + self._plan[self._position - 1][2], self.submit)
        else:
            self._flow.put(now, self._close)

    def _close(self, now: int, steps: list[Step]) -> None:
        if self._clients.get(self._name) is self:
            steps.append(Step(now, self._name, CloseSession(session=self._name, caller=self._user)))


def _session_job(
    now: int,
    name: str,
    session: str,
    user: Caller,
    behaviour: Behaviour,
    estimate: int | None,
    limit: int | None,
) -> Step:
    command = SubmitJob(
        job=name, caller=user, job_class=JobClass.SESSION, session=session, estimate=estimate, limit=limit
    )
    return Step(now, name, command, behaviour)


def _chooser(group: Group | None, uniform: _Uniform) -> Callable[[], Caller]:
    """Return a function that draws a user."""
    if group is None:
        return lambda: OPERATOR
    callers = [Caller(user) for user in group.users]
    count = len(callers)
    if not group.skew:
        return lambda: callers[int(uniform() * count)]
    sums = list(accumulate((i + 1) ** -group.skew for i in range(count)))
    return lambda: callers[min(bisect_right(sums, uniform() * sums[-1]), count - 1)]

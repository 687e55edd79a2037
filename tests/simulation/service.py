"""A random service and its workers on a virtual clock: commands go into the scheduler, what comes out is recorded.

What is asked is fixed before the clock starts, by the seed alone. So a recording is commands and outcomes by instants,
and the same commands can be given to another scheduler.
"""

import heapq
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from cadenza_server.model.commands import (
    Caller,
    CancelJob,
    CancelSession,
    CloseSession,
    Command,
    CreateReservation,
    CreateSession,
    DeleteReservation,
    RunEnded,
    SetPriority,
    SetShares,
    SubmitJob,
)
from cadenza_server.model.events import Event, RunFinished, RunStarted
from cadenza_server.model.settings import RUNTIME_2023, RUNTIME_2024, SECOND, DeviceSettings
from cadenza_server.model.words import JobClass, Pending, RunOutcome, SessionMode
from cadenza_server.scheduling import Scheduler

from _fastqueue import Queue

OPERATOR: Final = Caller("operator", operator=True)


@dataclass(frozen=True)
class Behaviour:
    """How a job's runs go: nanoseconds until it is done, and after how many its first attempts lose their workers."""

    length: int
    losses: tuple[int, ...] = ()
    fails: bool = False


@dataclass(frozen=True)
class Service:
    """Devices, and all that is asked of them: (when, command), by time."""

    devices: Mapping[str, DeviceSettings]
    shares: Mapping[str, float]
    half_life: int
    asked: Sequence[tuple[int, Command]]
    behaviours: Mapping[str, Behaviour]
    until: int

    def scheduler(self, queue: Callable[[int], Queue] = Queue) -> Scheduler:
        """Make a scheduler for it."""
        return Scheduler(self.devices, shares=self.shares, half_life=self.half_life, remember_final=True, _queue=queue)


@dataclass(frozen=True)
class Instant:
    """One call of the scheduler."""

    now: int
    commands: list[Command]
    events: list[Event]


@dataclass
class Workers:
    """They end runs: when they are done, at their limit, or by their loss."""

    devices: Mapping[str, DeviceSettings]
    behaviours: Mapping[str, Behaviour]
    ends: list[tuple[int, str, str, int, RunOutcome]] = field(default_factory=list)
    running: dict[str, tuple[str, int]] = field(default_factory=dict)

    def next_end(self) -> int | None:
        """When the next run ends."""
        while self.ends and self.running.get(self.ends[0][1]) != self.ends[0][2:4]:
            heapq.heappop(self.ends)
        return self.ends[0][0] if self.ends else None

    def take_ends(self, now: int) -> list[Command]:
        """Report the runs that end now."""
        reports: list[Command] = []
        while (end := self.next_end()) is not None and end <= now:
            _, device, job, attempt, outcome = heapq.heappop(self.ends)
            reports.append(RunEnded(device=device, job=job, attempt=attempt, outcome=outcome))
        return reports

    def see(self, events: Sequence[Event], now: int) -> None:
        """Take runs up, and let go of those that are stopped."""
        for event in events:
            if isinstance(event, RunStarted):
                length, outcome = self.fate(event)
                self.running[event.device] = (event.job, event.attempt)
                heapq.heappush(self.ends, (now + length, event.device, event.job, event.attempt, outcome))
            elif isinstance(event, RunFinished):
                del self.running[event.device]

    def fate(self, event: RunStarted) -> tuple[int, RunOutcome]:
        """How long the run takes and how it ends."""
        how = self.behaviours.get(event.job) or Behaviour(self.devices[event.device].calibration_duration)
        length, outcome = how.length, RunOutcome.EXECUTION_ERROR if how.fails else RunOutcome.SUCCEEDED
        if length > event.limit:
            length, outcome = event.limit, RunOutcome.RAN_TOO_LONG
        if event.attempt <= len(how.losses) and how.losses[event.attempt - 1] <= length:
            length, outcome = how.losses[event.attempt - 1], RunOutcome.WORKER_LOST
        return length, outcome


@dataclass
class Play:
    """A service in time. `scheduler` may be replaced between instants by one that has to go on alike."""

    service: Service
    scheduler: Scheduler
    now: int = 0
    position: int = 0
    instants: list[Instant] = field(default_factory=list)
    workers: Workers = field(init=False)

    def __post_init__(self) -> None:
        self.workers = Workers(self.service.devices, self.service.behaviours)

    def next_instant(self) -> int | None:
        """When something happens next; None: it is over."""
        asked = self.service.asked
        times = [self.workers.next_end(), self.scheduler.next_deadline()]
        if self.position < len(asked):
            times.append(asked[self.position][0])
        now = min((time for time in times if time is not None), default=None)
        return None if now is None or now > self.service.until else max(now, self.now)

    def step(self) -> bool:
        """Handle the next instant; False: there is none."""
        now = self.next_instant()
        if now is None:
            return False
        asked = self.service.asked
        commands = self.workers.take_ends(now)
        while self.position < len(asked) and asked[self.position][0] <= now:
            commands.append(asked[self.position][1])
            self.position += 1
        self.apply(commands, now)
        return True

    def apply(self, commands: list[Command], now: int) -> list[Event]:
        """Handle one instant with these commands."""
        self.now = now
        events = self.scheduler.apply(commands, now).events
        self.workers.see(events, now)
        self.instants.append(Instant(now, commands, events))
        return events

    def run(self) -> list[Instant]:
        """Play it to its end."""
        while self.step():
            pass
        return self.instants


def play(service: Service, queue: Callable[[int], Queue] = Queue) -> Play:
    """Play a service to its end."""
    played = Play(service, service.scheduler(queue))
    played.run()
    return played


def replay(instants: Sequence[Instant], scheduler: Scheduler) -> list[list[Event]]:
    """Give recorded commands to a scheduler: the events of each instant."""
    return [scheduler.apply(instant.commands, instant.now).events for instant in instants]


# --- random services ------------------------------------------------------------------------------------------------

PATHS: Final = ("lab/a", "lab/b", "lab/deep/c", "lab/deep/d", "uni/e", "uni/f", "uni/g", "h", "i")


def random_service(
    seed: int,
    *,
    jobs: int = 150,
    devices: int = 3,
    calibration: bool = True,
    reservations: bool = True,
    half_life: int | None = None,
    pause: int = 0,
) -> Service:
    """Make a service in which everything happens: sessions, windows, calibrations, cancels, losses, other shares.

    Times are whole nanoseconds drawn at random, some of them round, so that things fall together, too. `pause`: how
    long nobody asks for anything after each quarter of it, in nanoseconds.
    """
    rng = random.Random(seed)
    span = jobs * 2 * SECOND // devices
    length_max = 6 * SECOND

    def time() -> int:
        return rng.randrange(span // SECOND + 1) * SECOND if rng.random() < 0.5 else rng.randrange(span)

    def length(longest: int = length_max) -> int:
        if rng.random() < 0.4:
            return rng.randint(1, longest // SECOND) * SECOND
        return rng.randint(longest // 50, longest)

    names = [f"q{i}" for i in range(devices)]
    settings = {
        name: replace(
            rng.choice((RUNTIME_2023, RUNTIME_2024)),
            interactive_ttl_dedicated=rng.choice((1, 3, 8, 0)) * SECOND,
            interactive_ttl_batch=rng.choice((0, 1)) * SECOND,
            max_time=rng.choice((5, 20, 60)) * SECOND,
            unused_ttl=10 * SECOND,
            session_cache_ttl=rng.choice((0, 6, 30)) * SECOND,
            limit=rng.choice((4, 5, 50)) * SECOND,
            max_attempts=2,
            calibration_interval=31 * SECOND if calibration and rng.random() < 0.5 else None,
            calibration_duration=2 * SECOND,
        )
        for name in names
    }
    asked: list[tuple[int, Command]] = []
    behaviours: dict[str, Behaviour] = {}
    sessions: list[tuple[int, str]] = []
    windows: list[tuple[int, str, str, str]] = []
    if reservations:
        for i in range(jobs // 25):
            at, start = time(), 0
            start = at + rng.randrange(20) * SECOND
            window = (at, f"r{i}", rng.choice(names), rng.choice(("lab", "lab/deep", *PATHS)))
            windows.append(window)
            reserve = CreateReservation(
                reservation=window[1],
                caller=OPERATOR,
                device=window[2],
                holder=window[3],
                start=start,
                end=start + rng.randint(2, 15) * SECOND,
            )
            asked.append((at, reserve))
            if rng.random() < 0.2:
                asked.append((at + length(), DeleteReservation(reservation=window[1], caller=OPERATOR)))
    for i in range(jobs // 8):
        at, device, user, bound = time(), rng.choice(names), rng.choice(PATHS), None
        if windows and rng.random() < 0.2:
            since, bound, device, holder = rng.choice(windows)
            at = max(at, since + 1)
            user = next((path for path in PATHS if path == holder or path.startswith(holder + "/")), user)
        sessions.append((at, f"s{i}"))
        create = CreateSession(
            session=f"s{i}",
            caller=Caller(user),
            device=device,
            mode=rng.choice(tuple(SessionMode)),
            max_time=rng.choice((None, 7 * SECOND, 30 * SECOND)),
            reservation=bound,
        )
        asked.append((at, create))
        if rng.random() < 0.3:
            pending = rng.choice((None, *Pending))
            asked.append((at + length(20 * SECOND), CloseSession(session=f"s{i}", caller=OPERATOR, pending=pending)))
        if rng.random() < 0.1:
            asked.append((at + length(20 * SECOND), CancelSession(session=f"s{i}", caller=OPERATOR)))
    submitted: list[tuple[int, str]] = []
    for i in range(jobs):
        name, run, at = f"j{i}", length(), time()
        session = None
        if sessions and rng.random() < 0.4:
            opened, session = rng.choice(sessions)
            at = opened + rng.choice((0, 0, length(15 * SECOND)))
        job = SubmitJob(
            job=name,
            caller=OPERATOR,
            user=None if session else rng.choice(PATHS),
            device=None if session else rng.choice(names),
            session=session,
            priority=rng.choice((0, 0, 0, 1, -5)),
            estimate=rng.choice((None, run, run, max(1, run // 7), 3 * run)),
            limit=rng.choice((None, None, 4 * SECOND)),
        )
        if calibration and rng.random() < 0.03:
            job = SubmitJob(job=name, caller=OPERATOR, device=rng.choice(names), job_class=JobClass.CALIBRATION)
        losses = tuple(length(run) for _ in range(rng.choice((0, 0, 0, 0, 0, 1, 2)))) if run > SECOND else ()
        behaviours[name] = Behaviour(run, losses, fails=rng.random() < 0.1)
        asked.append((at, job))
        submitted.append((at, name))
        if rng.random() < 0.08:
            asked.append((at + length(), CancelJob(job=name, caller=OPERATOR)))
        if rng.random() < 0.08:
            asked.append((at + length(), SetPriority(job=name, caller=OPERATOR, priority=rng.randint(-3, 3))))
    for _ in range(jobs // 40):
        path = rng.choice(("lab", "uni", "lab/deep", *PATHS))
        asked.append((time(), SetShares(path=path, caller=OPERATOR, shares=rng.choice((0.5, 1.0, 2.0, 3.7)))))
    asked.sort(key=lambda each: each[0])
    asked = [(at + 4 * at // span * pause, command) for at, command in asked]
    last = asked[-1][0]
    return Service(
        devices=settings,
        shares={"lab": 2.0, "lab/deep": 0.3, "uni/e": 1.5},
        half_life=half_life or rng.choice((20 * SECOND, 600 * SECOND, 7 * 86_400 * SECOND)),
        asked=asked,
        behaviours=behaviours,
        until=last + 4 * span,
    )


def service_of_equals(seed: int) -> Service:
    """Make a service in which users are charged alike again and again, so that `seq` has to decide between them.

    All jobs are as long, all are there from the start in a random order, and devices end their runs together.
    """
    rng = random.Random(seed)
    names = [f"q{i}" for i in range(rng.randint(1, 4))]
    users = [f"u{i}" for i in range(6)] + [f"lab/{i}" for i in range(4)] + [f"uni/{i}" for i in range(4)]
    jobs = [(user, device) for user in users for device in names for _ in range(3)]
    rng.shuffle(jobs)
    length = rng.choice((1, 3)) * SECOND
    asked: list[tuple[int, Command]] = [
        (0, SubmitJob(job=f"j{i}", caller=Caller(user), device=device, estimate=length))
        for i, (user, device) in enumerate(jobs)
    ]
    return Service(
        devices=dict.fromkeys(names, RUNTIME_2023),
        shares={"lab": rng.choice((1.0, 2.0)), "uni": 2.0},
        half_life=60 * SECOND,
        asked=asked,
        behaviours={f"j{i}": Behaviour(length) for i in range(len(jobs))},
        until=len(jobs) * length,
    )

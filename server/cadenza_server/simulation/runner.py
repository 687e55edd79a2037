"""A scenario through the production scheduler, on a virtual clock, with an environment that ends runs.

Law: runs end after their length, at their limit, or when their worker is lost, whichever is first; a run that would end
exactly at its limit is done, and a worker counts as lost only no later than that (README of the scenarios).
"""

from collections import defaultdict
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Final

from _fastqueue import Queue
from cadenza_server.model.commands import Command, RunEnded
from cadenza_server.model.errors import Refusal
from cadenza_server.model.events import (
    Event,
    HoldEnded,
    JobEnded,
    JobQueued,
    JobRequeued,
    RunFinished,
    RunStarted,
    SessionChanged,
    SessionCreated,
    SessionJobsEnded,
)
from cadenza_server.model.words import JobState, RunOutcome, SessionState
from cadenza_server.scheduling import Scheduler
from cadenza_server.simulation.outcome import Ran, Rejected, SessionStep, SimulationOutcome
from cadenza_server.simulation.scenario import Behaviour, Scenario

RUN_OUTCOMES: Final = {
    RunOutcome.SUCCEEDED: "SUCCEEDED",
    RunOutcome.EXECUTION_ERROR: "FAILED",
    RunOutcome.RAN_TOO_LONG: "CANCELLED",
    RunOutcome.CANCELLED: "CANCELLED",
    RunOutcome.WORKER_LOST: "WORKER_LOST",
}


def simulate(scenario: Scenario, *, _queue: Callable[[int], Queue] = Queue) -> SimulationOutcome:
    """Run a scenario to its end, or to its `until`."""
    scheduler = Scheduler(
        scenario.devices,
        shares=scenario.shares,
        half_life=scenario.half_life,
        remember_final=True,
        _queue=_queue,
    )
    environment = _Environment(scenario)
    record = _Record()
    steps = scenario.steps
    position = 0
    while True:
        times = [environment.next_end(), scheduler.next_deadline()]
        if position < len(steps):
            times.append(steps[position].at)
        now = min((time for time in times if time is not None), default=None)
        if now is None or (scenario.until is not None and now > scenario.until):
            return record.outcome
        commands: list[Command] = environment.take_ends(now)
        ends = len(commands)
        first = position
        while position < len(steps) and steps[position].at == now:
            commands.append(steps[position].command)
            position += 1
        outcome = scheduler.apply(commands, now)
        for step, answer in zip(steps[first:position], outcome.answers[ends:], strict=True):
            if isinstance(answer, Refusal):
                record.outcome.rejected.append(Rejected(now, step.name, answer.code, answer.message))
            elif step.behaviour is not None:
                environment.behaviours[step.name] = step.behaviour
        for event in outcome.events:
            record.note(event, now)
            environment.note(event, now)


class _Environment:
    """Ends runs as the scenario says. It stands for workers."""

    def __init__(self, scenario: Scenario) -> None:
        self.behaviours: Final[dict[str, Behaviour]] = {}
        self._calibrations: Final = {
            device: Behaviour(settings.calibration_duration) for device, settings in scenario.devices.items()
        }
        self._ends: Final[list[tuple[int, str, str, int, RunOutcome]]] = []
        self._running: Final[dict[str, tuple[str, int]]] = {}

    def next_end(self) -> int | None:
        """When the next run ends."""
        while self._ends:
            end, device, job, attempt, _ = self._ends[0]
            if self._running.get(device) == (job, attempt):
                return end
            heappop(self._ends)
        return None

    def take_ends(self, now: int) -> list[Command]:
        """Return the reports of the runs that end now."""
        reports: list[Command] = []
        while self.next_end() == now:
            _, device, job, attempt, outcome = heappop(self._ends)
            reports.append(RunEnded(device=device, job=job, attempt=attempt, outcome=outcome))
        return reports

    def note(self, event: Event, now: int) -> None:
        """See runs start and be stopped."""
        if type(event) is RunStarted:
            behaviour = self.behaviours.get(event.job) or self._calibrations[event.device]
            length, outcome = _fate(behaviour, event.attempt, event.limit)
            self._running[event.device] = (event.job, event.attempt)
            heappush(self._ends, (now + length, event.device, event.job, event.attempt, outcome))
        elif type(event) is RunFinished:
            del self._running[event.device]


def _fate(behaviour: Behaviour, attempt: int, limit: int) -> tuple[int, RunOutcome]:
    """Return how long a run takes, and how it ends."""
    if behaviour.run <= limit:
        length, outcome = behaviour.run, RunOutcome.EXECUTION_ERROR if behaviour.fails else RunOutcome.SUCCEEDED
    else:
        length, outcome = limit, RunOutcome.RAN_TOO_LONG
    if attempt <= len(behaviour.worker_lost) and behaviour.worker_lost[attempt - 1] <= length:
        return behaviour.worker_lost[attempt - 1], RunOutcome.WORKER_LOST
    return length, outcome


class _Record:
    """Makes the outcome from the scheduler's events."""

    def __init__(self) -> None:
        self.outcome: Final = SimulationOutcome()
        self._runs: Final[dict[str, Ran]] = {}
        self._queued: Final[defaultdict[str, dict[str, None]]] = defaultdict(dict)

    def note(self, event: Event, now: int) -> None:
        """Take an event down."""
        outcome = self.outcome
        if isinstance(event, JobQueued | JobRequeued):
            outcome.jobs[event.job] = (JobState.QUEUED, None)
            if event.session is not None:
                self._queued[event.session][event.job] = None
        elif isinstance(event, RunStarted):
            outcome.jobs[event.job] = (JobState.RUNNING, None)
            if event.session is not None:
                del self._queued[event.session][event.job]
            run = self._runs[event.device] = Ran(event.job, event.device, now, event.epoch)
            outcome.runs.append(run)
        elif isinstance(event, RunFinished):
            run = self._runs[event.device]
            run.end = now
            run.outcome = RUN_OUTCOMES[event.outcome]
            if event.charged:
                outcome.charged[event.user] = outcome.charged.get(event.user, 0) + event.charged
        elif isinstance(event, JobEnded):
            outcome.jobs[event.job] = (event.state, event.reason)
            if event.session is not None:
                self._queued[event.session].pop(event.job, None)
        elif isinstance(event, SessionJobsEnded):
            for job in self._queued.pop(event.session):
                outcome.jobs[job] = (event.state, event.reason)
        elif isinstance(event, HoldEnded):
            outcome.charged[event.user] = outcome.charged.get(event.user, 0) + event.end - event.start
        elif isinstance(event, SessionCreated):
            outcome.sessions[event.session] = [SessionStep(now, SessionState.OPEN)]
        elif isinstance(event, SessionChanged):
            outcome.sessions[event.session].append(SessionStep(now, event.state, event.reason))

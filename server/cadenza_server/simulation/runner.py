"""A scenario through the production scheduler, on a virtual clock, with an environment that ends runs.

Law: runs end after their length, at their limit, or when their worker is lost, whichever is first; a run that would end
exactly at its limit is done, and a worker counts as lost only no later than that (README of the scenarios).
"""

from collections.abc import Callable, Mapping, Sequence
from heapq import heappop, heappush
from typing import Any, Final

from _fastqueue import Queue
from cadenza_server.model.commands import Command, RunEnded
from cadenza_server.model.errors import Refusal
from cadenza_server.model.events import JobEnded, RunFinished, RunStarted
from cadenza_server.model.settings import DeviceSettings
from cadenza_server.model.words import RunOutcome
from cadenza_server.scheduling import Scheduler
from cadenza_server.simulation.listening import Handlers, Listener, Observer, Source
from cadenza_server.simulation.outcome import Rejected, SimulationOutcome
from cadenza_server.simulation.record import Record
from cadenza_server.simulation.scenario import Scenario
from cadenza_server.simulation.step import Behaviour, Step
from cadenza_server.simulation.traffic import Traffic
from cadenza_server.simulation.tree import ScenarioError

END_MAX: Final = 2**62
"""Nanoseconds, 146 years: no scenario goes on longer. The scheduler's times, estimates added, stay below 2**63."""


def simulate(
    scenario: Scenario,
    *,
    observers: Sequence[Observer] = (),
    _queue: Callable[[int], Queue] = Queue,
) -> SimulationOutcome:
    """Run a scenario to its end, or to its `until`, and return all that came of it. Raises as `run_scenario`."""
    record = Record()
    refused = run_scenario(scenario, listeners=(record,), observers=observers, _queue=_queue)
    record.outcome.rejected.extend(refused)
    return record.outcome


def run_scenario(
    scenario: Scenario,
    *,
    listeners: Sequence[Listener] = (),
    observers: Sequence[Observer] = (),
    _queue: Callable[[int], Queue] = Queue,
) -> list[Rejected]:
    """Run a scenario to its end, or to its `until`. Keeps nothing of it but the commands that were refused: who wants
    more listens. Raises `ScenarioError` if it goes on beyond `END_MAX`."""
    source: Source = Script(scenario.steps) if scenario.workload is None else Traffic(scenario.workload)
    scheduler = Scheduler(
        scenario.devices,
        shares=scenario.shares,
        half_life=scenario.half_life,
        # What a workload asks names nothing that has ended, and forgetting keeps a long one small.
        remember_final=scenario.workload is None,
        _queue=_queue,
    )
    environment = _Environment(scenario.devices)
    handlers = _gather([environment, source, *listeners, *observers])
    rejected: list[Rejected] = []
    behaviours = environment.behaviours
    until = scenario.until
    looks = [(observer.next_look(), observer) for observer in observers]
    last = 0
    while True:
        end = now = environment.next_end()
        deadline = scheduler.next_deadline()
        if deadline is not None and (now is None or deadline < now):
            now = deadline
        at = source.next_at()
        if at is not None and (now is None or at <= now):
            now = at
        if now is None or (until is not None and now > until):
            break
        if now >= END_MAX:
            raise ScenarioError(1, f"it goes on for more than {END_MAX // 10**9} seconds: give it an `until`")
        for i, (look, observer) in enumerate(looks):
            while look < now:
                observer.look(scheduler)
                look = observer.next_look()
                looks[i] = (look, observer)
        last = now
        commands: list[Command] = environment.take_ends(now) if end == now else []
        steps: Sequence[Step] = ()
        if at == now:
            ends = len(commands)
            steps = source.take(now)
            commands += [step.command for step in steps]
        outcome = scheduler.apply(commands, now)
        if steps:
            for step, answer in zip(steps, outcome.answers[ends:], strict=True):
                if isinstance(answer, Refusal):
                    rejected.append(Rejected(now, step.name, answer.code, answer.message))
                elif step.behaviour is not None:
                    behaviours[step.name] = step.behaviour
        for event in outcome.events:
            for handle in handlers.get(type(event), ()):
                handle(event, now)
    for observer in observers:
        observer.finish(scheduler, last if until is None else until)
    return rejected


def _gather(listeners: Sequence[Listener]) -> dict[type, tuple[Callable[[Any, int], None], ...]]:
    """Return, for each type of event, who handles it, in the order of the listeners."""
    gathered: dict[type, tuple[Callable[[Any, int], None], ...]] = {}
    for listener in listeners:
        for kind, handle in listener.handlers().items():
            gathered[kind] = (*gathered.get(kind, ()), handle)
    return gathered


class Script:
    """Commands that a file has written down, by time."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self._steps: Final = steps
        self._position = 0

    def handlers(self) -> Handlers:
        """It answers to nothing."""
        return {}

    def next_at(self) -> int | None:
        """When the next command comes."""
        return self._steps[self._position].at if self._position < len(self._steps) else None

    def take(self, now: int) -> Sequence[Step]:
        """Return the commands that come at `now`."""
        first = self._position
        while self.next_at() == now:
            self._position += 1
        return self._steps[first : self._position]


class _Environment:
    """Ends runs as the scenario says. It stands for workers."""

    def __init__(self, devices: Mapping[str, DeviceSettings]) -> None:
        self.behaviours: Final[dict[str, Behaviour]] = {}
        self._calibrations: Final = {
            device: Behaviour(settings.calibration_duration) for device, settings in devices.items()
        }
        self._ends: Final[list[tuple[int, str, str, int, RunOutcome]]] = []
        self._running: Final[dict[str, tuple[str, int]]] = {}

    def handlers(self) -> Handlers:
        """It sees runs start and be stopped."""
        return {RunStarted: self._run_started, RunFinished: self._run_finished, JobEnded: self._job_ended}

    def next_end(self) -> int | None:
        """When the next run ends."""
        ends = self._ends
        while ends:
            end, device, job, attempt, _ = ends[0]
            if self._running.get(device) == (job, attempt):
                return end
            heappop(ends)
        return None

    def take_ends(self, now: int) -> list[Command]:
        """Return the reports of the runs that end now."""
        reports: list[Command] = []
        while self.next_end() == now:
            _, device, job, attempt, outcome = heappop(self._ends)
            reports.append(RunEnded(device=device, job=job, attempt=attempt, outcome=outcome))
        return reports

    def _run_started(self, event: RunStarted, now: int) -> None:
        behaviour = self.behaviours.get(event.job) or self._calibrations[event.device]
        length, outcome = _fate(behaviour, event.attempt, event.limit)
        self._running[event.device] = (event.job, event.attempt)
        heappush(self._ends, (now + length, event.device, event.job, event.attempt, outcome))

    def _run_finished(self, event: RunFinished, _: int) -> None:
        del self._running[event.device]

    def _job_ended(self, event: JobEnded, _: int) -> None:
        self.behaviours.pop(event.job, None)


def _fate(behaviour: Behaviour, attempt: int, limit: int) -> tuple[int, RunOutcome]:
    """Return how long a run takes, and how it ends."""
    if behaviour.run <= limit:
        length, outcome = behaviour.run, RunOutcome.EXECUTION_ERROR if behaviour.fails else RunOutcome.SUCCEEDED
    else:
        length, outcome = limit, RunOutcome.RAN_TOO_LONG
    if attempt <= len(behaviour.worker_lost) and behaviour.worker_lost[attempt - 1] <= length:
        return behaviour.worker_lost[attempt - 1], RunOutcome.WORKER_LOST
    return length, outcome

"""What is told of the order of starts is the order in which jobs start, if nothing comes between."""

import random
from dataclasses import replace
from typing import Any

import pytest
from cadenza_server.clock import VirtualClock
from cadenza_server.engine.forecasts import STARTS_MAX, Forecasts
from cadenza_server.model.commands import Caller, Command, CreateSession, RunEnded, SubmitJob
from cadenza_server.model.events import Event, JobQueued, RunStarted
from cadenza_server.model.settings import RUNTIME_2023, RUNTIME_2024, SECOND, DeviceSettings
from cadenza_server.model.words import JobClass, RunOutcome, SessionMode
from cadenza_server.scheduling import Scheduler

from tests.simulation.seeds import run_seed

OPERATOR = Caller("root", operator=True)
SEED = run_seed()


def fill(scheduler: Scheduler, rng: random.Random) -> list[Event]:
    """Sessions of both modes, calibrations and jobs of ten users, all at 0."""
    users = [Caller(f"lab{number % 3}/user{number}") for number in range(10)]
    commands: list[Command] = []
    for number in range(8):
        mode = rng.choice((SessionMode.DEDICATED, SessionMode.BATCH))
        commands.append(CreateSession(session=f"s{number}", caller=users[number], device="qpu", mode=mode))
    for number in range(120):
        at = rng.randrange(20)
        session = f"s{at}" if at < 8 else None
        commands.append(
            SubmitJob(
                job=f"j{number}",
                caller=users[at] if session else rng.choice(users),
                device=None if session else "qpu",
                session=session,
                priority=rng.choice((0, 0, 0, 5, -5)),
                estimate=rng.randrange(1, 90) * SECOND,
            )
        )
    calibrations = [f"c{number}" for number in range(3)]
    commands += [SubmitJob(job=c, caller=OPERATOR, device="qpu", job_class=JobClass.CALIBRATION) for c in calibrations]
    rng.shuffle(commands)
    commands.sort(key=lambda command: not isinstance(command, CreateSession))
    return scheduler.apply(commands, 0).events


def play(scheduler: Scheduler, events: list[Event]) -> list[str]:
    """Jobs as they start, those of `events` included, if each run takes its estimate and nothing else happens."""
    starts: list[str] = []
    now = 0
    running: RunStarted | None = None
    while True:
        begun = [event for event in events if isinstance(event, RunStarted)]
        starts += [event.job for event in begun]
        running = begun[0] if begun else None
        if running is not None:
            now += running.estimate
            end = RunEnded(device="qpu", job=running.job, attempt=running.attempt, outcome=RunOutcome.SUCCEEDED)
            events = scheduler.apply([end], now).events
        elif (due := scheduler.next_deadline()) is not None:
            now = due
            events = scheduler.apply([], now).events
        else:
            return starts


@pytest.mark.parametrize("settings", [RUNTIME_2023, RUNTIME_2024], ids=["2023", "2024"])
@pytest.mark.parametrize("part", range(5))
def test_jobs_start_in_the_order_that_was_told(settings: DeviceSettings, part: int) -> None:
    settings = replace(settings, interactive_ttl_dedicated=0, interactive_ttl_batch=0, calibration_duration=1)
    scheduler = Scheduler({"qpu": settings}, half_life=24 * 3600 * SECOND)
    events = fill(scheduler, random.Random(SEED + part))
    seqs = {event.job: event.seq for event in events if isinstance(event, JobQueued)}
    before = scheduler.state()
    told = scheduler.forecast_starts("qpu", 0, 1_000)
    assert scheduler.state() == before
    assert scheduler.forecast_starts("qpu", 0, 7) == told[:7]
    first, *starts = play(scheduler, events)
    assert told == [seqs[name] for name in starts]
    assert len(told) + 1 == len(seqs), first


class Ticking(VirtualClock):
    """A clock by which each look at it takes a millisecond."""

    def now(self) -> int:
        self.advance(SECOND // 1000)
        return super().now()


def queue_jobs(scheduler: Scheduler, first: int, count: int) -> list[int]:
    commands = [SubmitJob(job=f"j{number}", caller=OPERATOR, device="qpu") for number in range(first, first + count)]
    events = scheduler.apply(commands, 0).events
    return [event.seq for event in events if isinstance(event, JobQueued)]


def test_positions_count_from_the_next_job_and_end_where_nobody_counts_any_more() -> None:
    scheduler = Scheduler({"qpu": RUNTIME_2023})
    running, *seqs = queue_jobs(scheduler, 0, STARTS_MAX + 2)
    forecasts = Forecasts(VirtualClock(0))
    assert forecasts.position(scheduler, "qpu", running, 0) is None
    assert [forecasts.position(scheduler, "qpu", seq, 0) for seq in seqs[:3]] == [0, 1, 2]
    assert forecasts.position(scheduler, "qpu", seqs[STARTS_MAX - 1], 0) == STARTS_MAX - 1
    assert forecasts.position(scheduler, "qpu", seqs[STARTS_MAX], 0) is None
    assert forecasts.position(scheduler, "nothing", seqs[0], 0) is None


def test_a_forecast_is_used_again_for_as_long_as_making_it_has_not_paid(monkeypatch: pytest.MonkeyPatch) -> None:
    made = 0
    scheduler = Scheduler({"qpu": RUNTIME_2023})
    _, *seqs = queue_jobs(scheduler, 0, 4)
    forecast_starts = scheduler.forecast_starts

    def count(*arguments: Any) -> list[int]:
        nonlocal made
        made += 1
        return forecast_starts(*arguments)

    monkeypatch.setattr(Scheduler, "forecast_starts", lambda _, *arguments: count(*arguments))
    forecasts = Forecasts(Ticking(0))
    assert [forecasts.position(scheduler, "qpu", seq, 0) for seq in seqs for _ in range(6)] == [0] * 6 + [1] * 6 + [
        2
    ] * 6
    assert made == 1
    (new,) = queue_jobs(scheduler, 4, 1)
    assert forecasts.position(scheduler, "qpu", new, 0) == 3  # it was not in the first one
    assert made == 2
    for _ in range(25):
        forecasts.position(scheduler, "qpu", seqs[0], 0)
    assert made == 3  # that one was kept for 20 ms

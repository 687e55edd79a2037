"""The same commands give the same decisions: again, renormalised, restarted, and in another process."""

import math
import os
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
from cadenza_server.model.commands import Caller, Command, CreateReservation, CreateSession, Resumed, SubmitJob
from cadenza_server.model.events import Event, RunStarted, UsageSettled
from cadenza_server.model.settings import RUNTIME_2023, SECOND
from cadenza_server.scheduling import Scheduler, State

from _fastqueue import Queue, reference
from tests.simulation.seeds import seed_of
from tests.simulation.service import Play, play, random_service, replay, service_of_equals
from tests.simulation.trace import trace

ROOT = Path(__file__).parents[2]


def scaled(settled: float, exponent: int) -> tuple[float, int]:
    """The same number, whatever power of two was taken out of it."""
    mantissa, own = math.frexp(settled)
    return mantissa, own + exponent if mantissa else 0


def without_exponents(events: Sequence[Event]) -> list[Event]:
    """Settled usage as numbers, not as they are stored."""
    return [
        replace(event, nodes=tuple((path, *scaled(settled, exponent)) for path, settled, exponent in event.nodes))
        if isinstance(event, UsageSettled)
        else event
        for event in events
    ]


def without_runner_up_usage(events: Sequence[Event]) -> list[Event]:
    """Runs without what siblings had: their usage in flight has been added up anew, and may differ in its last bit."""
    return [
        replace(event, runner_up=replace(event.runner_up, usage_per_share=0.0, passed_usage_per_share=0.0))
        if isinstance(event, RunStarted) and event.runner_up is not None
        else event
        for event in events
    ]


def usage(state: State) -> dict[str, tuple[float, int]]:
    """Settled usage by path, as numbers."""
    return {node.path: scaled(node.settled, node.exponent) for node in state.nodes}


@pytest.mark.parametrize("piece", range(4))
def test_recorded_commands_give_the_same_events_and_memory_again(piece: int) -> None:
    for service in (random_service(seed_of(piece)), service_of_equals(seed_of(piece))):
        played = play(service)
        again = service.scheduler()
        assert replay(played.instants, again) == [instant.events for instant in played.instants]
        assert again.state() == played.scheduler.state()


@pytest.mark.parametrize("piece", range(4))
def test_renormalisation_changes_no_decision_and_no_number(piece: int) -> None:
    """Usage is scaled at random instants, with runs in flight; in the second service it also is by itself."""
    rng = random.Random(seed_of(piece))
    half_life = 20 * SECOND
    for pause in (0, 450 * half_life):
        service = random_service(seed_of(piece), half_life=half_life, pause=pause)
        played = play(service)
        queues: list[Queue] = []

        def queue(half_life: int, queues: list[Queue] = queues) -> Queue:
            queues.append(Queue(half_life))
            return queues[-1]

        other = service.scheduler(queue)
        for instant in played.instants:
            if rng.random() < 0.1:
                queues[0].renormalise(rng.randint(0, 3))
            events = other.apply(instant.commands, instant.now).events
            assert without_exponents(events) == without_exponents(instant.events)
        assert usage(other.state()) == usage(played.scheduler.state())
        assert max(node.exponent for node in other.state().nodes) > 0


@pytest.mark.parametrize("piece", range(6))
def test_a_restored_scheduler_goes_on_identically_on_one_device(piece: int) -> None:
    rng = random.Random(seed_of(piece))
    service = random_service(seed_of(piece), devices=1)
    played = play(service)
    other = service.scheduler()
    for instant in played.instants:
        if rng.random() < 0.15:
            state = other.state()
            other = Scheduler.restore(state)
            assert other.state() == state
        assert other.apply(instant.commands, instant.now).events == instant.events
    assert other.state() == played.scheduler.state()


@pytest.mark.parametrize("piece", range(6))
def test_a_restored_scheduler_picks_the_same_on_many_devices(piece: int) -> None:
    rng = random.Random(seed_of(piece))
    service = random_service(seed_of(piece), devices=2 + piece)
    played = play(service)
    other = service.scheduler()
    for instant in played.instants:
        if rng.random() < 0.15:
            state = other.state()
            other = Scheduler.restore(state)
            assert other.state() == state
        events = other.apply(instant.commands, instant.now).events
        assert without_runner_up_usage(events) == without_runner_up_usage(instant.events)
    assert other.state() == played.scheduler.state()


@pytest.mark.parametrize("piece", range(6))
def test_a_restart_is_the_same_as_a_pause_of_the_server(piece: int) -> None:
    """Both are told that they were down; only one of them has forgotten everything but its state."""
    rng = random.Random(seed_of(piece))
    service = random_service(seed_of(piece), devices=1 + piece)
    one, other = (Play(service, service.scheduler()) for _ in range(2))
    restarts = 0
    while one.step():
        assert other.step()
        if rng.random() < 0.05 and one.now > 0:
            now = one.now + rng.randrange(5 * SECOND)
            other.scheduler = Scheduler.restore(other.scheduler.state())
            resumed = Resumed(down_from=rng.randint(one.now, now))
            assert one.apply([resumed], now) == other.apply([resumed], now)
            restarts += 1
        assert one.instants[-1] == other.instants[-1]
        assert one.next_instant() == other.next_instant()
    assert one.scheduler.state() == other.scheduler.state()
    assert restarts > 0


def test_a_seed_gives_the_same_trace_under_every_order_of_hashes() -> None:
    seed = seed_of(0)
    traces = {
        subprocess.run(
            [sys.executable, "-m", "tests.simulation.trace", str(seed)],
            cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": order},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for order in ("0", "1", "31415")
    }
    assert traces == {trace(seed)}


def test_a_closed_session_still_knows_after_a_restart_which_reservation_it_was_bound_to() -> None:
    """Its job runs on when the reservation has ended, so the session is remembered and the reservation is not."""
    scheduler = Scheduler({"qpu": RUNTIME_2023})
    operator = Caller("root", operator=True)
    commands: list[Command] = [
        CreateReservation(reservation="r", caller=operator, device="qpu", holder="ann", start=0, end=5 * SECOND),
        CreateSession(session="s", caller=Caller("ann"), device="qpu", reservation="r"),
        SubmitJob(job="j", caller=Caller("ann"), session="s"),
    ]
    scheduler.apply(commands, 0)
    scheduler.apply([], 5 * SECOND)
    state = scheduler.state()
    assert state.reservations == ()
    assert [session.reservation for session in state.sessions] == ["r"]
    assert Scheduler.restore(state).state() == state


@pytest.mark.parametrize("piece", range(4))
def test_compiled_queue_and_its_reference_decide_alike_for_a_whole_service(piece: int) -> None:
    """Many devices that charge the same users at one instant: what a change of usage puts off is done in time."""
    for service in (random_service(seed_of(piece), jobs=80, devices=1 + piece), service_of_equals(seed_of(piece))):
        plain = play(service, cast("Callable[[int], Queue]", reference.Queue))
        assert play(service).instants == plain.instants

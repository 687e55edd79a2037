"""Who is added below an account changes nothing between others: neither outside it, nor among those it had before."""

import random

import pytest
from cadenza_server.model.commands import (
    Caller,
    CancelJob,
    CancelSession,
    Command,
    SetDeviceReady,
    SetShares,
    SubmitJob,
)
from cadenza_server.model.events import RunStarted, SessionCreated
from cadenza_server.scheduling import Scheduler, State

from tests.simulation.audit import covers
from tests.simulation.seeds import seed_of
from tests.simulation.service import OPERATOR, PATHS, Play, random_service

ADDED = "added"


def backlogged_state(seed: int) -> State:
    """Play a service for a while; then devices rest, sessions end, and everybody has jobs waiting."""
    rng = random.Random(seed)
    service = random_service(seed, devices=2, reservations=False, calibration=False)
    played = Play(service, service.scheduler())
    for _ in range(rng.randint(60, 200)):
        played.step()
    created = [event for instant in played.instants for event in instant.events if isinstance(event, SessionCreated)]
    commands: list[Command] = [SetDeviceReady(device=device, ready=False) for device in service.devices]
    commands += [CancelSession(session=event.session, caller=OPERATOR) for event in created]
    commands += [CancelJob(job=job, caller=OPERATOR) for job, _ in played.workers.running.values()]
    for i in range(40):
        user, device = rng.choice(PATHS), rng.choice(sorted(service.devices))
        commands.append(SubmitJob(job=f"more{i}", caller=Caller(user), device=device))
    played.apply(commands, played.now)
    return played.scheduler.state()


def order(state: State, device: str, added: list[Command]) -> list[RunStarted]:
    """All fair-share picks of a device at one state of usage: each run is cancelled at its start, for a charge of 0."""
    scheduler = Scheduler.restore(state)
    assert all(isinstance(answer, tuple) for answer in scheduler.apply(added, state.now).answers)
    picked: list[RunStarted] = []
    command: Command = SetDeviceReady(device=device, ready=True)
    while True:
        events = scheduler.apply([command], state.now).events
        started = [event for event in events if isinstance(event, RunStarted)]
        if not started:
            return picked
        picked += started
        command = CancelJob(job=started[-1].job, caller=OPERATOR)


@pytest.mark.parametrize("account", ["lab", "lab/deep", "uni"])
@pytest.mark.parametrize("piece", range(4))
def test_users_added_below_an_account_change_no_order_between_others(piece: int, account: str) -> None:
    rng = random.Random(seed_of(piece))
    state = backlogged_state(seed_of(piece))
    assert not [job for job in state.jobs if job.run is not None]
    met = 0
    for device in ("q0", "q1"):
        added: list[Command] = []
        for i in range(rng.randint(1, 6)):
            path = f"{account}/{ADDED}{i}" + rng.choice(("", "/below"))
            added.append(SetShares(path=path, caller=OPERATOR, shares=rng.uniform(0.1, 10)))
            added.append(SubmitJob(job=f"{ADDED}{i}", caller=Caller(path), device=device, priority=rng.randint(-2, 2)))
        before, after = order(state, device, []), order(state, device, added)
        new = [i for i, run in enumerate(after) if run.job.startswith(ADDED)]
        assert len(after) == len(before) + len(added) // 2
        met += any(i < len(before) for i in new)
        for inside in (False, True):
            then, now = (
                [run.job for run in runs if covers(account, run.user) is inside and not run.job.startswith(ADDED)]
                for runs in (before, after)
            )
            assert then == now
            assert len(then) > 0
    assert met > 0, "nobody who was added came before anybody: the test would see nothing"

"""Nonsense is refused with a sentence, and changes nothing: the memory after it is the memory before it."""

import math
import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cadenza_server.config import ConfigError, parse_config
from cadenza_server.model.commands import (
    Caller,
    CancelJob,
    CancelSession,
    CloseSession,
    Command,
    CreateReservation,
    CreateSession,
    DeleteReservation,
    Resumed,
    SetDeviceReady,
    SetPriority,
    SetShares,
    SubmitJob,
    SubmitJobs,
)
from cadenza_server.model.errors import Refusal
from cadenza_server.model.settings import RUNTIME_2023, SECOND
from cadenza_server.scheduling import Scheduler
from cadenza_server.simulation import ScenarioError, parse_scenario

from tests.simulation.seeds import seed_of
from tests.simulation.service import OPERATOR, Play, random_service

ANN = Caller("lab/ann")


def busy_scheduler(piece: int) -> Play:
    """A scheduler in the middle of a random service, with names that the cases below know."""
    service = random_service(seed_of(piece), devices=2)
    played = Play(service, service.scheduler())
    for _ in range(random.Random(seed_of(piece)).randint(0, 150)):
        played.step()
    known: list[Command] = [
        SubmitJob(job="known", caller=ANN, device="q0", priority=-100),
        CreateSession(session="session", caller=ANN, device="q0"),
        CreateReservation(
            reservation="window",
            caller=OPERATOR,
            device="q1",
            holder="lab",
            start=played.now + 10_000 * SECOND,
            end=played.now + 10_100 * SECOND,
        ),
        SetDeviceReady(device="q0", ready=False),
    ]
    played.apply(known, played.now)
    return played


def submit(**given: Any) -> SubmitJob:
    """A job that is good but for what is given."""
    return replace(SubmitJob(job="new", caller=ANN, device="q0"), **given)


def open_session(**given: Any) -> CreateSession:
    """A session that is good but for what is given."""
    return replace(CreateSession(session="new", caller=ANN, device="q0"), **given)


def reserve(start: int = 0, end: int = 0, **given: Any) -> CreateReservation:
    """A reservation; `start` and `end`: seconds from the start of the one that is there."""
    base = CreateReservation(reservation="new", caller=OPERATOR, device="q1", holder="lab", start=start, end=end)
    return replace(base, **given)


REFUSED: dict[str, Command] = {
    "job for an unknown device": submit(device="nowhere"),
    "job for an unknown session": submit(session="nothing"),
    "job without a device": submit(device=None),
    "job for another device than its session's": submit(session="session", device="q1"),
    "job without a name": submit(job=""),
    "job with a name that is taken": submit(job="known"),
    "job with the name of an automatic calibration": submit(job="calibration-q0-1"),
    "job with an estimate of 0": submit(estimate=0),
    "job with a negative estimate": submit(estimate=-1),
    "job with a limit of 0": submit(limit=0),
    "job with priority 101": submit(priority=101),
    "job with priority -101": submit(priority=-101),
    "job of an empty path": submit(caller=Caller("")),
    "job of a path with an empty part": submit(caller=Caller("lab//ann")),
    "job of a path with nine parts": submit(caller=Caller("a/b/c/d/e/f/g/h/i")),
    "job of a path with a part too long": submit(caller=Caller("a" * 65)),
    "job of an account": submit(caller=Caller("lab")),
    "job of somebody below a user": submit(caller=Caller("lab/ann/twin")),
    "jobs of which one is bad": SubmitJobs(jobs=(submit(job="good"), submit(job="bad", priority=999))),
    "jobs with one name": SubmitJobs(jobs=(submit(job="twice"), submit(job="twice"))),
    "jobs of a path that is user and account": SubmitJobs(
        jobs=(submit(job="one", caller=Caller("x/y")), submit(job="two", caller=Caller("x/y/z")))
    ),
    "jobs of a path that is account and user": SubmitJobs(
        jobs=(submit(job="one", caller=Caller("x/y/z")), submit(job="two", caller=Caller("x/y")))
    ),
    "session on an unknown device": open_session(device="nowhere"),
    "session of an account": open_session(caller=Caller("lab")),
    "session with an unknown reservation": open_session(reservation="nothing"),
    "session with a reservation of another device": open_session(reservation="window"),
    "session of somebody whom the reservation is not for": open_session(
        device="q1", reservation="window", caller=Caller("zoe")
    ),
    "session with a max_time of 0": open_session(max_time=0),
    "session with a negative interactive_ttl": open_session(interactive_ttl=-1),
    "session with a name that is taken": open_session(session="session"),
    "close of an unknown session": CloseSession(session="nothing", caller=ANN),
    "close of somebody else's session": CloseSession(session="session", caller=Caller("zoe")),
    "cancel of an unknown session": CancelSession(session="nothing", caller=ANN),
    "cancel of an unknown job": CancelJob(job="nothing", caller=ANN),
    "cancel of somebody else's job": CancelJob(job="known", caller=Caller("zoe")),
    "priority of an unknown job": SetPriority(job="nothing", caller=ANN, priority=1),
    "priority of 101": SetPriority(job="known", caller=ANN, priority=101),
    "reservation on an unknown device": reserve(20_000, 20_001, device="nowhere"),
    "reservation by a user": reserve(20_000, 20_001, caller=ANN),
    "reservation that ends as it starts": reserve(20_000, 20_000),
    "reservation that ends before it starts": reserve(20_000, 19_000),
    "reservation in the past": reserve(-20_000, 20_000),
    "reservation beyond all time": reserve(20_000, 2**62),
    "reservation for nobody": reserve(20_000, 20_001, holder=""),
    "reservation for somebody below a user": reserve(20_000, 20_001, holder="lab/ann/twin"),
    "reservation with a name that is taken": reserve(20_000, 20_001, reservation="window"),
    "reservation that overlaps at its end": reserve(-50, 1),
    "reservation that overlaps at its start": reserve(99, 200),
    "reservation around another": reserve(-50, 200),
    "reservation inside another": reserve(10, 20),
    "the same reservation again": reserve(0, 100),
    "delete of an unknown reservation": DeleteReservation(reservation="nothing", caller=OPERATOR),
    "delete by a user": DeleteReservation(reservation="window", caller=ANN),
    "shares by a user": SetShares(path="lab", caller=ANN, shares=2.0),
    "shares of no path": SetShares(path="lab/", caller=OPERATOR, shares=2.0),
    "shares below a user": SetShares(path="lab/ann/twin", caller=OPERATOR, shares=2.0),
    **{
        f"shares of {shares}": SetShares(path="lab", caller=OPERATOR, shares=shares)
        for shares in (0.0, -0.0, -1.0, math.nan, math.inf, -math.inf)
    },
    "an unknown device is ready": SetDeviceReady(device="nowhere", ready=True),
    "down from a time to come": Resumed(down_from=2**62),
}


def is_sentence(text: str) -> bool:
    """Whether somebody can read it: several words, and no Python in it."""
    return len(text.split()) >= 4 and "Traceback" not in text and "object at 0x" not in text


@pytest.mark.parametrize("what", REFUSED)
def test_bad_command_is_refused_and_changes_nothing(what: str) -> None:
    for piece in range(3):
        played = busy_scheduler(piece)
        command = REFUSED[what]
        if isinstance(command, CreateReservation):
            base = played.now + 10_000 * SECOND
            command = replace(command, start=base + command.start * SECOND, end=base + command.end * SECOND)
        before = played.scheduler.state()
        deadline = played.scheduler.next_deadline()
        outcome = played.scheduler.apply([command], played.now)
        (answer,) = outcome.answers
        assert isinstance(answer, Refusal), f"{what} was accepted"
        assert is_sentence(answer.message)
        assert outcome.events == []
        assert played.scheduler.state() == before
        assert played.scheduler.next_deadline() == deadline


@pytest.mark.parametrize("back", [1, SECOND, 10**15])
def test_time_that_goes_back_is_refused_and_changes_nothing(back: int) -> None:
    played = busy_scheduler(0)
    before = played.scheduler.state()
    with pytest.raises(ValueError, match=r"now.* never goes back") as caught:
        played.scheduler.apply([submit()], played.now - back)
    assert is_sentence(str(caught.value))
    assert played.scheduler.state() == before
    assert played.scheduler.apply([submit()], played.now).answers != []


CONSTRUCTIONS: dict[str, Callable[[], object]] = {
    **{
        f"shares of {shares}": partial(Scheduler, {"q": RUNTIME_2023}, shares={"lab": shares})
        for shares in (0.0, -1.0, math.nan, math.inf)
    },
    "shares of no path": lambda: Scheduler({"q": RUNTIME_2023}, shares={"": 1.0}),
    "a half-life of 0": lambda: Scheduler({"q": RUNTIME_2023}, half_life=0),
    "a negative half-life": lambda: Scheduler({"q": RUNTIME_2023}, half_life=-1),
    **{
        f"{name} of {value}": partial(replace, RUNTIME_2023, **{name: value})
        for name, value in (
            ("max_time", 0),
            ("unused_ttl", -1),
            ("limit", 0),
            ("default_estimate", 0),
            ("calibration_duration", 0),
            ("calibration_interval", 0),
            ("max_attempts", 0),
            ("interactive_ttl_dedicated", -1),
            ("interactive_ttl_batch", -1),
            ("session_cache_ttl", -1),
        )
    },
}


@pytest.mark.parametrize("what", CONSTRUCTIONS)
def test_scheduler_is_not_made_of_nonsense(what: str) -> None:
    with pytest.raises((ValueError, Refusal)) as caught:
        CONSTRUCTIONS[what]()
    assert len(str(caught.value).split()) >= 4


NUMBERS = ("nan", "inf", "-inf", "1e400", "-1", "1e308", "9" * 40, '"nan"', '"9999999999d"', "true", "[]")
LENGTHS = ("half_life", "max_time", "limit", "default_estimate", "unused_ttl", "calibration_interval")


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("key", LENGTHS)
def test_configured_length_that_is_none_is_refused(key: str, number: str) -> None:
    head = "" if key == "half_life" else "[devices.qpu]\n"
    with pytest.raises(ConfigError) as caught:
        parse_config(f"{head}{key} = {number}\n", Path("/"))
    assert [problem for problem in caught.value.problems if key in problem and is_sentence(problem)]


@pytest.mark.parametrize(
    "number",
    ["nan", "inf", "-inf", "1e400", "-1", "0", "0.0", '"nan"', "true", "[]", "9" * 400],
    ids=lambda number: number[:9],
)
def test_configured_weight_that_is_none_is_refused(number: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(f"[shares]\nlab = {number}\n", Path("/"))
    assert [problem for problem in caught.value.problems if "lab" in problem and is_sentence(problem)]


def test_configured_path_that_is_account_and_user_is_refused_where_it_shows() -> None:
    """By its shares a path may become either; the first job says which."""
    scheduler = Scheduler({"q0": RUNTIME_2023}, shares={"lab": 1.0, "lab/ann": 1.0})
    before = scheduler.state()
    (answer,) = scheduler.apply([submit(caller=Caller("lab"))], 0).answers
    assert isinstance(answer, Refusal)
    assert scheduler.state() == before


@pytest.mark.parametrize("number", [".nan", ".inf", "-.inf", "1e400", "-1", "0", "nan", "9" * 400])
@pytest.mark.parametrize("key", ["half_life", "shares", "limit"])
def test_scenario_of_nonsense_is_refused_with_its_line(key: str, number: str) -> None:
    text = {"half_life": f"half_life: {number}", "shares": f"shares: {{lab: {number}}}", "limit": ""}[key]
    limit = number if key == "limit" else "5"
    with pytest.raises(ScenarioError) as caught:
        parse_scenario(f"{text}\nname: nonsense\ndevices:\n  q: {{limit: {limit}}}\nevents: []\n")
    assert caught.value.line == (4 if key == "limit" else 1)
    assert is_sentence(str(caught.value))

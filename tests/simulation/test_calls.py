"""Many jobs in one command are what they would be one by one, or they are nothing."""

import random
from dataclasses import replace
from typing import Any

import pytest
from cadenza_server.model.commands import (
    Caller,
    CloseSession,
    Command,
    CreateSession,
    SetDeviceReady,
    SubmitJob,
    SubmitJobs,
)
from cadenza_server.model.errors import Refusal
from cadenza_server.model.settings import RUNTIME_2023, SECOND
from cadenza_server.model.words import JobClass, Pending, SessionMode
from cadenza_server.scheduling import Scheduler

from tests.simulation.seeds import seed_of
from tests.simulation.service import OPERATOR

ANN, BOB = Caller("lab/ann"), Caller("bob")


def before_the_call() -> Scheduler:
    """Devices that rest, an open session of Ann's on each, one that drains, and a job that waits."""
    scheduler = Scheduler({"q0": RUNTIME_2023, "q1": RUNTIME_2023}, shares={"uni/x": 2.0})
    commands: list[Command] = [SetDeviceReady(device=device, ready=False) for device in ("q0", "q1")]
    commands += [
        CreateSession(session="s0", caller=ANN, device="q0"),
        CreateSession(session="s1", caller=ANN, device="q1", mode=SessionMode.BATCH),
        CreateSession(session="over", caller=ANN, device="q1"),
        SubmitJob(job="old", caller=ANN, session="over"),
        CloseSession(session="over", caller=ANN, pending=Pending.DRAIN),
    ]
    assert not [each for each in scheduler.apply(commands, 0).answers if isinstance(each, Refusal)]
    return scheduler


def random_jobs(rng: random.Random, wrong: float) -> tuple[SubmitJob, ...]:
    """Jobs of which neighbours are often alike but for their names; a part `wrong` of them is odd in some way."""
    jobs: list[SubmitJob] = []
    kinds: list[SubmitJob] = [
        SubmitJob(job="", caller=ANN, device="q0"),
        SubmitJob(job="", caller=Caller("lab/ann"), device="q1"),
        SubmitJob(job="", caller=ANN, session="s0", job_class=JobClass.SESSION),
        SubmitJob(job="", caller=ANN, session="s0", device="q0"),
        SubmitJob(job="", caller=ANN, session="s1"),
        SubmitJob(job="", caller=OPERATOR, session="s1", user="lab/ann"),
        SubmitJob(job="", caller=BOB, device="q0"),
        SubmitJob(job="", caller=OPERATOR, user="new/deep/user", device="q1"),
        SubmitJob(job="", caller=OPERATOR, job_class=JobClass.CALIBRATION, device="q1"),
    ]
    odd: list[SubmitJob] = [
        SubmitJob(job="", caller=BOB, session="s0"),
        SubmitJob(job="", caller=ANN, session="s0", device="q1"),
        SubmitJob(job="", caller=ANN, session="over"),
        SubmitJob(job="", caller=ANN, session="none"),
        SubmitJob(job="", caller=ANN, device="none"),
        SubmitJob(job="", caller=ANN),
        SubmitJob(job="", caller=ANN, device="q0", job_class=JobClass.CALIBRATION),
        SubmitJob(job="", caller=OPERATOR, session="s0", job_class=JobClass.CALIBRATION),
        SubmitJob(job="", caller=ANN, device="q0", user="bob"),
        SubmitJob(job="", caller=Caller("lab"), device="q0"),
        SubmitJob(job="", caller=Caller("bob/below"), device="q0"),
        SubmitJob(job="", caller=Caller("new/deep"), device="q0"),
        SubmitJob(job="", caller=Caller("uni/x/y"), device="q0"),
        SubmitJob(job="", caller=Caller("a b"), device="q0"),
    ]
    kind = rng.choice(kinds)
    for i in range(rng.randint(2, 12)):
        if rng.random() < 0.4:
            kind = rng.choice(odd if rng.random() < wrong else kinds)
        job = replace(kind, job=f"j{i}")
        if rng.random() < 0.3:
            job = replace(job, priority=rng.randint(-100, 100), estimate=rng.randint(1, 10) * SECOND, limit=5 * SECOND)
        if rng.random() < wrong / 4:
            nonsense: dict[str, Any] = {rng.choice(("priority", "estimate", "limit")): rng.choice((-101, -500))}
            job = replace(job, **nonsense)
        if rng.random() < wrong / 4:
            job = replace(job, job=rng.choice(("", "old", "j0", "calibration-q0-1")))
        jobs.append(job)
    return tuple(jobs)


@pytest.mark.parametrize("piece", range(4))
def test_a_call_is_its_jobs_one_by_one_or_nothing(piece: int) -> None:
    rng = random.Random(seed_of(piece))
    entered = refused = 0
    for _ in range(250):
        jobs = random_jobs(rng, rng.choice((0, 0.2)))
        together, apart = before_the_call(), before_the_call()
        before = together.state()
        (answer,) = together.apply([SubmitJobs(jobs=jobs)], SECOND).answers
        answers = apart.apply(jobs, SECOND).answers
        first = next((i for i, each in enumerate(answers) if isinstance(each, Refusal)), None)
        if first is None:
            assert answer == tuple(event for each in answers if isinstance(each, tuple) for event in each)
            assert together.state() == apart.state()
            entered += 1
        else:
            assert isinstance(answer, Refusal)
            alone = answers[first]
            assert isinstance(alone, Refusal)
            assert (answer.code, answer.reason, answer.message) == (alone.code, alone.reason, alone.message)
            assert answer.field == (f"jobs[{first}]" if alone.field is None else f"jobs[{first}].{alone.field}")
            assert replace(together.state(), now=0) == before
            refused += 1
    assert entered > 50
    assert refused > 50

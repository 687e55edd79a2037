"""The compiled queue and its reference, driven together: every answer and every double has to be the same.

`Pair` applies each operation to both and compares what can be seen. Two drivers use it: a hypothesis state machine, for
small states and all operations, and a random walk over states large enough for deep trees.
The seed is CADENZA_SEED, else the commit; it is printed with every failure.
"""

import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, note, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from _fastqueue import (
    BATCH_FITS_NOTHING,
    BATCH_MAY_NOT_START,
    HELD,
    NEVER,
    NOTHING,
    ROOT,
    Queue,
    reference,
)
from tests.simulation.seeds import run_seed

SEED = run_seed()


@dataclass(eq=False)
class Job:
    """A queued job and its two handles."""

    reference: int
    compiled: int
    device: int
    session: "Session | None"
    first: bool = False


@dataclass(eq=False)
class Session:
    """A session and its two handles."""

    reference: int
    compiled: int
    device: int


class Pair:
    """Both queues. Nodes and devices have the same handles in both; those of jobs and sessions may differ."""

    def __init__(self, half_life_ns: int) -> None:
        self.reference = reference.Queue(half_life_ns)
        self.compiled = Queue(half_life_ns)
        self.now = 0
        self.seq = 20  # so that a job that comes back has a number of its own
        self.accounts = [ROOT]
        self.users: list[int] = []
        self.devices: list[int] = []
        self.busy: set[int] = set()
        self.sessions: list[Session] = []
        self.jobs: list[Job] = []

    def both(self, call: str, *arguments: Any) -> Any:
        """The common answer to the same call."""
        expected = getattr(self.reference, call)(*arguments)
        answer = getattr(self.compiled, call)(*arguments)
        assert answer == expected, (call, arguments)
        return expected

    def refused(self, call: str, *arguments: Any) -> None:
        """Both refuse the call."""
        for queue in (self.reference, self.compiled):
            with pytest.raises(ValueError):  # noqa: PT011 (the sentences are free to differ)
                getattr(queue, call)(*arguments)

    # --- building ---

    def add_account(self, parent: int, shares: float) -> None:
        self.accounts.append(self.both("add_node", parent, shares))

    def add_user(self, parent: int, shares: float) -> None:
        user = self.both("add_node", parent, shares)
        self.both("charge", user, self.now, 1)  # so that it is known as a user
        self.users.append(user)

    def add_device(self, outside_dedicated: bool) -> None:
        self.devices.append(self.both("add_device", outside_dedicated))

    def add_session(self, device: int, user: int, batch: bool, standing: bool) -> None:
        session = Session(
            self.reference.add_session(device, user, batch), self.compiled.add_session(device, user, batch), device
        )
        self.sessions.append(session)
        self.of_session("set_standing", session, standing)

    def of_session(self, call: str, session: Session, *arguments: Any) -> Any:
        expected = getattr(self.reference, call)(session.reference, *arguments)
        answer = getattr(self.compiled, call)(session.compiled, *arguments)
        if call != "drop_jobs":
            assert answer == expected, (call, arguments)
            return expected
        jobs = [job for job in self.jobs if job.session is session]
        assert sorted(expected) == sorted(job.reference for job in jobs)
        assert sorted(answer) == sorted(job.compiled for job in jobs)
        return jobs

    # --- jobs ---

    def _queued(self, device: int, session: Session | None, call: str, *arguments: Any, first: bool = False) -> None:
        if session is None:
            handles = [getattr(queue, call)(*arguments) for queue in (self.reference, self.compiled)]
        else:
            handles = [
                self.reference.push_session(session.reference, *arguments),
                self.compiled.push_session(session.compiled, *arguments),
            ]
        assert handles[1] not in {job.compiled for job in self.jobs}
        self.jobs.append(Job(handles[0], handles[1], device, session, first))

    def next_seq(self, back: bool) -> int:
        """Ever larger, but for a job that comes back to its place."""
        self.seq += 2
        return self.seq - 15 if back and self.seq % 4 == 0 else self.seq

    def push(self, device: int, user: int, priority: int, estimate: int, back: bool = False) -> None:
        self._queued(device, None, "push", device, user, self.next_seq(back), priority, estimate)

    def push_session(self, session: Session, priority: int, estimate: int, first: bool) -> None:
        taken = any(job.session is session and job.first for job in self.jobs)
        if first and taken:
            seq = self.next_seq(False)
            self.refused_of_session("push_session", session, seq, priority, estimate, True)
            return
        arguments = (self.next_seq(False), priority, estimate, first)
        self._queued(session.device, session, "push_session", *arguments, first=first)

    def refused_of_session(self, call: str, session: Session, *arguments: Any) -> None:
        for queue, handle in ((self.reference, session.reference), (self.compiled, session.compiled)):
            with pytest.raises(ValueError):  # noqa: PT011
                getattr(queue, call)(handle, *arguments)

    def push_calibration(self, device: int) -> None:
        self._queued(device, None, "push_calibration", device, self.next_seq(False))

    def is_calibration(self, job: Job) -> bool:
        return self.reference._jobs[job.reference].kind == "CALIBRATION"

    def remove(self, job: Job) -> None:
        self.reference.remove(job.reference)
        self.compiled.remove(job.compiled)
        self.jobs.remove(job)

    def set_priority(self, job: Job, priority: int) -> None:
        for queue, handle in ((self.reference, job.reference), (self.compiled, job.compiled)):
            if self.is_calibration(job):
                with pytest.raises(ValueError, match="no priority"):
                    queue.set_priority(handle, priority)
            else:
                queue.set_priority(handle, priority)

    def release_jobs(self, session: Session) -> None:
        self.of_session("release_jobs", session)
        for job in self.jobs:
            if job.session is session:
                job.session = None
                job.first = False

    def drop_jobs(self, session: Session) -> None:
        for job in self.of_session("drop_jobs", session):
            self.jobs.remove(job)

    def remove_session(self, session: Session) -> None:
        if any(job.session is session for job in self.jobs):
            self.refused_of_session("remove_session", session)
            return
        self.of_session("remove_session", session)
        self.sessions.remove(session)

    def activate(self, session: Session) -> None:
        if self.reference.active_session(session.device) != -1:
            self.refused_of_session("activate", session)
        else:
            self.of_session("activate", session)

    # --- dispatch ---

    def pick(self, device: int) -> Job | int:
        """The job that both pick, or the answer that both give; the runner-up is compared, too."""
        expected = self.reference.pick(device, self.now)
        answer = self.compiled.pick(device, self.now)
        if expected < 0:
            assert answer == expected, f"device {device} at {self.now}"
            return expected
        job = next(job for job in self.jobs if job.reference == expected)
        assert answer == job.compiled, f"device {device} at {self.now}: job {expected}"
        try:
            second = self.reference.runner_up(job.reference, self.now)
        except ValueError:
            with pytest.raises(ValueError, match="not what fair share picks"):
                self.compiled.runner_up(job.compiled, self.now)
        else:
            assert self.compiled.runner_up(job.compiled, self.now) == second
        return job

    def start(self, job: Job) -> None:
        self.reference.start(job.reference, self.now)
        self.compiled.start(job.compiled, self.now)
        self.jobs.remove(job)
        self.busy.add(job.device)

    def dispatch(self, device: int) -> None:
        """As the scheduler does it."""
        picked = self.pick(device)
        active = self.reference.active_session(device)
        session = next((s for s in self.sessions if s.reference == active), None)
        if isinstance(picked, Job):
            self.start(picked)
            if picked.session is not None and session is None:
                self.of_session("activate", picked.session)
        elif picked == BATCH_FITS_NOTHING:
            assert session is not None
            self.both("deactivate", device)
            self.release_jobs(session)
        elif picked == BATCH_MAY_NOT_START:
            self.both("deactivate", device)
        else:
            assert picked in (NOTHING, HELD)

    def end(self, call: str, device: int, *arguments: Any) -> None:
        if device in self.busy:
            self.both(call, device, *arguments)
            self.busy.remove(device)
        else:
            self.refused(call, device, *arguments)

    # --- comparing ---

    def compare(self) -> None:
        """Everything that can be seen."""
        for node in self.accounts + self.users:
            self.both("raw_usage", node)
            self.both("normalised_usage", node)
            self.both("usage", node, self.now)
        assert len(self.compiled) == len(self.reference) == len(self.jobs)
        for device in self.devices:
            self.both("counts", device)
            active = self.reference.active_session(device)
            expected = next((s.compiled for s in self.sessions if s.reference == active), -1)
            assert self.compiled.active_session(device) == expected
            if device in self.busy:
                self.refused("pick", device, self.now)
            else:
                self.pick(device)
        for session in self.sessions:
            self.of_session("session_size", session)


def _one(data: st.DataObject, things: list[Any]) -> Any:
    return data.draw(st.sampled_from(things))


UNIT = 10
ESTIMATES = st.integers(1, 8).map(lambda units: units * UNIT)
PRIORITIES = st.sampled_from([0, 0, 0, 0, 1, -1, 100, -100])
SHARES = st.sampled_from([1.0, 1.0, 1.0, 2.0, 0.5, 3.7])


class QueueMachine(RuleBasedStateMachine):
    """All operations in any order on a few users, devices and sessions."""

    def __init__(self) -> None:
        super().__init__()
        self.pair = Pair(1)

    @initialize(
        half_life=st.sampled_from([7 * 86400 * 10**9, 1000, 7, 1, 400 * 86400 * 10**9 + 1]),
        now=st.sampled_from([0, 1_700_000_000_000_000_123]),
        accounts=st.lists(st.tuples(st.integers(0, 9), SHARES), max_size=3),
        users=st.lists(st.tuples(st.integers(0, 9), SHARES), min_size=1, max_size=6),
        devices=st.lists(st.booleans(), min_size=1, max_size=3),
    )
    def build(
        self,
        half_life: int,
        now: int,
        accounts: list[tuple[int, float]],
        users: list[tuple[int, float]],
        devices: list[bool],
    ) -> None:
        note(f"CADENZA_SEED={SEED}")
        self.pair = Pair(half_life)
        self.pair.now = now if half_life > 7 else 0
        for device in devices:
            self.pair.add_device(device)
        for parent, shares in accounts:
            self.pair.add_account(self.pair.accounts[parent % len(self.pair.accounts)], shares)
        for parent, shares in users:
            self.pair.users.append(
                self.pair.both("add_node", self.pair.accounts[parent % len(self.pair.accounts)], shares)
            )

    @rule(data=st.data(), shares=SHARES, account=st.booleans())
    def add_node(self, data: st.DataObject, shares: float, account: bool) -> None:
        if len(self.pair.users) + len(self.pair.accounts) < 12:
            add = self.pair.add_account if account else self.pair.add_user
            add(_one(data, self.pair.accounts), shares)

    @rule(outside_dedicated=st.booleans())
    def add_device(self, outside_dedicated: bool) -> None:
        if len(self.pair.devices) < 3:
            self.pair.add_device(outside_dedicated)

    @rule(data=st.data(), priority=PRIORITIES, estimate=ESTIMATES, back=st.booleans())
    def push(self, data: st.DataObject, priority: int, estimate: int, back: bool) -> None:
        self.pair.push(_one(data, self.pair.devices), _one(data, self.pair.users), priority, estimate, back)

    @rule(data=st.data(), batch=st.booleans(), standing=st.booleans())
    def add_session(self, data: st.DataObject, batch: bool, standing: bool) -> None:
        if len(self.pair.sessions) < 5:
            self.pair.add_session(_one(data, self.pair.devices), _one(data, self.pair.users), batch, standing)

    @rule(
        data=st.data(), priority=PRIORITIES, estimates=st.lists(ESTIMATES, min_size=1, max_size=3), first=st.booleans()
    )
    def push_session(self, data: st.DataObject, priority: int, estimates: list[int], first: bool) -> None:
        if self.pair.sessions:
            session = _one(data, self.pair.sessions)
            for i, estimate in enumerate(estimates):
                self.pair.push_session(session, priority, estimate, first and i == 0)

    @rule(data=st.data())
    def push_calibration(self, data: st.DataObject) -> None:
        self.pair.push_calibration(_one(data, self.pair.devices))

    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        if self.pair.jobs:
            self.pair.remove(_one(data, self.pair.jobs))

    @rule(data=st.data(), priority=PRIORITIES)
    def set_priority(self, data: st.DataObject, priority: int) -> None:
        if self.pair.jobs:
            self.pair.set_priority(_one(data, self.pair.jobs), priority)

    @rule(data=st.data(), call=st.sampled_from(["release_jobs", "drop_jobs", "remove_session", "activate"]))
    def change_session(self, data: st.DataObject, call: str) -> None:
        if self.pair.sessions:
            change: Callable[[Session], None] = getattr(self.pair, call)
            change(_one(data, self.pair.sessions))

    @rule(data=st.data(), standing=st.booleans())
    def set_standing(self, data: st.DataObject, standing: bool) -> None:
        if self.pair.sessions:
            self.pair.of_session("set_standing", _one(data, self.pair.sessions), standing)

    @rule(data=st.data(), ahead=st.one_of(st.none(), st.integers(-20, 120)))
    def set_fit_deadline(self, data: st.DataObject, ahead: int | None) -> None:
        if self.pair.sessions:
            deadline = NEVER if ahead is None else max(0, self.pair.now + ahead)
            self.pair.of_session("set_fit_deadline", _one(data, self.pair.sessions), deadline)

    @rule(data=st.data())
    def deactivate(self, data: st.DataObject) -> None:
        self.pair.both("deactivate", _one(data, self.pair.devices))

    @rule(
        data=st.data(), ahead=st.one_of(st.none(), st.integers(-5, 100)), open_now=st.booleans(), holder=st.booleans()
    )
    def set_window(self, data: st.DataObject, ahead: int | None, open_now: bool, holder: bool) -> None:
        nodes = self.pair.accounts + self.pair.users
        inside = _one(data, nodes) if open_now else -1
        next_holder = _one(data, nodes) if holder else -1
        next_start = NEVER if ahead is None else max(0, self.pair.now + ahead)
        self.pair.both("set_window", _one(data, self.pair.devices), inside, next_start, next_holder)

    @rule(length=st.integers(0, 60))
    def wait(self, length: int) -> None:
        self.pair.now += length

    @rule(length=st.sampled_from([10**3, 10**6, 10**12]))
    def wait_long(self, length: int) -> None:
        self.pair.now += length

    @rule(data=st.data())
    def dispatch(self, data: st.DataObject) -> None:
        device = _one(data, self.pair.devices)
        if device not in self.pair.busy:
            self.pair.dispatch(device)

    @rule(data=st.data())
    def start_any(self, data: st.DataObject) -> None:
        jobs = [job for job in self.pair.jobs if job.device not in self.pair.busy]
        if jobs:
            self.pair.start(_one(data, jobs))

    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        self.pair.end("finish", _one(data, self.pair.devices), self.pair.now)

    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        self.pair.end("lose", _one(data, self.pair.devices))

    @rule(data=st.data())
    def double_estimate(self, data: st.DataObject) -> None:
        device = _one(data, self.pair.devices)
        run = self.pair.reference._devices[device].run
        if run is None or run.calibration:
            self.pair.refused("double_estimate", device)
        else:
            self.pair.both("double_estimate", device)

    @rule(data=st.data(), duration=st.one_of(st.integers(1, 100), st.integers(1, 10**15)))
    def charge(self, data: st.DataObject, duration: int) -> None:
        self.pair.both("charge", _one(data, self.pair.users), self.pair.now, duration)

    @rule(data=st.data(), shares=SHARES)
    def set_shares(self, data: st.DataObject, shares: float) -> None:
        node = _one(data, self.pair.accounts + self.pair.users)
        self.pair.both("set_shares", node, shares)
        self.pair.both("shares", node)

    @rule()
    def go_on_with_copies(self) -> None:
        self.pair.reference, self.pair.compiled = self.pair.reference.copy(), self.pair.compiled.copy()

    @rule(exponents=st.integers(0, 400))
    def renormalise(self, exponents: int) -> None:
        self.pair.both("renormalise", exponents)

    @rule(data=st.data(), settled=st.sampled_from([0.0, 1.0, 1.5, 1e-300, 1e300]), ahead=st.integers(-30, 30))
    def restore_usage(self, data: st.DataObject, settled: float, ahead: int) -> None:
        node = _one(data, self.pair.accounts + self.pair.users)
        exponent = max(0, self.pair.reference._exponent + ahead)
        self.pair.both("restore_usage", node, settled, exponent)

    @invariant()
    def both_look_the_same(self) -> None:
        self.pair.compare()


@pytest.mark.parametrize("part", range(3))
def test_compiled_queue_answers_as_the_reference_does(part: int) -> None:
    """Any operations, small states."""
    run_state_machine_as_test(  # type: ignore[no-untyped-call, unused-ignore]
        seed(SEED + part)(QueueMachine),
        settings=settings(
            max_examples=int(os.environ.get("CADENZA_EXAMPLES", "100")),
            stateful_step_count=60,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.parametrize(("walk", "ties"), [(0, True), (1, False), (2, True)])
def test_large_trees_answer_as_the_reference_does(walk: int, ties: bool) -> None:
    """Enough users and jobs for blocks to split and merge and for trees of jobs to turn."""
    chance = random.Random(f"{SEED}/{walk}")
    print(f"CADENZA_SEED={SEED}")
    pair = Pair(3600 * 10**9)
    devices = 2
    for _ in range(devices):
        pair.add_device(False)
    pair.add_account(ROOT, 1.0)
    for i in range(150):
        pair.users.append(pair.both("add_node", pair.accounts[i % 3 == 0], 1.0 if ties else chance.uniform(0.5, 4)))

    def estimate() -> int:
        return 10 * (1 + chance.randrange(10)) if ties else chance.randrange(1, 10**9)

    for user in pair.users[:120]:
        for _ in range(chance.randrange(4)):
            pair.push(chance.randrange(devices), user, chance.choice([0, 0, 0, 1]) if walk else 0, estimate())
    crowd = pair.users[0]  # one deep tree of jobs
    for step in range(500):
        action = chance.random()
        device = chance.randrange(devices)
        pair.now += chance.randrange(1, 10 if ties else 10**8)
        if action < 0.35:
            user = crowd if chance.random() < 0.3 else chance.choice(pair.users)
            pair.push(device, user, chance.choice([0, 0, 0, 5]) if walk else 0, estimate())
        elif action < 0.45 and pair.jobs:
            pair.remove(chance.choice(pair.jobs))
        elif action < 0.5 and pair.jobs and walk:
            pair.set_priority(chance.choice(pair.jobs), chance.randrange(-3, 4))
        elif action < 0.6:
            ahead = chance.choice([NEVER, pair.now + chance.randrange(0, 60 if ties else 10**9)])
            pair.both("set_window", device, -1, ahead, chance.choice([-1, chance.choice(pair.users), pair.accounts[1]]))
        elif action < 0.63:
            pair.both("charge", chance.choice(pair.users), pair.now, chance.randrange(1, 50) * 10**3)
        elif device in pair.busy:
            if chance.random() < 0.9:
                pair.end("finish", device, pair.now)
            else:
                pair.end("lose", device)
        else:
            pair.dispatch(device)
        if step % 100 == 99:
            pair.compare()


@pytest.mark.parametrize("walk", range(2))
def test_jobs_cancelled_in_any_order_leave_what_the_reference_has(walk: int) -> None:
    """Users with one block of jobs and with many; blocks that split, merge, go, and are taken for somebody else's."""
    chance = random.Random(f"{SEED}/cancel/{walk}")
    print(f"CADENZA_SEED={SEED}")
    pair = Pair(3600 * 10**9)
    for _ in range(1 + walk):
        pair.add_device(False)
    pair.add_account(ROOT, 1.0)
    for i in range(12):
        pair.add_user(pair.accounts[i % 2], 1.0)
    sessions = int(os.environ.get("CADENZA_EXAMPLES", "100")) // 10
    for _ in range(sessions):
        pair.now += chance.randrange(1, 10**9)
        for device in range(len(pair.devices)):
            pair.add_session(device, chance.choice(pair.users), chance.random() < 0.5, True)
            for job in range(chance.randrange(1, 25)):
                pair.push_session(pair.sessions[-1], chance.choice([0, 1]), chance.randrange(1, 20), job == 0)
        for _ in range(chance.randrange(60)):
            user = chance.choice(pair.users[: chance.choice([2, 12])])
            pair.push(chance.choice(pair.devices), user, chance.choice([0, 0, 1]), chance.randrange(1, 20), True)
        if chance.random() < 0.5:
            pair.release_jobs(chance.choice(pair.sessions))
        for _ in range(min(len(pair.jobs), chance.randrange(90))):
            pair.remove(chance.choice(pair.jobs))
        for device in pair.devices:
            if device in pair.busy:
                pair.end("finish", device, pair.now)
            pair.dispatch(device)
        pair.compare()

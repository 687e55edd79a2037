"""What the queue promises beside its decisions, which tests/model holds to the reference."""

import ast
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import _fastqueue
from _fastqueue import HELD, NEVER, NOTHING, ROOT, Queue, reference

SECOND = 10**9
Both = Callable[[int], Any]
both_queues = pytest.mark.parametrize("make", [Queue, reference.Queue], ids=["compiled", "reference"])


def methods_of(source: str) -> dict[str, tuple[str, str]]:
    """Arguments and answer of each public method of the class Queue, as they are written."""
    tree = ast.parse(Path(_fastqueue.__file__).with_name(source).read_text())
    (queue,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Queue")
    methods = [node for node in queue.body if isinstance(node, ast.FunctionDef)]
    return {
        method.name: (ast.unparse(method.args), ast.unparse(method.returns) if method.returns else "")
        for method in methods
        if method.name in ("__init__", "__len__") or not method.name.startswith("_")
    }


def test_reference_has_the_surface_of_the_stub() -> None:
    assert methods_of("reference.py") == methods_of("_queue.pyi")


def test_constants_are_the_same_everywhere() -> None:
    for name in _fastqueue.__all__:
        if name != "Queue":
            assert getattr(_fastqueue, name) == getattr(reference, name)


def test_stub_tells_the_truth_about_the_compiled_queue() -> None:
    checked = subprocess.run(
        [sys.executable, "-m", "mypy.stubtest", "_fastqueue._queue"],
        cwd=Path(_fastqueue.__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


@both_queues
@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ("add_node", (99,)),
        ("add_node", (2,)),  # below a user
        ("add_node", (ROOT, 0.0)),
        ("add_node", (ROOT, -1.0)),
        ("add_node", (ROOT, float("nan"))),
        ("add_node", (ROOT, float("inf"))),
        ("set_shares", (1, 0.0)),
        ("set_shares", (-1, 1.0)),
        ("usage", (1, -1)),
        ("restore_usage", (1, float("nan"), 0)),
        ("restore_usage", (1, -1.0, 0)),
        ("restore_usage", (1, 1.0, -1)),
        ("charge", (1, 0, 5)),  # an account
        ("charge", (2, 0, 0)),
        ("charge", (2, -1, 5)),
        ("set_window", (1, -1, 5, -1)),
        ("set_window", (0, 99, 5, -1)),
        ("set_window", (0, -1, 5, 99)),
        ("set_window", (0, -1, -5, -1)),
        ("add_session", (1, 2, False)),
        ("add_session", (0, 1, False)),
        ("remove_session", (77,)),
        ("release_jobs", (-1,)),
        ("push", (0, 1, 9, 0, 5)),  # an account
        ("push", (0, 2, 9, 101, 5)),
        ("push", (0, 2, 9, -101, 5)),
        ("push", (0, 2, 9, 0, 0)),
        ("push", (0, 2, -1, 0, 5)),
        ("push", (0, 2, 2**48, 0, 5)),
        ("push", (-1, 2, 9, 0, 5)),
        ("push_calibration", (0, -1)),
        ("push_calibration", (5, 9)),
        ("remove", (12345,)),
        ("remove", (-1,)),
        ("set_priority", (12345, 0)),
        ("pick", (0, -1)),
        ("pick", (5, 1)),
        ("runner_up", (12345, 1)),
        ("start", (12345, 1)),
        ("double_estimate", (0,)),
        ("finish", (0, 1)),
        ("lose", (0,)),
        ("counts", (3,)),
        ("renormalise", (-1,)),
        ("renormalise", (NEVER,)),
    ],
)
def test_bad_arguments_are_refused_and_change_nothing(make: Both, call: str, arguments: tuple[Any, ...]) -> None:
    queue = make(7 * 86400 * SECOND)
    device = queue.add_device()
    account = queue.add_node(ROOT)
    user = queue.add_node(account)
    assert (device, account, user) == (0, 1, 2)
    queue.renormalise(1)
    job = queue.push(device, user, 1, 0, SECOND)
    before = [queue.raw_usage(node) for node in (ROOT, account, user)]
    with pytest.raises(ValueError, match=r"\w+ \w+ \w+"):
        getattr(queue, call)(*arguments)
    assert [queue.raw_usage(node) for node in (ROOT, account, user)] == before
    assert queue.counts(device) == (0, 0, 1)
    assert queue.pick(device, 1) == job


@both_queues
def test_device_that_runs_a_job_neither_picks_nor_starts(make: Both) -> None:
    queue = make(SECOND)
    device, user = queue.add_device(), queue.add_node(ROOT)
    first, second = queue.push(device, user, 1, 0, 5), queue.push(device, user, 2, 0, 5)
    queue.start(first, 10)
    with pytest.raises(ValueError, match="runs a job"):
        queue.pick(device, 10)
    with pytest.raises(ValueError, match="runs a job"):
        queue.start(second, 10)
    with pytest.raises(ValueError, match="cannot end"):
        queue.finish(device, 9)
    queue.finish(device, 10)
    assert queue.raw_usage(user)[:2] == (0.0, 0.0)
    assert queue.pick(device, 10) == second


@both_queues
def test_freed_handle_is_refused(make: Both) -> None:
    queue = make(SECOND)
    device, user = queue.add_device(), queue.add_node(ROOT)
    job = queue.push(device, user, 1, 0, 5)
    queue.remove(job)
    with pytest.raises(ValueError, match="no queued job"):
        queue.remove(job)
    assert queue.pick(device, 0) == NOTHING
    session = queue.add_session(device, user, False)
    queue.activate(session)
    assert queue.pick(device, 0) == HELD
    queue.remove_session(session)
    assert queue.active_session(device) == -1
    with pytest.raises(ValueError, match="no session"):
        queue.remove_session(session)


@both_queues
def test_half_life_has_to_be_positive(make: Both) -> None:
    with pytest.raises(ValueError, match="positive"):
        make(0)


@both_queues
def test_restored_usage_decides_as_before_the_restart(make: Both) -> None:
    """At a wall clock's instant, where the exponent is far from 0."""
    now = 1_700_000_000 * SECOND
    queue = make(3600 * SECOND)
    users = [queue.add_node(ROOT) for _ in range(5)]
    for i, user in enumerate(users):
        queue.charge(user, now + i, 100 + i)
    again = make(3600 * SECOND)
    for user in users:
        again.add_node(ROOT)
        settled, in_flight, exponent = queue.raw_usage(user)
        assert in_flight == 0.0
        again.restore_usage(user, settled, exponent)
    assert [again.raw_usage(user) for user in users] == [queue.raw_usage(user) for user in users]
    assert [again.normalised_usage(user) for user in users] == [queue.normalised_usage(user) for user in users]


@both_queues
def test_usage_is_counted_in_device_seconds_and_halves_in_a_half_life(make: Both) -> None:
    queue = make(1000 * SECOND)
    user = queue.add_node(ROOT)
    queue.charge(user, 0, SECOND)
    assert queue.usage(user, SECOND)[0] == pytest.approx(1, rel=1e-3)
    assert queue.usage(user, 1001 * SECOND)[0] == pytest.approx(queue.usage(user, SECOND)[0] / 2, rel=1e-12)
    assert queue.usage(ROOT, 5) == queue.usage(user, 5)


def test_memory_of_a_job_and_of_a_user_is_bounded() -> None:
    """64 bytes a job and 96 a user and device, at ten jobs a user and a hundred users an account."""
    queue = Queue(SECOND)
    device = queue.add_device()
    before = queue.memory_bytes()
    accounts = [queue.add_node(ROOT) for _ in range(100)]
    users = [queue.add_node(account) for account in accounts for _ in range(100)]
    for i in range(100_000):
        queue.push(device, users[i % len(users)], i, 0, 1 + i % 97)
    assert queue.memory_bytes() - before <= 64 * 100_000 + 96 * 10_000


def drain(queue: Any) -> list[int]:
    jobs = []
    while (job := queue.pick(0, SECOND)) != NOTHING:
        jobs.append(job)
        queue.start(job, SECOND)
        queue.finish(0, 2 * SECOND)
    return jobs


def test_a_copy_goes_its_own_way() -> None:
    queue = Queue(1000 * SECOND)
    device = queue.add_device()
    users = [queue.add_node(ROOT, 1.0 + number % 7) for number in range(3_000)]
    for seq in range(30_000):
        queue.push(device, users[seq * 7919 % 3_000], seq, seq % 3, SECOND)
    copy = queue.copy()
    again = copy.copy()
    assert copy.memory_bytes() == queue.memory_bytes()
    order = drain(copy)
    assert len(order) == len(queue) == 30_000
    assert len(copy) == 0
    copy.push(device, users[0], 30_000, 0, SECOND)
    del copy
    assert drain(queue) == order
    del queue
    assert drain(again) == order


def test_memory_of_jobs_that_left_is_used_again() -> None:
    queue = Queue(SECOND)
    device, user = queue.add_device(), queue.add_node(ROOT)
    jobs = [queue.push(device, user, i, 0, 5) for i in range(10_000)]
    held = queue.memory_bytes()
    for round_ in range(1, 4):
        for job in jobs:
            queue.remove(job)
        assert len(queue) == 0
        jobs = [queue.push(device, user, round_ * 10_000 + i, 0, 5) for i in range(10_000)]
    assert queue.memory_bytes() == held

"""The compiled queue at the end of its memory: an error, and nothing has changed. Each pool of records is a range of
addresses, which is smaller where the process may not have many."""

import subprocess
import sys

from _fastqueue import Queue

FILL = """
import resource
from _fastqueue import Queue

resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
queue = Queue(10**18)
device = queue.add_device()
jobs, users, failed = [], [], 0
try:
    while True:
        user = queue.add_node(0)
        jobs.append(queue.push(device, user, len(jobs), 0, 1))
        users.append(user)
except MemoryError:
    pass
held = queue.memory_bytes()
for user in users[:50]:  # memory for whatever a change may need is asked for before it
    try:
        queue.push(device, user, len(jobs), 0, 1)
        raise AssertionError("there is memory")
    except MemoryError:
        failed += 1
assert failed == 50
assert len(jobs) > 50_000, len(jobs)
assert len(queue) == len(jobs) == queue.counts(device)[2]
assert queue.memory_bytes() == held < 2**27, held
assert queue.pick(device, 0) == jobs[0]
"""


def test_a_queue_without_memory_says_so_and_changes_nothing() -> None:
    run = subprocess.run([sys.executable, "-c", FILL], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_queues_stand_side_by_side_and_give_their_addresses_back() -> None:
    for _ in range(6):  # all together would want more addresses than processors have
        queues = [Queue(10**9) for _ in range(500)]
        for queue in queues:
            user = queue.add_node(0)
            job = queue.push(queue.add_device(), user, 1, 0, 1)
            assert queue.pick(0, 0) == job

"""A wall clock that jumps while a server is up: nothing follows it, neither clocks of sessions nor recorded times."""

import os
import time
from pathlib import Path

import cadenza_server
import pytest
from cadenza.v1 import job_pb2

from tests.crash.kills import PLUGINS
from tests.crash.test_disks import Client
from tests.running_server import running

CONFIG = '[devices.sim]\nkind = "noop"\nnum_qubits = 2\nlimit = "5s"\noptions = { seconds = 0.05 }\n'
DAY = 86_400
HOUR_NS = 3600 * 10**9
JUMPING_CLOCK = """
import os, time

_time_ns = time.time_ns

def time_ns():
    with open(os.environ["WALL_CLOCK_JUMP"]) as file:
        return _time_ns() + int(file.read() or 0) * 10**9

time.time_ns = time_ns
time.time = lambda: time_ns() / 1e9
"""
"""Loaded by each process of the server at its start."""


def test_only_the_clock_reads_the_wall_clock() -> None:
    """And devices, that write down when they measured; and the command line, that tells people how long ago it was."""
    package = Path(cadenza_server.__file__).parent
    readers = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if any(word in path.read_text() for word in ("time.time(", "time_ns()", "datetime.now(", "utcnow("))
    }
    assert {path for path in readers if not path.startswith("cli/")} == {"clock.py", "execution/executor.py"}


@pytest.mark.parametrize("jump_s", [DAY, -DAY])
def test_a_wall_clock_that_jumps_changes_nothing_while_the_server_is_up(tmp_path: Path, jump_s: int) -> None:
    (tmp_path / "sitecustomize.py").write_text(JUMPING_CLOCK)
    jump = tmp_path / "jump"
    jump.write_text("0")
    path = os.pathsep.join([str(tmp_path), str(PLUGINS), os.environ.get("PYTHONPATH", "")])
    environment = {"PYTHONPATH": path, "WALL_CLOCK_JUMP": str(jump)}
    with running(tmp_path, CONFIG, environment=environment) as server, Client(server.address) as client:
        before = client.wait(client.submit("before").job_id)
        jump.write_text(str(jump_s))
        began = time.monotonic()
        names = [client.submit(f"after-{number}").job_id for number in range(5)]
        jobs = [client.wait(name) for name in names]
        assert time.monotonic() - began < 30  # timers go on
        assert {job.state for job in jobs} == {job_pb2.JOB_STATE_SUCCEEDED}
        times = [before.end_time.ToNanoseconds()]
        for job in jobs:
            times += [job.create_time.ToNanoseconds(), job.end_time.ToNanoseconds()]
        assert max(times) - min(times) < HOUR_NS
        assert all(time >= times[0] for time in times)
        ends = [job.end_time.ToNanoseconds() for job in jobs]
        assert ends == sorted(ends)
        assert server.stop() == 0
    # At the next start the wall clock is believed if it went on; if it went back, time stands where it was.
    with running(tmp_path, CONFIG, environment=environment) as server, Client(server.address) as client:
        again = client.wait(client.submit("again").job_id)
        assert again.create_time.ToNanoseconds() >= max(times)
        assert (again.create_time.ToNanoseconds() - max(times) > HOUR_NS) == (jump_s > 0)
        assert client.names() == {"before", *names, "again"}

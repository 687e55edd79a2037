"""Some thousands of requests that are nearly right, against a live server: it answers each, lives, and does not grow.

More of them, by hand: server.py.
"""

import asyncio
from pathlib import Path

from tests.fuzz import server as fuzzer

INPUTS = 2_000


def test_a_server_stands_requests_that_are_nearly_right(tmp_path: Path) -> None:
    qpy = fuzzer.make_qpy()
    with fuzzer.serving(tmp_path) as (address, process):
        asyncio.run(fuzzer.fuzz(address, 200, 1, qpy))
        before = fuzzer.memory(process.pid)
        told = asyncio.run(fuzzer.fuzz(address, INPUTS, 2, qpy))
        assert not fuzzer.BUGS & told.keys(), told
        assert told["OK"] > 0
        assert told["INVALID_ARGUMENT"] > INPUTS // 10
        fuzzer.check_alive(address, qpy)
        assert fuzzer.memory(process.pid) - before < fuzzer.GROWTH_BYTES_MAX
        process.terminate()
        assert process.wait(60) == 0

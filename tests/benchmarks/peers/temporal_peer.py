"""Temporal's dev server, its state in a SQLite file, with the fairness keys that it has for several users.

The program `temporal` is built by `go install github.com/temporalio/cli/cmd/temporal@v1.5.1`, if no package has it.
"""

import asyncio
import importlib.metadata
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from tests.benchmarks.peers.peer import AbsentError, Daemons, Peer, free_port, wait_until
from tests.benchmarks.peers.work import FUNCTIONS, make_payload

ROOT = Path(__file__).parents[3]
AT_ONCE = 50
"""Calls under way while many jobs are submitted: each is a call."""
FAIR = ("matching.useNewMatcher=true", "matching.enableFairness=true")


class Temporal(Peer):
    name = "temporal"
    durable = True
    scale: ClassVar = {"nothing": 0.2, "ghz": 0.3, "single": 0.1}
    queue_max = 10_000
    how = (
        "its dev server with a SQLite file; a job is a workflow of one activity, one worker process, one activity at a "
        "time; 50 calls at once for many; fairness by user switched on"
    )

    def version(self) -> str:
        if shutil.which("temporal") is None:
            raise AbsentError("the program temporal is not installed: see temporal_peer.py")
        try:
            package = importlib.metadata.version("temporalio")
        except importlib.metadata.PackageNotFoundError:
            raise AbsentError("the Python package temporalio is not installed") from None
        said = subprocess.run(["temporal", "--version"], capture_output=True, text=True, check=True).stdout
        return f"server {said.partition('Server ')[2].partition(',')[0]}, client {package}"

    def start(self, folder: Path) -> None:
        self.version()
        from temporalio.client import Client

        self._daemons = Daemons()
        port = free_port()
        target = f"127.0.0.1:{port}"
        fair = [word for value in FAIR for word in ("--dynamic-config-value", value)]
        self._daemons.run(
            [
                *("temporal", "server", "start-dev", "--headless", "--port", str(port), "--log-level", "error"),
                *("--db-filename", str(folder / "temporal.db"), *fair),
            ],
            folder,
        )
        self._loop = asyncio.new_event_loop()
        self._client: Any = None

        def answers() -> bool:
            try:
                self._client = self._loop.run_until_complete(Client.connect(target))
            except RuntimeError:
                return False
            return True

        wait_until(answers, "temporal")
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        worker = [sys.executable, "-m", "tests.benchmarks.peers.temporal_worker", target]
        self._daemons.run(worker, folder, env={**os.environ, "PYTHONPATH": path})
        self._count = 0
        # calls come from several threads
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        # a first job of each kind: the worker is up, and has loaded what it needs
        for kind in FUNCTIONS:
            self.finish(self.submit(kind, 1, "first"))

    def stop(self) -> None:
        self._daemons.stop()

    def submit(self, kind: str, count: int, user: str) -> Sequence[Any]:
        from temporalio.common import Priority

        payload = make_payload(kind)
        begin, self._count = self._count, self._count + count

        async def one(number: int) -> Any:
            return await self._client.start_workflow(
                "Job",
                args=[kind, payload],
                id=f"job-{number}",
                task_queue="jobs",
                priority=Priority(fairness_key=user),
            )

        async def all_of_them() -> list[Any]:
            found: list[Any] = []
            for first in range(begin, begin + count, AT_ONCE):
                numbers = range(first, min(first + AT_ONCE, begin + count))
                found += await asyncio.gather(*map(one, numbers))
            return found

        return asyncio.run_coroutine_threadsafe(all_of_them(), self._loop).result()

    def finish(self, handles: Sequence[Any]) -> list[int]:
        async def all_of_them() -> list[int]:
            return list(await asyncio.gather(*(handle.result() for handle in handles)))

        return asyncio.run_coroutine_threadsafe(all_of_them(), self._loop).result()

"""Celery and RQ, each over a Redis of its own that writes every command to disk before it answers."""

import importlib.metadata
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from tests.benchmarks.peers.peer import AbsentError, Daemons, Peer, free_port, wait_until
from tests.benchmarks.peers.work import FUNCTIONS, make_payload

TIMEOUT_S = 120

ROOT = Path(__file__).parents[3]


class OverRedis(Peer):
    """What the two have in common."""

    durable = True
    package = ""

    def version(self) -> str:
        try:
            return importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:
            raise AbsentError(f"the Python package {self.package} is not installed") from None

    def start(self, folder: Path) -> None:
        self.version()
        import redis

        self._daemons = Daemons()
        port = free_port()
        self.url = f"redis://127.0.0.1:{port}/0"
        self._daemons.run(
            [
                *("redis-server", "--port", str(port), "--dir", str(folder)),
                *("--save", "", "--appendonly", "yes", "--appendfsync", "always"),
            ],
            folder,
        )
        self.redis = redis.Redis.from_url(self.url, socket_timeout=None)

        def answers() -> bool:
            try:
                return bool(self.redis.ping())
            except redis.ConnectionError:
                return False

        wait_until(answers, "redis")
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": path, "PEERS_REDIS": self.url}
        self._daemons.run(self.worker(), folder, env=environment)
        # a first job of each kind: the worker is up, and has loaded what it needs
        for kind in FUNCTIONS:
            self.finish(self.submit(kind, 1, ""))

    def stop(self) -> None:
        self._daemons.stop()

    def worker(self) -> list[str]:
        """The command that starts the worker."""
        raise NotImplementedError


class Celery(OverRedis):
    name = "celery"
    package = "celery"
    how = (
        "Redis with appendfsync always, results in Redis, acks_late, one prefork process; a call a job; "
        "users are not told apart"
    )

    def worker(self) -> list[str]:
        return [
            str(Path(sys.executable).with_name("celery")),
            "-A",
            "tests.benchmarks.peers.celery_tasks",
            "worker",
            "--concurrency=1",
            "--loglevel=ERROR",
        ]

    def start(self, folder: Path) -> None:
        self.version()
        self._tasks: Any = None
        super().start(folder)

    def submit(self, kind: str, count: int, user: str) -> Sequence[Any]:
        if self._tasks is None:
            os.environ["PEERS_REDIS"] = self.url
            from tests.benchmarks.peers import celery_tasks

            self._tasks = celery_tasks
        task, payload = self._tasks.TASKS[kind], make_payload(kind)
        return [task.delay(payload) for _ in range(count)]

    def finish(self, handles: Sequence[Any]) -> list[int]:
        return [handle.get(timeout=TIMEOUT_S) for handle in handles]


class Rq(OverRedis):
    name = "rq"
    package = "rq"
    scale: ClassVar = {"nothing": 0.2, "ghz": 0.3, "single": 0.1}
    how = (
        "Redis with appendfsync always, results in Redis, one worker that forks for each job, imports done before; "
        "enqueue_many for many; users are not told apart"
    )

    def worker(self) -> list[str]:
        return [sys.executable, "-m", "tests.benchmarks.peers.rq_worker", self.url]

    def submit(self, kind: str, count: int, user: str) -> Sequence[Any]:
        from rq import Queue

        queue = Queue("jobs", connection=self.redis)
        function, payload = FUNCTIONS[kind], make_payload(kind)
        if count == 1:
            return [queue.enqueue(function, payload)]
        handles: list[Any] = []
        for begin in range(0, count, 1_000):
            many = [Queue.prepare_data(function, [payload]) for _ in range(min(1_000, count - begin))]
            handles += queue.enqueue_many(many)
        return handles

    def finish(self, handles: Sequence[Any]) -> list[int]:
        # its jobs run in their order, and a blocked read of the last result returns when that is there
        handles[-1].latest_result(timeout=TIMEOUT_S)
        return [handles[-1].return_value()]

"""Ray and Dask: what they hold is in memory."""

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.peers.peer import AbsentError, Peer
from tests.benchmarks.peers.work import FUNCTIONS, make_payload


def find_version(package: str) -> str:
    """Raises `AbsentError`."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise AbsentError(f"the Python package {package} is not installed") from None


class Dask(Peer):
    name = "dask"
    how = "distributed.LocalCluster, one worker process with one thread; client.map for many; users are not told apart"

    def version(self) -> str:
        return find_version("distributed")

    def start(self, folder: Path) -> None:
        self.version()
        from distributed import Client, LocalCluster

        self._cluster: Any = LocalCluster(
            n_workers=1, threads_per_worker=1, dashboard_address=None, local_directory=str(folder), memory_limit=0
        )
        self._client: Any = Client(self._cluster)
        for kind in FUNCTIONS:
            self.finish(self.submit(kind, 1, ""))

    def stop(self) -> None:
        self._client.close()
        self._cluster.close()

    def submit(self, kind: str, count: int, user: str) -> Sequence[Any]:
        function, payload = FUNCTIONS[kind], make_payload(kind)
        if count == 1:
            return [self._client.submit(function, payload, pure=False)]
        return list(self._client.map(function, [payload] * count, pure=False, batch_size=1_000))

    def finish(self, handles: Sequence[Any]) -> list[int]:
        return list(self._client.gather(list(handles)))


class Ray(Peer):
    name = "ray"
    how = "ray.init(num_cpus=1); a remote call a job; users are not told apart"

    def version(self) -> str:
        return find_version("ray")

    def start(self, folder: Path) -> None:
        self.version()
        import ray

        ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, configure_logging=False)
        self._ray: Any = ray
        self._functions = {kind: ray.remote(function) for kind, function in FUNCTIONS.items()}
        for kind in FUNCTIONS:
            self.finish(self.submit(kind, 1, ""))

    def stop(self) -> None:
        self._ray.shutdown()

    def submit(self, kind: str, count: int, user: str) -> Sequence[Any]:
        function, payload = self._functions[kind], make_payload(kind)
        return [function.remote(payload) for _ in range(count)]

    def finish(self, handles: Sequence[Any]) -> list[int]:
        return list(self._ray.get(list(handles)))

"""Cadenza, through its own client over a socket; jobs of several users are jobs of several users."""

import importlib.metadata
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from cadenza import Client
from cadenza.v1 import event_pb2, job_pb2

from tests.benchmarks.peers.peer import Peer
from tests.benchmarks.peers.work import SHOTS, make_payload

PLUGINS = Path(__file__).parents[2] / "plugins"
CALL = 1_000
"""Jobs of one call."""

CONFIGURATION = """
[devices.nothing]
kind = "noop"
[devices.ghz]
kind = "aer"
"""


class Cadenza(Peer):
    name = "cadenza"
    durable = True
    how = "defaults (SQLite, fsync before every answer); one device for each kind of job"

    def version(self) -> str:
        return importlib.metadata.version("cadenza")

    def start(self, folder: Path) -> None:
        from cadenza import CadenzaService

        os.environ["PYTHONPATH"] = os.pathsep.join([str(PLUGINS), os.environ.get("PYTHONPATH", "")])
        (folder / "cadenza.toml").write_text(CONFIGURATION)
        self._open = ExitStack()
        service = self._open.enter_context(CadenzaService.local(folder / "cadenza.toml"))
        self._target = service.client.target
        self._clients: dict[str, Client] = {}

    def stop(self) -> None:
        self._open.close()

    def submit(self, kind: str, count: int, user: str) -> Sequence[Any]:
        client = self._client(user)
        job = job_pb2.JobSpec(device=kind)
        pub = job.program.sampler.pubs.add(shots=SHOTS)
        pub.circuit.qpy = make_payload("ghz")
        if count == 1:
            # as the library submits: the end comes with the answer, if the job has ended by then
            return [(user, client.submit_job_spec_for_end(job))]
        handles = []
        for begin in range(0, count, CALL):
            jobs = [job] * min(CALL, count - begin)
            handles += [(user, submitted) for submitted in client.submit_jobs(jobs)]
        return handles

    def finish(self, handles: Sequence[Any]) -> list[int]:
        # a user's jobs for one device run in their order
        user, last = handles[-1]
        if isinstance(last, event_pb2.JobEnded):
            return [last.job.start_time.ToNanoseconds()]
        with self._client(user).watch_job(last.job_id, include_results=True) as events:
            *_, end = events
        ended = end.job_snapshot.job if end.HasField("job_snapshot") else end.job_ended.job
        return [ended.start_time.ToNanoseconds()]

    def _client(self, user: str) -> Client:
        if user not in self._clients:
            self._clients[user] = self._open.enter_context(
                Client(self._target, user=f"peers/{user}", token="", tls=False)
            )
        return self._clients[user]

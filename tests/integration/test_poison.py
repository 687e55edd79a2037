"""A job that kills its worker every time, and its neighbours, at a real server with real workers."""

import os
from pathlib import Path

import pytest
from cadenza import Client
from cadenza.v1 import job_pb2

from tests.running_server import running

PLUGINS = Path(__file__).parents[1] / "plugins"
ATTEMPTS = 3


def asking(request: str) -> job_pb2.JobSpec:
    job = job_pb2.JobSpec(device="busy")
    job.program.sampler.pubs.add().circuit.openqasm3 = f"OPENQASM 3.0; // {request}"
    return job


def test_a_job_that_kills_its_worker_ends_after_its_attempts_which_are_all_that_its_neighbours_wait_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(PLUGINS) + os.pathsep + os.environ.get("PYTHONPATH", ""))
    configuration = f'[devices.busy]\nkind = "unruly"\nmax_attempts = {ATTEMPTS}\n'
    with running(tmp_path, configuration) as server, Client(server.address, user="ada", token="", tls=False) as client:
        poison, *neighbours = [
            submitted.job_id
            for submitted in client.submit_jobs([asking("abort"), asking("nothing"), asking("nothing")])
        ]
        for job in (poison, *neighbours):
            with client.watch_job(job) as events:
                for _ in events:
                    pass
        ended = client.get_job(poison)
        assert (ended.state, ended.reason) == (job_pb2.JOB_STATE_FAILED, job_pb2.JOB_REASON_WORKER_LOST)
        assert "SIGABRT" in ended.detail
        for job in neighbours:
            assert client.get_job(job).state == job_pb2.JOB_STATE_SUCCEEDED
        runs = client.list_runs(device="busy")
    told = [(run.job_id, run.attempt) for run in runs]
    assert told == [(poison, attempt + 1) for attempt in range(ATTEMPTS)] + [(job, 1) for job in neighbours]
    # lost runs are charged to nobody
    assert all(not run.HasField("charged") or run.charged.ToNanoseconds() == 0 for run in runs[:ATTEMPTS])

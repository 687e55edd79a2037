"""What a session's jobs have brought stays with the server: whatever becomes of workers and first jobs, until the
session closes or its cache deadline."""

import hashlib
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from cadenza.arrays import tensor_from_array
from cadenza.v1 import job_pb2, job_service_pb2, session_pb2, session_service_pb2
from cadenza.v1.circuit_pb2 import Circuit
from cadenza.v1.program_pb2 import SamplerPub

SHORT = """
[server]
operators = ["rani"]
[devices.short]
kind = "aer"
num_qubits = 4
max_time = "4s"
session_cache_ttl = "1s"
"""
CONFIG = f"""{SHORT}
[devices.sim]
kind = "aer"
num_qubits = 4
"""

ROTATION = (
    'OPENQASM 3.0;\ninclude "stdgates.inc";\ninput float theta;\nqubit[1] q;\nbit[1] c;\nrx(theta) q[0];\n'
    "c = measure q;\n"
)
NAMED = Circuit(digest=hashlib.sha256(ROTATION.encode()).digest())


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, kit: Any) -> Iterator[Any]:
    with kit.running(tmp_path_factory.mktemp("cache"), CONFIG) as server:
        yield server


def make_job(session: str, circuit: Circuit, angle: float | None, shots: int = 50) -> job_pb2.JobSpec:
    """A job of one rotation, by `angle`; without one it cannot run, as its circuit has a parameter."""
    spec = job_pb2.JobSpec(session_id=session)
    pub: SamplerPub = spec.program.sampler.pubs.add(shots=shots)
    pub.circuit.CopyFrom(circuit)
    if angle is not None:
        pub.parameter_values.CopyFrom(tensor_from_array(np.array([angle])))
    return spec


@contextmanager
def open_session(ann: Any, device: str) -> Iterator[str]:
    """A session that lets go of its device at the end."""
    name = ann.sessions("CreateSession", session_service_pb2.CreateSessionRequest(device=device)).session.session_id
    try:
        yield name
    finally:
        ann.sessions("CancelSession", session_service_pb2.CancelSessionRequest(session_id=name))


def count_ones(ann: Any, job_id: str) -> int:
    result = ann.jobs("GetJobResult", job_service_pb2.GetJobResultRequest(job_id=job_id)).result
    (field,) = result.pubs[0].fields
    return sum(field.bits.data)


def occupy(rani: Any, kit: Any, device: str) -> str:
    """A calibration that takes the device until it is cancelled."""
    spec = job_pb2.JobSpec(device=device)
    spec.program.calibration.pubs.add(shots=1).circuit.qpy = kit.ghz()
    spec.program.calibration.duration.FromSeconds(600)
    name: str = rani.submit(spec).job_id
    rani.wait_until(name, job_pb2.JOB_STATE_RUNNING)
    return name


def workers_of(server: Any) -> list[int]:
    """The processes below the server that execute runs."""
    parents: dict[int, int] = {}
    executing = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "stat").read_text().rpartition(")")[2].split()
                line = (entry / "cmdline").read_bytes()
            except OSError:
                continue  # it has ended
            parents[int(entry.name)] = int(words[1])
            if b"cadenza_server.execution" in line and words[0] != "Z":
                executing.append(int(entry.name))

    def is_below(process: int) -> bool:
        while process in parents:
            process = parents[process]
            if process == server.process.pid:
                return True
        return False

    return [process for process in executing if is_below(process)]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are found in /proc")
def test_a_worker_that_died_between_two_jobs_is_refilled(own: Any, connect: Any, kit: Any) -> None:
    ann = connect("cache/ann", address=own.address)
    with open_session(ann, "sim") as session:
        first = ann.wait(ann.submit(make_job(session, Circuit(openqasm3=ROTATION), 0.0)).job_id)
        assert first.state == job_pb2.JOB_STATE_SUCCEEDED
        killed = workers_of(own)
        assert killed
        for worker in killed:
            os.kill(worker, signal.SIGKILL)
        kit.wait_for(lambda: not set(killed) & set(workers_of(own)), "the workers to end")
        second = ann.wait(ann.submit(make_job(session, NAMED, 3.141592653589793)).job_id)
        assert second.state == job_pb2.JOB_STATE_SUCCEEDED, second
        assert count_ones(ann, second.job_id) == 50
        assert count_ones(ann, first.job_id) == 0


def test_a_first_job_that_failed_has_brought_its_data(own: Any, connect: Any) -> None:
    ann = connect("cache/bob", address=own.address)
    with open_session(ann, "sim") as session:
        first = ann.wait(ann.submit(make_job(session, Circuit(openqasm3=ROTATION), None)).job_id)
        assert (first.state, first.reason) == (job_pb2.JOB_STATE_FAILED, job_pb2.JOB_REASON_EXECUTION_ERROR), first
        second = ann.wait(ann.submit(make_job(session, NAMED, 3.141592653589793)).job_id)
        assert second.state == job_pb2.JOB_STATE_SUCCEEDED, second
        assert count_ones(ann, second.job_id) == 50


def test_data_outlives_expiry_until_the_cache_deadline(own: Any, connect: Any, kit: Any) -> None:
    ann, rani = connect("cache/cem", address=own.address), connect("rani", address=own.address)
    with open_session(ann, "short") as session:
        assert ann.wait(ann.submit(make_job(session, Circuit(openqasm3=ROTATION), 0.0)).job_id).state == (
            job_pb2.JOB_STATE_SUCCEEDED
        )
        calibration = occupy(rani, kit, "short")
        waiting = ann.submit(make_job(session, NAMED, 0.0)).job_id

        def is_expired() -> bool:
            request = session_service_pb2.GetSessionRequest(session_id=session)
            return bool(ann.sessions("GetSession", request).session.state == session_pb2.SESSION_STATE_CLOSED)

        kit.wait_for(is_expired, "the session to expire")
        ended = ann.wait(waiting)
        assert (ended.state, ended.reason) == (job_pb2.JOB_STATE_FAILED, job_pb2.JOB_REASON_SESSION_CACHE_EXPIRED), (
            ended
        )
        with kit.refusal() as refused:
            ann.submit(make_job(session, NAMED, 0.0))
        assert (refused().code, refused().reason) == (grpc.StatusCode.FAILED_PRECONDITION, "SESSION_NOT_ACCEPTING")
        rani.jobs("CancelJob", job_service_pb2.CancelJobRequest(job_id=calibration))


def test_data_is_there_between_expiry_and_the_cache_deadline(connect: Any, kit: Any, tmp_path: Path) -> None:
    """The same with a deadline that is far off: leftovers run as fair-share jobs, with their session's circuits; new
    ones may name them, too, also after the server was killed."""
    config = SHORT.replace('session_cache_ttl = "1s"', 'session_cache_ttl = "10m"')
    with kit.running(tmp_path, config) as server:
        ann, rani = connect("cache/cem", address=server.address), connect("rani", address=server.address)
        created = ann.sessions("CreateSession", session_service_pb2.CreateSessionRequest(device="short"))
        session = created.session.session_id
        ann.wait(ann.submit(make_job(session, Circuit(openqasm3=ROTATION), 0.0)).job_id)
        calibration = occupy(rani, kit, "short")
        waiting = ann.submit(make_job(session, NAMED, 3.141592653589793)).job_id
        request = session_service_pb2.GetSessionRequest(session_id=session)
        kit.wait_for(
            lambda: ann.sessions("GetSession", request).session.state == session_pb2.SESSION_STATE_CLOSED,
            "the session to expire",
        )
        later = ann.submit(make_job(session, NAMED, 3.141592653589793)).job_id
        server.stop(signal.SIGKILL)
    with kit.running(tmp_path, config) as server:
        ann, rani = connect("cache/cem", address=server.address), connect("rani", address=server.address)
        rani.jobs("CancelJob", job_service_pb2.CancelJobRequest(job_id=calibration))
        for job in (waiting, later, ann.submit(make_job(session, NAMED, 3.141592653589793)).job_id):
            assert ann.wait(job).state == job_pb2.JOB_STATE_SUCCEEDED
            assert count_ones(ann, job) == 50


def test_a_closed_session_has_let_go_of_its_data(own: Any, connect: Any, kit: Any) -> None:
    ann = connect("cache/dee", address=own.address)
    with open_session(ann, "sim") as session:
        ann.wait(ann.submit(make_job(session, Circuit(openqasm3=ROTATION), 0.0)).job_id)
        ann.sessions("CloseSession", session_service_pb2.CloseSessionRequest(session_id=session))
        with kit.refusal() as refused:
            ann.submit(make_job(session, NAMED, 0.0))
        assert (refused().code, refused().reason) == (grpc.StatusCode.FAILED_PRECONDITION, "SESSION_NOT_ACCEPTING")
        with open_session(ann, "sim") as other, kit.refusal() as refused:
            ann.submit(make_job(other, NAMED, 0.0))
        assert (refused().code, refused().reason) == (grpc.StatusCode.NOT_FOUND, "UNKNOWN_CIRCUIT")


def test_queued_jobs_of_a_session_that_is_closed_fail_as_the_law_says(own: Any, connect: Any, kit: Any) -> None:
    ann, rani = connect("cache/eva", address=own.address), connect("rani", address=own.address)
    with open_session(ann, "sim") as session:
        ann.wait(ann.submit(make_job(session, Circuit(openqasm3=ROTATION), 0.0)).job_id)
        calibration = occupy(rani, kit, "sim")
        waiting = ann.submit(make_job(session, NAMED, 0.0)).job_id
        ann.sessions("CloseSession", session_service_pb2.CloseSessionRequest(session_id=session))
        ended = ann.wait(waiting)
        assert (ended.state, ended.reason) == (job_pb2.JOB_STATE_FAILED, job_pb2.JOB_REASON_SESSION_CLOSED), ended
        rani.jobs("CancelJob", job_service_pb2.CancelJobRequest(job_id=calibration))

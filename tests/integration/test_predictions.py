"""Estimates from the history of a device, as clients of a real server see them."""

import hashlib
import signal
from pathlib import Path
from typing import Any

import pytest
from cadenza.v1 import device_pb2, device_service_pb2, job_pb2, job_service_pb2, session_service_pb2

CONFIG = '[devices.qpu]\nkind = "aer"\nnum_qubits = 8\ndefault_estimate = "9s"\n'
SECOND = 1_000_000_000


def length_ns(job: job_pb2.Job) -> int:
    return job.end_time.ToNanoseconds() - job.start_time.ToNanoseconds()


def estimate_error(client: Any) -> device_pb2.EstimateError:
    device = client.devices("GetDevice", device_service_pb2.GetDeviceRequest(name="qpu")).device
    error: device_pb2.EstimateError = device.estimate_error
    assert device.HasField("estimate_error") == (error.run_count > 0)
    return error


def test_a_circuit_is_expected_to_take_what_it_took_also_after_a_restart(
    connect: Any, kit: Any, tmp_path: Path
) -> None:
    with kit.running(tmp_path, CONFIG) as server:
        ann, bob = (connect(name, address=server.address) for name in ("lab/ann", "lab/bob"))
        assert estimate_error(ann).run_count == 0
        first = ann.wait(ann.submit(kit.sampler_job(device="qpu")).job_id)
        assert first.estimate.ToNanoseconds() == 9 * SECOND
        second = ann.wait(ann.submit(kit.sampler_job(device="qpu")).job_id)
        assert second.estimate.ToNanoseconds() == length_ns(first)
        (run,) = ann.jobs("ListRuns", job_service_pb2.ListRunsRequest(job_id=second.job_id)).runs
        assert run.estimate == second.estimate
        lengths = [length_ns(first), length_ns(second)]
        for client in (ann, bob):  # bob never ran it, but something of its shape was run
            spec = kit.sampler_job(device="qpu", max_execution_time={"seconds": 60})
            third = client.wait(client.submit(spec).job_id)
            assert third.estimate.ToNanoseconds() in lengths
            lengths.append(length_ns(third))
        error = estimate_error(bob)
        assert error.run_count == 4
        assert 1 <= error.factor_p50 <= error.factor_p90
        assert error.factor_p90 == pytest.approx(9 * SECOND / length_ns(first))
        assert error.difference_p90.ToNanoseconds() == 9 * SECOND - length_ns(first)
        assert server.stop(signal.SIGTERM) == 0
    with kit.running(tmp_path, CONFIG) as server:
        ann = connect("lab/ann", address=server.address)
        assert estimate_error(ann) == error
        job = ann.submit(kit.sampler_job(device="qpu"))
        assert job.estimate.ToNanoseconds() in lengths


def test_an_iterative_program_is_known_from_its_second_job_on(connect: Any, kit: Any, tmp_path: Path) -> None:
    with kit.running(tmp_path, CONFIG) as server:
        ann = connect("lab/ann", address=server.address)
        request = session_service_pb2.CreateSessionRequest(device="qpu")
        session = ann.sessions("CreateSession", request).session.session_id
        spec = kit.sampler_job(session=session)
        first = ann.wait(ann.submit(spec).job_id)
        named = job_pb2.JobSpec()
        named.CopyFrom(spec)
        named.program.sampler.pubs[0].circuit.digest = hashlib.sha256(spec.program.sampler.pubs[0].circuit.qpy).digest()
        second = ann.wait(ann.submit(named).job_id)
        assert second.estimate.ToNanoseconds() == length_ns(first)


def test_an_unknown_job_is_expected_to_take_its_own_limit_and_no_hint_is_believed(
    connect: Any, kit: Any, tmp_path: Path
) -> None:
    with kit.running(tmp_path, CONFIG) as server:
        ann = connect("lab/ann", address=server.address)
        limited = kit.sampler_job(device="qpu", max_execution_time={"seconds": 5}, estimate_hint={"seconds": 2})
        assert ann.wait(ann.submit(limited).job_id).estimate.seconds == 5
        hinted = kit.sampler_job(device="qpu", circuit=kit.ghz(8), estimate_hint={"seconds": 2})
        job = ann.wait(ann.submit(hinted).job_id)
        assert 0 < job.estimate.ToNanoseconds() < SECOND  # the first hint was too long, so this one is taken for less

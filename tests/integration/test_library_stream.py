"""The stream of submissions, against a real server."""

import time
from collections.abc import Iterator

import grpc
import pytest
from cadenza import CadenzaService, InvalidRequestError, NotFoundError, job_spec, sampler_program
from cadenza._local import private_server
from cadenza.v1 import errors_pb2, job_pb2, job_service_pb2, job_service_pb2_grpc
from google.rpc.code_pb2 import INVALID_ARGUMENT

USER = (("cadenza-user", "ada"),)
PATIENCE_S = 30.0
QASM = "OPENQASM 3; qubit q; bit[1] c; c[0] = measure q;"

CONFIG = """
[limits]
message_bytes_max = 200_000
[devices.sim]
kind = "aer"
num_qubits = 4
"""


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    config = tmp_path_factory.mktemp("config") / "cadenza.toml"
    config.write_text(CONFIG)
    with private_server(config) as address:
        yield address


@pytest.fixture
def jobs(target: str) -> Iterator[job_service_pb2_grpc.JobServiceStub]:
    with grpc.insecure_channel(target) as channel:
        yield job_service_pb2_grpc.JobServiceStub(channel)


def ask(
    request_id: str = "", device: str = "sim", qasm: str = QASM, **fields: int
) -> job_service_pb2.SubmitJobStreamRequest:
    spec = job_spec(sampler_program(qasm, shots=10), device=device, **fields)  # type: ignore[arg-type]
    return job_service_pb2.SubmitJobStreamRequest(request_id=request_id, job=spec)


def test_each_job_is_answered_in_order_and_a_refusal_does_not_end_the_stream(
    jobs: job_service_pb2_grpc.JobServiceStub,
) -> None:
    asked = [ask("one"), ask("two", device="nowhere"), ask("three", priority=1_000), ask("four")]
    answers = list(jobs.SubmitJobStream(iter(asked), metadata=USER, timeout=PATIENCE_S))
    assert [answer.request_id for answer in answers] == ["one", "two", "three", "four"]
    assert [answer.WhichOneof("outcome") for answer in answers] == ["job", "refusal", "refusal", "job"]
    assert answers[3].job.seq == answers[0].job.seq + 1
    refusal: errors_pb2.Refusal = answers[2].refusal
    assert refusal.code == INVALID_ARGUMENT
    assert "priority" in refusal.message
    found = jobs.GetJob(job_service_pb2.GetJobRequest(job_id=answers[0].job.job_id), metadata=USER).job
    assert found.state != job_pb2.JOB_STATE_UNSPECIFIED


def test_a_job_of_the_stream_is_repeated_by_a_call_without_being_submitted_twice(
    jobs: job_service_pb2_grpc.JobServiceStub,
) -> None:
    request = ask("again")
    (answer,) = jobs.SubmitJobStream(iter([request]), metadata=USER, timeout=PATIENCE_S)
    call = job_service_pb2.SubmitJobRequest(request_id="again", job=request.job)
    assert jobs.SubmitJob(call, metadata=USER, timeout=PATIENCE_S).job.job_id == answer.job.job_id
    (third,) = jobs.SubmitJobStream(iter([request]), metadata=USER, timeout=PATIENCE_S)
    assert third.job.job_id == answer.job.job_id


def test_who_does_not_say_who_calls_gets_no_stream(jobs: job_service_pb2_grpc.JobServiceStub) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        list(jobs.SubmitJobStream(iter([ask()]), timeout=PATIENCE_S))
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_a_message_that_is_too_large_ends_the_stream(jobs: job_service_pb2_grpc.JobServiceStub) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        list(jobs.SubmitJobStream(iter([ask(qasm=QASM + " " * 300_000)]), metadata=USER, timeout=PATIENCE_S))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_the_library_uses_it_and_its_refusals_have_their_types(target: str) -> None:
    with CadenzaService(target, user="ada") as service:
        program = sampler_program(QASM, shots=10)
        for _ in range(3):
            assert service.client.submit_job(program, device="sim").job_id
        with pytest.raises(NotFoundError) as missing:
            service.client.submit_job(program, device="nowhere")
        assert missing.value.reason == "UNKNOWN_DEVICE"
        with pytest.raises(InvalidRequestError) as wrong:
            service.client.submit_job(program, device="sim", priority=1_000)
        assert wrong.value.field == "job.priority"
        assert service.client._submissions._answers is not None


def test_a_server_stops_at_once_although_a_stream_is_open() -> None:
    with private_server() as address:
        service = CadenzaService(address, user="ada")
        for _ in range(2):
            service.job(service.client.submit_job(sampler_program(QASM, shots=10), device="aer").job_id).result()
        stream = service.client._submissions._answers
        assert stream.is_active()
        begin = time.monotonic()
    # Leaving the block stopped the server and waited for its end.
    with service:
        assert time.monotonic() - begin < 5
        # It ends with OK, unless the end of the connection overtakes that.
        assert stream.code() in (grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE)

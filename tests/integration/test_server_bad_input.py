"""What is wrong is refused with the right code, a stable reason and a sentence, nothing is queued, the server lives.

What only a parser can find to be broken is accepted, and ends as EXECUTION_ERROR.
"""

import base64
import hashlib
import json
import struct
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from cadenza.v1 import (
    device_service_pb2,
    job_pb2,
    job_service_pb2,
    program_pb2,
    reservation_service_pb2,
    server_service_pb2,
    session_service_pb2,
    share_service_pb2,
)
from cadenza.v1.circuit_pb2 import Circuit
from cadenza.v1.tensor_pb2 import DTYPE_FLOAT64, Tensor
from cadenza_server.tokens import hash_token
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

MEBIBYTE = 1024 * 1024
CODES = grpc.StatusCode


def spec_with(kit: Any, **changes: Any) -> job_pb2.JobSpec:
    """A good job for `sim` but for what is changed: `pub` and `job` are callables that spoil it."""
    spec: job_pb2.JobSpec = kit.sampler_job(device="sim", circuit=changes.get("circuit"))
    if "pub" in changes:
        changes["pub"](spec.program.sampler.pubs[0])
    if "job" in changes:
        changes["job"](spec)
    return spec


def set_tensor(pub: Any) -> None:
    pub.parameter_values.CopyFrom(Tensor(dtype=DTYPE_FLOAT64, shape=[3], data=struct.pack("<2d", 0.1, 0.2)))


def set_shots(pub: Any) -> None:
    pub.shots = -5


def set_unknown_device(spec: Any) -> None:
    spec.device = "nowhere"


def set_unknown_session(spec: Any) -> None:
    spec.device, spec.session_id = "", "session-nowhere"


def drop_program(spec: Any) -> None:
    spec.ClearField("program")


def set_limit(spec: Any) -> None:
    spec.max_execution_time.seconds = -1


def set_priority(spec: Any) -> None:
    spec.priority = 101


def set_tags(spec: Any) -> None:
    spec.tags.extend(["x"] * 33)


def set_reserved_id(spec: Any) -> None:
    spec.job_id = "calibration-sim-1"


def set_calibration(spec: Any) -> None:
    spec.program.calibration.SetInParent()


CASES: list[tuple[str, Callable[[Any], dict[str, Any]], grpc.StatusCode, str, str]] = [
    ("unknown device", lambda k: {"job": set_unknown_device}, CODES.NOT_FOUND, "UNKNOWN_DEVICE", "job.device"),
    ("unknown session", lambda k: {"job": set_unknown_session}, CODES.NOT_FOUND, "UNKNOWN_SESSION", "job.session_id"),
    (
        "truncated QPY",
        lambda k: {"circuit": k.ghz()[:40]},
        CODES.INVALID_ARGUMENT,
        "INVALID_CIRCUIT",
        "job.program.sampler.pubs[0].circuit.qpy",
    ),
    (
        "not QPY",
        lambda k: {"circuit": b"\x89PNG\r\n"},
        CODES.INVALID_ARGUMENT,
        "INVALID_CIRCUIT",
        "job.program.sampler.pubs[0].circuit.qpy",
    ),
    (
        "too many qubits",
        lambda k: {"circuit": k.ghz(21)},
        CODES.INVALID_ARGUMENT,
        "TOO_MANY_QUBITS",
        "job.program.sampler.pubs[0].circuit",
    ),
    (
        "text without a version",
        lambda k: {"circuit": "qubit q;"},
        CODES.INVALID_ARGUMENT,
        "INVALID_CIRCUIT",
        "job.program.sampler.pubs[0].circuit.openqasm3",
    ),
    (
        "no circuit",
        lambda k: {"circuit": Circuit()},
        CODES.INVALID_ARGUMENT,
        "INVALID_FIELD",
        "job.program.sampler.pubs[0].circuit",
    ),
    (
        "wrong tensor size",
        lambda k: {"pub": set_tensor},
        CODES.INVALID_ARGUMENT,
        "INVALID_TENSOR",
        "job.program.sampler.pubs[0].parameter_values",
    ),
    (
        "negative shots",
        lambda k: {"pub": set_shots},
        CODES.INVALID_ARGUMENT,
        "INVALID_FIELD",
        "job.program.sampler.pubs[0].shots",
    ),
    (
        "unknown digest",
        lambda k: {"circuit": Circuit(digest=hashlib.sha256(b"never sent").digest())},
        CODES.NOT_FOUND,
        "UNKNOWN_CIRCUIT",
        "job.program.sampler.pubs",
    ),
    ("no program", lambda k: {"job": drop_program}, CODES.INVALID_ARGUMENT, "INVALID_FIELD", "job.program"),
    ("negative limit", lambda k: {"job": set_limit}, CODES.INVALID_ARGUMENT, "INVALID_FIELD", "job.max_execution_time"),
    ("priority", lambda k: {"job": set_priority}, CODES.INVALID_ARGUMENT, "INVALID_FIELD", "job.priority"),
    ("too many tags", lambda k: {"job": set_tags}, CODES.INVALID_ARGUMENT, "INVALID_FIELD", "job.tags"),
    ("a device's own name", lambda k: {"job": set_reserved_id}, CODES.INVALID_ARGUMENT, "INVALID_FIELD", "job.job_id"),
    (
        "a user's calibration",
        lambda k: {"job": set_calibration},
        CODES.PERMISSION_DENIED,
        "NOT_OPERATOR",
        "job.program.calibration",
    ),
]


@pytest.mark.parametrize(("name", "make", "code", "reason", "field"), CASES, ids=[case[0] for case in CASES])
def test_a_job_that_cannot_run_is_refused_and_not_queued(
    connect: Any, kit: Any, name: str, make: Any, code: grpc.StatusCode, reason: str, field: str
) -> None:
    eve = connect("eve")
    spec = spec_with(kit, **make(kit))
    with kit.refusal() as refused:
        eve.submit(spec)
    assert (refused().code, refused().reason) == (code, reason)
    assert refused().metadata.get("field", "") == field
    assert " " in refused().message
    assert eve.job_ids() == []
    with kit.refusal() as refused:
        request = job_service_pb2.SubmitJobsRequest(jobs=[kit.sampler_job(device="sim"), spec])
        eve.jobs("SubmitJobs", request)
    assert (refused().code, refused().reason) == (code, reason)
    if field:
        assert refused().metadata["field"] == field.replace("job.", "jobs[1].", 1)
        assert refused().metadata["index"] == "1"
    assert eve.job_ids() == []
    assert_alive(eve)


def assert_alive(client: Any) -> None:
    assert client.server("GetServerInfo", server_service_pb2.GetServerInfoRequest()).server.version


@pytest.mark.parametrize(
    ("name", "circuit"),
    [
        ("malformed OpenQASM 3", lambda k: "OPENQASM 3.0;\nqubit[2] q\nthis is not a program"),
        ("malformed OpenQASM 2", lambda k: Circuit(openqasm2="OPENQASM 2.0;\nqreg q[2];\nfrobnicate q[0];")),
        ("QPY cut off in its instructions", lambda k: k.ghz()[:-20]),
        ("QPY with garbage inside", lambda k: k.ghz()[:150] + b"\xff" * 60 + k.ghz()[210:]),
    ],
)
def test_what_only_a_parser_finds_ends_the_job_with_a_detail(connect: Any, kit: Any, name: str, circuit: Any) -> None:
    ann = connect("parser/ann")
    job = ann.wait(ann.submit(kit.sampler_job(device="sim", circuit=circuit(kit))).job_id)
    assert job.state == job_pb2.JOB_STATE_FAILED
    assert job.reason == job_pb2.JOB_REASON_EXECUTION_ERROR
    assert " " in job.detail
    good = ann.wait(ann.submit(kit.sampler_job(device="sim")).job_id)
    assert good.state == job_pb2.JOB_STATE_SUCCEEDED


def test_a_job_for_somebody_elses_session_is_refused(connect: Any, kit: Any) -> None:
    ann, eve = connect("foreign/ann"), connect("foreign/eve")
    request = session_service_pb2.CreateSessionRequest(device="sim")
    session = ann.sessions("CreateSession", request).session.session_id
    with kit.refusal() as refused:
        eve.submit(kit.sampler_job(session=session))
    assert (refused().code, refused().reason) == (CODES.PERMISSION_DENIED, "SESSION_OF_OTHER_USER")
    with kit.refusal() as refused:  # nor does she learn which device it is on
        eve.submit(kit.sampler_job(session=session, device="line"))
    assert (refused().code, refused().reason) == (CODES.PERMISSION_DENIED, "SESSION_OF_OTHER_USER")
    assert eve.job_ids() == []
    assert ann.job_ids() == []
    ann.sessions("CancelSession", session_service_pb2.CancelSessionRequest(session_id=session))


def test_a_job_for_another_device_than_its_sessions_is_refused(connect: Any, kit: Any) -> None:
    ann = connect("mismatch/ann")
    request = session_service_pb2.CreateSessionRequest(device="sim")
    session = ann.sessions("CreateSession", request).session.session_id
    with kit.refusal() as refused:
        ann.submit(kit.sampler_job(session=session, device="line"))
    assert (refused().code, refused().reason) == (CODES.INVALID_ARGUMENT, "DEVICE_MISMATCH")
    assert ann.job_ids() == []
    ann.sessions("CancelSession", session_service_pb2.CancelSessionRequest(session_id=session))


def test_a_digest_that_the_session_does_not_hold_is_refused(connect: Any, kit: Any) -> None:
    ann = connect("digest/ann")
    request = session_service_pb2.CreateSessionRequest(device="sim")
    session = ann.sessions("CreateSession", request).session.session_id
    circuit = kit.ghz(3)
    named = Circuit(digest=hashlib.sha256(circuit).digest())
    with kit.refusal() as refused:
        ann.submit(kit.sampler_job(session=session, circuit=named))
    assert (refused().code, refused().reason) == (CODES.NOT_FOUND, "UNKNOWN_CIRCUIT")
    assert ann.job_ids() == []
    ann.submit(kit.sampler_job(session=session, circuit=circuit))
    last = ann.submit(kit.sampler_job(session=session, circuit=named))
    assert ann.wait(last.job_id).state == job_pb2.JOB_STATE_SUCCEEDED
    ann.sessions("CloseSession", session_service_pb2.CloseSessionRequest(session_id=session))


def test_a_digest_of_an_earlier_pub_is_known(connect: Any, kit: Any) -> None:
    ann = connect("digest/bob")
    spec = kit.sampler_job(device="sim")
    digest = hashlib.sha256(spec.program.sampler.pubs[0].circuit.qpy).digest()
    spec.program.sampler.pubs.add(shots=7).circuit.digest = digest
    job = ann.wait(ann.submit(spec).job_id)
    assert job.state == job_pb2.JOB_STATE_SUCCEEDED, job.detail


def test_a_cancelled_job_cannot_be_cancelled_again(connect: Any, kit: Any) -> None:
    ann = connect("twice/ann")
    session = ann.sessions("CreateSession", session_service_pb2.CreateSessionRequest(device="spare")).session.session_id
    blocker = ann.submit(kit.sampler_job(session=session))
    ann.wait(blocker.job_id)
    # The session holds the device now, so a job beside it waits.
    job = ann.submit(kit.sampler_job(device="spare"))
    request = job_service_pb2.CancelJobRequest(job_id=job.job_id)
    cancelled = ann.jobs("CancelJob", request).job
    assert (cancelled.state, cancelled.reason) == (
        job_pb2.JOB_STATE_CANCELLED,
        job_pb2.JOB_REASON_CANCELLED_BY_USER,
    )
    with kit.refusal() as refused:
        ann.jobs("CancelJob", request)
    assert (refused().code, refused().reason) == (CODES.FAILED_PRECONDITION, "JOB_FINAL")
    again = ann.jobs("GetJob", job_service_pb2.GetJobRequest(job_id=job.job_id)).job
    assert again.end_time == cancelled.end_time
    ann.sessions("CancelSession", session_service_pb2.CancelSessionRequest(session_id=session))


def test_a_message_over_the_limit_is_refused_in_our_words_or_grpcs(connect: Any, kit: Any) -> None:
    eve = connect("eve")
    for size, reason in ((17 * MEBIBYTE, "MESSAGE_TOO_LARGE"), (40 * MEBIBYTE, "")):
        with kit.refusal() as refused:
            eve.submit(kit.sampler_job(device="sim", circuit=kit.ghz() + bytes(size)))
        assert (refused().code, refused().reason) == (CODES.RESOURCE_EXHAUSTED, reason)
        assert_alive(eve)
    assert eve.job_ids() == []


def test_bytes_that_are_no_message_are_refused(connect: Any, kit: Any) -> None:
    eve = connect("eve")
    call = eve.channel.unary_unary("/cadenza.v1.JobService/SubmitJob", bytes, bytes)
    for data in (b"\xff" * 10, b"\x0a\xff", b"\x0a\x02\xc3\x28"):
        with kit.refusal() as refused:
            call(data, metadata=eve.metadata, timeout=10)
        assert (refused().code, refused().reason) == (CODES.INVALID_ARGUMENT, "INVALID_FIELD")
    assert_alive(eve)


def test_who_does_not_say_who_calls_is_refused(connect: Any, kit: Any) -> None:
    for user, reason in ((None, "MISSING_TOKEN"), ("not a path", "INVALID_TOKEN")):
        with kit.refusal() as refused:
            connect(user).submit(kit.sampler_job(device="sim"))
        assert (refused().code, refused().reason) == (CODES.UNAUTHENTICATED, reason)


def test_no_token_or_a_wrong_one_is_refused(tmp_path: Any, connect: Any, kit: Any) -> None:
    config = f"""
    [devices.sim]
    num_qubits = 5
    [[tokens]]
    path = "lab/ann"
    hash = "{hash_token("cdz_ann")}"
    [[tokens]]
    path = "rani"
    role = "operator"
    hash = "{hash_token("cdz_rani")}"
    """
    with kit.running(tmp_path, config) as server:
        for user, token, reason in (
            (None, None, "MISSING_TOKEN"),
            ("rani", None, "MISSING_TOKEN"),
            (None, "cdz_eve", "INVALID_TOKEN"),
        ):
            with kit.refusal() as refused:
                connect(user, address=server.address, token=token).submit(kit.sampler_job(device="sim"))
            assert (refused().code, refused().reason) == (CODES.UNAUTHENTICATED, reason)
        ann = connect(address=server.address, token="cdz_ann")
        assert ann.job_ids() == []
        assert ann.wait(ann.submit(kit.sampler_job(device="sim")).job_id).user == "lab/ann"
        rani = connect(address=server.address, token="cdz_rani")
        assert rani.server("GetServerInfo", server_service_pb2.GetServerInfoRequest()).caller.operator
        assert len(rani.job_ids()) == 1
        assert server.stop() == 0


def test_unknown_things_are_not_found(connect: Any, kit: Any) -> None:
    ann = connect("unknown/ann")
    for service, name, request, reason in (
        (ann.jobs, "GetJob", job_service_pb2.GetJobRequest(job_id="job-x"), "UNKNOWN_JOB"),
        (ann.jobs, "CancelJob", job_service_pb2.CancelJobRequest(job_id="job-x"), "UNKNOWN_JOB"),
        (ann.jobs, "GetJobResult", job_service_pb2.GetJobResultRequest(job_id="job-x"), "UNKNOWN_JOB"),
        (ann.sessions, "GetSession", session_service_pb2.GetSessionRequest(session_id="s-x"), "UNKNOWN_SESSION"),
        (ann.devices, "GetDevice", device_service_pb2.GetDeviceRequest(name="x"), "UNKNOWN_DEVICE"),
        (ann.sessions, "CreateSession", session_service_pb2.CreateSessionRequest(device="x"), "UNKNOWN_DEVICE"),
    ):
        with kit.refusal() as refused:
            service(name, request)
        assert (refused().code, refused().reason) == (CODES.NOT_FOUND, reason)
    with kit.refusal() as refused:
        list(ann.jobs("WatchJob", job_service_pb2.WatchJobRequest(job_id="job-x")))
    assert (refused().code, refused().reason) == (CODES.NOT_FOUND, "UNKNOWN_JOB")


def test_more_tags_than_a_job_can_have_are_no_filter(connect: Any, kit: Any) -> None:
    eve = connect("eve")
    with kit.refusal() as refused:
        eve.jobs("ListJobs", job_service_pb2.ListJobsRequest(tags=[f"tag-{number}" for number in range(2_000)]))
    assert (refused().code, refused().reason) == (CODES.INVALID_ARGUMENT, "INVALID_FIELD")
    assert refused().metadata["field"] == "tags"


def test_a_path_is_set_once_and_not_too_many_in_one_call(connect: Any, kit: Any) -> None:
    rani = connect("rani")
    for paths, field in (
        ([f"many/p{number}" for number in range(100_000)], "settings"),
        (["many/a", "many/b", "many/a"], "settings[2].path"),
    ):
        settings = [share_service_pb2.ShareSetting(path=path, shares=1.0) for path in paths]
        with kit.refusal() as refused:
            rani.shares("SetShares", share_service_pb2.SetSharesRequest(settings=settings))
        assert (refused().code, refused().metadata["field"]) == (CODES.INVALID_ARGUMENT, field)
    assert_alive(rani)


def test_a_page_token_that_was_tampered_with_is_refused(connect: Any, kit: Any) -> None:
    ann = connect("pages/ann")
    for _ in range(2):
        ann.wait(ann.submit(kit.sampler_job(device="sim")).job_id)
    token = ann.jobs("ListJobs", job_service_pb2.ListJobsRequest(page_size=1)).next_page_token
    query, _ = json.loads(base64.urlsafe_b64decode(token))
    for content in (json.dumps([query, 2**63]), json.dumps([query, -1]), json.dumps([query, True]), "[" * 20_000):
        forged = base64.urlsafe_b64encode(content.encode()).decode()
        with kit.refusal() as refused:
            ann.jobs("ListJobs", job_service_pb2.ListJobsRequest(page_size=1, page_token=forged))
        assert (refused().code, refused().reason) == (CODES.INVALID_ARGUMENT, "INVALID_PAGE_TOKEN")


def test_what_is_refused_names_the_field_of_the_request(connect: Any, kit: Any) -> None:
    ann, rani = connect("fields/ann"), connect("rani")
    one, other = kit.sampler_job(device="sim"), kit.sampler_job(device="sim", shots=7)
    named = kit.sampler_job(device="sim", job_id="fields-twice")
    past, later = Timestamp(seconds=1), Timestamp(seconds=2**31)
    window = {"device": "spare", "holder": "fields/ann"}
    calibration = program_pb2.CalibrationJob(duration=Duration(seconds=-1))

    def submit_many(*jobs: job_pb2.JobSpec, request_id: str = "") -> object:
        return ann.jobs("SubmitJobs", job_service_pb2.SubmitJobsRequest(jobs=jobs, request_id=request_id))

    def reserve(start: Timestamp, end: Timestamp) -> object:
        request = reservation_service_pb2.CreateReservationRequest(start_time=start, end_time=end, **window)
        return rani.reservations("CreateReservation", request)

    def calibrate() -> object:
        request = device_service_pb2.SubmitCalibrationRequest(device="spare", calibration=calibration)
        return rani.devices("SubmitCalibration", request)

    ann.submit(one, "fields-once")
    submit_many(one, one, request_id="fields-many")
    for call, field in (
        (lambda: ann.submit(other, "fields-once"), "request_id"),
        (lambda: submit_many(other, request_id="fields-many"), "request_id"),
        (lambda: submit_many(named, named), "jobs[1].job_id"),
        (lambda: reserve(past, later), "start_time"),
        (lambda: reserve(later, later), "end_time"),
        (calibrate, "calibration.duration"),
    ):
        with kit.refusal() as refused:
            call()
        assert refused().metadata["field"] == field

"""Every RPC that changes something: a retry gives the first answer and does nothing, also when it races the first, also
after a restart; with other content its id is refused. The RPCs are found in the contract, so none is forgotten."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from cadenza.v1 import (
    device_service_pb2,
    job_pb2,
    job_service_pb2,
    program_pb2,
    reservation_pb2,
    reservation_service_pb2,
    server_service_pb2,
    session_service_pb2,
    share_service_pb2,
)
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

CONFIG = """
[server]
operators = ["rani"]
[devices.sim]
kind = "aer"
num_qubits = 4
"""
FILES = (
    device_service_pb2,
    job_service_pb2,
    reservation_service_pb2,
    server_service_pb2,
    session_service_pb2,
    share_service_pb2,
)
MUTATING = {
    method.full_name: method
    for file in FILES
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
    if "request_id" in method.input_type.fields_by_name
}
READING = ("Get", "List", "Watch", "Stream")
DAY = 86_400


class Lab:
    """What requests are about: a queued job, an open session, a reservation to come, each for one call."""

    def __init__(self, client: Any, kit: Any) -> None:
        self._client = client
        self._kit = kit
        self._windows = 0
        self.now: int = client.server("GetServerInfo", server_service_pb2.GetServerInfoRequest()).server.now.seconds

    def spec(self, **fields: Any) -> job_pb2.JobSpec:
        spec: job_pb2.JobSpec = self._kit.sampler_job(
            device="sim", circuit="OPENQASM 3.0; qubit[1] q; bit[1] c; c = measure q;", **fields
        )
        return spec

    def job(self) -> str:
        return str(self._client.submit(self.spec()).job_id)

    def session(self) -> str:
        create = session_service_pb2.CreateSessionRequest(device="sim")
        return str(self._client.sessions("CreateSession", create).session.session_id)

    def window(self) -> reservation_service_pb2.CreateReservationRequest:
        self._windows += 1
        request = reservation_service_pb2.CreateReservationRequest(device="sim", holder="lab")
        request.start_time.seconds = self.now + self._windows * DAY
        request.end_time.seconds = self.now + self._windows * DAY + 60
        return request

    def reservation(self) -> str:
        return str(self._client.reservations("CreateReservation", self.window()).reservation.reservation_id)


def shares(weight: float) -> Any:
    settings = [share_service_pb2.ShareSetting(path=path, shares=weight) for path in ("lab", "uni/x", "uni/y")]
    return share_service_pb2.SetSharesRequest(settings=settings)


jobs, sessions, reservations = job_service_pb2, session_service_pb2, reservation_service_pb2
TABLE: dict[str, Callable[[Lab], tuple[Any, Callable[[Any], Any]]]] = {
    "cadenza.v1.JobService.SubmitJob": lambda lab: (
        jobs.SubmitJobRequest(job=lab.spec()),
        lambda request: request.job.ClearField("tags") or request.job.tags.append("other"),
    ),
    "cadenza.v1.JobService.SubmitJobStream": lambda lab: (
        jobs.SubmitJobStreamRequest(job=lab.spec()),
        lambda request: request.job.tags.append("other"),
    ),
    "cadenza.v1.JobService.SubmitJobs": lambda lab: (
        jobs.SubmitJobsRequest(jobs=[lab.spec()] * 3),
        lambda request: request.jobs.add().CopyFrom(lab.spec()),
    ),
    "cadenza.v1.JobService.UpdateJobPriority": lambda lab: (
        jobs.UpdateJobPriorityRequest(job_id=lab.job(), priority=7),
        lambda request: setattr(request, "priority", 8),
    ),
    "cadenza.v1.JobService.CancelJob": lambda lab: (
        jobs.CancelJobRequest(job_id=lab.job()),
        lambda request: setattr(request, "job_id", lab.job()),
    ),
    "cadenza.v1.SessionService.CreateSession": lambda lab: (
        sessions.CreateSessionRequest(device="sim"),
        lambda request: request.max_time.FromSeconds(60),
    ),
    "cadenza.v1.SessionService.CloseSession": lambda lab: (
        sessions.CloseSessionRequest(session_id=lab.session()),
        lambda request: setattr(request, "session_id", lab.session()),
    ),
    "cadenza.v1.SessionService.CancelSession": lambda lab: (
        sessions.CancelSessionRequest(session_id=lab.session()),
        lambda request: setattr(request, "session_id", lab.session()),
    ),
    "cadenza.v1.DeviceService.SubmitCalibration": lambda lab: (
        device_service_pb2.SubmitCalibrationRequest(device="sim", calibration=program_pb2.CalibrationJob()),
        lambda request: request.tags.append("other"),
    ),
    "cadenza.v1.ReservationService.CreateReservation": lambda lab: (
        lab.window(),
        lambda request: setattr(request, "description", "other"),
    ),
    "cadenza.v1.ReservationService.DeleteReservation": lambda lab: (
        reservations.DeleteReservationRequest(reservation_id=lab.reservation()),
        lambda request: setattr(request, "reservation_id", lab.reservation()),
    ),
    "cadenza.v1.ShareService.SetShares": lambda lab: (
        shares(2.0),
        lambda request: setattr(request.settings[0], "shares", 3.0),
    ),
}


def test_every_rpc_that_changes_something_is_here_and_only_reads_have_no_request_id() -> None:
    assert TABLE.keys() == MUTATING.keys()
    for file in FILES:
        for service in file.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                if method.full_name not in MUTATING:
                    assert method.name.startswith(READING), method.full_name


def call(client: Any, name: str, request: Any) -> Any:
    """The answer; of a stream of submissions the one to this request, as if it had been a call."""
    method = MUTATING[name]
    path = f"/{method.containing_service.full_name}/{method.name}"
    output = GetMessageClass(method.output_type)
    kind: Any = type(request)
    if method.name != "SubmitJobStream":
        return client.channel.unary_unary(path, kind.SerializeToString, output.FromString)(
            request, metadata=client.metadata, timeout=30
        )
    stream = client.channel.stream_stream(path, kind.SerializeToString, output.FromString)
    (answer,) = stream(iter([request]), metadata=client.metadata, timeout=30)
    return answer


def is_reused(client: Any, name: str, request: Any, kit: Any) -> bool:
    if MUTATING[name].name == "SubmitJobStream":
        answer = call(client, name, request)
        return answer.HasField("refusal") and b"REQUEST_ID_REUSED" in answer.refusal.SerializeToString()
    with kit.refusal() as refused:
        call(client, name, request)
    return (refused().code, refused().reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_ID_REUSED")


def count(client: Any) -> tuple[int, ...]:
    """Of what there is, so that a call that took effect twice is seen."""
    states = reservation_pb2.ReservationState.values()[1:]
    listed = reservations.ListReservationsRequest(page_size=1000, states=states)
    return (
        len(client.job_ids()),
        len(client.sessions("ListSessions", sessions.ListSessionsRequest(page_size=1000)).sessions),
        len(client.reservations("ListReservations", listed).reservations),
    )


def test_a_retry_gives_the_first_answer_and_does_nothing(tmp_path: Path, connect: Any, kit: Any) -> None:
    done: dict[str, tuple[Any, Any]] = {}
    with kit.running(tmp_path, CONFIG) as started:
        rani = connect("rani", address=started.address)
        lab = Lab(rani, kit)
        busy = device_service_pb2.SubmitCalibrationRequest(device="sim", calibration=program_pb2.CalibrationJob())
        busy.calibration.duration.FromSeconds(600)
        rani.wait_until(rani.devices("SubmitCalibration", busy).job.job_id, job_pb2.JOB_STATE_RUNNING)
        for name, make in TABLE.items():
            request, change = make(lab)
            request.request_id = name
            before = count(rani)
            # The retry races the first: three at once.
            with ThreadPoolExecutor(3) as pool:
                first, *others = pool.map(lambda _, name=name, request=request: call(rani, name, request), range(3))
            after = count(rani)
            assert others == [first] * 2, name
            assert sum(after) - sum(before) == {"SubmitJobs": 3}.get(
                MUTATING[name].name, 1 if MUTATING[name].name.startswith(("Create", "Submit")) else 0
            ), name
            assert call(rani, name, request) == first, name
            assert count(rani) == after, name
            other = type(request)()
            other.CopyFrom(request)
            change(other)
            after = count(rani)
            assert is_reused(rani, name, other, kit), name
            assert count(rani) == after, name
            done[name] = (request, first)
        assert started.stop() == 0
    with kit.running(tmp_path, CONFIG) as started:
        rani = connect("rani", address=started.address)
        before = count(rani)
        for name, (request, first) in done.items():
            again = call(rani, name, request)
            # What is shown beside the first answer is as it is now: only who answered is compared.
            assert identify(again) == identify(first), name
            assert other_caller(started, connect, name, request, kit), name
        assert count(rani) == before


def identify(answer: Any) -> list[str]:
    """The names that an answer gives, however deep."""
    found = []
    for field, value in answer.ListFields():
        if field.name in ("job_id", "session_id", "reservation_id", "path", "request_id") and value:
            found.append(str(value))
        elif field.message_type is not None:
            for each in [value] if isinstance(value, Message) else value:
                found += identify(each)
    return found


def other_caller(server: Any, connect: Any, name: str, request: Any, kit: Any) -> bool:
    """Ids are the caller's own: somebody else's call with the same one is a call of its own, and refused as such."""
    if not MUTATING[name].name.startswith(("Cancel", "Close", "Update", "Set", "Delete")):
        return True
    with kit.refusal() as refused:
        call(connect("stranger", address=server.address), name, request)
    return bool(refused().code is grpc.StatusCode.PERMISSION_DENIED)


@pytest.mark.parametrize("length", [256])
def test_a_request_id_that_is_too_long_is_refused(connect: Any, kit: Any, length: int) -> None:
    ann = connect("lab/ann")
    with kit.refusal() as refused:
        ann.submit(kit.sampler_job(device="sim"), "x" * (length + 1))
    assert (refused().code, refused().metadata["field"]) == (grpc.StatusCode.INVALID_ARGUMENT, "request_id")

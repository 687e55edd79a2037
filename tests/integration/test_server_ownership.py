"""Who may see and do what (semantics 1): each rule, over a real socket."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from cadenza.v1 import (
    device_service_pb2,
    job_pb2,
    job_service_pb2,
    reservation_service_pb2,
    session_pb2,
    session_service_pb2,
    share_service_pb2,
)

DENIED = grpc.StatusCode.PERMISSION_DENIED


@dataclass
class Owned:
    """A finished job and a session of `own/ann`."""

    ann: Any
    job: str
    session: str


@pytest.fixture
def owned(connect: Any, kit: Any) -> Iterator[Owned]:
    ann = connect("own/ann")
    session = ann.sessions("CreateSession", session_service_pb2.CreateSessionRequest(device="sim")).session.session_id
    job = ann.submit(kit.sampler_job(session=session)).job_id
    assert ann.wait(job).state == job_pb2.JOB_STATE_SUCCEEDED
    yield Owned(ann, job, session)
    ann.sessions("CancelSession", session_service_pb2.CancelSessionRequest(session_id=session))


def reads(owned: Owned) -> list[tuple[str, str, Any]]:
    """Every RPC that shows what is inside a job or session."""
    job, session = owned.job, owned.session
    return [
        ("jobs", "GetJob", job_service_pb2.GetJobRequest(job_id=job)),
        ("jobs", "GetJobPayload", job_service_pb2.GetJobPayloadRequest(job_id=job)),
        ("jobs", "GetJobResult", job_service_pb2.GetJobResultRequest(job_id=job)),
        ("jobs", "StreamJobResult", job_service_pb2.StreamJobResultRequest(job_id=job)),
        ("jobs", "WatchJob", job_service_pb2.WatchJobRequest(job_id=job)),
        ("jobs", "ListJobEvents", job_service_pb2.ListJobEventsRequest(job_id=job)),
        ("sessions", "GetSession", session_service_pb2.GetSessionRequest(session_id=session)),
        ("sessions", "ListSessionEvents", session_service_pb2.ListSessionEventsRequest(session_id=session)),
    ]


def call(client: Any, service: str, name: str, request: Any) -> Any:
    answer = getattr(client, service)(name, request)
    return list(answer) if name.startswith(("Watch", "Stream")) else answer


def test_a_user_sees_the_users_own_and_an_operator_everybodys(owned: Owned, connect: Any) -> None:
    for client in (owned.ann, connect("rani")):
        for service, name, request in reads(owned):
            assert call(client, service, name, request), name


def test_what_others_jobs_and_sessions_contain_nobody_sees(owned: Owned, connect: Any, kit: Any) -> None:
    for user in ("own/bob", "own", "own/ann/x", "own/annx"):
        stranger = connect(user)
        for service, name, request in reads(owned):
            with kit.refusal() as refused:
                call(stranger, service, name, request)
            assert (refused().code, refused().reason) == (DENIED, "NOT_OWNER"), (user, name)
        with kit.refusal() as refused:
            request = session_service_pb2.WatchSessionRequest(session_id=owned.session)
            next(stranger.sessions("WatchSession", request))
        assert (refused().code, refused().reason) == (DENIED, "NOT_OWNER")


def test_others_jobs_and_sessions_nobody_changes(owned: Owned, connect: Any, kit: Any) -> None:
    bob = connect("own/bob")
    for service, name, request in (
        ("jobs", "CancelJob", job_service_pb2.CancelJobRequest(job_id=owned.job)),
        ("jobs", "UpdateJobPriority", job_service_pb2.UpdateJobPriorityRequest(job_id=owned.job, priority=3)),
        ("sessions", "CloseSession", session_service_pb2.CloseSessionRequest(session_id=owned.session)),
        ("sessions", "CancelSession", session_service_pb2.CancelSessionRequest(session_id=owned.session)),
    ):
        with kit.refusal() as refused:
            call(bob, service, name, request)
        assert (refused().code, refused().reason) == (DENIED, "NOT_OWNER"), name
    session = owned.ann.sessions("GetSession", session_service_pb2.GetSessionRequest(session_id=owned.session)).session
    assert session.state == session_pb2.SESSION_STATE_ACTIVE


def test_an_operator_changes_everybodys(owned: Owned, connect: Any) -> None:
    rani = connect("rani")
    request = session_service_pb2.CloseSessionRequest(session_id=owned.session)
    assert rani.sessions("CloseSession", request).session.state == session_pb2.SESSION_STATE_CLOSED


def test_lists_show_a_user_the_users_own_and_an_operator_all(owned: Owned, connect: Any) -> None:
    bob, rani = connect("own/bob"), connect("rani")
    for user in ("", "own/ann", "own", "own/bob"):
        assert not bob.jobs("ListJobs", job_service_pb2.ListJobsRequest(user=user)).jobs
        assert not bob.jobs("ListRuns", job_service_pb2.ListRunsRequest(user=user)).runs
        assert not bob.sessions("ListSessions", session_service_pb2.ListSessionsRequest(user=user)).sessions
    assert not bob.jobs("ListRuns", job_service_pb2.ListRunsRequest(job_id=owned.job)).runs
    for client in (owned.ann, rani):
        for user in ("", "own/ann", "own"):
            jobs = client.jobs("ListJobs", job_service_pb2.ListJobsRequest(user=user, page_size=1000)).jobs
            assert owned.job in {job.job_id for job in jobs}
            runs = client.jobs("ListRuns", job_service_pb2.ListRunsRequest(user=user, job_id=owned.job)).runs
            assert len(runs) == 1
            request = session_service_pb2.ListSessionsRequest(user=user, page_size=1000)
            sessions = client.sessions("ListSessions", request).sessions
            assert owned.session in {session.session_id for session in sessions}
    jobs = owned.ann.jobs("ListJobs", job_service_pb2.ListJobsRequest(page_size=1000)).jobs
    assert {job.user for job in jobs} == {"own/ann"}
    others = rani.jobs("ListJobs", job_service_pb2.ListJobsRequest(user="own/bob")).jobs
    assert not others


def test_an_account_is_no_user_and_sees_nothing_of_its_users(owned: Owned, connect: Any) -> None:
    account = connect("own")
    for user in ("", "own", "own/ann"):
        assert not account.jobs("ListJobs", job_service_pb2.ListJobsRequest(user=user)).jobs
        assert not account.jobs("ListRuns", job_service_pb2.ListRunsRequest(user=user)).runs
        assert not account.sessions("ListSessions", session_service_pb2.ListSessionsRequest(user=user)).sessions


@pytest.mark.parametrize("user", ["-", ".."])
def test_a_user_of_any_name_sees_the_users_own(connect: Any, kit: Any, user: str) -> None:
    client = connect(user)
    job = client.submit(kit.sampler_job(device="sim")).job_id
    for asked in ("", user):
        jobs = client.jobs("ListJobs", job_service_pb2.ListJobsRequest(user=asked)).jobs
        assert [found.job_id for found in jobs] == [job]
    client.wait(job)


def test_names_usage_and_how_many_wait_everybody_sees(owned: Owned, connect: Any, kit: Any) -> None:
    bob, waiting = connect("own/bob"), [owned.ann.submit(kit.sampler_job(device="sim")) for _ in range(3)]
    device = bob.devices("GetDevice", device_service_pb2.GetDeviceRequest(name="sim")).device
    assert device.active_user == "own/ann"
    assert device.queue_counts.fair_share == 3
    nodes = bob.shares("ListShares", share_service_pb2.ListSharesRequest(parent="own")).nodes
    usage = {node.path: node for node in nodes}
    assert usage["own/ann"].charged_s > 0
    assert usage["own/ann"].queued_job_count == 3
    assert usage["own"].queued_job_count == 3
    node = bob.shares("GetShares", share_service_pb2.GetSharesRequest(path="own/ann")).node
    assert node.settled_usage_s > 0
    for job in waiting:
        owned.ann.jobs("CancelJob", job_service_pb2.CancelJobRequest(job_id=job.job_id))


def test_reservations_are_the_operators_and_everybody_sees_them(connect: Any, kit: Any) -> None:
    bob, rani = connect("own/bob"), connect("rani")
    request = reservation_service_pb2.CreateReservationRequest(device="line", holder="own", description="a talk")
    request.start_time.GetCurrentTime()
    request.start_time.seconds += 3600
    request.end_time.CopyFrom(request.start_time)
    request.end_time.seconds += 60
    with kit.refusal() as refused:
        bob.reservations("CreateReservation", request)
    assert (refused().code, refused().reason) == (DENIED, "NOT_OPERATOR")
    made = rani.reservations("CreateReservation", request).reservation
    assert made.description == "a talk"
    with kit.refusal() as refused:
        rani.reservations("CreateReservation", request)
    assert (refused().code, refused().reason) == (grpc.StatusCode.FAILED_PRECONDITION, "RESERVATION_OVERLAP")
    listed = bob.reservations("ListReservations", reservation_service_pb2.ListReservationsRequest(holder="own/bob"))
    assert [one.reservation_id for one in listed.reservations] == [made.reservation_id]
    get = reservation_service_pb2.GetReservationRequest(reservation_id=made.reservation_id)
    assert bob.reservations("GetReservation", get).reservation == made
    delete = reservation_service_pb2.DeleteReservationRequest(reservation_id=made.reservation_id)
    with kit.refusal() as refused:
        bob.reservations("DeleteReservation", delete)
    assert (refused().code, refused().reason) == (DENIED, "NOT_OPERATOR")
    rani.reservations("DeleteReservation", delete)


def test_shares_are_the_operators_and_are_set_all_or_none(connect: Any, kit: Any) -> None:
    bob, rani = connect("weights/bob"), connect("rani")
    request = share_service_pb2.SetSharesRequest(
        settings=[
            share_service_pb2.ShareSetting(path="weights", shares=2),
            share_service_pb2.ShareSetting(path="weights/bob", shares=0.5),
        ]
    )
    with kit.refusal() as refused:
        bob.shares("SetShares", request)
    assert (refused().code, refused().reason) == (DENIED, "NOT_OPERATOR")
    assert [node.shares for node in rani.shares("SetShares", request).nodes] == [2, 0.5]
    for bad in (0.0, -1.0, 5e-324, 1e300, float("nan"), float("inf")):
        with kit.refusal() as refused:
            wrong = share_service_pb2.SetSharesRequest(
                settings=[
                    share_service_pb2.ShareSetting(path="weights", shares=7),
                    share_service_pb2.ShareSetting(path="weights/bob", shares=bad),
                ]
            )
            rani.shares("SetShares", wrong)
        assert refused().metadata["field"] == "settings[1].shares"
    bob.submit(kit.sampler_job(device="spare"))
    with kit.refusal() as refused:
        wrong = share_service_pb2.SetSharesRequest(
            settings=[
                share_service_pb2.ShareSetting(path="weights", shares=7),
                share_service_pb2.ShareSetting(path="weights/bob/below", shares=1),
            ]
        )
        rani.shares("SetShares", wrong)
    assert refused().reason == "PATH_CONFLICT"
    assert rani.shares("GetShares", share_service_pb2.GetSharesRequest(path="weights")).node.shares == 2


def test_calibration_is_the_operators(connect: Any, kit: Any) -> None:
    bob, rani = connect("own/bob"), connect("rani")
    request = device_service_pb2.SubmitCalibrationRequest(device="line")
    request.calibration.duration.nanos = 50_000_000
    with kit.refusal() as refused:
        bob.devices("SubmitCalibration", request)
    assert (refused().code, refused().reason) == (DENIED, "NOT_OPERATOR")
    before = bob.devices("GetDevice", device_service_pb2.GetDeviceRequest(name="line")).device.epoch
    job = rani.devices("SubmitCalibration", request).job
    assert job.job_class == job_pb2.JOB_CLASS_CALIBRATION
    assert rani.wait(job.job_id).state == job_pb2.JOB_STATE_SUCCEEDED
    device = bob.devices("GetDevice", device_service_pb2.GetDeviceRequest(name="line")).device
    assert device.epoch == before + 1
    assert device.properties.epoch == device.epoch
    assert len(device.properties.qubits) == 5


def test_a_calibration_an_operator_submitted_only_operators_cancel(connect: Any, kit: Any) -> None:
    bob, rani = connect("own/bob"), connect("rani")
    request = device_service_pb2.SubmitCalibrationRequest(device="line")
    request.calibration.duration.seconds = 60
    job = rani.devices("SubmitCalibration", request).job
    cancel = job_service_pb2.CancelJobRequest(job_id=job.job_id)
    with kit.refusal() as refused:
        bob.jobs("CancelJob", cancel)
    assert refused().code is DENIED
    assert rani.jobs("CancelJob", cancel).job.state == job_pb2.JOB_STATE_CANCELLED

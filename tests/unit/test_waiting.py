"""What people are told of a job that waits."""

from datetime import UTC, datetime

import pytest
from cadenza._waiting import find_causes
from cadenza.v1 import device_pb2, job_pb2, reservation_pb2, session_pb2
from google.protobuf.timestamp_pb2 import Timestamp

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def at(clock: str) -> Timestamp:
    made = Timestamp()
    made.FromDatetime(datetime.fromisoformat(f"2026-03-01T{clock}:00Z"))
    return made


def show(moment: Timestamp) -> str:
    return moment.ToDatetime().strftime("%H:%M")


def make_job(user: str = "bob", session: str = "", estimate_s: int = 1) -> job_pb2.Job:
    job = job_pb2.Job(job_id="job-1", user=user, device="aer", session_id=session, state=job_pb2.JOB_STATE_QUEUED)
    job.job_class = job_pb2.JOB_CLASS_SESSION if session else job_pb2.JOB_CLASS_FAIR_SHARE
    job.estimate.seconds = estimate_s
    return job


def make_window(holder: str, start: str, end: str) -> reservation_pb2.Reservation:
    return reservation_pb2.Reservation(
        reservation_id="r-1", device="aer", holder=holder, start_time=at(start), end_time=at(end)
    )


def causes(
    job: job_pb2.Job,
    device: device_pb2.Device,
    *windows: reservation_pb2.Reservation,
    session: session_pb2.Session | None = None,
) -> list[str]:
    device.name = "aer"
    return find_causes(job, device, windows, show, now=NOW, session=session)


def held(idle: str = "12:05") -> device_pb2.Device:
    return device_pb2.Device(
        state=device_pb2.DEVICE_STATE_HELD,
        active_session_id="s-1",
        active_user="ada",
        active_session_idle_expire_time=at(idle),
        active_session_expire_time=at("20:00"),
    )


def test_nothing_keeps_a_job_from_a_free_device() -> None:
    assert causes(make_job(), device_pb2.Device(state=device_pb2.DEVICE_STATE_FREE)) == []


@pytest.mark.parametrize("user", ["bob", "lab/y", "lab/xy"])
def test_a_window_keeps_out_who_is_not_its_holder(user: str) -> None:
    device = device_pb2.Device(state=device_pb2.DEVICE_STATE_FREE, reservation_id="r-1")
    window = make_window("lab/x", "11:00", "14:05")
    assert causes(make_job(user), device, window) == ["aer is reserved for lab/x until 14:05"]
    assert causes(make_job("lab/x"), device, window) == []
    assert causes(make_job("lab/x/one"), device, window) == []


def test_a_job_that_would_reach_into_a_window_is_told_so() -> None:
    device = device_pb2.Device(state=device_pb2.DEVICE_STATE_FREE)
    window = make_window("lab/x", "12:10", "14:05")
    assert causes(make_job(estimate_s=599), device, window) == []
    (told,) = causes(make_job(estimate_s=601), device, window)
    assert told == "aer is reserved for lab/x from 12:10, and it is not expected to end before"
    assert causes(make_job("lab/x", estimate_s=601), device, window) == []


def test_another_session_keeps_the_device_until_it_is_idle_or_expires() -> None:
    device = held()
    assert causes(make_job(), device) == ["s-1 of ada has aer until 12:05 unless it submits another job"]
    assert causes(make_job("ada", session="s-1"), device) == []
    device.ClearField("active_session_idle_expire_time")
    assert causes(make_job(), device) == ["s-1 of ada has aer until 20:00 at most"]


def test_a_session_waits_for_the_reservation_that_it_is_bound_to() -> None:
    bound = session_pb2.Session(session_id="s-2", reservation_id="r-1")
    window = make_window("lab", "13:00", "14:00")
    device = device_pb2.Device(state=device_pb2.DEVICE_STATE_FREE)
    told = causes(make_job("lab/x", session="s-2"), device, window, session=bound)
    assert told == ["its session is bound to r-1, which starts 13:00"]
    device.reservation_id = "r-1"
    assert causes(make_job("lab/x", session="s-2"), device, window, session=bound) == []


def test_what_runs_and_calibrations_are_told() -> None:
    device = device_pb2.Device(
        state=device_pb2.DEVICE_STATE_RUNNING,
        running_job_id="job-0",
        running_user="ada",
        running_job_class=job_pb2.JOB_CLASS_FAIR_SHARE,
        running_start_time=at("11:59"),
    )
    device.queue_counts.calibration = 1
    assert causes(make_job(), device) == ["a calibration goes first", "aer runs job-0 of ada, since 11:59"]
    device.queue_counts.calibration = 0
    device.running_job_class = job_pb2.JOB_CLASS_CALIBRATION
    assert causes(make_job(), device) == ["aer is being calibrated, since 11:59"]


def test_a_device_that_cannot_run_says_why() -> None:
    device = device_pb2.Device(state=device_pb2.DEVICE_STATE_OFFLINE, detail="no worker")
    assert causes(make_job(), device) == ["aer is offline (no worker)"]


def test_a_calibration_waits_for_no_window_and_for_sessions_only_where_they_go_first() -> None:
    job = make_job()
    job.job_class = job_pb2.JOB_CLASS_CALIBRATION
    device = held()
    device.reservation_id = "r-1"
    assert causes(job, device, make_window("lab", "11:00", "14:00")) == []
    device.settings.calibration = device_pb2.CALIBRATION_RULE_OUTSIDE_DEDICATED
    assert causes(job, device) == ["s-1 of ada has aer until 12:05 unless it submits another job"]

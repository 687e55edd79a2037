"""Why a queued job does not run yet, in words: from what everybody may see of its device and of the reservations."""

from collections.abc import Callable, Sequence
from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp

from cadenza._times import read_seconds, read_time
from cadenza.v1 import device_pb2, job_pb2, reservation_pb2, session_pb2

ShowTime = Callable[[Timestamp], str]


def find_causes(
    job: job_pb2.Job,
    device: device_pb2.Device,
    reservations: Sequence[reservation_pb2.Reservation],
    show_time: ShowTime,
    *,
    now: datetime,
    session: session_pb2.Session | None = None,
) -> list[str]:
    """What keeps a queued job from running, the weightiest first; empty if nothing does.

    `reservations`: those of its device that are not over, by start. `session`: the job's; it may be left out, and what
    binds it to a reservation is not told then. `now` has a time zone.
    """
    causes = []
    calibrates = job.job_class == job_pb2.JOB_CLASS_CALIBRATION
    if device.state == device_pb2.DEVICE_STATE_OFFLINE:
        causes.append(f"{device.name} is offline" + (f" ({device.detail})" if device.detail else ""))
    elif device.state == device_pb2.DEVICE_STATE_STARTING:
        causes.append(f"{device.name} is starting")
    if not calibrates:
        causes += _reservation_causes(job, device, reservations, show_time, now=now, session=session)
    causes += _session_causes(job, device, show_time)
    if device.queue_counts.calibration and not calibrates:
        causes.append("a calibration goes first")
    if device.running_job_id:
        causes.append(show_running(device, show_time))
    return causes


def _reservation_causes(
    job: job_pb2.Job,
    device: device_pb2.Device,
    reservations: Sequence[reservation_pb2.Reservation],
    show_time: ShowTime,
    *,
    now: datetime,
    session: session_pb2.Session | None,
) -> list[str]:
    known = {each.reservation_id: each for each in reservations}
    bound_to = session.reservation_id if session is not None else ""
    if bound_to and bound_to != device.reservation_id and bound_to in known:
        return [f"its session is bound to {bound_to}, which starts {show_time(known[bound_to].start_time)}"]
    causes = []
    window = known.get(device.reservation_id)
    if window is not None and not _covers(window.holder, job.user):
        causes.append(f"{device.name} is {show_window(window, show_time)}")
    ahead = [each for each in reservations if read_time(each.start_time) > now]
    if ahead and not _covers(ahead[0].holder, job.user):
        left = (read_time(ahead[0].start_time) - now).total_seconds()
        if read_seconds(job.estimate) > left:
            causes.append(
                f"{device.name} is reserved for {ahead[0].holder} from {show_time(ahead[0].start_time)}, and it is not "
                "expected to end before"
            )
    return causes


def _session_causes(job: job_pb2.Job, device: device_pb2.Device, show_time: ShowTime) -> list[str]:
    if not device.active_session_id or device.active_session_id == job.session_id:
        return []
    outside = device.settings.calibration == device_pb2.CALIBRATION_RULE_OUTSIDE_DEDICATED
    # What is held is held by a dedicated session; a batch does not keep a calibration away.
    if job.job_class == job_pb2.JOB_CLASS_CALIBRATION and not (
        outside and device.state == device_pb2.DEVICE_STATE_HELD
    ):
        return []
    return [f"{show_owner(device)} has {device.name}{show_until(device, show_time)}"]


def show_owner(device: device_pb2.Device) -> str:
    """The active session and whose it is: `session-1 of ada`."""
    return f"{device.active_session_id} of {device.active_user}"


def show_until(device: device_pb2.Device, show_time: ShowTime) -> str:
    """Until when the active session keeps the device, as the end of a sentence; empty if that is not known."""
    if device.HasField("active_session_idle_expire_time"):
        return f" until {show_time(device.active_session_idle_expire_time)} unless it submits another job"
    if device.HasField("active_session_expire_time"):
        return f" until {show_time(device.active_session_expire_time)} at most"
    return ""


def show_window(window: reservation_pb2.Reservation, show_time: ShowTime) -> str:
    """`reserved for lab/x until 14:05:00`."""
    return f"reserved for {window.holder} until {show_time(window.end_time)}"


def show_running(device: device_pb2.Device, show_time: ShowTime) -> str:
    """What runs on the device: `aer runs job-1 of bob, since 14:03:12`."""
    since = f", since {show_time(device.running_start_time)}" if device.HasField("running_start_time") else ""
    if device.running_job_class == job_pb2.JOB_CLASS_CALIBRATION:
        return f"{device.name} is being calibrated{since}"
    return f"{device.name} runs {device.running_job_id} of {device.running_user}{since}"


def _covers(holder: str, path: str) -> bool:
    return path == holder or path.startswith(holder + "/")

"""From the model's values to messages and back. What comes in is checked in `validation`.

Times are nanoseconds since the epoch, lengths nanoseconds; None and "" stand for what is absent.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Final

from cadenza.v1 import (
    device_pb2,
    event_pb2,
    job_pb2,
    program_pb2,
    reservation_pb2,
    result_pb2,
    session_pb2,
    share_pb2,
)
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from cadenza_server.engine import (
    DeviceView,
    JobAccepted,
    JobEnded,
    JobPriorityChanged,
    JobReleased,
    JobRequeued,
    JobSnapshot,
    JobStarted,
    JobView,
    Notice,
    ProgramKind,
    ReservationState,
    ReservationView,
    RunView,
    SessionChanged,
    SessionJobsEnded,
    SessionJobsReleased,
    SessionSnapshot,
    SessionView,
    UsageView,
)
from cadenza_server.model.settings import SECOND, DeviceSettings
from cadenza_server.model.words import (
    CalibrationRule,
    CloseReason,
    FirstJob,
    JobClass,
    JobReason,
    JobState,
    OnExpiry,
    Pending,
    Rule,
    RunOutcome,
    SessionMode,
    SessionState,
)

JOB_STATES: Final = {word: job_pb2.JobState.Value(f"JOB_STATE_{word}") for word in JobState}
JOB_REASONS: Final = {word: job_pb2.JobReason.Value(f"JOB_REASON_{word}") for word in JobReason}
JOB_CLASSES: Final = {word: job_pb2.JobClass.Value(f"JOB_CLASS_{word}") for word in JobClass}
PROGRAM_KINDS: Final = {word: program_pb2.ProgramKind.Value(f"PROGRAM_KIND_{word}") for word in ProgramKind}
RUN_RULES: Final = {word: job_pb2.RunRule.Value(f"RUN_RULE_{word}") for word in Rule}
RUN_OUTCOMES: Final = {
    RunOutcome.SUCCEEDED: job_pb2.RUN_OUTCOME_SUCCEEDED,
    RunOutcome.EXECUTION_ERROR: job_pb2.RUN_OUTCOME_FAILED,
    RunOutcome.RAN_TOO_LONG: job_pb2.RUN_OUTCOME_CANCELLED,
    RunOutcome.CANCELLED: job_pb2.RUN_OUTCOME_CANCELLED,
    RunOutcome.WORKER_LOST: job_pb2.RUN_OUTCOME_WORKER_LOST,
    RunOutcome.PUT_BACK: job_pb2.RUN_OUTCOME_PUT_BACK,
}
SESSION_MODES: Final = {word: session_pb2.SessionMode.Value(f"SESSION_MODE_{word}") for word in SessionMode}
SESSION_STATES: Final = {word: session_pb2.SessionState.Value(f"SESSION_STATE_{word}") for word in SessionState}
CLOSE_REASONS: Final = {
    word: session_pb2.SessionCloseReason.Value(f"SESSION_CLOSE_REASON_{word}") for word in CloseReason
}
PENDING: Final = {word: session_pb2.PendingTreatment.Value(f"PENDING_TREATMENT_{word}") for word in Pending}
ON_EXPIRY: Final = {word: session_pb2.ExpiryTreatment.Value(f"EXPIRY_TREATMENT_{word}") for word in OnExpiry}
FIRST_JOB: Final = {word: session_pb2.FirstJobRule.Value(f"FIRST_JOB_RULE_{word}") for word in FirstJob}
CALIBRATION_RULES: Final = {
    word: device_pb2.CalibrationRule.Value(f"CALIBRATION_RULE_{word}") for word in CalibrationRule
}
RESERVATION_STATES: Final = {
    word: reservation_pb2.ReservationState.Value(f"RESERVATION_STATE_{word}") for word in ReservationState
}

_DETAILS: Final = {
    JobReason.WORKER_LOST: "its worker died as often as the device allows: does it need too much memory?",
    JobReason.SESSION_CLOSED: "it was still queued when its session was closed; close with DRAIN to let jobs run",
    JobReason.SESSION_EXPIRED: "it was still queued when its session reached its max_time",
    JobReason.SESSION_CACHE_EXPIRED: "its session expired, and the cached data of the session is gone: submit it anew",
    JobReason.FIRST_JOB_CANCELLED: "the first job of its session, which brought the session's data, was cancelled",
    JobReason.RESERVATION_ENDED: "it was still queued when the reservation that its session is bound to ended",
    JobReason.CANCELLED_BY_USER: "it was cancelled by its owner or an operator",
    JobReason.SESSION_CANCELLED: "it was still queued when its session was cancelled",
    JobReason.RAN_TOO_LONG: "its run reached its limit, max_execution_time",
}


def to_timestamp(time: int | None) -> Timestamp | None:
    """None stays None, which leaves a field absent."""
    return None if time is None else Timestamp(seconds=time // SECOND, nanos=time % SECOND)


@lru_cache(maxsize=1024)
def to_duration(length: int | None) -> Duration | None:
    """Of a length that is not negative; None stays None. Nobody changes what it returns: few lengths come again and
    again."""
    return None if length is None else Duration(seconds=length // SECOND, nanos=length % SECOND)


def to_job(view: JobView) -> job_pb2.Job:
    """A job as people see it. Where the worker said nothing, the reason explains itself."""
    reason = view.reason
    return job_pb2.Job(
        job_id=view.job,
        user=view.user,
        device=view.device,
        session_id=view.session or "",
        job_class=JOB_CLASSES[view.job_class],
        program_kind=PROGRAM_KINDS[view.program_kind],
        state=JOB_STATES[view.state],
        reason=JOB_REASONS[reason] if reason else job_pb2.JOB_REASON_UNSPECIFIED,
        detail=view.detail or (_DETAILS.get(reason, "") if reason else ""),
        seq=view.seq,
        priority=view.priority,
        tags=view.tags,
        max_execution_time=to_duration(view.limit_ns),
        estimate=to_duration(view.estimate_ns),
        estimate_hint=to_duration(view.estimate_hint_ns),
        create_time=to_timestamp(view.create_time),
        start_time=to_timestamp(view.start_time),
        end_time=to_timestamp(view.end_time),
        attempts=view.attempts,
        queue_position=view.queue_position,
        charged=to_duration(view.charged_ns),
        epoch=view.epoch,
        cache_expire_time=to_timestamp(view.cache_deadline),
        result_bytes=view.result_bytes,
    )


def to_run(view: RunView) -> job_pb2.Run:
    """A run and the decision behind it."""
    return job_pb2.Run(
        job_id=view.job,
        attempt=view.attempt,
        device=view.device,
        user=view.user,
        session_id=view.session or "",
        job_class=JOB_CLASSES[view.job_class],
        rule=RUN_RULES[view.rule],
        start_time=to_timestamp(view.start_time),
        end_time=to_timestamp(view.end_time),
        outcome=RUN_OUTCOMES[view.outcome] if view.outcome else job_pb2.RUN_OUTCOME_RUNNING,
        estimate=to_duration(view.estimate_ns),
        epoch=view.epoch,
        charged=to_duration(view.charged_ns),
        chosen_usage=view.chosen_usage,
        runner_up=view.runner_up or "",
        runner_up_usage=view.runner_up_usage,
        create_time=to_timestamp(view.create_time),
        chosen=view.chosen_node or "",
        runner_up_user=view.runner_up_user or "",
        max_execution_time=to_duration(view.limit_ns),
    )


def to_session(view: SessionView, settings: DeviceSettings | None) -> session_pb2.Session:
    """A session; `settings` are its device's, None if the device is gone."""
    in_force = session_pb2.SessionSettings(
        max_time=to_duration(view.max_time_ns), interactive_ttl=to_duration(view.interactive_ttl_ns)
    )
    if settings is not None:
        in_force.unused_ttl.CopyFrom(_length(settings.unused_ttl))
        in_force.session_cache_ttl.CopyFrom(_length(settings.session_cache_ttl))
        in_force.on_close = PENDING[settings.on_close]
        in_force.on_expiry = ON_EXPIRY[settings.on_expiry]
        in_force.first_job = FIRST_JOB[settings.first_job]
    closed = view.state is SessionState.CLOSED and view.close_reason is not None
    counts = view.job_counts
    return session_pb2.Session(
        session_id=view.session,
        user=view.user,
        device=view.device,
        mode=SESSION_MODES[view.mode],
        state=SESSION_STATES[view.state],
        close_reason=CLOSE_REASONS[view.close_reason]
        if closed and view.close_reason
        else session_pb2.SESSION_CLOSE_REASON_UNSPECIFIED,
        active=view.active,
        accepting_jobs=view.accepting_jobs,
        reservation_id=view.reservation or "",
        settings=in_force,
        create_time=to_timestamp(view.create_time),
        start_time=to_timestamp(view.start_time),
        activate_time=to_timestamp(view.activate_time),
        expire_time=to_timestamp(view.expire_time),
        close_time=to_timestamp(view.close_time),
        idle_expire_time=to_timestamp(view.idle_deadline),
        unused_expire_time=to_timestamp(view.unused_deadline),
        cache_expire_time=to_timestamp(view.cache_deadline),
        job_counts=session_pb2.JobCounts(
            queued=counts.queued,
            running=counts.running,
            succeeded=counts.succeeded,
            failed=counts.failed,
            cancelled=counts.cancelled,
        ),
        first_job_id=view.first_job or "",
        last_job_start_time=to_timestamp(view.last_job_start_time),
        last_job_end_time=to_timestamp(view.last_job_end_time),
        run_time=to_duration(view.run_time_ns),
        held_time=to_duration(view.held_time_ns),
        first_epoch=view.first_epoch,
        last_epoch=view.last_epoch,
    )


def _length(length: int) -> Duration:
    return Duration(seconds=length // SECOND, nanos=length % SECOND)


def to_settings(settings: DeviceSettings, profile: str) -> device_pb2.DeviceSettings:
    """The scheduling settings in force on a device."""
    return device_pb2.DeviceSettings(
        profile=profile,
        interactive_ttl_dedicated=to_duration(settings.interactive_ttl_dedicated),
        interactive_ttl_batch=to_duration(settings.interactive_ttl_batch),
        max_time=to_duration(settings.max_time),
        unused_ttl=to_duration(settings.unused_ttl),
        on_close=PENDING[settings.on_close],
        on_expiry=ON_EXPIRY[settings.on_expiry],
        session_cache_ttl=to_duration(settings.session_cache_ttl),
        first_job=FIRST_JOB[settings.first_job],
        calibration=CALIBRATION_RULES[settings.calibration],
        limit=to_duration(settings.limit),
        max_attempts=settings.max_attempts,
        default_estimate=to_duration(settings.default_estimate),
        calibration_interval=to_duration(settings.calibration_interval),
        calibration_duration=to_duration(settings.calibration_duration),
    )


def fill_device(message: device_pb2.Device, view: DeviceView, *, with_properties: bool) -> None:
    """Put what changes into a description of the device; `with_properties`: keep or replace what was measured.

    A description that says OFFLINE, and why, is believed as long as the device is not ready.
    """
    message.name = view.device
    offline = message.state == device_pb2.DEVICE_STATE_OFFLINE and not view.ready
    if not offline:
        message.ClearField("detail")
    if view.running_job is not None:
        message.state = device_pb2.DEVICE_STATE_RUNNING
    elif offline:
        pass
    elif not view.ready:
        message.state = device_pb2.DEVICE_STATE_STARTING
        message.detail = "its worker is starting; jobs are accepted and wait"
    else:
        message.state = device_pb2.DEVICE_STATE_HELD if view.held else device_pb2.DEVICE_STATE_FREE
    error = view.estimate_error
    if error is not None:
        message.estimate_error.run_count = error.run_count
        message.estimate_error.factor_p50 = error.factor_p50
        message.estimate_error.factor_p90 = error.factor_p90
        message.estimate_error.difference_p50.CopyFrom(_length(error.difference_p50_ns))
        message.estimate_error.difference_p90.CopyFrom(_length(error.difference_p90_ns))
    message.epoch = view.epoch
    if view.calibrate_time is not None:
        message.calibrate_time.FromNanoseconds(view.calibrate_time)
    if view.next_calibration_time is not None:
        message.next_calibration_time.FromNanoseconds(view.next_calibration_time)
    message.running_job_id = view.running_job or ""
    message.running_user = view.running_user or ""
    if view.running_class is not None:
        message.running_job_class = JOB_CLASSES[view.running_class]
    if view.running_since is not None:
        message.running_start_time.FromNanoseconds(view.running_since)
    message.active_session_id = view.active_session or ""
    message.active_user = view.active_user or ""
    if view.active_session_idle_due is not None:
        message.active_session_idle_expire_time.FromNanoseconds(view.active_session_idle_due)
    if view.active_session_expires_at is not None:
        message.active_session_expire_time.FromNanoseconds(view.active_session_expires_at)
    message.queue_counts.calibration = view.queued_calibration
    message.queue_counts.session = view.queued_session
    message.queue_counts.fair_share = view.queued_fair_share
    message.settings.CopyFrom(to_settings(view.settings, view.profile))
    message.reservation_id = view.reservation or ""
    if not with_properties:
        message.ClearField("properties")
    elif view.properties is not None:
        message.properties.ParseFromString(view.properties)


def to_reservation(view: ReservationView) -> reservation_pb2.Reservation:
    """A reservation."""
    return reservation_pb2.Reservation(
        reservation_id=view.reservation,
        device=view.device,
        holder=view.holder,
        start_time=to_timestamp(view.start_time),
        end_time=to_timestamp(view.end_time),
        state=RESERVATION_STATES[view.state],
        description=view.description,
        create_time=to_timestamp(view.create_time),
    )


def to_share_node(view: UsageView) -> share_pb2.ShareNode:
    """A node of the share tree."""
    kind = share_pb2.SHARE_NODE_KIND_UNSPECIFIED
    if view.is_user is not None:
        kind = share_pb2.SHARE_NODE_KIND_USER if view.is_user else share_pb2.SHARE_NODE_KIND_ACCOUNT
    return share_pb2.ShareNode(
        path=view.path,
        kind=kind,
        shares=view.shares,
        settled_usage_s=view.settled_s,
        in_flight_usage_s=view.in_flight_s,
        normalised_usage_s=view.normalised_s,
        charged_s=view.charged_s,
        queued_job_count=view.queued,
        running_job_count=view.running,
    )


def to_job_ended(ended: JobEnded) -> event_pb2.JobEnded:
    """The end of a job."""
    return event_pb2.JobEnded(
        job=to_job(ended.job), run=to_run(ended.run) if ended.run else None, result=_result(ended.result)
    )


def to_event(notice: Notice, settings: Mapping[str, DeviceSettings]) -> event_pb2.Event:
    """One change; `settings` are those of all devices, by name."""
    event = event_pb2.Event(event_number=notice.event_number, time=to_timestamp(notice.time))
    match notice.change:
        case JobSnapshot(job=job, result=result):
            event.job_snapshot.CopyFrom(event_pb2.JobSnapshot(job=to_job(job), result=_result(result)))
        case SessionSnapshot(session=session):
            event.session_snapshot.session.CopyFrom(to_session(session, settings.get(session.device)))
        case JobAccepted(job=job):
            event.job_accepted.job.CopyFrom(to_job(job))
        case JobStarted(run=run):
            event.job_started.run.CopyFrom(to_run(run))
        case JobRequeued(run=run):
            event.job_requeued.run.CopyFrom(to_run(run))
        case JobEnded() as ended:
            event.job_ended.CopyFrom(to_job_ended(ended))
        case JobPriorityChanged(job=name, priority=priority):
            event.job_priority_changed.CopyFrom(event_pb2.JobPriorityChanged(job_id=name, priority=priority))
        case JobReleased(job=name, cache_deadline=deadline):
            event.job_released.CopyFrom(event_pb2.JobReleased(job_id=name, cache_expire_time=to_timestamp(deadline)))
        case SessionChanged(session=session, previous=previous):
            event.session_changed.session.CopyFrom(to_session(session, settings.get(session.device)))
            if previous is not None:
                event.session_changed.previous_state = SESSION_STATES[previous]
        case SessionJobsEnded(session=name, state=state, reason=reason, count=count):
            event.session_jobs_ended.CopyFrom(
                event_pb2.SessionJobsEnded(
                    session_id=name,
                    state=JOB_STATES[state],
                    reason=JOB_REASONS[reason],
                    detail=_DETAILS.get(reason, ""),
                    job_count=count,
                )
            )
        case SessionJobsReleased(session=name, cache_deadline=deadline, count=count):
            event.session_jobs_released.CopyFrom(
                event_pb2.SessionJobsReleased(
                    session_id=name, cache_expire_time=to_timestamp(deadline), job_count=count
                )
            )
    return event


def _result(data: bytes | None) -> result_pb2.JobResult | None:
    return None if data is None else result_pb2.JobResult.FromString(data)

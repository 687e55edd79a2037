"""Requests of the contract from plain arguments: what the blocking and the asyncio client have in common."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal, TypeVar

from cadenza._errors import InvalidRequestError
from cadenza._times import Instant, Length, make_duration, make_timestamp
from cadenza.v1 import (
    circuit_pb2,
    device_service_pb2,
    job_pb2,
    job_service_pb2,
    program_pb2,
    reservation_pb2,
    reservation_service_pb2,
    session_pb2,
    session_service_pb2,
    share_service_pb2,
)

PAGE_SIZE: Final = 1_000
"""What a list asks for at a time, when it wants all."""

SessionModeName = Literal["dedicated", "batch"]
Pending = Literal["drain", "fail"]
"""What a close does with queued jobs: they still run, or fail with SESSION_CLOSED."""

JobStateName = Literal["queued", "running", "succeeded", "failed", "cancelled"]
SessionStateName = Literal["open", "active", "inactive", "draining", "closed"]
ReservationStateName = Literal["scheduled", "active", "ended", "deleted"]
JobClassName = Literal["calibration", "session", "fair_share"]
ProgramKindName = Literal["sampler", "estimator", "calibration"]
RunOutcomeName = Literal["running", "succeeded", "failed", "cancelled", "worker_lost", "put_back"]

Choice = TypeVar("Choice")


def choose(prefix: str, names: Mapping[str, Choice], given: str | None, field: str) -> Choice:
    """The enum value whose name is `prefix` and the upper-case of `given`; UNSPECIFIED for None."""
    if given is None:
        return names[prefix + "UNSPECIFIED"]
    value = names.get(prefix + given.upper())
    if value is None or given.lower() == "unspecified":
        allowed = ", ".join(repr(n.removeprefix(prefix).lower()) for n in names if not n.endswith("_UNSPECIFIED"))
        raise InvalidRequestError(
            f"{field}: {given!r} is none of {allowed}", code="INVALID_ARGUMENT", reason="INVALID_FIELD", field=field
        )
    return value


def session_mode(name: str | None) -> session_pb2.SessionMode.ValueType:
    """`dedicated` or `batch`."""
    return choose("SESSION_MODE_", dict(session_pb2.SessionMode.items()), name, "mode")


def job_states(names: Iterable[str]) -> list[job_pb2.JobState.ValueType]:
    """States of jobs by lower-case name."""
    known = dict(job_pb2.JobState.items())
    return [choose("JOB_STATE_", known, name, "states") for name in names]


def create_session(
    request_id: str,
    device: str,
    mode: str,
    max_time: Length | None,
    interactive_ttl: Length | None,
    reservation_id: str,
    session_id: str,
) -> session_service_pb2.CreateSessionRequest:
    """`SessionService.CreateSession`."""
    return session_service_pb2.CreateSessionRequest(
        request_id=request_id,
        session_id=session_id,
        device=device,
        mode=session_mode(mode),
        max_time=None if max_time is None else make_duration(max_time, "max_time"),
        interactive_ttl=None if interactive_ttl is None else make_duration(interactive_ttl, "interactive_ttl"),
        reservation_id=reservation_id,
    )


def list_sessions(
    states: Iterable[str],
    device: str,
    user: str,
    mode: str | None,
    created_from: Instant | None,
    created_before: Instant | None,
) -> session_service_pb2.ListSessionsRequest:
    """`SessionService.ListSessions`."""
    known = dict(session_pb2.SessionState.items())
    return session_service_pb2.ListSessionsRequest(
        states=[choose("SESSION_STATE_", known, name, "states") for name in states],
        device=device,
        user=user,
        mode=session_mode(mode),
        created_from=None if created_from is None else make_timestamp(created_from),
        created_before=None if created_before is None else make_timestamp(created_before),
    )


def close_session(request_id: str, session_id: str, pending: Pending | None) -> session_service_pb2.CloseSessionRequest:
    """`SessionService.CloseSession`."""
    treatments: Mapping[str | None, session_pb2.PendingTreatment.ValueType] = {
        None: session_pb2.PENDING_TREATMENT_UNSPECIFIED,
        "drain": session_pb2.PENDING_TREATMENT_DRAIN,
        "fail": session_pb2.PENDING_TREATMENT_FAIL_QUEUED,
    }
    if pending not in treatments:
        raise InvalidRequestError(
            f"pending: {pending!r} is neither 'drain' (queued jobs still run) nor 'fail' (they fail)",
            code="INVALID_ARGUMENT",
            reason="INVALID_FIELD",
            field="pending",
        )
    return session_service_pb2.CloseSessionRequest(
        request_id=request_id, session_id=session_id, pending=treatments[pending]
    )


def job_spec(
    program: program_pb2.Program,
    device: str = "",
    session_id: str = "",
    priority: int = 0,
    tags: Sequence[str] = (),
    max_execution_time: Length | None = None,
    estimate_hint: Length | None = None,
    job_id: str = "",
) -> job_pb2.JobSpec:
    """A job to submit; see `cadenza.v1.JobSpec`. Times in seconds, as text such as `90s`, or `timedelta`."""
    return job_pb2.JobSpec(
        job_id=job_id,
        device=device,
        session_id=session_id,
        program=program,
        priority=priority,
        tags=tags,
        max_execution_time=None
        if max_execution_time is None
        else make_duration(max_execution_time, "max_execution_time"),
        estimate_hint=None if estimate_hint is None else make_duration(estimate_hint, "estimate_hint"),
    )


def list_jobs(
    states: Iterable[str],
    device: str,
    session_id: str,
    user: str,
    tags: Sequence[str],
    job_class: str | None,
    program_kind: str | None,
    created_from: Instant | None,
    created_before: Instant | None,
    skip: int,
    oldest_first: bool,
) -> job_service_pb2.ListJobsRequest:
    """`JobService.ListJobs`."""
    return job_service_pb2.ListJobsRequest(
        states=job_states(states),
        device=device,
        session_id=session_id,
        user=user,
        tags=tags,
        job_class=choose("JOB_CLASS_", dict(job_pb2.JobClass.items()), job_class, "job_class"),
        program_kind=choose("PROGRAM_KIND_", dict(program_pb2.ProgramKind.items()), program_kind, "program_kind"),
        created_from=None if created_from is None else make_timestamp(created_from),
        created_before=None if created_before is None else make_timestamp(created_before),
        skip=skip,
        oldest_first=oldest_first,
    )


def list_runs(
    job_id: str,
    device: str,
    session_id: str,
    user: str,
    started_from: Instant | None,
    started_before: Instant | None,
    outcomes: Iterable[str],
) -> job_service_pb2.ListRunsRequest:
    """`JobService.ListRuns`."""
    known = dict(job_pb2.RunOutcome.items())
    return job_service_pb2.ListRunsRequest(
        job_id=job_id,
        device=device,
        session_id=session_id,
        user=user,
        started_from=None if started_from is None else make_timestamp(started_from),
        started_before=None if started_before is None else make_timestamp(started_before),
        outcomes=[choose("RUN_OUTCOME_", known, name, "outcomes") for name in outcomes],
    )


def submit_calibration(
    request_id: str,
    device: str,
    calibration: program_pb2.CalibrationJob | None,
    duration: Length | None,
    job_id: str,
    tags: Sequence[str],
    max_execution_time: Length | None,
) -> device_service_pb2.SubmitCalibrationRequest:
    """`DeviceService.SubmitCalibration`."""
    if duration is not None:
        copied = program_pb2.CalibrationJob()
        if calibration is not None:
            copied.CopyFrom(calibration)
        copied.duration.CopyFrom(make_duration(duration))
        calibration = copied
    return device_service_pb2.SubmitCalibrationRequest(
        request_id=request_id,
        device=device,
        calibration=calibration,
        job_id=job_id,
        tags=tags,
        max_execution_time=None
        if max_execution_time is None
        else make_duration(max_execution_time, "max_execution_time"),
    )


def create_reservation(
    request_id: str, device: str, holder: str, start: Instant, end: Instant, description: str, reservation_id: str
) -> reservation_service_pb2.CreateReservationRequest:
    """`ReservationService.CreateReservation`."""
    return reservation_service_pb2.CreateReservationRequest(
        request_id=request_id,
        reservation_id=reservation_id,
        device=device,
        holder=holder,
        start_time=make_timestamp(start),
        end_time=make_timestamp(end),
        description=description,
    )


def list_reservations(
    device: str, holder: str, states: Iterable[str]
) -> reservation_service_pb2.ListReservationsRequest:
    """`ReservationService.ListReservations`."""
    known = dict(reservation_pb2.ReservationState.items())
    return reservation_service_pb2.ListReservationsRequest(
        device=device,
        holder=holder,
        states=[choose("RESERVATION_STATE_", known, name, "states") for name in states],
    )


def set_shares(request_id: str, shares: Mapping[str, float]) -> share_service_pb2.SetSharesRequest:
    """`ShareService.SetShares`."""
    return share_service_pb2.SetSharesRequest(
        request_id=request_id,
        settings=[share_service_pb2.ShareSetting(path=path, shares=weight) for path, weight in shares.items()],
    )


def make_circuit(source: str | bytes) -> circuit_pb2.Circuit:
    """A circuit from its text (OpenQASM 3 or 2, told apart by its `OPENQASM` line) or its QPY bytes."""
    if isinstance(source, bytes):
        return circuit_pb2.Circuit(qpy=source)
    for line in source.splitlines():
        words = line.split("//")[0].split()
        if words and words[0] == "OPENQASM":
            version_2 = len(words) > 1 and words[1].startswith("2")
            return circuit_pb2.Circuit(openqasm2=source) if version_2 else circuit_pb2.Circuit(openqasm3=source)
    return circuit_pb2.Circuit(openqasm3=source)


def sampler_program(
    circuits: str | bytes | Sequence[str | bytes],
    *,
    shots: int | None = None,
    seed: int | None = None,
    method: str = "",
    transpile_level: int | None = None,
) -> program_pb2.Program:
    """A program that samples circuits without parameters: OpenQASM 3 or 2 as text, or QPY as bytes. Needs no Qiskit.

    `shots`: None for the device's default. `transpile_level`: 0 to 3. For parameters and observables build the
    messages of `cadenza.v1.program_pb2`.
    """
    sources = [circuits] if isinstance(circuits, (str, bytes)) else circuits
    return program_pb2.Program(
        sampler=program_pb2.SamplerJob(
            pubs=[program_pb2.SamplerPub(circuit=make_circuit(source)) for source in sources],
            default_shots=shots,
            options=program_pb2.ExecutionOptions(seed=seed, method=method, transpile_level=transpile_level),
        )
    )

"""The handle of a job, as Qiskit's users know it. What happens to the job is pushed to it, never polled."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

from google.protobuf.timestamp_pb2 import Timestamp
from qiskit.primitives import BasePrimitiveJob, PrimitiveResult

from cadenza._client import Client
from cadenza._codec import circuit_digest, decode_result, list_circuits, read_inputs
from cadenza._errors import (
    CadenzaError,
    CadenzaTimeoutError,
    InvalidRequestError,
    JobCancelledError,
    JobFailedError,
    NotFoundError,
)
from cadenza._follower import FINAL, FollowedJob
from cadenza._times import read_seconds, read_time
from cadenza._waiting import find_causes
from cadenza.v1 import job_pb2, program_pb2
from cadenza.v1.circuit_pb2 import Circuit
from cadenza.v1.event_pb2 import Event, JobEnded

if TYPE_CHECKING:
    from cadenza._backend import BackendProperties, CadenzaBackend
    from cadenza._service import CadenzaService

JobStatus = Literal["INITIALIZING", "QUEUED", "RUNNING", "CANCELLED", "DONE", "ERROR"]
"""As in qiskit_ibm_runtime. INITIALIZING is never given: a job that has an id is queued."""

_STATUSES: Final[dict[int, JobStatus]] = {
    job_pb2.JOB_STATE_QUEUED: "QUEUED",
    job_pb2.JOB_STATE_RUNNING: "RUNNING",
    job_pb2.JOB_STATE_SUCCEEDED: "DONE",
    job_pb2.JOB_STATE_FAILED: "ERROR",
    job_pb2.JOB_STATE_CANCELLED: "CANCELLED",
}


@dataclass(frozen=True)
class JobUpdate:
    """One change of a job, as `Job.watch` gives it."""

    event_number: int
    """Grows; pass it to `watch(after=...)` to go on from here."""
    time: datetime
    """When it happened, in local time."""
    change: str
    """What happened: `job_snapshot` (what is now), `job_accepted`, `job_started`, `job_requeued`, `job_ended`,
    `job_priority_changed` or `job_released`."""
    status: JobStatus
    """The job's status after the change."""
    queue_position: int | None
    """How many queued jobs would start before it, where the server says so: in a snapshot."""


class Job(BasePrimitiveJob[PrimitiveResult, JobStatus]):  # type: ignore[misc]
    """A job on a server. `SamplerV2.run`, `EstimatorV2.run`, `CadenzaService.job` and `.jobs` make them.

    The job lives on the server: a handle that is lost is made again from the job's id, in any process.
    """

    JOB_FINAL_STATES: ClassVar[tuple[JobStatus, ...]] = ("DONE", "CANCELLED", "ERROR")
    ERROR: ClassVar[JobStatus] = "ERROR"

    def __init__(self, service: "CadenzaService", followed: FollowedJob) -> None:
        super().__init__(followed.job.job_id)
        self._service = service
        self._followed = followed
        self._result: PrimitiveResult | None = None
        self.circuit_metadata: Sequence[Mapping[str, Any]] = ()
        """Of the circuits, one a PUB, where this handle submitted them; goes into the result, as Qiskit's do."""

    @classmethod
    def unfollowed(cls, service: "CadenzaService", found: job_pb2.Job | JobEnded) -> "Job":
        """A handle that watches the job by itself, once somebody waits for it (if it has not ended)."""
        followed = FollowedJob.make(found)
        followed.settled.set()
        return cls(service, followed)

    def __repr__(self) -> str:
        return f"<Job({self.job_id()!r}, {self.primitive_id!r})>"

    # --- how it stands ------------------------------------------------------------------------------------------------

    def status(self) -> JobStatus:
        """QUEUED (it waits), RUNNING (on the device now), DONE, CANCELLED or ERROR.

        ERROR is also a job that was stopped at its `max_execution_time`, as in qiskit_ibm_runtime.
        """
        return _status(self._now())

    def done(self) -> bool:
        """Whether it ended with a result."""
        return self.status() == "DONE"

    def running(self) -> bool:
        """Whether it is on the device now."""
        return self.status() == "RUNNING"

    def cancelled(self) -> bool:
        """Whether it was cancelled."""
        return self.status() == "CANCELLED"

    def errored(self) -> bool:
        """Whether it failed, or was stopped at its `max_execution_time`."""
        return self.status() == "ERROR"

    def in_final_state(self) -> bool:
        """Whether it has ended."""
        return self.status() in self.JOB_FINAL_STATES

    def error_message(self) -> str | None:
        """Why it failed: the reason and a sentence; None if it did not."""
        job = self._now()
        return f"{_reason(job)}: {job.detail}" if _status(job) == "ERROR" else None

    def queue_position(self) -> int | None:
        """How many queued jobs the device would start before this one if from now on nothing came or went; None if it
        is not queued, or 1,000 or more stand before it."""
        job = self._service.client.get_job(self.job_id())
        self._followed.update(job)
        return job.queue_position if job.HasField("queue_position") else None

    def watch(self, after: int | None = None, timeout: float | None = None) -> Iterator[JobUpdate]:
        """Every change up to the final state, as it happens; the first one says what is now.

        `after`: an event number seen before, to go on from there. `timeout`: seconds until `CadenzaTimeoutError`.
        """
        status = _status(self._followed.job)
        with self._service.client.watch_job(self.job_id(), after=after, timeout_s=timeout) as watch:
            for event in watch:
                update = _make_update(event, status)
                status = update.status
                yield update

    # --- its end ------------------------------------------------------------------------------------------------------

    def result(
        self, timeout: float | None = None, decoder: None = None, poll_interval: float | None = None
    ) -> PrimitiveResult:
        """Wait for the end and return the result.

        There are no decoders: `decoder` must be None. `poll_interval` does nothing: nothing is polled.

        Raises `JobFailedError` or `JobCancelledError` with reason and detail, and `CadenzaTimeoutError` after `timeout`
        seconds (the job goes on).
        """
        del poll_interval
        if decoder is not None:
            raise InvalidRequestError(
                "decoder: there are none here, results are Qiskit's: leave it out",
                code="INVALID_ARGUMENT",
                field="decoder",
            )
        if self._result is None:
            job = self._wait(timeout)
            if job.state != job_pb2.JOB_STATE_SUCCEEDED:
                raise _job_error(job)
            message = self._followed.result
            if message is None:
                message = self._service.client.get_job_result(job.job_id)
            self._result = decode_result(message, job.program_kind)
            for pub, metadata in zip(self._result, self.circuit_metadata, strict=False):
                pub.metadata["circuit_metadata"] = dict(metadata)
            self._followed.result = None
        return self._result

    def wait_for_final_state(self, timeout: float | None = None, poll_interval: float | None = None) -> None:
        """Wait for the end, whichever it is. Raises `CadenzaTimeoutError` after `timeout` seconds.

        `poll_interval` is there for programs written for qiskit_ibm_runtime and does nothing: nothing is polled.
        """
        del poll_interval
        self._wait(timeout)

    def cancel(self) -> None:
        """Cancel it at once, queued or running. Raises `PreconditionError` if it has ended."""
        self._followed.update(self._service.client.cancel_job(self.job_id()))

    # --- facts --------------------------------------------------------------------------------------------------------

    def backend(self, timeout: float | None = None) -> "CadenzaBackend":
        """The device that it runs on. `timeout` does nothing: a job's device is known from the start."""
        del timeout
        return self._service.backend(self._followed.job.device)

    @property
    def primitive_id(self) -> str:
        """`sampler`, `estimator` or `calibration`."""
        return _name(program_pb2.ProgramKind.Name(self._followed.job.program_kind), "PROGRAM_KIND_").lower()

    @property
    def session_id(self) -> str | None:
        """The session that it was submitted to; None if none."""
        return self._followed.job.session_id or None

    @property
    def creation_date(self) -> datetime:
        """When it was accepted, in local time."""
        return read_time(self._followed.job.create_time)

    @property
    def inputs(self) -> dict[str, Any]:
        """What it executes, as it was submitted: `pubs` as tuples (circuit, values, shots) or (circuit, observables,
        values, precision), the values in the order of `circuit.parameters`; `options`, those that were set; and
        `default_shots` or `default_precision`. What was left to the device is None.
        """
        client, job = self._service.client, self._followed.job
        return read_inputs(
            client.get_job_payload(self.job_id()), lambda digest: _find_circuit(client, job.session_id, digest)
        )

    def properties(self, refresh: bool = False) -> "BackendProperties | None":
        """The properties of its device in the calibration epoch in which it ran; None if it has not started, if the
        device is ideal, or if it has been calibrated since (the server keeps the latest properties).
        """
        del refresh
        job = self._now()
        if not job.HasField("epoch"):
            job = self._service.client.get_job(self.job_id())
        found = self.backend().properties()
        return found if found is not None and job.HasField("epoch") and found.epoch == job.epoch else None

    @property
    def tags(self) -> list[str]:
        """Its labels."""
        return list(self._followed.job.tags)

    @property
    def usage_estimation(self) -> dict[str, float]:
        """`quantum_seconds`: the device time that the scheduler expects."""
        return {"quantum_seconds": read_seconds(self._followed.job.estimate)}

    def usage(self, partial: bool = False) -> float:
        """Device seconds charged for it. 0 before its end, unless `partial`."""
        job = self._now()
        return read_seconds(job.charged) if partial or job.state in FINAL else 0.0

    def metrics(self) -> dict[str, Any]:
        """When it was created, started and finished (UTC, ISO 8601; None: not yet), what it used, how often it ran."""
        job = self._service.client.get_job(self.job_id())
        self._followed.update(job)
        charged = read_seconds(job.charged)
        return {
            "timestamps": {
                "created": _iso(job.create_time),
                "running": _iso(job.start_time) if job.HasField("start_time") else None,
                "finished": _iso(job.end_time) if job.HasField("end_time") else None,
            },
            "usage": {
                "status": "final" if job.state in FINAL else "pending",
                "seconds": charged,
                "quantum_seconds": charged,
                "qpu_charge_time_seconds": charged,
            },
            "position_in_queue": job.queue_position if job.HasField("queue_position") else None,
            "attempts": job.attempts,
            "epoch": job.epoch if job.HasField("epoch") else None,
        }

    def logs(self) -> str:
        """The job's history, one change a line."""
        lines = []
        status: JobStatus = "QUEUED"
        for event in self._service.client.list_job_events(self.job_id()):
            update = _make_update(event, status)
            status = update.status
            lines.append(f"{_iso(event.time)} {update.change} {update.status}\n")
        return "".join(lines)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _now(self) -> job_pb2.Job:
        """The job as it is: pushed, if it is followed; asked for, if not."""
        followed = self._followed
        if not followed.is_final and followed.settled.is_set():
            followed.update(self._service.client.get_job(self.job_id()))
        return followed.job

    def _wait(self, timeout: float | None) -> job_pb2.Job:
        followed = self._followed
        start = time.monotonic()
        if not followed.settled.wait(timeout):
            raise self._late(timeout)
        if not followed.is_final:
            left = None if timeout is None else timeout - (time.monotonic() - start)
            try:
                self._watch_alone(left)
            except CadenzaTimeoutError:
                raise self._late(timeout) from None
        return followed.job

    def _watch_alone(self, timeout: float | None) -> None:
        """Nobody follows the job (any more): watch it on this thread, which Ctrl-C interrupts."""
        client, followed = self._service.client, self._followed
        with client.watch_job(self.job_id(), include_results=True, timeout_s=timeout) as watch:
            for event in watch:
                if event.HasField("job_snapshot"):
                    shot = event.job_snapshot
                    followed.update(shot.job, shot.result if shot.HasField("result") else None)
                elif event.HasField("job_ended"):
                    end = event.job_ended
                    followed.update(end.job, end.result if end.HasField("result") else None)
        if not followed.is_final:
            raise CadenzaError(f"the watch of {self.job_id()} ended before the job did: ask for its result again")

    def _explain_wait(self) -> str:
        """Why it waits, for the end of a sentence; empty if nothing keeps it, or nobody can say."""
        client, job = self._service.client, self._followed.job
        try:
            device = client.get_device(job.device)
            reservations = client.list_reservations(device=job.device)
            session = client.get_session(job.session_id) if job.session_id else None
        except CadenzaError:
            return ""
        now = datetime.now(UTC)

        def show_time(moment: Timestamp) -> str:
            local = read_time(moment)
            return local.strftime("%H:%M:%S" if local.date() == now.astimezone().date() else "%Y-%m-%d %H:%M:%S")

        causes = find_causes(job, device, reservations, show_time, now=now, session=session)
        return f" ({'; '.join(causes)}: `cadenza queue {job.device}` shows who else waits)" if causes else ""

    def _late(self, timeout: float | None) -> CadenzaTimeoutError:
        status = _status(self._followed.job)
        why = self._explain_wait() if status == "QUEUED" else ""
        return CadenzaTimeoutError(
            f"job {self.job_id()} has not ended after {timeout} s: it is {status}{why}, and goes on; "
            "ask for its result again, or cancel it",
            code="DEADLINE_EXCEEDED",
            metadata={"job_id": self.job_id(), "status": status},
        )


def _find_circuit(client: Client, session_id: str, digest: bytes) -> Circuit:
    """The circuit that an earlier job of the session brought. Raises `NotFoundError`."""
    for job in client.list_jobs(session_id=session_id, oldest_first=True):
        for circuit in list_circuits(client.get_job_payload(job.job_id)):
            if circuit_digest(circuit) == digest:
                return circuit
    raise NotFoundError(
        f"the circuit {digest.hex()} is no longer on the server", code="NOT_FOUND", reason="UNKNOWN_CIRCUIT"
    )


def _status(job: job_pb2.Job) -> JobStatus:
    if job.reason == job_pb2.JOB_REASON_RAN_TOO_LONG:
        return "ERROR"
    return _STATUSES.get(job.state, "QUEUED")


def _reason(job: job_pb2.Job) -> str:
    return _name(job_pb2.JobReason.Name(job.reason), "JOB_REASON_")


def _job_error(job: job_pb2.Job) -> JobFailedError | JobCancelledError:
    error, verb = (JobFailedError, "failed") if _status(job) == "ERROR" else (JobCancelledError, "was cancelled")
    reason = _reason(job)
    return error(
        f"job {job.job_id} {verb}: {job.detail or 'no detail was given'}",
        job_id=job.job_id,
        reason=reason,
        detail=job.detail,
    )


def _make_update(event: Event, status: JobStatus) -> JobUpdate:
    change = event.WhichOneof("change") or "unknown"
    position = None
    if change in ("job_snapshot", "job_accepted", "job_ended"):
        job: job_pb2.Job = getattr(event, change).job
        status = _status(job)
        position = job.queue_position if job.HasField("queue_position") else None
    elif change == "job_started":
        status = "RUNNING"
    elif change == "job_requeued":
        status = "QUEUED"
    return JobUpdate(event.event_number, read_time(event.time), change, status, position)


def _iso(timestamp: Timestamp) -> str:
    return read_time(timestamp).astimezone(UTC).isoformat().replace("+00:00", "Z")


def _name(name: str, prefix: str) -> str:
    return name.removeprefix(prefix)

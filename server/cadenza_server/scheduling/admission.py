"""What may be asked: every command is checked here before anything is done, so that a refusal leaves no trace.

Law: the first that applies of NOT_FOUND, PERMISSION_DENIED, INVALID_ARGUMENT, ALREADY_EXISTS, FAILED_PRECONDITION.
Reasons are those of `cadenza.v1.ErrorReason`.
"""

import math
from typing import TYPE_CHECKING, Final, NoReturn

from cadenza_server.model.commands import (
    Caller,
    CancelJob,
    CancelSession,
    CloseSession,
    CreateReservation,
    CreateSession,
    DeleteReservation,
    SetPriority,
    SetShares,
    SubmitJob,
)
from cadenza_server.model.errors import Code, Refusal, not_found, session_of_other_user
from cadenza_server.model.paths import check_path, covers
from cadenza_server.model.words import JobClass, JobState
from cadenza_server.scheduling.calibrations import AUTOMATIC_PREFIX
from cadenza_server.scheduling.company import ALONE, Company
from cadenza_server.scheduling.devices import Device
from cadenza_server.scheduling.jobs import Job
from cadenza_server.scheduling.reservations import Reservation
from cadenza_server.scheduling.sessions import Session
from cadenza_server.scheduling.shares import NodeKind

if TYPE_CHECKING:
    from cadenza_server.scheduling.ledger import Ledger

PRIORITY_MAX: Final = 100
"""Priorities are -100 to 100 (4)."""
TIME_MAX: Final = 2**62
"""Nanoseconds; the year 2116. What lies later is no time that anybody means."""


class Target:
    """Where a job goes: its device, its session and whose it is. `asked`: what its command said to mean that."""

    __slots__ = ("asked", "device", "session", "user")

    def __init__(self, asked: tuple[object, ...], device: Device, session: Session | None, user: str) -> None:
        self.asked: Final = asked
        self.device: Final = device
        self.session: Final = session
        self.user: Final = user


class Admission:
    """The checks, one method a command. Each raises `Refusal` or returns what the command names."""

    __slots__ = ("_ledger",)

    def __init__(self, ledger: "Ledger") -> None:
        self._ledger: Final = ledger

    def submit(self, command: SubmitJob, company: Company, before: Target | None = None) -> Target:
        """Return where a new job goes. `company`: the jobs before it in its command; `before`: where the last of them
        goes, so that what both say alike is checked once."""
        ledger = self._ledger
        asked = (command.caller, command.job_class, command.user, command.device, command.session)
        target = before if before is not None and before.asked == asked else self._find_target(command, company, asked)
        name = command.job
        if not name or name.startswith(AUTOMATIC_PREFIX):
            _refuse_field("job_id", f"a job needs a name, and one that does not begin with {AUTOMATIC_PREFIX!r}")
        if command.priority:
            _check_priority(command.priority)
        if command.estimate is not None:
            _check_length(command.estimate, "estimate_hint")
        if command.limit is not None:
            _check_length(command.limit, "max_execution_time")
        if name in ledger.jobs or name in ledger.ended or name in company.names:
            _refuse_taken("job", name)
        session = target.session
        if target is not before and session is not None and not session.takes_jobs:
            raise Refusal(
                Code.FAILED_PRECONDITION,
                "SESSION_NOT_ACCEPTING",
                f"session {session.name!r} is {session.state} and accepts no jobs: open another one",
                metadata={"session_id": session.name, "state": str(session.state)},
            )
        return target

    def _find_target(self, command: SubmitJob, company: Company, asked: tuple[object, ...]) -> Target:
        caller = command.caller
        session = None if command.session is None else self._session(command.session)
        device = None if command.device is None else self.device(command.device)
        calibration = command.job_class is JobClass.CALIBRATION
        if calibration and not caller.operator:
            _deny_operator("submit a calibration")
        if session is not None:
            own = session.node.path if caller.operator else caller.path
            user = own if command.user is None else command.user
            if user != session.node.path or (user != caller.path and not caller.operator):
                raise session_of_other_user(session.name)
        else:
            user = caller.path if command.user is None else command.user
            _check_acts_for(caller, user, "submit jobs")
        if session is not None and calibration:
            _refuse_field("job_class", "a calibration cannot belong to a session: submit it without one")
        if session is None and command.job_class is JobClass.SESSION:
            _refuse_field("session_id", "a session job needs the session that it belongs to")
        if device is None:
            if session is None:
                _refuse_field("device", "name the device that the job is for")
            device = session.device
        elif session is not None and device is not session.device:
            raise Refusal(
                Code.INVALID_ARGUMENT,
                "DEVICE_MISMATCH",
                f"session {session.name!r} is on device {session.device.name!r}, not {device.name!r}: leave the device "
                "out, or open a session on the other one",
                field="device",
                metadata={"device": session.device.name},
            )
        if not calibration and session is None:
            self._check_user(user, company)
        return Target(asked, device, session, user)

    def set_priority(self, command: SetPriority) -> Job:
        """Return the queued job."""
        self._check_job(command.job, command.caller)
        _check_priority(command.priority)
        job = self._job(command.job, command.caller)
        if job.state is not JobState.QUEUED:
            raise Refusal(
                Code.FAILED_PRECONDITION,
                "JOB_NOT_QUEUED",
                f"job {job.name!r} is {job.state}: only a queued job has a place that a priority can change",
                metadata={"job_id": job.name, "state": str(job.state)},
            )
        return job

    def cancel_job(self, command: CancelJob) -> Job:
        """Return the live job."""
        return self._job(command.job, command.caller)

    def create_session(self, command: CreateSession) -> tuple[Device, Reservation | None, str]:
        """Return device, reservation and owner of a new session."""
        ledger = self._ledger
        caller = command.caller
        device = self.device(command.device)
        reservation = None if command.reservation is None else self._reservation(command.reservation)
        user = caller.path if command.user is None else command.user
        _check_acts_for(caller, user, "open sessions")
        if not command.session:
            _refuse_field("session_id", "a session needs a name")
        self._check_user(user, ALONE)
        _check_length(command.max_time, "max_time")
        if command.interactive_ttl is not None and command.interactive_ttl < 0:
            _refuse_field("interactive_ttl", "interactive_ttl must not be negative")
        if reservation is not None and reservation.device is not device:
            raise Refusal(
                Code.INVALID_ARGUMENT,
                "DEVICE_MISMATCH",
                f"reservation {reservation.name!r} is on device {reservation.device.name!r}, not {device.name!r}: open "
                "the session there",
                field="reservation_id",
                metadata={"device": reservation.device.name},
            )
        if command.session in ledger.sessions:
            _refuse_taken("session", command.session)
        if reservation is not None:
            _check_not_over(reservation)
            if not covers(reservation.holder, user):
                raise Refusal(
                    Code.FAILED_PRECONDITION,
                    "NOT_HOLDER",
                    f"reservation {reservation.name!r} is for {reservation.holder!r}, which does not cover {user!r}: "
                    "open the session without it",
                    metadata={"reservation_id": reservation.name},
                )
        return device, reservation, user

    def session_of(self, command: CloseSession | CancelSession) -> Session:
        """Return the session that its owner or an operator may end."""
        session = self._session(command.session)
        _check_owns(command.caller, session.node.path, "session", session.name)
        return session

    def create_reservation(self, command: CreateReservation) -> Device:
        """Return the device of a new reservation."""
        ledger = self._ledger
        device = self.device(command.device)
        if not command.caller.operator:
            _deny_operator("make reservations")
        if not command.reservation:
            _refuse_field("reservation_id", "a reservation needs a name")
        _check_is_path(command.holder, "holder")
        ledger.tree.check_place(command.holder, ALONE)
        if command.start < ledger.now:
            _refuse_field("start_time", "a reservation cannot start in the past: choose a later start")
        if command.end <= command.start:
            _refuse_field("end_time", "a reservation has to end after it starts: choose a later end")
        if command.end > TIME_MAX:
            _refuse_field("end_time", "the reservation ends too far in the future: choose an earlier end")
        if command.reservation in ledger.reservations:
            _refuse_taken("reservation", command.reservation)
        others = device.ahead if device.window is None else [device.window, *device.ahead]
        for other in others:
            if command.start < other.end and other.start < command.end:
                raise Refusal(
                    Code.FAILED_PRECONDITION,
                    "RESERVATION_OVERLAP",
                    f"device {device.name!r} is reserved for {other.holder!r} in part of that time, by {other.name!r}: "
                    "choose a time that is free (`cadenza reservations` lists what is not)",
                    metadata={"reservation_id": other.name},
                )
        return device

    def delete_reservation(self, command: DeleteReservation) -> Reservation:
        """Return the reservation, which has not ended."""
        reservation = self._reservation(command.reservation)
        if not command.caller.operator:
            _deny_operator("delete reservations")
        _check_not_over(reservation)
        return reservation

    def set_shares(self, command: SetShares) -> None:
        """Check a new weight."""
        if not command.caller.operator:
            _deny_operator("change shares")
        self.shares(command.path, command.shares)

    def shares(self, path: str, shares: float) -> None:
        """Check the weight of a path."""
        _check_is_path(path, "path")
        self._ledger.tree.check_place(path, ALONE)
        if not (shares > 0 and math.isfinite(shares)):
            _refuse_field("shares", f"shares must be a positive number, not {shares}")

    def device(self, name: str) -> Device:
        """Return a device by name."""
        device = self._ledger.devices.get(name)
        if device is None:
            raise not_found("device", name)
        return device

    def down_from(self, down_from: int) -> None:
        """Check since when the server was down."""
        if down_from > self._ledger.now:
            _refuse_field("down_from", "the server cannot have been down from a time to come")

    def _check_user(self, path: str, company: Company) -> None:
        """Refuse what cannot be a user; who is one already was checked before."""
        node = self._ledger.tree.find(path)
        if node is None or node.kind is not NodeKind.USER:
            _check_is_path(path, "user")
            self._ledger.tree.check_user(path, company)

    def _session(self, name: str) -> Session:
        session = self._ledger.sessions.get(name)
        if session is None:
            raise not_found("session", name)
        return session

    def _reservation(self, name: str) -> Reservation:
        reservation = self._ledger.reservations.get(name)
        if reservation is None:
            raise not_found("reservation", name)
        return reservation

    def _check_job(self, name: str, caller: Caller) -> None:
        """Refuse what is no job, live or ended, or is not the caller's: this comes before all other reasons."""
        job = self._ledger.jobs.get(name)
        if job is not None:
            _check_owns(caller, None if job.node is None else job.user, "job", name)
        elif name in self._ledger.ended:
            _check_owns(caller, self._ledger.ended[name], "job", name)
        else:
            raise not_found("job", name)

    def _job(self, name: str, caller: Caller) -> Job:
        """Return a live job that is the caller's to change."""
        self._check_job(name, caller)
        job = self._ledger.jobs.get(name)
        if job is not None:
            return job
        raise Refusal(
            Code.FAILED_PRECONDITION,
            "JOB_FINAL",
            f"job {name!r} has ended, and nothing changes that: look at its state and reason",
            metadata={"job_id": name},
        )


def _check_acts_for(caller: Caller, user: str, what: str) -> None:
    if user != caller.path and not caller.operator:
        _deny_operator(f"{what} for others")


def _check_owns(caller: Caller, owner: str | None, kind: str, name: str) -> None:
    """`owner` None: what nobody but operators may touch."""
    if not caller.operator and caller.path != owner:
        raise Refusal(
            Code.PERMISSION_DENIED,
            "NOT_OWNER",
            f"{kind} {name!r} is not yours: ask its owner or an operator",
            metadata={f"{kind}_id": name},
        )


def _check_is_path(path: str, field: str) -> None:
    try:
        check_path(path)
    except ValueError as error:
        _refuse_field(field, str(error))


def _check_priority(priority: int) -> None:
    if not -PRIORITY_MAX <= priority <= PRIORITY_MAX:
        _refuse_field("priority", f"a priority is -{PRIORITY_MAX} to {PRIORITY_MAX}, not {priority}")


def _check_length(length: int | None, field: str) -> None:
    if length is not None and length <= 0:
        _refuse_field(field, f"{field} must be positive")


def _check_not_over(reservation: Reservation) -> None:
    if reservation.over:
        raise Refusal(
            Code.FAILED_PRECONDITION,
            "RESERVATION_OVER",
            f"reservation {reservation.name!r} has ended: make another one",
            metadata={"reservation_id": reservation.name},
        )


def _refuse_field(field: str, message: str) -> NoReturn:
    raise Refusal(Code.INVALID_ARGUMENT, "INVALID_FIELD", message, field=field)


def _refuse_taken(kind: str, name: str) -> NoReturn:
    raise Refusal(
        Code.ALREADY_EXISTS,
        "NAME_TAKEN",
        f"there is a {kind} {name!r} already: choose another name",
        field=f"{kind}_id",
        metadata={f"{kind}_id": name},
    )


def _deny_operator(what: str) -> NoReturn:
    raise Refusal(Code.PERMISSION_DENIED, "NOT_OPERATOR", f"only operators may {what}: ask one")

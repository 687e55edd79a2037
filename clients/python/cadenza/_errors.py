"""What can go wrong, as typed exceptions: what the server refuses, what a job ended with, what comes too late."""

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Protocol, TypeVar, cast

import grpc
from google.rpc import error_details_pb2, status_pb2

Made = TypeVar("Made")

DOMAIN: Final = "cadenza"
"""The domain of the server's `google.rpc.ErrorInfo`."""

_DETAILS_KEY: Final = "grpc-status-details-bin"


class CadenzaError(Exception):
    """Everything that this library raises about a server or a job.

    `message`: a sentence that says what is wrong and what to do. `code`: the gRPC code by name, such as `NOT_FOUND`.
    `reason`: stable, for programs, a member of `cadenza.v1.ErrorReason` (or of `JobReason`) without its prefix; empty
    if the server gave none. `field`: path of the request's field that is wrong, empty if it is about none. `metadata`:
    names and numbers that a program may want. `retry_after_s`: how many seconds the server asks to wait, or None.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str = "UNKNOWN",
        reason: str = "",
        field: str = "",
        metadata: Mapping[str, str] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.reason = reason
        self.field = field
        self.metadata = dict(metadata or {})
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return f"{self.message} [{self.reason}]" if self.reason else self.message


class InvalidRequestError(CadenzaError, ValueError):
    """INVALID_ARGUMENT: the request itself is wrong; `field` names where. Sent again it fails again."""


class WrongTypeError(InvalidRequestError, TypeError):
    """An argument of a wrong type, found before anything is sent: a `TypeError`, too."""


class OptionError(InvalidRequestError):
    """An option of a primitive that does not exist or has a wrong value. Found before anything is sent."""


class UnauthenticatedError(CadenzaError):
    """UNAUTHENTICATED: no token, or one that the server does not know."""


class PermissionDeniedError(CadenzaError):
    """PERMISSION_DENIED: it belongs to somebody else, or only operators may do it."""


class NotFoundError(CadenzaError, LookupError):
    """NOT_FOUND: there is no device, session, job, reservation, path or circuit of this name."""


class AlreadyExistsError(CadenzaError):
    """ALREADY_EXISTS: the id that the caller chose is taken."""


class PreconditionError(CadenzaError):
    """FAILED_PRECONDITION: not in the state that it is in: a session that accepts no jobs, a job that is final."""


class NotReadyError(PreconditionError):
    """FAILED_PRECONDITION, RESULT_NOT_READY: the job has not ended."""


class OutOfRangeError(CadenzaError):
    """OUT_OF_RANGE: a resume token or an offset that the server does not have."""


class ExhaustedError(CadenzaError):
    """RESOURCE_EXHAUSTED: a quota or a limit of size."""


class UnavailableError(CadenzaError):
    """UNAVAILABLE, after the retries: the server cannot be reached, is stopping, or cannot write to its disk.

    CANCELLED, too: a server that has stopped ends so the calls that it has not answered.
    """


class InternalError(CadenzaError):
    """INTERNAL or UNKNOWN: a bug of the server; the message names the entry in its log."""


class CadenzaTimeoutError(CadenzaError, TimeoutError):
    """A call, or a wait for a job, took longer than its timeout. The job goes on."""


class JobError(CadenzaError):
    """A job ended without a result. `reason`: its `JobReason` without prefix; `detail`: the server's sentence."""

    def __init__(self, message: str, *, job_id: str, reason: str, detail: str) -> None:
        super().__init__(message, code="ABORTED", reason=reason, metadata={"job_id": job_id})
        self.job_id = job_id
        self.detail = detail


class JobFailedError(JobError):
    """The job failed, or was stopped at its `max_execution_time` (reason RAN_TOO_LONG)."""


class JobCancelledError(JobError):
    """The job was cancelled, by itself or with its session."""


class ServerStartError(CadenzaError):
    """The private server of `CadenzaService.local()` did not come up; the message holds what it wrote to stderr."""


_BY_CODE: Final[dict[str, type[CadenzaError]]] = {
    "INVALID_ARGUMENT": InvalidRequestError,
    "UNAUTHENTICATED": UnauthenticatedError,
    "PERMISSION_DENIED": PermissionDeniedError,
    "NOT_FOUND": NotFoundError,
    "ALREADY_EXISTS": AlreadyExistsError,
    "FAILED_PRECONDITION": PreconditionError,
    "OUT_OF_RANGE": OutOfRangeError,
    "RESOURCE_EXHAUSTED": ExhaustedError,
    "UNAVAILABLE": UnavailableError,
    "CANCELLED": UnavailableError,
    "DEADLINE_EXCEEDED": CadenzaTimeoutError,
    "INTERNAL": InternalError,
    "UNKNOWN": InternalError,
}

_CODE_NAMES: Final[dict[int, str]] = {code.value[0]: code.name for code in grpc.StatusCode}


def map_status(status: status_pb2.Status, target: str) -> CadenzaError:
    """The exception for a refusal that came in a message."""
    return make_error(_CODE_NAMES.get(status.code, "UNKNOWN"), status.message, status.details, target)


def make_error(code: str, message: str, details: Iterable[Any] = (), target: str = "") -> CadenzaError:
    """The exception for a call that ended with `code`; `details` are those of its `google.rpc.Status`."""
    reason, field, facts, retry_after = "", "", dict[str, str](), None
    for detail in details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            detail.Unpack(info)
            if info.domain == DOMAIN:
                reason, facts = info.reason, dict(info.metadata)
        elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad = error_details_pb2.BadRequest()
            detail.Unpack(bad)
            field = bad.field_violations[0].field if bad.field_violations else ""
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry = error_details_pb2.RetryInfo()
            detail.Unpack(retry)
            retry_after = retry.retry_delay.seconds + retry.retry_delay.nanos * 1e-9
    kind = NotReadyError if reason == "RESULT_NOT_READY" else _BY_CODE.get(code, CadenzaError)
    if code == "UNAVAILABLE" and not reason:
        message = f"cannot reach a server at {target}: {_advise(message)} ({message})"
    return kind(
        message,
        code=code,
        reason=reason,
        field=field or facts.get("field", ""),
        metadata=facts,
        retry_after_s=retry_after,
    )


_SIGNS_OF_TLS: Final = ("Socket closed", "WRONG_VERSION_NUMBER")
"""What gRPC says, among other times, when one side speaks TLS and the other does not."""

_SIGNS_OF_ANOTHER_NAME: Final = ("Hostname Verification Check failed", "is not in peer certificate")
"""What gRPC says of a certificate that is for another name: now, and in its older versions."""

_TLS_HINT: Final = "; if it speaks TLS, name its certificate authority (tls=, CADENZA_TLS_CA), else leave that out"


def _advise(message: str) -> str:
    """What to do about a server that cannot be reached, after what gRPC says of it."""
    if "CERTIFICATE_VERIFY_FAILED" in message:
        return (
            "its certificate is not one that is trusted here: name the authority that signed it (tls=, "
            "CADENZA_TLS_CA), or look whether it has expired"
        )
    if any(sign in message for sign in _SIGNS_OF_ANOTHER_NAME):
        return (
            "its certificate is for another name: take a name in it as the target, or say which one it has "
            "(CADENZA_TLS_SERVER_NAME)"
        )
    hint = _TLS_HINT if any(sign in message for sign in _SIGNS_OF_TLS) else ""
    return f"start one with `cadenza serve`, or name another target{hint}"


def refuse_elsewhere(**given: object) -> None:
    """Raises `InvalidRequestError` for an argument of qiskit_ibm_runtime that is given and means nothing here."""
    for name, value in given.items():
        if value is not None:
            raise InvalidRequestError(
                f"{name}: {value!r} means nothing here: leave it out", code="INVALID_ARGUMENT", field=name
            )


def map_argument_error(error: Exception, what: str) -> InvalidRequestError:
    """The exception for an argument that could not be written into a request."""
    kind = WrongTypeError if isinstance(error, TypeError) else InvalidRequestError
    return kind(f"{what}: {error}", code="INVALID_ARGUMENT", reason="INVALID_FIELD")


def refuse_wrong_arguments(kind: type[Made]) -> type[Made]:
    """Decorates a client: its public methods raise `InvalidRequestError` for arguments that no message can hold."""
    for name, method in list(vars(kind).items()):
        if not name.startswith("_") and inspect.isfunction(method):
            setattr(kind, name, _guard(name, method))
    return kind


def _guard(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    if inspect.iscoroutinefunction(method):

        @functools.wraps(method)
        async def wait(*arguments: Any, **named: Any) -> Any:
            try:
                return await method(*arguments, **named)
            except CadenzaError:
                raise
            except _WRONG as error:
                raise map_argument_error(error, name) from error

        return wait
    if inspect.isasyncgenfunction(method):

        @functools.wraps(method)
        async def follow(*arguments: Any, **named: Any) -> Any:
            try:
                async for item in method(*arguments, **named):
                    yield item
            except CadenzaError:
                raise
            except _WRONG as error:
                raise map_argument_error(error, name) from error

        return follow

    @functools.wraps(method)
    def call(*arguments: Any, **named: Any) -> Any:
        try:
            return method(*arguments, **named)
        except CadenzaError:
            raise
        except _WRONG as error:
            raise map_argument_error(error, name) from error

    return call


_WRONG: Final = (TypeError, ValueError, ArithmeticError, AttributeError)


class FailedCall(Protocol):
    """What the exceptions of gRPC's blocking and asyncio calls have in common."""

    def code(self) -> grpc.StatusCode | None:
        """The canonical code."""

    def details(self) -> str | None:
        """A sentence."""

    def trailing_metadata(self) -> Iterable[tuple[str, str | bytes]] | None:
        """Holds the status details."""


def map_error(error: grpc.RpcError, target: str) -> CadenzaError:
    """The exception for what a blocking or asyncio call of gRPC raised."""
    call = cast(FailedCall, error)
    code = call.code()
    details = _read_details(call.trailing_metadata() or ())
    return make_error(code.name if code else "UNKNOWN", call.details() or "", details, target)


def _read_details(metadata: Iterable[tuple[str, str | bytes]]) -> Iterable[Any]:
    for key, value in metadata:
        if key == _DETAILS_KEY and isinstance(value, bytes):
            return cast(Iterable[Any], status_pb2.Status.FromString(value).details)
    return ()

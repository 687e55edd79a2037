"""The one mapper from what went wrong to a gRPC status with `google.rpc` details.

Every status carries an `ErrorInfo` (domain `cadenza`, reason a member of `cadenza.v1.ErrorReason`); what is wrong with
a field also a `BadRequest`, what is over a limit a `QuotaFailure`, and what may be tried again later a `RetryInfo`.
"""

import logging
import re
from collections.abc import Callable
from typing import Final, NoReturn

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, QuotaFailure, RetryInfo
from google.rpc.status_pb2 import Status

from cadenza_server.model.errors import Code, Refusal

DOMAIN: Final = "cadenza"

_DETAILS_KEY: Final = "grpc-status-details-bin"
_CODES: Final = {code: grpc.StatusCode[code.name] for code in Code}
_RETRY_SECONDS: Final = {
    "STORE_UNAVAILABLE": 1,
    "STOPPING": 2,
    "QUOTA_USER_JOBS": 5,
    "QUOTA_SERVER_JOBS": 5,
    "QUOTA_USER_SESSIONS": 5,
    "QUOTA_WATCHES": 5,
    "WATCH_TOO_SLOW": 0,
}
"""After how long it may be worth while to try again, by reason."""

_MESSAGE_BYTES_MAX: Final = 1_000
_VALUE_BYTES_MAX: Final = 200
_STATE_BYTES_MAX: Final = 2_000
"""A status travels in HTTP/2 headers, of which clients take 8 KiB by default: a longer one would reach them as a broken
stream without a reason. So what a refusal repeats of the request is shortened, and too large a state is left out."""

_JOB_FIELD: Final = re.compile(r"jobs\[(\d+)\]")
_log = logging.getLogger(__name__)


class RefusalWithState(Refusal):
    """A refusal whose details also hold the current `Job` or `Session`."""

    def __init__(self, refusal: Refusal, state: Message) -> None:
        super().__init__(refusal.code, refusal.reason, refusal.message, refusal.field, refusal.metadata)
        self.state = state


def describe(refusal: Refusal) -> Status:
    """The rich status of a refusal."""
    message = _shorten(refusal.message, _MESSAGE_BYTES_MAX)
    metadata = {key: _shorten(value, _VALUE_BYTES_MAX) for key, value in refusal.metadata.items()}
    if refusal.field is not None:
        metadata.setdefault("field", refusal.field)
        if job := _JOB_FIELD.match(refusal.field):
            metadata.setdefault("index", job[1])
    status = Status(code=_CODES[refusal.code].value[0], message=message)
    _add(status, ErrorInfo(domain=DOMAIN, reason=refusal.reason, metadata=metadata))
    if refusal.code is Code.INVALID_ARGUMENT:
        violation = BadRequest.FieldViolation(field=refusal.field or "", description=message)
        _add(status, BadRequest(field_violations=[violation]))
    if refusal.code is Code.RESOURCE_EXHAUSTED:
        quota = QuotaFailure.Violation(subject=metadata.get("limit", refusal.reason), description=message)
        _add(status, QuotaFailure(violations=[quota]))
    if refusal.reason in _RETRY_SECONDS:
        retry = RetryInfo()
        retry.retry_delay.seconds = _RETRY_SECONDS[refusal.reason]
        _add(status, retry)
    if isinstance(refusal, RefusalWithState) and refusal.state.ByteSize() <= _STATE_BYTES_MAX:
        _add(status, refusal.state)
    return status


def _shorten(text: str, bytes_max: int) -> str:
    """`text` without its middle, if it is too long: the beginning says what, the end what to do."""
    data = text.encode()
    if len(data) <= bytes_max:
        return text
    tail = bytes_max // 3
    head = bytes_max - tail - 5
    return f"{data[:head].decode(errors='ignore')} ... {data[-tail:].decode(errors='ignore')}"


def _add(status: Status, detail: Message) -> None:
    packed = Any()
    packed.Pack(detail)
    status.details.append(packed)


class ErrorMapper:
    """Ends calls that went wrong. `make_reference` gives the id that joins an INTERNAL answer to its log entry;
    `refused` is told the reason of each."""

    def __init__(self, make_reference: Callable[[], str], refused: Callable[[str], None] | None = None) -> None:
        self._make_reference = make_reference
        self._refused = refused

    async def abort(
        self, context: "grpc.aio.ServicerContext[Message, Message]", method: str, error: BaseException
    ) -> NoReturn:
        """End the call with what `error` means. What nobody foresaw is logged; the server lives on."""
        code = _CODES[error.code] if isinstance(error, Refusal) else grpc.StatusCode.INTERNAL
        await _abort(context, code, self.explain(method, error))

    def explain(self, method: str, error: BaseException) -> Status:
        """The rich status of what went wrong in `method`. `error` forgets where it was raised."""
        if self._refused is not None:
            self._refused(error.reason if isinstance(error, Refusal) else "INTERNAL_ERROR")
        try:
            return describe(error) if isinstance(error, Refusal) else self._report(method, error)
        finally:
            _forget_frames(error)

    def _report(self, method: str, error: BaseException) -> Status:
        reference = self._make_reference()
        _log.error("%s failed, reference %s", method, reference, exc_info=error)
        status = Status(
            code=grpc.StatusCode.INTERNAL.value[0],
            message=f"the server failed; this is a bug of it, not of your call. Its log has more under {reference}",
        )
        _add(status, ErrorInfo(domain=DOMAIN, reason="INTERNAL_ERROR", metadata={"reference": reference}))
        return status


def _forget_frames(error: BaseException | None) -> None:
    """Through its frames an error holds the request, and often itself, as where a frame awaits a task that it ended:
    rings that only the garbage collector undoes, which seldom looks, with megabytes behind each."""
    while error is not None:
        error.__traceback__ = error.__cause__ = None
        error.__context__, error = None, error.__context__


async def _abort(
    context: "grpc.aio.ServicerContext[Message, Message]", code: grpc.StatusCode, status: Status
) -> NoReturn:
    await context.abort(code, status.message, ((_DETAILS_KEY, status.SerializeToString()),))

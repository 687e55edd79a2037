"""The one way in which Cadenza says no: a gRPC code, a stable reason and a sentence that says what to do."""

from collections.abc import Mapping
from enum import StrEnum


class Code(StrEnum):
    """The gRPC codes that a refusal may carry, by name; the API maps them, nobody else knows gRPC."""

    NOT_FOUND = "NOT_FOUND"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    FAILED_PRECONDITION = "FAILED_PRECONDITION"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
    OUT_OF_RANGE = "OUT_OF_RANGE"
    UNAVAILABLE = "UNAVAILABLE"


class Refusal(Exception):  # noqa: N818  (a refusal is an answer, not an error of the server)
    """A command or call that is refused and leaves no trace.

    `code`: the gRPC code. `reason`: stable, UPPER_SNAKE, a member of `cadenza.v1.ErrorReason` by name. `message`: a
    sentence that says what is wrong and what to do. `field`: the request's field that is wrong, as a path such as
    `jobs[3].sampler.pubs[0].circuit`. `metadata`: names and numbers that a program may want.
    """

    def __init__(
        self,
        code: Code,
        reason: str,
        message: str,
        field: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.field = field
        self.metadata = dict(metadata or {})

    def __repr__(self) -> str:
        return f"Refusal({self.code}, {self.reason}, {self.message!r}, field={self.field!r})"


def not_found(kind: str, name: str) -> Refusal:
    """`kind` is device, session, job or reservation."""
    return Refusal(
        Code.NOT_FOUND,
        f"UNKNOWN_{kind.upper()}",
        f"there is no {kind} {name!r}: list them to see the names that exist (`cadenza {kind}s`)",
    )


def session_of_other_user(session: str) -> Refusal:
    """Of a job for a session that is not its submitter's; tells nothing else of it."""
    return Refusal(
        Code.PERMISSION_DENIED,
        "SESSION_OF_OTHER_USER",
        f"session {session!r} belongs to another user: open one of your own",
        metadata={"session_id": session},
    )

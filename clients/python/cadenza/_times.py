"""Lengths and points of time: what people write, what Python has, what the contract carries."""

import math
import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from cadenza._errors import InvalidRequestError

SECOND: Final = 1_000_000_000
"""Nanoseconds."""

Length = float | str | timedelta
"""A length of time: seconds as a number, text such as `2h 30m`, or a `timedelta`."""

Instant = datetime | float
"""A point of time: a `datetime` (without a time zone: local time), or seconds since 1970 UTC."""

_UNITS: Final = {
    "w": 604_800 * SECOND,
    "d": 86_400 * SECOND,
    "h": 3_600 * SECOND,
    "m": 60 * SECOND,
    "s": SECOND,
    "ms": 1_000_000,
    "us": 1_000,
    "ns": 1,
}
_PIECE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]+)\s*")


def parse_length(value: Length, name: str = "duration") -> int:
    """Nanoseconds of `value`. Raises `InvalidRequestError` if it is no length of time, or a negative one."""
    length: int | None = None
    if isinstance(value, timedelta):
        length = (value.days * 86_400 + value.seconds) * SECOND + value.microseconds * 1_000
    elif isinstance(value, str):
        length = _parse_text(value.strip())
    elif not isinstance(value, bool) and math.isfinite(value):
        length = round(Decimal(repr(float(value))) * SECOND)
    if length is None or length < 0:
        raise InvalidRequestError(
            f"{name}: {value!r} is no length of time: give seconds as a number, or text such as '90s' or '2h 30m' "
            f"(units: {' '.join(_UNITS)})",
            code="INVALID_ARGUMENT",
            reason="INVALID_FIELD",
            field=name,
        )
    return length


def _parse_text(text: str) -> int | None:
    try:
        return round(Decimal(text) * SECOND) if re.fullmatch(r"\d+(\.\d+)?", text) else _sum_pieces(text)
    except KeyError:
        return None


def _sum_pieces(text: str) -> int | None:
    if re.fullmatch(f"({_PIECE.pattern})+", text) is None:
        return None
    return round(sum((Decimal(piece[1]) * _UNITS[piece[2]] for piece in _PIECE.finditer(text)), Decimal(0)))


def make_duration(value: Length, name: str = "duration") -> Duration:
    """The contract's form of `value`; raises as `parse_length`."""
    seconds, nanos = divmod(parse_length(value, name), SECOND)
    return Duration(seconds=seconds, nanos=nanos)


def read_seconds(duration: Duration) -> float:
    """Seconds of a duration."""
    return duration.seconds + duration.nanos * 1e-9


def make_timestamp(value: Instant) -> Timestamp:
    """The contract's form of a point of time."""
    if isinstance(value, datetime):
        value = value.astimezone(UTC)
        seconds = (value - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(seconds=1)
        return Timestamp(seconds=seconds, nanos=value.microsecond * 1_000)
    seconds, nanos = divmod(round(Decimal(repr(float(value))) * SECOND), SECOND)
    return Timestamp(seconds=seconds, nanos=nanos)


def read_time(timestamp: Timestamp) -> datetime:
    """The point of time in local time, to the microsecond."""
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(
        seconds=timestamp.seconds, microseconds=timestamp.nanos // 1_000
    )
    return moment.astimezone()

"""Checks of single fields. Each raises a `Refusal` INVALID_ARGUMENT that names the field and says what is allowed.

A `field` is a path such as `job.program.sampler.pubs[0].shots`; a check of something inside a message names the field
relative to it, and `inside` puts the rest in front.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from cadenza_server.engine import RequestKey
from cadenza_server.model.commands import Caller
from cadenza_server.model.errors import Code, Refusal
from cadenza_server.model.paths import check_path
from cadenza_server.model.settings import SECOND

PAGE_SIZE_DEFAULT: Final = 100
PAGE_SIZE_MAX: Final = 1_000
REQUEST_ID_LENGTH_MAX: Final = 128
TAGS_MAX: Final = 32
TAG_LENGTH_MAX: Final = 128
DESCRIPTION_LENGTH_MAX: Final = 512
PRIORITY_MAX: Final = 100
LENGTH_SECONDS_MAX: Final = 100 * 365 * 86_400
"""100 years: a length of time that fits into 64 bits of nanoseconds with room to add."""

_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_TIME_SECONDS_MAX: Final = 2**63 // SECOND - LENGTH_SECONDS_MAX

W = TypeVar("W")


def invalid(field: str, message: str, reason: str = "INVALID_FIELD") -> Refusal:
    """The refusal of a field; the sentence begins with its name."""
    return Refusal(Code.INVALID_ARGUMENT, reason, f"{field}: {message}" if field else message, field)


@contextmanager
def inside(place: str) -> Iterator[None]:
    """Put `place` in front of the field that a refusal names. For rare paths: hot ones use `moved`."""
    try:
        yield
    except Refusal as refusal:
        raise moved(refusal, place) from None


def moved(refusal: Refusal, place: str) -> Refusal:
    """The same refusal with `place.` in front of its field."""
    field = refusal.field or ""
    joined = f"{place}.{field}" if field and not field.startswith("[") else f"{place}{field}"
    message = refusal.message
    if field and message.startswith(f"{field}: "):
        message = joined + message[len(field) :]
    return Refusal(refusal.code, refusal.reason, message, joined, refusal.metadata)


def check_id(value: str, field: str) -> str:
    """The id of something that exists."""
    if not value:
        raise invalid(field, "it is empty: say which one")
    return value


def check_new_id(value: str, field: str) -> str:
    """An id that the client chose; empty: none."""
    if value and not _ID.fullmatch(value):
        raise invalid(field, f"{value!r} is no id: 1 to 64 letters, digits and '. _ -', or leave it empty")
    return value


def check_tags(tags: Sequence[str], field: str) -> tuple[str, ...]:
    """Labels of a job."""
    if not tags:
        return ()
    if len(tags) > TAGS_MAX:
        raise invalid(field, f"there are {len(tags)} tags: {TAGS_MAX} are allowed")
    for index, tag in enumerate(tags):
        if not 0 < len(tag) <= TAG_LENGTH_MAX:
            raise invalid(f"{field}[{index}]", f"a tag has 1 to {TAG_LENGTH_MAX} characters, this one {len(tag)}")
    return tuple(tags)


def check_priority(value: int, field: str) -> int:
    """A job's priority."""
    if not -PRIORITY_MAX <= value <= PRIORITY_MAX:
        raise invalid(field, f"{value} is out of range: a priority is -{PRIORITY_MAX} to {PRIORITY_MAX}")
    return value


def check_length(value: Duration, field: str, *, zero: bool = False) -> int:
    """Nanoseconds of a duration that is positive, or with `zero` at least 0."""
    seconds, nanos = value.seconds, value.nanos
    if not -SECOND < nanos < SECOND or (seconds > 0 > nanos) or (seconds < 0 < nanos):
        raise invalid(field, "it is no Duration: nanos are less than a second, with the sign of the seconds")
    length = seconds * SECOND + nanos
    if length < 0 or (length == 0 and not zero):
        raise invalid(field, f"{length / SECOND:g} s is not {'at least 0' if zero else 'positive'}")
    if seconds > LENGTH_SECONDS_MAX:
        raise invalid(field, "it is longer than 100 years; leave the field out for the device's own")
    return length


def check_time(value: Timestamp, field: str) -> int:
    """Nanoseconds since the epoch of a timestamp that is not before it."""
    if not 0 <= value.nanos < SECOND or not 0 <= value.seconds <= _TIME_SECONDS_MAX:
        raise invalid(field, "it is no Timestamp between 1970 and 2162, with 0 to 999999999 nanos")
    return value.seconds * SECOND + value.nanos


def check_user(value: str, field: str) -> str:
    """A path of the share tree."""
    try:
        return check_path(value)
    except ValueError as error:
        raise invalid(field, str(error)) from None


def check_page_size(value: int) -> int:
    """How many to give at once."""
    if value < 0:
        raise invalid("page_size", f"{value} is negative: 1 to {PAGE_SIZE_MAX}, or 0 for {PAGE_SIZE_DEFAULT}")
    return min(value, PAGE_SIZE_MAX) or PAGE_SIZE_DEFAULT


def find_word(value: int, words: Mapping[W, int], field: str) -> W | None:
    """The model's word for an enum value; None for 0, which is UNSPECIFIED."""
    if value == 0:
        return None
    for word, number in words.items():
        if number == value:
            return word
    raise invalid(field, f"{value} is no value of its enum: take one that cadenza.v1 names")


def find_words(values: Sequence[int], words: Mapping[W, int], field: str) -> frozenset[W]:
    """The same for a repeated field, where UNSPECIFIED is not allowed."""
    found = set()
    for index, value in enumerate(values):
        word = find_word(value, words, f"{field}[{index}]")
        if word is None:
            raise invalid(f"{field}[{index}]", "it is unspecified: leave the list empty for any")
        found.add(word)
    return frozenset(found)


def make_key(caller: Caller, method: str, request_id: str, request: Message) -> RequestKey | None:
    """What makes a call safe to repeat; None without a `request_id`."""
    check_request_id(request_id)
    if not request_id:
        return None
    digest = hashlib.sha256(method.encode())
    digest.update(request.SerializeToString(deterministic=True))
    return RequestKey(caller=caller.path, request_id=request_id, digest=digest.digest())


def check_request_id(value: str) -> None:
    """The `request_id` of a call; empty: none."""
    if len(value) > REQUEST_ID_LENGTH_MAX:
        raise invalid("request_id", f"it has {len(value)} characters, {REQUEST_ID_LENGTH_MAX} are allowed: take a UUID")

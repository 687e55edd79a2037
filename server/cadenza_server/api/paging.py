"""Pages of lists that are in memory: a token is the key of the last thing given, bound to its query."""

import hashlib
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from cadenza_server.model.errors import Code, Refusal

T = TypeVar("T")

_CHECK_BYTES: Final = 6


def cut_page(
    things: Sequence[T], key: Callable[[T], str], size: int, token: str, query: str
) -> tuple[Sequence[T], str]:
    """The page of `things`, sorted by `key`, that `token` begins, and the token of the next one ("": none).

    `query` is what the other fields of the request say. Raises `Refusal` INVALID_PAGE_TOKEN.
    """
    if token:
        last = _read(token, query)
        things = [thing for thing in things if key(thing) > last]
    page = things[:size]
    return page, _write(key(page[-1]), query) if len(things) > size else ""


def _write(last: str, query: str) -> str:
    return urlsafe_b64encode(_check(last, query) + last.encode()).decode()


def _read(token: str, query: str) -> str:
    try:
        data = urlsafe_b64decode(token.encode())
        last = data[_CHECK_BYTES:].decode()
    except (Error, ValueError):
        last, data = "", b""
    if data[:_CHECK_BYTES] != _check(last, query):
        raise Refusal(
            Code.INVALID_ARGUMENT,
            "INVALID_PAGE_TOKEN",
            "page_token: it is not one that this server gave for this query: begin without one, change no field",
            "page_token",
        )
    return last


def _check(last: str, query: str) -> bytes:
    return hashlib.sha256(f"{query}\n{last}".encode()).digest()[:_CHECK_BYTES]

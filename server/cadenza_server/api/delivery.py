"""Answers that may be large are made for so many calls at once; the others wait until one has been taken.

gRPC holds what a client does not read. A client that asks for a thousand results and stops in the middle would
otherwise fill the server's memory with them.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final
from weakref import WeakValueDictionary

from cadenza_server.config import Limits

PIECES_OF_AN_ANSWER: Final = 16
"""A result that is streamed in pieces takes the room of a sixteenth of one that comes in one message."""

_READS: Final = frozenset({"GetJobResult", "GetJobPayload"})
_READS_IN_PIECES: Final = frozenset({"StreamJobResult"})


class Deliveries:
    """The places of each connection and each user. `pieces`: so many deliveries take the room of one answer."""

    def __init__(self, limits: Limits, pieces: int = 1) -> None:
        self._connections = _Places(pieces * limits.answers_per_connection_max)
        self._users = _Places(pieces * limits.answers_per_user_max)

    @asynccontextmanager
    async def turn(self, connection: str, user: str) -> AsyncIterator[None]:
        """Wait for a place, first come, first served, and keep it while the block lasts."""
        async with self._connections.of(connection), self._users.of(user):
            yield


class _Places:
    """A number of places for each name; names that nobody has are forgotten."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._by_name: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    def of(self, name: str) -> asyncio.Semaphore:
        """Those of one name."""
        places = self._by_name.get(name)
        if places is None:
            places = self._by_name[name] = asyncio.Semaphore(self._number)
        return places


def is_read(method: str) -> bool:
    """Whether this RPC's answer, one message, may be large: a result, a program, a page."""
    name = method.rpartition("/")[2]
    return name in _READS or name.startswith("List")


def is_read_in_pieces(method: str) -> bool:
    """Whether this RPC's answer is a large one in pieces."""
    return method.rpartition("/")[2] in _READS_IN_PIECES

"""Watches: how many there may be, and how they end."""

from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from typing import Final

from cadenza_server.api.callers import Context, current_caller
from cadenza_server.config import Limits
from cadenza_server.engine import Notice
from cadenza_server.model.errors import Code, Refusal

RESUMABLE: Final = frozenset({"WATCH_TOO_SLOW", "STOPPING", "STORE_UNAVAILABLE"})
"""Why a watch may end before its time; these say after which event to resume."""


class WatchCounter:
    """Counts the watches of each connection and each user."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._connections: dict[str, int] = {}
        self._users: dict[str, int] = {}

    @contextmanager
    def count(self, connection: str, user: str) -> Iterator[None]:
        """One watch, while the block lasts. Raises `Refusal` QUOTA_WATCHES."""
        limits = self._limits
        self._check(self._connections, connection, limits.watches_per_connection_max, "watches_per_connection_max")
        self._check(self._users, user, limits.watches_per_user_max, "watches_per_user_max")
        for counts, key in ((self._connections, connection), (self._users, user)):
            counts[key] = counts.get(key, 0) + 1
        try:
            yield
        finally:
            for counts, key in ((self._connections, connection), (self._users, user)):
                counts[key] -= 1
                if not counts[key]:
                    del counts[key]

    @staticmethod
    def _check(counts: dict[str, int], key: str, most: int, limit: str) -> None:
        if counts.get(key, 0) >= most:
            whose = "this connection" if limit == "watches_per_connection_max" else key
            raise Refusal(
                Code.RESOURCE_EXHAUSTED,
                "QUOTA_WATCHES",
                f"{whose} has {most} watches and may have no more: end one, or watch a session instead of its jobs",
                metadata={"limit": limit},
            )

    async def follow(
        self, notices: AsyncGenerator[Notice, None], context: Context, after: int | None
    ) -> AsyncIterator[Notice]:
        """The notices of one watch that resumes after `after`. If it ends before its time, its `Refusal` says in
        `resume_after` where to go on."""
        async with aclosing(notices):
            with self.count(context.peer(), current_caller().path):
                last = after
                try:
                    async for notice in notices:
                        last = notice.event_number
                        yield notice
                except Refusal as refusal:
                    if refusal.reason not in RESUMABLE or last is None:
                        raise
                    metadata = {**refusal.metadata, "resume_after": str(last)}
                    raise Refusal(refusal.code, refusal.reason, refusal.message, refusal.field, metadata) from refusal

"""What is not kept for ever.

Results: old ones go after a time, the oldest when there are too many bytes, young ones never. Request ids: when what
their call made is over, and not within a day.
"""

import asyncio
import logging
from dataclasses import dataclass
from functools import partial
from typing import Final

from cadenza_server.clock import Clock, Timer
from cadenza_server.engine import event_json
from cadenza_server.engine.writer import Writer
from cadenza_server.model.errors import Refusal
from cadenza_server.model.settings import SECOND
from cadenza_server.store import StoreError, reads
from cadenza_server.store.reads import ResultRow
from cadenza_server.store.store import Store

INTERVAL_NS: Final = 60 * SECOND
FIRST_NS: Final = 1 * SECOND
"""After the start, which is not to wait for it."""
RESULTS_AT_ONCE: Final = 100
"""Results that one commit deletes."""

REQUEST_AGE_NS: Final = 24 * 3_600 * SECOND
"""A repeated call gets its first answer for so long at least."""
REQUESTS_INTERVAL_NS: Final = 3_600 * SECOND
REQUESTS_AT_ONCE: Final = 1_000

_log: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """Ages of results in nanoseconds since their job's end. None: no limit."""

    age_max: int | None = None
    bytes_max: int | None = None
    age_min: int = 0
    """Younger ones are never deleted."""


class Cleaner:
    """Deletes results and request ids from time to time. `result_bytes`: of the results that are kept; None: not
    counted yet."""

    def __init__(self, retention: Retention, writer: Writer, store: Store, clock: Clock) -> None:
        self._retention = retention
        self._writer = writer
        self._store = store
        self._clock = clock
        self._timer: Timer | None = None
        self._task: asyncio.Task[None] | None = None
        self._requests_due = 0
        self._counted: tuple[int, int] | None = None
        """Bytes in the store when they were counted, less those recorded until then; and in which of its lives."""

    @property
    def result_bytes(self) -> int | None:
        """See the class."""
        if self._counted is None or self._counted[1] != self._writer.take_ups:
            return None
        return self._counted[0] + self._writer.result_bytes

    def start(self) -> None:
        """Begin soon."""
        self._timer = self._clock.call_at(self._clock.now() + FIRST_NS, self._begin)

    async def stop(self) -> None:
        """End; what is being deleted is deleted."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _begin(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._clean())
        self._timer = self._clock.call_at(self._clock.now() + INTERVAL_NS, self._begin)

    async def _clean(self) -> None:
        deleted = 0
        try:
            await self._count()
            while victims := self._choose(
                await self._store.read(partial(reads.read_oldest_results, count=RESULTS_AT_ONCE))
            ):
                await self._writer.delete_results(victims)
                deleted += len(victims)
                if len(victims) < RESULTS_AT_ONCE:
                    break
            if self._writer.now() >= self._requests_due:
                await self._forget_requests()
                self._requests_due = self._writer.now() + REQUESTS_INTERVAL_NS
        except (StoreError, Refusal) as error:
            _log.warning("what is old is not deleted now: %s", error)
        if deleted:
            _log.info("deleted old results", extra={"results": deleted, "bytes_left": self.result_bytes})

    async def _forget_requests(self) -> None:
        before, after, forgotten = self._writer.now() - REQUEST_AGE_NS, (0, "", ""), 0
        while found := await self._store.read(
            partial(reads.read_old_requests, before=before, after=after, count=REQUESTS_AT_ONCE)
        ):
            over = [
                (row.caller, row.request_id) for row in found if not (row.queued or self._is_of_session(row.answer))
            ]
            await self._writer.forget_requests(over)
            forgotten += len(over)
            after = (found[-1].time, found[-1].caller, found[-1].request_id)
        if forgotten:
            _log.info("forgot old request ids", extra={"requests": forgotten})

    def _is_of_session(self, answer: str | None) -> bool:
        """Whether the call's events are of a session that is not over."""
        sessions = self._writer.recorder.sessions
        return any(getattr(event, "session", None) in sessions for event in event_json.decode(answer or "[]"))

    async def _count(self) -> None:
        if self.result_bytes is None:
            before, life = self._writer.result_bytes, self._writer.take_ups
            self._counted = (await self._store.read(reads.count_result_bytes) - before, life)

    def _choose(self, oldest: list[ResultRow]) -> list[ResultRow]:
        """Those that have to go, of the oldest ones."""
        retention, now = self._retention, self._writer.now()
        left = self.result_bytes
        victims = []
        for row in oldest:
            age = now - row.end_time
            too_old = retention.age_max is not None and age > retention.age_max
            too_many = left is not None and retention.bytes_max is not None and left > retention.bytes_max
            if age < retention.age_min or not (too_old or too_many):
                break
            if left is not None:
                left -= row.size
            victims.append(row)
        return victims

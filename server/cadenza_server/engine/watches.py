"""Who watches what: changes go to those who watch their job or session, after the commit that holds them.

A watcher has a bounded queue and never slows anybody: one that is full ends with WATCH_TOO_SLOW, and resumes from the
store.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

from cadenza_server.engine.notices import JobEnded
from cadenza_server.engine.recorder import Published
from cadenza_server.model.errors import Code, Refusal

QUEUE_SIZE_MAX: Final = 10_000
QUEUE_RESULT_BYTES_MAX: Final = 4 * 1024 * 1024
"""Results beyond this are not kept for a watcher that is behind, but read when it gets there."""
BACKLOG_MAX: Final = 200_000
"""Changes that wait for all watchers together: beyond it those that are far behind are ended."""
BACKLOG_FAIR: Final = 100
"""What a watcher may be behind also then."""
BACKLOG_RESULT_BYTES_MAX: Final = 64 * 1024 * 1024
"""Of the results that wait for all watchers together."""
ANY_SESSION: Final = ""
"""What a watcher of a job is told to watch until it knows the job's session."""


class _Backlog:
    """What waits for all watchers together. `behind_max`: how many changes may wait for one."""

    __slots__ = ("behind_max", "changes", "ended", "result_bytes")

    def __init__(self, ended: Callable[[], None], behind_max: int) -> None:
        self.behind_max = behind_max
        self.changes = 0
        self.result_bytes = 0
        self.ended = ended
        """Called for every watch that is ended as it is too far behind."""


class Watcher:
    """One watch. `job` None: of a session with its jobs; else of one job, and of what befalls its session."""

    __slots__ = ("_all", "_bytes", "_ended", "_queue", "_wake", "job", "session", "skips_superseded")

    def __init__(self, job: str | None, session: str | None, backlog: _Backlog) -> None:
        self._all: Final = backlog
        self.job: Final = job
        self.session = session
        self.skips_superseded = False
        """Of the changes of a job that wait together, those before its end are left out."""
        self._queue: deque[Published] = deque()
        self._bytes = 0
        self._ended: Refusal | None = None
        self._wake: asyncio.Future[None] | None = None

    def put(self, item: Published) -> None:
        """Queue one change; ends the watch if it is too far behind."""
        if self._ended is not None:
            return
        behind = len(self._queue)
        if behind >= self._all.behind_max or (behind >= BACKLOG_FAIR and self._all.changes >= BACKLOG_MAX):
            metadata = {"limit": "watch_backlog_max"} if behind >= self._all.behind_max else {}
            self.forget()
            self._all.ended()
            self.end(
                Refusal(
                    Code.RESOURCE_EXHAUSTED,
                    "WATCH_TOO_SLOW",
                    "this watch was read too slowly: watch again and resume after the last event number seen",
                    metadata=metadata,
                )
            )
            return
        if isinstance(item.change, JobEnded) and item.change.result is not None:
            size = len(item.change.result)
            if self._bytes + size > QUEUE_RESULT_BYTES_MAX or self._all.result_bytes + size > BACKLOG_RESULT_BYTES_MAX:
                item = Published(item.event_number, item.time, item.job, item.session, item.kind, item.body, None)
            else:
                self._bytes += size
                self._all.result_bytes += size
        if self.skips_superseded and item.kind == "job_ended":
            while self._queue and self._queue[-1].job == item.job:
                self._queue.pop()
                self._all.changes -= 1
        self._queue.append(item)
        self._all.changes += 1
        self._rouse()

    def end(self, why: Refusal) -> None:
        """After what is queued, `next` raises `why`."""
        if self._ended is None:
            self._ended = why
            self._rouse()

    async def next(self) -> Published:
        """The next change. Raises `Refusal` when the watch was ended."""
        while not self._queue:
            if self._ended is not None:
                raise self._ended
            self._wake = asyncio.get_running_loop().create_future()
            await self._wake
        item = self._queue.popleft()
        self._all.changes -= 1
        if isinstance(item.change, JobEnded) and item.change.result is not None:
            self._bytes -= len(item.change.result)
            self._all.result_bytes -= len(item.change.result)
        return item

    def forget(self) -> None:
        """Drop what is queued."""
        self._all.changes -= len(self._queue)
        self._all.result_bytes -= self._bytes
        self._bytes = 0
        self._queue.clear()

    def _rouse(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)


class Watches:
    """All watchers, by what they watch."""

    def __init__(self, ended: Callable[[], None] = lambda: None, behind_max: int = QUEUE_SIZE_MAX) -> None:
        self._backlog = _Backlog(ended, behind_max)
        self._count = 0
        self._jobs: dict[str, list[Watcher]] = {}
        self._sessions: dict[str, list[Watcher]] = {}
        self._jobs_by_session: dict[str, list[Watcher]] = {}

    def __len__(self) -> int:
        return self._count

    def watch_job(self, job: str) -> Watcher:
        """Begin a watch of a job; `set_session` follows once it is known."""
        watcher = Watcher(job, ANY_SESSION, self._backlog)
        self._count += 1
        self._jobs.setdefault(job, []).append(watcher)
        self._jobs_by_session.setdefault(ANY_SESSION, []).append(watcher)
        return watcher

    def set_session(self, watcher: Watcher, session: str | None) -> None:
        """The session of the job that is watched; None: it has none."""
        self._forget(self._jobs_by_session, ANY_SESSION, watcher)
        watcher.session = session
        if session is not None:
            self._jobs_by_session.setdefault(session, []).append(watcher)

    def watch_session(self, session: str) -> Watcher:
        """Begin a watch of a session and its jobs."""
        watcher = Watcher(None, session, self._backlog)
        self._count += 1
        self._sessions.setdefault(session, []).append(watcher)
        return watcher

    def remove(self, watcher: Watcher) -> None:
        """End a watch; each is removed once."""
        self._count -= 1
        watcher.forget()
        if watcher.job is None:
            if watcher.session is not None:
                self._forget(self._sessions, watcher.session, watcher)
            return
        self._forget(self._jobs, watcher.job, watcher)
        if watcher.session is not None:
            self._forget(self._jobs_by_session, watcher.session, watcher)

    def is_watched(self, job: str | None, session: str | None) -> bool:
        """Whether anybody wants to hear of a change of this job (None: of the session as a whole)."""
        if job is not None:
            return job in self._jobs or session in self._sessions
        return session in self._sessions or session in self._jobs_by_session or ANY_SESSION in self._jobs_by_session

    def publish(self, items: list[Published]) -> None:
        """Hand out committed changes, in order."""
        for item in items:
            if item.job is not None:
                for watcher in self._jobs.get(item.job, ()):
                    watcher.put(item)
            elif item.kind in ("session_jobs_ended", "session_jobs_released"):
                for session in (item.session, ANY_SESSION):
                    for watcher in self._jobs_by_session.get(session or ANY_SESSION, ()):
                        watcher.put(item)
            if item.session is not None:
                for watcher in self._sessions.get(item.session, ()):
                    watcher.put(item)

    def end_all(self, why: Refusal) -> None:
        """End every watch, after what it is still owed."""
        for table in (self._jobs, self._sessions):
            for watchers in table.values():
                for watcher in watchers:
                    watcher.end(why)

    @staticmethod
    def _forget(table: dict[str, list[Watcher]], key: str, watcher: Watcher) -> None:
        watchers = table.get(key)
        if watchers is not None and watcher in watchers:
            watchers.remove(watcher)
            if not watchers:
                del table[key]

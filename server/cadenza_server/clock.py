"""Time, passed in: production code reads no other clock, and tests turn the hands themselves.

All times are integer nanoseconds since the epoch (UTC). A clock never goes back while its process lives.
"""

import asyncio
import heapq
import itertools
import time
from collections.abc import Callable
from typing import Protocol


class Timer(Protocol):
    """Something that will happen once, unless it is cancelled before."""

    def cancel(self) -> None:
        """Make it not happen. Cancelling twice, or after it happened, does nothing."""


class Clock(Protocol):
    """What reads the time and wakes its caller at a time."""

    def now(self) -> int:
        """Nanoseconds since the epoch; never less than what it said before."""

    def call_at(self, when: int, callback: Callable[[], None]) -> Timer:
        """Call `callback` on the event loop at `when` or soon after; at once, on the next turn, if that is past."""


class SystemClock:
    """The wall clock at its creation plus the monotonic time since: a jump of the wall clock changes nothing."""

    def __init__(self) -> None:
        self._offset = time.time_ns() - time.monotonic_ns()

    def now(self) -> int:
        """See `Clock`."""
        return self._offset + time.monotonic_ns()

    def call_at(self, when: int, callback: Callable[[], None]) -> Timer:
        """See `Clock`. To be called on a running event loop."""
        return asyncio.get_running_loop().call_later(max(0, when - self.now()) / 1e9, callback)


class _Appointment:
    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class VirtualClock:
    """A clock that stands still until it is advanced; timers fire in order, each at its own time."""

    def __init__(self, start: int = 0) -> None:
        self._now = start
        self._order = itertools.count()
        self._timers: list[tuple[int, int, _Appointment]] = []

    def now(self) -> int:
        """See `Clock`."""
        return self._now

    def call_at(self, when: int, callback: Callable[[], None]) -> Timer:
        """See `Clock`: nothing fires before the next `advance`, also what is due already."""
        appointment = _Appointment(callback)
        heapq.heappush(self._timers, (when, next(self._order), appointment))
        return appointment

    def advance(self, duration_ns: int) -> None:
        """Move on by `duration_ns` (at least 0) and fire what becomes due on the way."""
        if duration_ns < 0:
            raise ValueError("time does not go back")
        end = self._now + duration_ns
        while self._timers and self._timers[0][0] <= end:
            when, _, appointment = heapq.heappop(self._timers)
            self._now = max(self._now, when)
            if appointment.callback is not None:
                callback, appointment.callback = appointment.callback, None
                callback()
        self._now = end

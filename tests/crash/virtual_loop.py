"""An event loop whose time is a number, and that can die between any two steps.

Nothing waits: when there is nothing to do, time goes on to the next timer. Whatever runs on it runs in the same order
each time. `step` is called before each callback and wherever else the simulated world has a point to die at; when the
countdown ends it raises `Crash`, and everything that was on the loop is never heard of again.
"""

import asyncio
import selectors
import traceback
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context
from typing import Any, Final, TypeVarTuple

from cadenza_server.clock import Timer

_SECOND: Final = 1_000_000_000
_Ts = TypeVarTuple("_Ts")


class Crash(SystemExit):
    """The process is dead. (Of this kind, as asyncio lets it through.)"""


class _Selector(selectors.BaseSelector):
    """Waits for nothing: what would be waited for is passed to the clock."""

    def __init__(self, sleep: Callable[[float | None], None]) -> None:
        self._sleep = sleep
        self._keys: dict[Any, selectors.SelectorKey] = {}

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        key = self._keys[fileobj] = selectors.SelectorKey(fileobj, 0, events, data)
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._keys.pop(fileobj)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self._sleep(timeout)
        return []

    def get_map(self) -> Any:
        return self._keys


class VirtualLoop(asyncio.SelectorEventLoop):
    """See the module. `now_ns`: its time; `steps_left`: when it dies, None: not."""

    def __init__(self, now_ns: int) -> None:
        self.now_ns = now_ns
        self.steps_left: int | None = None
        self.is_dead = False
        super().__init__(_Selector(self._sleep))
        self.set_exception_handler(self._unhandled)
        self.unhandled: list[str] = []

    def time(self) -> float:
        return self.now_ns / _SECOND

    def _sleep(self, timeout: float | None) -> None:
        if timeout is None:
            raise RuntimeError("everything waits for something that never happens")
        if timeout > 0:
            self.now_ns += max(1, round(timeout * _SECOND))

    def step(self) -> None:
        """A point at which the world may end."""
        if self.steps_left is not None:
            self.steps_left -= 1
            if self.steps_left < 0:
                self.is_dead = True
                raise Crash

    def call_soon(
        self, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None
    ) -> asyncio.Handle:
        if self.is_dead:  # a last word that nobody hears
            return asyncio.Handle(callback, args, self, context)
        return super().call_soon(self._call, callback, args, context=context)

    def call_at(
        self, when: float, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        if self.is_dead:
            return asyncio.TimerHandle(when, callback, args, self, context)
        return super().call_at(when, self._call, callback, args, context=context)

    def _call(self, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        self.step()
        callback(*args)

    def _unhandled(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if self.is_dead:
            return  # a generator that the collector closes has its last word on a loop that is over
        error = context.get("exception")
        where = "".join(traceback.format_exception(error)) if error is not None else ""
        self.unhandled.append(f"{context.get('message')}: {error!r}\n{where}")

    def bury(self) -> None:
        """Throw away what was on it, without a word of it being heard."""
        self.is_dead = True
        tasks = asyncio.all_tasks(self)
        for task in tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        for task in tasks:
            coroutine = task.get_coro()
            with suppress(RuntimeError, Crash):  # it has an opinion on its end: nobody asks
                coroutine.close()
        asyncio.set_event_loop(None)
        self.close()


class LoopClock:
    """The loop's time as a `Clock`; `skew_ns` is what the wall clock was set wrong by when this server started."""

    def __init__(self, loop: VirtualLoop, skew_ns: int = 0) -> None:
        self._loop = loop
        self._skew_ns = skew_ns

    def now(self) -> int:
        """See `Clock`."""
        return self._loop.now_ns + self._skew_ns

    def call_at(self, when: int, callback: Callable[[], None]) -> Timer:
        """See `Clock`."""
        return self._loop.call_at(max(self._loop.now_ns, when - self._skew_ns) / _SECOND, callback)

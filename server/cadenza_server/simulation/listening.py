"""Who listens to a simulation: workers, clients, and those who take down what happens."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from cadenza_server.scheduling import Scheduler
from cadenza_server.simulation.step import Step

Handlers = Mapping[type, Callable[[Any, int], None]]
"""What to do with an event of a type: called with the event and its instant (nanoseconds)."""


class Listener(Protocol):
    """Hears every event of the types that it names, in the order in which they happen."""

    def handlers(self) -> Handlers:
        """What it does with events."""


class Source(Listener, Protocol):
    """Where commands come from. It may answer to what it hears, at that instant or later."""

    def next_at(self) -> int | None:
        """When its next command comes; None: unless something happens that it answers to, no more."""

    def take(self, now: int) -> Sequence[Step]:
        """Return the commands that come at `now`, in order."""


class Observer(Listener, Protocol):
    """Listens, and looks at the scheduler itself from time to time."""

    def next_look(self) -> int:
        """When it looks next: before anything that comes later is handled."""

    def look(self, scheduler: Scheduler) -> None:
        """Look at what the scheduler is like at that instant."""

    def finish(self, scheduler: Scheduler, now: int) -> None:
        """Nothing happens after `now` any more."""

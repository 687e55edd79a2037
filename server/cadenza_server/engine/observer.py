"""Who looks on while the engine works, to count. This one does nothing; a subclass must be quick and must not fail."""

from collections.abc import Sequence

from cadenza_server.model.events import Event, RunStarted
from cadenza_server.store.batch import Batch


class Observer:
    """Called on the event loop, on the path of every decision and commit. Lengths are nanoseconds, stamps seconds of a
    clock of the observer's own."""

    def stamp(self) -> float:
        """Now, for `decided` and `committed`."""
        return 0.0

    def decided(self, began: float, events: Sequence[Event]) -> None:
        """The scheduler decided one instant, from the stamp `began` until now."""

    def started(self, event: RunStarted, waited: int) -> None:
        """A run starts, of a job that was submitted so long ago."""

    def committed(self, began: float, batch: Batch, calls: int) -> None:
        """A batch that was handed over at `began` is on disk; so many calls have waited for it."""

    def watch_ended(self) -> None:
        """A watch that was read too slowly was ended."""

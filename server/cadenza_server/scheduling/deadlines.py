"""Every timer of the scheduler in one indexed heap (semantics 2).

Law: what is due fires by its due time, then by kind in the order of `DeadlineKind`, then the older object first. A
deadline that is cancelled leaves the heap at once: there are no tombstones that could grow.
"""

from enum import IntEnum
from typing import Any, Final


class DeadlineKind(IntEnum):
    """What becomes due, in the order in which it fires at one instant."""

    ESTIMATE = 0
    """A run outlasts its estimate. Owner: the device; older: smaller seq of the job."""
    EXPIRY = 1
    IDLE = 2
    UNUSED = 3
    CACHE = 4
    """Owner of these four: the session; older: created earlier."""
    RESERVATION_END = 5
    RESERVATION_START = 6
    """Owner: the reservation; older: earlier start, then created earlier."""
    CALIBRATION = 7
    """Owner: the device; by name."""


class Deadline:
    """One timer. `owner` is what it is about. `position` is its place in the heap, -1 once it has left it."""

    __slots__ = ("key", "kind", "owner", "position")

    def __init__(self, kind: DeadlineKind, due: int, age: tuple[int, int], owner: Any) -> None:
        self.kind: Final = kind
        self.owner: Final = owner
        self.key: Final = (due, kind, age)
        self.position = -1

    @property
    def due(self) -> int:
        """When it fires."""
        return self.key[0]


NEVER: Final = 2**63 - 1
"""No deadline is due then."""


class Deadlines:
    """The heap. Adding, cancelling and taking the first cost O(log n). `first`: when the first one is due, or NEVER."""

    __slots__ = ("_heap", "first")

    def __init__(self) -> None:
        self._heap: list[Deadline] = []
        self.first: int = NEVER

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, kind: DeadlineKind, due: int, age: tuple[int, int], owner: Any) -> Deadline:
        """Set a timer; keep what is returned to cancel it."""
        deadline = Deadline(kind, due, age, owner)
        heap = self._heap
        heap.append(deadline)
        self._rise(len(heap) - 1, deadline)
        if due < self.first:
            self.first = due
        return deadline

    def cancel(self, deadline: Deadline) -> None:
        """Take a timer that has not fired off the heap."""
        heap = self._heap
        position = deadline.position
        last = heap.pop()
        if last is not deadline:
            if position and last.key < heap[(position - 1) >> 1].key:
                self._rise(position, last)
            else:
                self._sink(position, last)
        deadline.position = -1
        self.first = heap[0].key[0] if heap else NEVER

    def next_due(self) -> int | None:
        """When the first timer is due."""
        return self.first if self._heap else None

    def take_due(self, now: int) -> Deadline | None:
        """Take off the first timer that is due at or before `now`; None if there is none."""
        if self.first > now or not self._heap:
            return None
        first = self._heap[0]
        self.cancel(first)
        return first

    def _rise(self, position: int, deadline: Deadline) -> None:
        heap = self._heap
        key = deadline.key
        while position > 0:
            above = (position - 1) >> 1
            other = heap[above]
            if other.key <= key:
                break
            heap[position] = other
            other.position = position
            position = above
        heap[position] = deadline
        deadline.position = position

    def _sink(self, position: int, deadline: Deadline) -> None:
        heap = self._heap
        size = len(heap)
        key = deadline.key
        while True:
            below = 2 * position + 1
            if below >= size:
                break
            if below + 1 < size and heap[below + 1].key < heap[below].key:
                below += 1
            other = heap[below]
            if key <= other.key:
                break
            heap[position] = other
            other.position = position
            position = below
        heap[position] = deadline
        deadline.position = position

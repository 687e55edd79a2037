"""Windows on devices: what they restrict, and their start and end (semantics 8)."""

from bisect import insort
from typing import TYPE_CHECKING, Final

from _fastqueue import NEVER
from cadenza_server.model.events import ReservationCreated, ReservationEnded, ReservationStarted
from cadenza_server.model.paths import covers
from cadenza_server.scheduling.deadlines import Deadline, DeadlineKind
from cadenza_server.scheduling.devices import Device

if TYPE_CHECKING:
    from cadenza_server.scheduling.ledger import Ledger
    from cadenza_server.scheduling.sessions import Session, Sessions


class Reservation:
    """One window of a device for a holder and everything below. `sessions`: those bound to it that are not closed."""

    __slots__ = (
        "device",
        "end",
        "end_deadline",
        "holder",
        "name",
        "number",
        "over",
        "sessions",
        "start",
        "start_deadline",
    )

    def __init__(self, name: str, number: int, device: Device, holder: str, start: int, end: int) -> None:
        self.name: Final = name
        self.number: Final = number
        self.device: Final = device
        self.holder: Final = holder
        self.start: Final = start
        self.end: Final = end
        self.over = False
        self.sessions: Final[dict[str, Session]] = {}
        self.start_deadline: Deadline | None = None
        self.end_deadline: Deadline | None = None

    @property
    def started(self) -> bool:
        """Whether the window is open now."""
        return self.device.window is self


class Reservations:
    """What is done with reservations. Everything is checked before."""

    __slots__ = ("_awaited", "_ledger", "_sessions")

    def __init__(self, ledger: "Ledger", sessions: "Sessions") -> None:
        self._ledger: Final = ledger
        self._sessions: Final = sessions
        self._awaited: Final[set[str]] = set()
        """Holders that nobody is known below yet: their paths have no node."""

    def create(self, reservation: Reservation) -> None:
        """Enter a new reservation."""
        self.enter(reservation)
        self._ledger.events.append(
            ReservationCreated(
                reservation=reservation.name,
                device=reservation.device.name,
                holder=reservation.holder,
                start=reservation.start,
                end=reservation.end,
            )
        )

    def enter(self, reservation: Reservation, started: bool = False) -> None:
        """Put a reservation into the tables: a new one, or one that is restored and may have started."""
        device = reservation.device
        self._ledger.reservations[reservation.name] = reservation
        age = (reservation.start, reservation.number)
        add = self._ledger.deadlines.add
        if started:
            device.window = reservation
        else:
            reservation.start_deadline = add(DeadlineKind.RESERVATION_START, reservation.start, age, reservation)
            insort(device.ahead, reservation, key=_start)
        reservation.end_deadline = add(DeadlineKind.RESERVATION_END, reservation.end, age, reservation)
        self._restrict(device)

    def start(self, reservation: Reservation) -> None:
        """Open the window: a session of someone else lets go of the device, bound sessions may begin."""
        device = reservation.device
        reservation.start_deadline = None
        device.ahead.remove(reservation)
        device.window = reservation
        self._restrict(device)
        self._ledger.events.append(ReservationStarted(reservation=reservation.name, device=device.name))
        active = device.active
        if active is not None and not covers(reservation.holder, active.node.path):
            self._sessions.let_go(active)
        for session in reservation.sessions.values():
            self._sessions.window_opened(session)

    def end(self, reservation: Reservation, deleted: bool = False) -> None:
        """End the window, or take a reservation away that has not started; its bound sessions close."""
        ledger, device = self._ledger, reservation.device
        for deadline in (reservation.start_deadline, reservation.end_deadline):
            if deadline is not None and deadline.position >= 0:
                ledger.deadlines.cancel(deadline)
        reservation.start_deadline = reservation.end_deadline = None
        if reservation.started:
            device.window = None
        else:
            device.ahead.remove(reservation)
        self._restrict(device)
        reservation.over = True
        if not ledger.keeps_ended:
            del ledger.reservations[reservation.name]
        ledger.events.append(ReservationEnded(reservation=reservation.name, device=device.name, deleted=deleted))
        for session in list(reservation.sessions.values()):
            self._sessions.reservation_ended(session)

    def node_added(self, path: str) -> None:
        """Look again at what reservations restrict, if it is for a holder whose path has a node only now."""
        if path in self._awaited:
            self._awaited.remove(path)
            for device in self._ledger.devices.values():
                self._restrict(device)

    def _restrict(self, device: Device) -> None:
        """Tell the queue what the device's windows restrict now."""
        inside, next_start, next_holder = -1, NEVER, -1
        if device.window is not None:
            inside = self._node(device.window.holder)
        if device.ahead:
            next_start, next_holder = device.ahead[0].start, self._node(device.ahead[0].holder)
        self._ledger.queue.set_window(device.handle, inside, next_start, next_holder)

    def _node(self, holder: str) -> int:
        if self._ledger.tree.find(holder) is None:
            self._awaited.add(holder)
        return self._ledger.tree.holder(holder)


def _start(reservation: Reservation) -> int:
    return reservation.start

"""A device as the scheduler sees it (semantics 1, 3, 8, 9)."""

from typing import TYPE_CHECKING, Final

from cadenza_server.model.settings import DeviceSettings
from cadenza_server.scheduling.deadlines import Deadline

if TYPE_CHECKING:
    from cadenza_server.scheduling.jobs import Job
    from cadenza_server.scheduling.reservations import Reservation
    from cadenza_server.scheduling.sessions import Session


class Device:
    """One device. `rank` is its place in the order of names, `handle` its handle in the queue. Times are nanoseconds.

    `running`, `run_start`, `run_estimate`: the job that it runs now, since when, and its estimate with all doublings.
    `active`: the session that has the device. `held_since`: since when rule 2 holds it idle for a dedicated session.
    `window`: the reservation that is open; `ahead`: those that have not started, by start. `calibrations`: how many
    calibration jobs are queued or running; `automatic`: how many the device has submitted itself.
    """

    __slots__ = (
        "active",
        "ahead",
        "automatic",
        "calibration",
        "calibrations",
        "epoch",
        "handle",
        "held_since",
        "name",
        "outlasting",
        "rank",
        "ready",
        "run_estimate",
        "run_start",
        "running",
        "settings",
        "window",
    )

    def __init__(self, name: str, rank: int, handle: int, settings: DeviceSettings) -> None:
        self.name: Final = name
        self.rank: Final = rank
        self.handle: Final = handle
        self.settings: Final = settings
        self.ready = True
        self.running: Job | None = None
        self.run_start = 0
        self.run_estimate = 0
        self.outlasting: Deadline | None = None
        self.active: Session | None = None
        self.held_since: int | None = None
        self.window: Reservation | None = None
        self.ahead: list[Reservation] = []
        self.epoch = 0
        self.calibrations = 0
        self.automatic = 0
        self.calibration: Deadline | None = None

    @property
    def calibrates(self) -> bool:
        """Whether a calibration runs on it now."""
        return self.running is not None and self.running.node is None

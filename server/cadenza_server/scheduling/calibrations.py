"""The calibrations that a device submits itself, and its epochs (semantics 9)."""

from typing import TYPE_CHECKING, Final

from cadenza_server.model.events import EpochStarted
from cadenza_server.scheduling.deadlines import DeadlineKind
from cadenza_server.scheduling.devices import Device
from cadenza_server.scheduling.jobs import Job

if TYPE_CHECKING:
    from cadenza_server.scheduling.ledger import Ledger

AUTOMATIC_PREFIX: Final = "calibration-"
"""Names of jobs that begin so are the devices' own."""


class Calibrations:
    """The timer of each device runs while no calibration job of it is queued or running."""

    __slots__ = ("_ledger",)

    def __init__(self, ledger: "Ledger") -> None:
        self._ledger: Final = ledger

    def start_timer(self, device: Device, since: int) -> None:
        """Let the timer of a device run from `since` on, if it has one and no calibration job of it is live."""
        interval = device.settings.calibration_interval
        if interval is not None and not device.calibrations:
            self._set_timer(device, since + interval)

    def restore_timer(self, device: Device, due: int | None) -> None:
        """Set the timer of a device that is restored to when it was due; it starts now if it never ran."""
        if due is None or device.settings.calibration_interval is None:
            self.start_timer(device, self._ledger.now)
        else:
            self._set_timer(device, due)

    def came(self, device: Device) -> None:
        """A calibration job was submitted: the timer stops."""
        device.calibrations += 1
        if device.calibration is not None:
            self._ledger.deadlines.cancel(device.calibration)
            device.calibration = None

    def ended(self, device: Device) -> None:
        """A calibration job came to a final state, however."""
        device.calibrations -= 1
        self.start_timer(device, self._ledger.now)

    def slept(self, length: int) -> None:
        """The server was down for so long: the timers move by it (10)."""
        for device in self._ledger.devices.values():
            if device.calibration is not None:
                due = device.calibration.due + length
                self._ledger.deadlines.cancel(device.calibration)
                self._set_timer(device, due)

    def submit(self, device: Device) -> None:
        """Submit the device's next calibration: its timer is due."""
        device.calibration = None
        device.automatic += 1
        device.calibrations += 1
        self._ledger.seq += 1
        settings = device.settings
        self._ledger.submitted(
            Job(
                name=f"{AUTOMATIC_PREFIX}{device.name}-{device.automatic}",
                seq=self._ledger.seq,
                user="",
                node=None,
                device=device,
                session=None,
                priority=0,
                estimate=min(settings.calibration_duration, settings.limit),
                limit=settings.limit,
                first=False,
                automatic=True,
            )
        )

    def succeeded(self, device: Device) -> None:
        """A calibration succeeded: the device has a new epoch."""
        device.epoch += 1
        self._ledger.events.append(EpochStarted(device=device.name, epoch=device.epoch))

    def _set_timer(self, device: Device, due: int) -> None:
        device.calibration = self._ledger.deadlines.add(DeadlineKind.CALIBRATION, due, (device.rank, 0), device)

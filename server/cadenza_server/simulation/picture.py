"""A picture of a simulation: one row a device, one colour a user; calibrations red, holds grey, windows shaded."""

from pathlib import Path
from typing import Final

from _fastqueue import NEVER
from cadenza_server.model.events import (
    HoldEnded,
    ReservationCreated,
    ReservationEnded,
    ReservationStarted,
    RunFinished,
    RunStarted,
)
from cadenza_server.model.words import JobClass
from cadenza_server.scheduling import Scheduler
from cadenza_server.simulation.listening import Handlers
from cadenza_server.simulation.outcome import to_seconds
from cadenza_server.simulation.scenario import Scenario
from cadenza_server.timeline import CALIBRATION, HELD, Bar, Shade, draw_timeline

RUNS_MAX: Final = 20_000
"""More runs than this nobody could tell apart in one picture."""

CALIBRATION_RUN: Final = "calibration run"
HELD_IDLE: Final = "held idle"
"""What they are called in the key. No user is: a path has no blanks."""

COLOURS: Final = {CALIBRATION_RUN: CALIBRATION, HELD_IDLE: HELD}
"""In every picture the same."""


class PictureError(ValueError):
    """What cannot be drawn, in a sentence."""


class Picture:
    """Listens to a simulation, then draws it."""

    def __init__(self, scenario: Scenario) -> None:
        self._title: Final = scenario.name
        self._devices: Final = sorted(scenario.devices)
        self._running: Final[dict[str, tuple[int, str | None]]] = {}
        self._windows: Final[dict[str, tuple[str, str, int | None]]] = {}
        self._bars: Final[list[Bar]] = []
        self._shades: Final[list[Shade]] = []
        self._runs = 0

    def handlers(self) -> Handlers:
        """What it looks at."""
        return {
            RunStarted: self._run_started,
            RunFinished: self._run_finished,
            HoldEnded: self._hold_ended,
            ReservationCreated: self._reservation_created,
            ReservationStarted: self._reservation_started,
            ReservationEnded: self._reservation_ended,
        }

    def next_look(self) -> int:
        """It looks at the scheduler at the end only."""
        return NEVER

    def look(self, scheduler: Scheduler) -> None:
        """There is nothing to see before the end."""

    def finish(self, scheduler: Scheduler, now: int) -> None:
        """What still goes on at the end is drawn up to there."""
        for device in list(self._running):
            self._end_run(device, now)
        for device in self._devices:
            record = scheduler.device_record(device)
            if record is not None and record.held_since is not None:
                self._shade(record.held_since, now, HELD_IDLE, device)
        for device, holder, start in self._windows.values():
            if start is not None:
                self._shade(start, now, f"reserved for {holder}", device)

    def draw(self, path: Path) -> None:
        """Write the picture; the suffix says what kind. Raises `PictureError` if there is too much to draw, or no such
        kind of picture, `OSError` if it cannot be written."""
        if self._runs > RUNS_MAX:
            raise PictureError(
                f"{self._runs:,} runs are too many for one picture, which shows up to {RUNS_MAX:,}: give the scenario "
                "an earlier `until`"
            )
        try:
            draw_timeline(
                path, title=self._title, rows=self._devices, bars=self._bars, shades=self._shades, colours=COLOURS
            )
        except ValueError as error:
            raise PictureError(f"{path}: it cannot be drawn: {error}") from error

    def _run_started(self, event: RunStarted, now: int) -> None:
        self._running[event.device] = (now, None if event.job_class is JobClass.CALIBRATION else event.user)

    def _run_finished(self, event: RunFinished, now: int) -> None:
        self._end_run(event.device, now)

    def _end_run(self, device: str, now: int) -> None:
        start, user = self._running.pop(device)
        self._runs += 1
        if self._runs > RUNS_MAX:
            self._bars.clear()
        else:
            meaning = CALIBRATION_RUN if user is None else user
            self._bars.append(Bar(device, to_seconds(start), to_seconds(now), meaning))

    def _hold_ended(self, event: HoldEnded, _: int) -> None:
        self._shade(event.start, event.end, HELD_IDLE, event.device)

    def _reservation_created(self, event: ReservationCreated, _: int) -> None:
        self._windows[event.reservation] = (event.device, event.holder, None)

    def _reservation_started(self, event: ReservationStarted, now: int) -> None:
        device, holder, _ = self._windows[event.reservation]
        self._windows[event.reservation] = (device, holder, now)

    def _reservation_ended(self, event: ReservationEnded, now: int) -> None:
        device, holder, start = self._windows.pop(event.reservation)
        if start is not None:
            self._shade(start, now, f"reserved for {holder}", device)

    def _shade(self, start: int, end: int, meaning: str, device: str) -> None:
        if self._runs <= RUNS_MAX:
            self._shades.append(Shade(to_seconds(start), to_seconds(end), meaning, device))

"""How many jobs stand before one: found when somebody asks, and not again before it has paid."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from cadenza_server.clock import Clock
from cadenza_server.scheduling.scheduler import Scheduler

STARTS_MAX: Final = 1_000
"""How far a forecast looks: what stands behind has no position."""

_KEPT_TIMES: Final = 20
"""A forecast is kept for so many times as long as it took: however many ask, it takes no more than 5 % of the loop."""


@dataclass(frozen=True, slots=True)
class _Forecast:
    positions: Mapping[int, int]
    """Of jobs by `seq`."""
    kept_until: int


class Forecasts:
    """The latest forecast of each device."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._latest: dict[str, _Forecast] = {}

    def position(self, scheduler: Scheduler, device: str, seq: int, now: int) -> int | None:
        """How many queued jobs the device would start before this one; None if there is no telling, or if they are
        `STARTS_MAX` or more. `now`: the scheduler's time, which is ahead of the clock if that was set back."""
        begin = self._clock.now()
        latest = self._latest.get(device)
        # A job that is not in it may be new: with fewer than STARTS_MAX waiting, it is cheap to look again.
        if (
            latest is not None
            and begin < latest.kept_until
            and (seq in latest.positions or len(latest.positions) == STARTS_MAX)
        ):
            return latest.positions.get(seq)
        seqs = scheduler.forecast_starts(device, now, STARTS_MAX)
        positions = {started: position for position, started in enumerate(seqs)}
        end = self._clock.now()
        self._latest[device] = _Forecast(positions, end + _KEPT_TIMES * (end - begin))
        return positions.get(seq)

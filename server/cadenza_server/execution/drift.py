"""How far the rates of a device have wandered from their calibrated values: a random walk that is pulled back.

Each rate r is r0 exp(x), r0 its calibrated value and x an Ornstein-Uhlenbeck process that is 0 at each calibration: in
steps of h, x -> a x + s sqrt(1 - a^2) xi with a = exp(-h / c), xi normal, c the correlation time and s the deviation
to which x comes in the long run. Its spectrum is a Lorentzian. Burnett et al., "Decoherence benchmarking of
superconducting qubits", npj Quantum Information 5, 54 (2019), watched transmons for days and explain how their
relaxation times wander by Lorentzians, of two-level defects that come and go. (A single defect switches, which this
does not.) The logarithm keeps rates positive.

Time comes in from outside. The same seed, epoch and step give the same numbers, in whichever process and order.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

STEPS: Final = 100
"""Of one correlation time. Between them nothing changes, so that what is made of the rates can be kept."""

_BLOCK: Final = 256
_BLOCKS_REMEMBERED: Final = 8
"""Twenty correlation times: what was before has no weight, exp(-20), any more."""


class Drift:
    """The walks of `size` rates. `deviation`: s above; `correlation_ns`: c."""

    def __init__(self, seed: int, size: int, deviation: float, correlation_ns: int) -> None:
        self._seed = seed
        self._size = size
        self._deviation = deviation
        self._step_ns = max(1, correlation_ns // STEPS)
        self._kept: tuple[int, int] | None = None
        self._walks = np.zeros((0, size))

    def step(self, age_ns: int) -> int:
        """The step that the time since the calibration falls into; 0 at the calibration."""
        return max(0, age_ns) // self._step_ns

    def logarithms(self, epoch: int, step: int) -> NDArray[np.float64]:
        """x of each rate, `step` steps after the beginning of `epoch`."""
        if step == 0:
            return np.zeros(self._size)
        block, place = divmod(step - 1, _BLOCK)
        if self._kept != (epoch, block):
            self._walks = self._walk(epoch, block)
            self._kept = epoch, block
        walk: NDArray[np.float64] = self._walks[place]
        return walk

    def _walk(self, epoch: int, last: int) -> NDArray[np.float64]:
        """x at each step of block `last`."""
        keep = np.exp(-1.0 / STEPS)
        kick = self._deviation * np.sqrt(1.0 - keep * keep)
        now = np.zeros(self._size)
        walks = np.empty((_BLOCK, self._size))
        for block in range(max(0, last - _BLOCKS_REMEMBERED), last + 1):
            kicks = kick * np.random.default_rng([self._seed, epoch, block]).standard_normal((_BLOCK, self._size))
            for place in range(_BLOCK):
                now = keep * now + kicks[place]
                walks[place] = now
        return walks

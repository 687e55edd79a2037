"""Names for what clients do not name: `job-<26 characters>`, in the order of their making."""

import random
from typing import Final, Protocol

from cadenza_server.clock import Clock

_ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"
"""Crockford's base 32 in lower case: it sorts as the numbers do and has no letters that are read as digits."""
_RANDOM_BITS: Final = 80
_PAIRS: Final = [high + low for high in _ALPHABET for low in _ALPHABET]
"""Two characters at a time: 10 bits."""
_SHIFTS: Final = range(120, 10, -10)
_LOW_BITS: Final = 20
"""The last four characters: most names differ from the one before in nothing else."""


class Ids(Protocol):
    """Where names come from."""

    def make(self, kind: str) -> str:
        """A new name, `kind-<26 characters>`; `kind` is job, session or reservation."""


class TimeOrderedIds:
    """48 bits of milliseconds and 80 random ones, as ULIDs have: unique, and later ones sort later.

    `source` gives the random bits; they keep two servers from giving the same name, and need not be secret.
    """

    def __init__(self, clock: Clock, source: random.Random) -> None:
        self._clock = clock
        self._source = source
        self._last = 0
        self._high = -1
        self._head = ""

    def make(self, kind: str) -> str:
        """See `Ids`."""
        milliseconds = self._clock.now() // 1_000_000
        if milliseconds > self._last >> _RANDOM_BITS:
            self._last = milliseconds << _RANDOM_BITS | self._source.getrandbits(_RANDOM_BITS)
        else:
            self._last += 1
        number = self._last
        if number >> _LOW_BITS != self._high:
            self._high = number >> _LOW_BITS
            self._head = "".join([_PAIRS[number >> shift & 1023] for shift in _SHIFTS])
        return f"{kind}-{self._head}{_PAIRS[number >> 10 & 1023]}{_PAIRS[number & 1023]}"

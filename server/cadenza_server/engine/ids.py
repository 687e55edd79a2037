"""Names for what clients do not name: `job-<26 characters>`, in the order of their making."""

import random
from typing import Final, Protocol

from cadenza_server.clock import Clock

_ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"
"""Crockford's base 32 in lower case: it sorts as the numbers do and has no letters that are read as digits."""
_RANDOM_BITS: Final = 80
_LENGTH: Final = 26


class Ids(Protocol):
    """Where names come from."""

    def make(self, kind: str) -> str:
        """A new name, `kind-<26 characters>`; `kind` is job, session or reservation."""


class TimeOrderedIds:
    """48 bits of milliseconds and 80 random ones, as ULIDs have: unique, and later ones sort later.

    `source` gives the random bits: `random.SystemRandom()` in the server, a seeded one in tests.
    """

    def __init__(self, clock: Clock, source: random.Random) -> None:
        self._clock = clock
        self._source = source
        self._last = 0

    def make(self, kind: str) -> str:
        """See `Ids`."""
        number = (self._clock.now() // 1_000_000) << _RANDOM_BITS | self._source.getrandbits(_RANDOM_BITS)
        if number <= self._last:
            number = self._last + 1
        self._last = number
        return f"{kind}-" + "".join(_ALPHABET[number >> shift & 31] for shift in range(5 * (_LENGTH - 1), -1, -5))

"""Names for what clients do not name: `job-<26 characters>`, in the order of their making."""

import random
from typing import Final, Protocol

from cadenza_server.clock import Clock

_ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"
"""Crockford's base 32 in lower case: it sorts as the numbers do and has no letters that are read as digits."""
_RANDOM_BITS: Final = 80
_PAIRS: Final = [high + low for high in _ALPHABET for low in _ALPHABET]
"""Two characters at a time: 10 bits."""
_SHIFTS: Final = range(120, -1, -10)
_MADE_MAX: Final = 100_000
"""Names that are remembered until they are taken."""


class Ids(Protocol):
    """Where names come from."""

    def make(self, kind: str) -> str:
        """A new name, `kind-<26 characters>`; `kind` is job, session or reservation."""

    def take(self, name: str) -> bool:
        """Whether `make` gave this name lately, and it is taken for the first time: then nothing else can have it.
        False: look whether it is free."""


class TimeOrderedIds:
    """48 bits of milliseconds and 80 random ones, as ULIDs have: unique, and later ones sort later.

    `source` gives the random bits: `random.SystemRandom()` in the server, a seeded one in tests.
    """

    def __init__(self, clock: Clock, source: random.Random) -> None:
        self._clock = clock
        self._source = source
        self._last = 0
        self._made: dict[str, None] = {}

    def make(self, kind: str) -> str:
        """See `Ids`."""
        milliseconds = self._clock.now() // 1_000_000
        if milliseconds > self._last >> _RANDOM_BITS:
            self._last = milliseconds << _RANDOM_BITS | self._source.getrandbits(_RANDOM_BITS)
        else:
            self._last += 1
        number = self._last
        name = f"{kind}-" + "".join([_PAIRS[number >> shift & 1023] for shift in _SHIFTS])
        self._made[name] = None
        if len(self._made) > _MADE_MAX:
            del self._made[next(iter(self._made))]
        return name

    def take(self, name: str) -> bool:
        """See `Ids`."""
        if name not in self._made:
            return False
        del self._made[name]
        return True

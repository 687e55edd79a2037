"""Lengths of time as people write them: seconds as a number, or `2h 30m`. Inside they are integer nanoseconds."""

import re
from decimal import Decimal
from typing import Final

from cadenza_server.model.settings import SECOND

_UNITS: Final = {
    "w": 7 * 86_400 * SECOND,
    "d": 86_400 * SECOND,
    "h": 3_600 * SECOND,
    "m": 60 * SECOND,
    "s": SECOND,
    "ms": 1_000_000,
    "us": 1_000,
    "ns": 1,
}
_PIECE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)\s*")
_LONGEST: Final = 100 * 365 * 86_400 * SECOND
"""100 years: far below what 64 bits of nanoseconds hold."""

FORM: Final = 'seconds as a number, or text such as "90s", "5m", "2h 30m", "7d" (units: w d h m s ms us ns)'


def parse_duration(value: object) -> int:
    """Nanoseconds of `value`, a number of seconds or text such as `2h 30m`. Raise `ValueError` with a sentence."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(f"{value!r} is no length of time: write {FORM}")
    if isinstance(value, str):
        length = _parse_text(value)
    else:
        exact = Decimal(repr(value))
        if not exact.is_finite():
            raise ValueError(f"{value!r} is no length of time: write {FORM}")
        length = round(exact * SECOND)
    if not 0 <= length <= _LONGEST:
        raise ValueError(f"{value!r} is out of range: lengths are not negative, and at most 100 years")
    return length


def _parse_text(text: str) -> int:
    total, position, stripped = Decimal(0), 0, text.strip()
    while position < len(stripped):
        piece = _PIECE.match(stripped, position)
        if piece is None or (piece[2] or "s") not in _UNITS:
            break
        if not piece[2] and piece[0] != stripped:
            break
        total += Decimal(piece[1]) * _UNITS[piece[2] or "s"]
        position = piece.end()
    if not stripped or position < len(stripped):
        raise ValueError(f"{text!r} is no length of time: write {FORM}")
    return round(total)


def format_duration(length: int) -> str:
    """The shortest text that `parse_duration` reads as `length` nanoseconds, by units: `2h 30m`, `0s`."""
    pieces = []
    for unit, size in _UNITS.items():
        count, length = divmod(length, size)
        if count:
            pieces.append(f"{count}{unit}")
    return " ".join(pieces) or "0s"

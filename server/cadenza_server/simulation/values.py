"""Values of a scenario file: read strictly from the tree, refused with their line."""

import re
from collections.abc import Callable, Collection
from enum import StrEnum
from typing import Final, NoReturn, TypeVar

from cadenza_server.simulation.tree import List, Scalar, ScenarioError, Table, Tree

TIME_MAX: Final = 2**61
"""Nanoseconds, 73 years: the latest instant of a scenario, and the longest setting."""

_SECONDS: Final = re.compile(r"([-+]?)(0|[1-9]\d*|(?=\.))(?:\.(\d*))?")
_INTEGER: Final = re.compile(r"[-+]?(?:0|[1-9]\d*)")
_NUMBER: Final = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
DECIMALS_MAX: Final = 3
"""Of a time in seconds."""
SHOWN_MAX: Final = 80
"""Of the text of a value in a sentence about it."""
DIGITS_MAX: Final = 1_000
"""Of a number; Python reads some thousands."""

_T = TypeVar("_T")


class Keys:
    """The keys of a mapping; one that is not allowed is refused. A null is a key left out."""

    __slots__ = ("_table", "_what")

    def __init__(self, tree: Tree, what: str, allowed: Collection[str]) -> None:
        if not isinstance(tree, Table):
            refuse(tree, f"{what} is a mapping, not {show(tree)}")
        for key in tree.entries:
            if key not in allowed:
                reason = f"{what} has no key {key!r}: it has {', '.join(allowed)}"
                raise ScenarioError(tree.lines[key], reason)
        self._table: Final = tree
        self._what: Final = what

    def __contains__(self, key: str) -> bool:
        return key in self._table.entries

    def line(self, key: str) -> int:
        """Return the line of a key; that of the mapping if it is not there."""
        return self._table.lines.get(key, self._table.line)

    def take(self, key: str) -> Tree | None:
        """Return the value of a key that may be left out."""
        tree = self._table.entries.get(key)
        return None if isinstance(tree, Scalar) and tree.kind == "null" else tree

    def required(self, key: str) -> Tree:
        """Return the value of a key that must be there."""
        tree = self.take(key)
        if tree is None:
            raise ScenarioError(self.line(key), f"{self._what} needs the key {key!r}")
        return tree

    def optional(self, key: str, read: Callable[[Tree], _T]) -> _T | None:
        """Read the value of a key that may be left out."""
        tree = self.take(key)
        return None if tree is None else read(tree)

    def text(self, key: str) -> str:
        """Return the text of a key that must be there."""
        return read_text(self.required(key))


def refuse(tree: Tree, reason: str) -> NoReturn:
    """Refuse the file because of this value."""
    raise ScenarioError(tree.line, reason)


def show(tree: Tree) -> str:
    """Say in short what stands there."""
    if isinstance(tree, Scalar):
        return repr(tree.text if len(tree.text) <= SHOWN_MAX else tree.text[:SHOWN_MAX] + "...")
    return "a mapping" if isinstance(tree, Table) else "a list"


def read_text(tree: Tree) -> str:
    """Return a text. An empty one names nothing, so a command that holds it will be refused."""
    if not isinstance(tree, Scalar) or tree.kind != "str":
        refuse(tree, f"expected a text, not {show(tree)}")
    return tree.text


def read_seconds(tree: Tree) -> int:
    """Return nanoseconds, of either sign."""
    if not isinstance(tree, Scalar) or tree.kind not in ("int", "float"):
        refuse(tree, f"expected a time in seconds, not {show(tree)}")
    match = _SECONDS.fullmatch(tree.text)
    if match is None or len(match[3] or "") > DECIMALS_MAX:
        refuse(tree, f"a time is seconds with at most three decimals, such as 2 or 0.125, not {tree.text[:SHOWN_MAX]}")
    _check_digits(tree)
    sign, whole, decimals = match.groups()
    value = int(whole + (decimals or "").ljust(DECIMALS_MAX, "0")) * 1_000_000
    return -value if sign == "-" else value


def read_instant(tree: Tree) -> int:
    """Return nanoseconds, not negative."""
    value = read_seconds(tree)
    if not 0 <= value <= TIME_MAX:
        refuse(tree, f"an instant is 0 to {TIME_MAX // 10**9} seconds, not {show(tree)}")
    return value


def read_length(tree: Tree) -> int:
    """Return nanoseconds, positive."""
    value = read_instant(tree)
    if value == 0:
        refuse(tree, "a length is positive")
    return value


def read_integer(tree: Tree) -> int:
    """Return a whole number."""
    if not isinstance(tree, Scalar) or tree.kind != "int" or not _INTEGER.fullmatch(tree.text):
        refuse(tree, f"expected a whole number, not {show(tree)}")
    _check_digits(tree)
    return int(tree.text)


def _check_digits(tree: Scalar) -> None:
    if len(tree.text) > DIGITS_MAX:
        refuse(tree, f"a number has at most {DIGITS_MAX} digits, not {len(tree.text)}")


def read_number(tree: Tree) -> float:
    """Return a number as the double that is nearest to it."""
    if not isinstance(tree, Scalar) or tree.kind not in ("int", "float") or not _NUMBER.fullmatch(tree.text):
        refuse(tree, f"expected a number, not {show(tree)}")
    return float(tree.text)


def read_boolean(tree: Tree) -> bool:
    """Return a truth value."""
    if not isinstance(tree, Scalar) or tree.kind != "bool" or tree.text.lower() not in ("true", "false"):
        refuse(tree, f"expected true or false, not {show(tree)}")
    return tree.text.lower() == "true"


_W = TypeVar("_W", bound=StrEnum)


def word_reader(words: type[_W]) -> Callable[[Tree], _W]:
    """Return a function that reads one of these words."""

    def read(tree: Tree) -> _W:
        if isinstance(tree, Scalar) and tree.kind == "str" and tree.text in words.__members__:
            return words[tree.text]
        refuse(tree, f"expected one of {', '.join(words)}, not {show(tree)}")

    return read


def read_lengths(tree: Tree) -> tuple[int, ...]:
    """Return a list of nanoseconds."""
    if not isinstance(tree, List):
        refuse(tree, f"expected a list of times, not {show(tree)}")
    return tuple(read_seconds(item) for item in tree.items)

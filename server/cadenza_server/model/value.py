"""Values that nobody changes, made often: commands and events.

`dataclass(frozen=True)` sets each field through `object.__setattr__`, which makes a value more than twice as slow to
build, and a million jobs build ten million of them. Here the type checker does the freezing: what is marked `@value` is
a dataclass with slots, keywords only and a hash, and mypy lets nobody assign to its fields.
"""

from dataclasses import dataclass
from typing import TypeVar, dataclass_transform

_T = TypeVar("_T")


@dataclass_transform(kw_only_default=True, frozen_default=True)
def value(kind: type[_T]) -> type[_T]:
    """Make a dataclass of `kind`."""
    return dataclass(slots=True, kw_only=True, unsafe_hash=True)(kind)

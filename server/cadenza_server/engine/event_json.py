"""Events as JSON and back: how the answer of a call is kept for its repetition."""

import json
from dataclasses import fields
from enum import StrEnum
from types import UnionType
from typing import Any, Final, get_args, get_type_hints

from cadenza_server.model.events import Event

_TYPES: Final = {kind.__name__: kind for kind in get_args(Event)}


def encode(events: tuple[Event, ...]) -> str:
    """A JSON list of `[type, fields]`."""
    return json.dumps(
        [[type(event).__name__, _plain(event)] for event in events], default=_plain, separators=(",", ":")
    )


def _plain(value: Any) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in fields(value)}


def decode(text: str) -> tuple[Event, ...]:
    """What `encode` was given."""
    return tuple(_build(_TYPES[name], values) for name, values in json.loads(text))


def _build(kind: Any, values: dict[str, Any]) -> Any:
    hints = get_type_hints(kind)
    return kind(**{name: _convert(hints[name], value) for name, value in values.items()})


def _convert(hint: Any, value: Any) -> Any:
    if value is None:
        return None
    if isinstance(hint, UnionType):
        hint = next(part for part in get_args(hint) if part is not type(None))
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return hint(value)
    if isinstance(value, dict):
        return _build(hint, value)
    if isinstance(value, list):
        return tuple(_tuple(item) for item in value)
    return value


def _tuple(value: Any) -> Any:
    return tuple(_tuple(item) for item in value) if isinstance(value, list) else value

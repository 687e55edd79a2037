"""What commands print: tables for people, JSON for programs.

`--json` prints one JSON object a line, in Protobuf's own JSON mapping with the contract's field names: a list is as
many lines as it has items, one thing is one line. Times are RFC 3339 in UTC, lengths of time seconds as `1.5s`, and
integers of 64 bits are strings, as that mapping has it.

For people times are local and short. What is absent is `-`; nothing is made up.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import typer

if TYPE_CHECKING:
    from google.protobuf.duration_pb2 import Duration
    from google.protobuf.message import Message
    from google.protobuf.timestamp_pb2 import Timestamp
    from rich.console import Console, RenderableType

ABSENT: Final = "-"
SECOND_NS: Final = 1_000_000_000
_WIDTH_UNBOUND: Final = 10_000
"""Columns: ids are never cut, for people copy them."""


# --- for programs -----------------------------------------------------------------------------------------------------


def print_json(value: "Mapping[str, Any] | Message") -> None:
    """One line: a message of the contract, or a mapping."""
    found = value if isinstance(value, Mapping) else message_to_dict(value)
    typer.echo(json.dumps(found, allow_nan=False))


def message_to_dict(message: "Message") -> dict[str, Any]:
    """Protobuf's JSON mapping with the contract's field names; what has no presence is written out."""
    from google.protobuf.json_format import MessageToDict

    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def json_number(number: float) -> float | str:
    """The number, or its name where JSON has none: `NaN`, `Infinity`, `-Infinity`."""
    if math.isnan(number):
        return "NaN"
    if math.isinf(number):
        return "Infinity" if number > 0 else "-Infinity"
    return number


# --- for people -------------------------------------------------------------------------------------------------------


def make_console(*, bound: bool = False) -> "Console":
    """The standard output. Lines are as long as they need, the terminal wraps them; `bound` keeps them to its width."""
    from rich.console import Console

    return Console(width=None if bound else _WIDTH_UNBOUND, markup=False, highlight=False, emoji=False)


def make_table(
    header: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    right: Iterable[str] = (),
    optional: Mapping[str, object] | None = None,
) -> "RenderableType":
    """A table without lines. `right`: headers of the columns of numbers. `optional`: columns that are left out if all
    of their cells are the value given."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    aligned, dropped, all_rows = frozenset(right), optional or {}, list(rows)
    kept = [
        index
        for index, name in enumerate(header)
        if name not in dropped or any(row[index] != dropped[name] for row in all_rows)
    ]
    for index in kept:
        table.add_column(header[index], justify="right" if header[index] in aligned else "left", overflow="fold")
    for row in all_rows:
        table.add_row(*(Text(clean(str(row[index]))) for index in kept))
    return table


def make_facts(facts: Iterable[tuple[str, object]]) -> "RenderableType":
    """Names and values, one a line."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in facts:
        table.add_row(name, Text(clean(str(value))))
    return table


def clean(text: str) -> str:
    """`text` without what would command a terminal: people chose parts of it."""
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)


def or_absent(value: object) -> object:
    """The value, or `-` for none and for empty text."""
    return ABSENT if value is None or value == "" else value


def enum_word(message: "Message", field: str) -> str:
    """The value of an enum field in lower case, without prefix: `fair share`; `-` for UNSPECIFIED."""
    return enum_reason(message, field).lower().replace("_", " ") or ABSENT


def enum_reason(message: "Message", field: str) -> str:
    """The value of an enum field as the documentation writes it, `RAN_TOO_LONG`; empty for UNSPECIFIED."""
    enum_type = message.DESCRIPTOR.fields_by_name[field].enum_type
    if enum_type is None:
        raise TypeError(f"{field} is no enum")
    prefix = enum_type.values[0].name.removesuffix("UNSPECIFIED")
    value = enum_type.values_by_number.get(getattr(message, field))
    # a newer server may know values that this contract does not
    name: str = str(getattr(message, field)) if value is None else value.name.removeprefix(prefix)
    return "" if name == "UNSPECIFIED" else name


def format_time(moment: "Timestamp", now: datetime) -> str:
    """A local time, as short as `now` allows: `14:03:12` today, `Nov 21 14:03:12` this year, else with the year."""
    local, today = moment.ToDatetime(tzinfo=UTC).astimezone(), now.astimezone()
    if local.date() == today.date():
        return local.strftime("%H:%M:%S")
    if local.year == today.year:
        return local.strftime("%b %d %H:%M:%S")
    return local.strftime("%Y-%m-%d %H:%M:%S")


def time_or_absent(message: "Message", field: str, now: datetime) -> str:
    """The local time in a field, or `-`."""
    return format_time(getattr(message, field), now) if message.HasField(field) else ABSENT


def format_length(nanoseconds: int) -> str:
    """A length of time to about three digits: `830 us`, `12.3 ms`, `2.31 s`, `3m 20s`, `2h 30m`, `3d 4h`."""
    if nanoseconds < 0:
        return f"-{format_length(-nanoseconds)}"
    if nanoseconds == 0:
        return "0 s"
    for below, unit, size in ((1_000_000, "us", 1_000), (SECOND_NS, "ms", 1_000_000), (60 * SECOND_NS, "s", SECOND_NS)):
        if nanoseconds < below:
            return f"{_three_digits(nanoseconds / size)} {unit}"
    minutes, seconds = divmod(nanoseconds // SECOND_NS, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours}h"
    return f"{hours}h {minutes}m" if hours else f"{minutes}m {seconds}s"


def _three_digits(value: float) -> str:
    return f"{value:.3g}" if value < 999.5 else f"{value:.0f}"


def duration_ns(duration: "Duration") -> int:
    """Nanoseconds of a duration."""
    return duration.seconds * SECOND_NS + duration.nanos


def length_or_absent(message: "Message", field: str) -> str:
    """The length of time in a field, or `-`."""
    return format_length(duration_ns(getattr(message, field))) if message.HasField(field) else ABSENT


def length_between(message: "Message", first: str, last: str) -> str:
    """From one time field of a message to another, or `-` if one is absent."""
    if not message.HasField(first) or not message.HasField(last):
        return ABSENT
    begin, end = getattr(message, first), getattr(message, last)
    return format_length((end.seconds - begin.seconds) * SECOND_NS + end.nanos - begin.nanos)


def format_usage(seconds: float) -> str:
    """Device seconds, decayed: `0`, `12.3`, `4567`; very small ones are not 0."""
    if seconds == 0:
        return "0"
    return f"{seconds:.0f}" if abs(seconds) >= 999.5 else f"{seconds:.3g}"

"""Points and lengths of time as people give them to commands."""

import re
from datetime import datetime, timedelta

from cadenza_server.cli.failure import fail
from cadenza_server.durations import parse_duration

FORM = "local time as `2026-03-01 09:00`, `09:00` (today), one with its zone as `2026-03-01T09:00Z`, or `+2h` from now"


def parse_moment(option: str, text: str, now: datetime) -> datetime:
    """The point of time that `text` names; if it is none, the command ends with exit code 2. `now` has a time zone."""
    try:
        if text.startswith("+"):
            return now + timedelta(microseconds=parse_duration(text[1:]) // 1_000)
        if re.fullmatch(r"\d{1,2}:\d{2}(:\d{2})?", text):
            hour, minute, *second = (int(part) for part in text.split(":"))
            return now.astimezone().replace(hour=hour, minute=minute, second=sum(second), microsecond=0)
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError):
        is_past = re.fullmatch(r"-\s*\d.*", text)
        fail(f"{option}: {text!r} {'lies in the past' if is_past else 'is no point of time'}: write {FORM}", 2)


def check_length(option: str, text: str | None) -> float | None:
    """Seconds that `text` names, None for None; if it is no length, the command ends with exit code 2."""
    if text is None:
        return None
    try:
        return parse_duration(text) / 1e9
    except ValueError as error:
        fail(f"{option}: {error}", 2)

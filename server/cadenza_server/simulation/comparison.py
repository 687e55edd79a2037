"""Figures of several simulations side by side, for people."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, TextIO

USERS_SHOWN: Final = 12
"""More users than this are not listed one by one; `--json` has all of them."""
LONGEST_SHOWN: Final = 5
"""If there are more, so many of each simulation are, those with the longest p90."""

_PERCENTILES: Final = ("p50", "p90", "p99")


def print_comparison(titles: Sequence[str], figures: Sequence[Mapping[str, Any]], out: TextIO) -> None:
    """Print a table with a column a simulation. A figure that one of them does not have is `-` there."""
    rows: dict[tuple[str, str], dict[int, str]] = {}
    longest = {part: _longest(part, figures) for part in ("waiting", "slowdown")}
    for i, each in enumerate(figures):
        for section, label, text in _figures(each, longest):
            rows.setdefault((section, label), {})[i] = text
    # Rows that only a later column has come after those of the first; each section stays together.
    sections = dict.fromkeys(section for section, _ in rows)
    left = max((len(label) for _, label in rows), default=0) + 2
    cells = [[row.get(i, "-") for row in rows.values()] for i in range(len(figures))]
    widths = [max(len(title), *map(len, column)) for title, column in zip(titles, cells, strict=True)]
    heads = [title.rjust(width) for title, width in zip(titles, widths, strict=True)]
    print(" " * left + "   ".join(heads), file=out)
    for section in sections:
        print(section, file=out)
        for (of, label), row in rows.items():
            if of == section:
                texts = [row.get(i, "-").rjust(width) for i, width in enumerate(widths)]
                print(f"  {label:<{left - 2}}" + "   ".join(texts), file=out)


def _longest(part: str, figures: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the users whose p90 is the longest in one of the simulations; all, if they are few."""
    found: dict[str, None] = {}
    for each in figures:
        users = each[part]["users"]
        few = len(users) <= USERS_SHOWN
        found |= dict.fromkeys(users if few else sorted(users, key=lambda user: -users[user]["p90"])[:LONGEST_SHOWN])
    return list(found)


def _figures(figures: Mapping[str, Any], longest: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, str, str]]:
    """Yield section, label and text of every figure that people are shown. `longest`: users to show."""
    for name, count in figures["jobs"].items():
        yield "jobs", name, f"{count:,}"
    for name, count in figures["reasons"].items():
        yield "jobs that did not succeed, by reason", name, f"{count:,}"
    for code, count in figures["rejected"].items():
        yield "refused commands", code, f"{count:,}"
    yield from _who("waiting time, s: p50 / p90 / p99", figures["waiting"], longest["waiting"])
    yield from _who(
        "slowdown (from submission to end, in its own length): p50 / p90 / p99",
        figures["slowdown"],
        longest["slowdown"],
    )
    for device, each in figures["devices"].items():
        text = (
            f"{each['utilisation']:.1%} / {each['calibrating']:.1%} / {each['held']:.1%} / {each['held_seconds']:,.0f}"
        )
        yield "devices: busy / by calibrations / held idle / held idle, s", device, text
    yield from _fairness(figures["fairness"])


def _who(section: str, figures: Mapping[str, Any], users: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    yield section, "all", _show_percentiles(figures["all"])
    for part in ("classes", "groups"):
        for name, each in figures[part].items():
            yield section, name, _show_percentiles(each)
    for user in users:
        if user in figures["users"]:
            yield section, user, _show_percentiles(figures["users"][user])


def _show_percentiles(figures: Mapping[str, float]) -> str:
    return " / ".join(f"{figures[each]:,.1f}" for each in _PERCENTILES) if figures["count"] else "none"


def _fairness(figures: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    section = "fairness: share / use"
    shown = [part for part in ("groups", "accounts", "users") if len(figures[part]) <= USERS_SHOWN]
    for part in shown:
        for name, each in figures[part].items():
            yield section, name, f"{each['share']:.1%} / {each['used']:.1%}"
    apart = [abs(each["used"] - each["share"]) for each in figures["users"].values()]
    yield section, "users: sum of |use - share| / 2", f"{sum(apart) / 2:.1%}"
    lag = figures["worst_lag"]
    yield section, "worst lag, s per share", f"{lag['seconds']:,.0f}"
    if "behind" in lag:
        yield section, "worst lag: who, behind whom", f"{lag['behind']}, {lag['ahead']}"

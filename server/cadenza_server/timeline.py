"""Draw who had a device when: one row a user (or a device), a bar a run, shaded stretches behind them."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from colorsys import hsv_to_rgb
from dataclasses import dataclass
from pathlib import Path
from typing import Final

CALIBRATION: Final = "#d3163a"
"""Of calibrations, whatever the picture; nothing else is red."""

HELD: Final = "#d9dbe0"
"""Of what is held idle; no bar is grey unless it is told to be."""

PALETTE: Final = ("#4269d0", "#efb118", "#6cc5b0", "#a463f2", "#9c6b4e", "#97bbf5", "#3ca951", "#ff9ecb")

SHADES: Final = ("#dfe7f8", "#f3efe2", "#e4f1e7", "#efe4f5")
"""Of windows, and of stretches that have no colour of their own."""

KEY_MAX: Final = 24
"""So many colours are named at most."""

_HUES: Final = (0.07, 0.90)
"""What lies outside is red."""

_UNITS: Final = (
    (240, "seconds", 1, ()),
    (4 * 3_600, "minutes", 60, (1, 2, 5, 10, 15, 20, 30)),
    (4 * 86_400, "hours", 3_600, (1, 2, 3, 6, 12)),
    (math.inf, "days", 86_400, ()),
)
"""Up to so many seconds the time is told in this unit, which has so many of them; from tick to tick it is one of the
last, or some round number."""

_TICKS_MAX: Final = 13


@dataclass(frozen=True, slots=True)
class Bar:
    """One run: its row, when it started and ended (seconds), and what its colour stands for."""

    row: str
    start: float
    end: float
    colour: str


@dataclass(frozen=True, slots=True)
class Shade:
    """A stretch of time that means something (seconds): a hold, a window. In one row, or behind all of them."""

    start: float
    end: float
    meaning: str
    row: str | None = None


def pick_colour(i: int) -> str:
    """Return the i-th colour of bars: the palette's, then hues that are each far from the last ones. None is red or
    grey."""
    if i < len(PALETTE):
        return PALETTE[i]
    low, high = _HUES
    rgb = hsv_to_rgb(low + (high - low) * (0.618034 * i % 1.0), 0.5 + 0.15 * (i % 3), 0.85 - 0.12 * (i % 4))
    return "#" + "".join(f"{round(255 * each):02x}" for each in rgb)


def sort_names(names: Iterable[str]) -> list[str]:
    """Names as people count: `light-2` before `light-10`."""

    def read(name: str) -> list[tuple[int, str]]:
        return [(int(piece), "") if piece.isdigit() else (-1, piece) for piece in re.split(r"([0-9]+)", name)]

    return sorted(set(names), key=lambda name: (read(name), name))


def draw_timeline(
    path: Path,
    *,
    title: str,
    rows: Sequence[str],
    bars: Sequence[Bar],
    shades: Sequence[Shade] = (),
    colours: Mapping[str, str] | None = None,
) -> None:
    """Write the picture to `path`; its suffix (.svg, .png, .pdf) says what kind.

    `rows` from top to bottom. `colours` gives a colour to some meanings, of bars and shades, and is the head of the
    key; the other bars' meanings take the palette's in the order of their names; if there are more, in that of the time
    that they have, and further colours follow. What is `CALIBRATION` stands out: it is drawn over the others and
    higher. A long key has several columns, and what does not fit is counted in it. Raises `ValueError` for another
    suffix.
    """
    # It takes long to import: only who draws pays for it.
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch
    from matplotlib.ticker import AutoLocator, MultipleLocator

    given = dict(colours or {})
    drawn = {bar.colour for bar in bars}
    stretches = list(dict.fromkeys(shade.meaning for shade in shades))
    others = sort_names(drawn - given.keys())
    if len(others) > len(PALETTE):  # those with most of the time are told apart best, and are named
        time: dict[str, float] = dict.fromkeys(others, 0.0)
        for bar in bars:
            if bar.colour in time:
                time[bar.colour] += bar.end - bar.start
        others.sort(key=lambda meaning: -time[meaning])
    plain = sort_names(set(stretches) - given.keys())
    chosen = given | {meaning: pick_colour(i) for i, meaning in enumerate(others)}
    fills = given | {meaning: SHADES[i % len(SHADES)] for i, meaning in enumerate(plain)}
    last = max([0.0, *(bar.end for bar in bars), *(shade.end for shade in shades)])
    unit, scale, steps = next(each[1:] for each in _UNITS if last <= each[0])

    named = [(meaning, given[meaning]) for meaning in given if meaning in drawn or meaning in stretches]
    named += [(meaning, fills[meaning]) for meaning in plain]
    named += [(meaning, chosen[meaning]) for meaning in sort_names(others[:KEY_MAX])]
    key = [Patch(facecolor=colour, label=meaning) for meaning, colour in named]
    if len(others) > KEY_MAX:
        key.append(Patch(facecolor="none", label=f"and {len(others) - KEY_MAX:,} more"))
    columns = -(-max(1, len(key)) // 14)
    height = max(1.6 + 0.55 * len(rows), 0.5 + 0.24 * -(-len(key) // columns))

    figure = Figure(figsize=(12, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    heights = {row: len(rows) - 1 - i for i, row in enumerate(rows)}
    for shade in shades:
        bottom, height = (-0.5, len(rows)) if shade.row is None else (heights[shade.row] - 0.5, 1)
        axes.broken_barh(
            [(shade.start / scale, (shade.end - shade.start) / scale)],
            (bottom, height),
            facecolor=fills[shade.meaning],
            zorder=0,
        )
    # A run that is too short to be seen is drawn as a line; the others are parted by a thin white edge.
    visible = last / scale / 250
    spans: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for bar in bars:
        spans.setdefault((bar.row, bar.colour), []).append((bar.start / scale, (bar.end - bar.start) / scale))
    for (row, meaning), all_of_it in spans.items():
        colour = chosen[meaning]
        calibrates = colour == CALIBRATION
        half = 0.42 if calibrates else 0.32
        for wide, edge, width in ((True, "white", 0.4), (False, colour, 1.2 if calibrates else 0.8)):
            if some := [span for span in all_of_it if (span[1] >= visible) is wide]:
                axes.broken_barh(
                    some,
                    (heights[row] - half, 2 * half),
                    facecolor=colour,
                    edgecolor=edge,
                    linewidth=width,
                    zorder=3 if calibrates else 2,
                )
    axes.set_ylim(-0.5, len(rows) - 0.5)
    axes.set_xlim(left=0, right=last / scale if last else None)
    step = next((each for each in steps if last / scale / each <= _TICKS_MAX), None)
    axes.xaxis.set_major_locator(AutoLocator() if step is None else MultipleLocator(step))
    axes.set_yticks([heights[row] for row in rows], list(rows))
    axes.set_xlabel(unit)
    axes.set_title(title, loc="left")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if key:
        axes.legend(handles=key, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, ncols=columns)
    undated = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix.lower())
    with rc_context({"svg.hashsalt": "cadenza"}):  # the same runs, the same file
        figure.savefig(path, dpi=130, metadata=undated)

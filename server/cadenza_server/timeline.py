"""Draw who had a device when: one row a user (or a device), a bar a run, shaded stretches behind them."""

from collections.abc import Mapping, Sequence
from colorsys import hsv_to_rgb
from dataclasses import dataclass
from pathlib import Path

PALETTE = ("#4269d0", "#efb118", "#6cc5b0", "#ff725c", "#a463f2", "#9c6b4e", "#97bbf5", "#3ca951", "#ff8ab7", "#9498a0")

SHADES = ("#dfe7f8", "#f3efe2", "#e4f1e7", "#f5e3e6")

KEY_MAX = 24
"""So many colours are named at most."""


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


def _colour(i: int) -> str:
    """Return the i-th colour: the palette's, then hues that are each far from the last ones."""
    if i < len(PALETTE):
        return PALETTE[i]
    rgb = hsv_to_rgb(0.618034 * i % 1.0, 0.45 + 0.15 * (i % 3), 0.85 - 0.12 * (i % 4))
    return "#" + "".join(f"{round(255 * each):02x}" for each in rgb)


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

    `rows` from top to bottom. `colours` gives a colour to some of the bars' meanings; the others take the palette's,
    and when that is used up, further ones. A long key has several columns, and what does not fit is counted in it.
    """
    # It takes long to import: only who draws pays for it.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    chosen = dict(colours or {})
    for meaning in dict.fromkeys(bar.colour for bar in bars):
        chosen.setdefault(meaning, _colour(len(chosen)))
    figure = Figure(figsize=(12, 1.6 + 0.55 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    heights = {row: len(rows) - 1 - i for i, row in enumerate(rows)}
    meanings = list(dict.fromkeys(shade.meaning for shade in shades))
    fills = {meaning: SHADES[i % len(SHADES)] for i, meaning in enumerate(meanings)}
    for shade in shades:
        bottom, height = (-0.5, len(rows)) if shade.row is None else (heights[shade.row] - 0.5, 1)
        axes.broken_barh(
            [(shade.start, shade.end - shade.start)], (bottom, height), facecolor=fills[shade.meaning], zorder=0
        )
    # A run that is too short to be seen is drawn as a line; the others are parted by a thin white edge.
    visible = max((bar.end for bar in bars), default=0.0) / 250
    spans: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for bar in bars:
        spans.setdefault((bar.row, bar.colour), []).append((bar.start, bar.end - bar.start))
    for (row, meaning), all_of_it in spans.items():
        colour = chosen[meaning]
        for wide, edge, width in ((True, "white", 0.4), (False, colour, 0.8)):
            if some := [span for span in all_of_it if (span[1] >= visible) is wide]:
                axes.broken_barh(
                    some, (heights[row] - 0.32, 0.64), facecolor=colour, edgecolor=edge, linewidth=width, zorder=2
                )
    axes.set_ylim(-0.5, len(rows) - 0.5)
    axes.set_xlim(left=0)
    axes.set_yticks([heights[row] for row in rows], list(rows))
    axes.set_xlabel("seconds")
    axes.set_title(title, loc="left")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    shown = {meaning for _, meaning in spans}
    used = [m for m in chosen if m in shown]
    key = [Patch(facecolor=fills[m], label=m) for m in meanings]
    key = [Patch(facecolor=chosen[m], label=m) for m in used[:KEY_MAX]] + key
    if len(used) > KEY_MAX:
        key.append(Patch(facecolor="none", label=f"and {len(used) - KEY_MAX:,} more"))
    if key:
        columns = 1 + len(key) // max(12, 3 * len(rows))
        axes.legend(handles=key, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, ncols=columns)
    figure.savefig(path, dpi=130)

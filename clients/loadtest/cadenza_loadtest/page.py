"""The report as one HTML page that needs nothing else: its pictures are inside."""

import html
import io
import re
from collections.abc import Sequence

from matplotlib.figure import Figure

from cadenza_loadtest.report import Report, format_report

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; } td, th { padding: .15rem .8rem; text-align: right; border-bottom: 1px solid #ddd; }
td:first-child, th:first-child { text-align: left; }
.missed { color: #b00020; font-weight: 600; } .met { color: #1b6e2d; }
svg { max-width: 100%; height: auto; } pre { overflow-x: auto; background: #f6f6f6; padding: 1rem; }
"""


def make_page(report: Report) -> str:
    """The HTML text."""
    parts = [
        f"<h1>{_escape(report.scenario)}</h1><p>{_escape(report.description)}</p>",
        f"<p>{_escape(report.time)}, server {_escape(report.server)}, {report.duration_s:g} s, seed {report.seed}.</p>",
    ]
    if report.verdicts:
        rows = "".join(
            f"<tr><td>{_escape(one.figure)}</td><td>{_escape(one.asked)}</td>"
            f"<td>{'not measured' if one.found is None else f'{one.found:,.3f}'}</td>"
            f'<td class="{"met" if one.met else "missed"}">{"met" if one.met else "missed"}</td></tr>'
            for one in report.verdicts
        )
        parts.append(
            f"<h2>Objectives</h2><table><tr><th>figure</th><th>asked</th><th>found</th><th></th></tr>{rows}</table>"
        )
    latencies = sorted({name.split(" ")[1] for name in report.series if name.startswith("latency ")})
    for name in latencies:
        lines = [f"latency {name} {label}" for label in ("p50", "p99", "max")]
        title = f"Latency of {name} from its intended start, by second"
        parts.append(f"<h2>{_escape(title)}</h2>" + _draw(report, lines, "ms", logarithmic=True))
    for title, prefix, unit in (
        ("Throughput by intended start", "rate ", "a second"),
        ("Queue depth", "queued ", "jobs"),
        ("Device utilisation", "utilisation ", "of each second"),
    ):
        lines = [name for name in report.series if name.startswith(prefix)]
        if any(report.series[name] for name in lines):
            parts.append(f"<h2>{title}</h2>" + _draw(report, lines, unit))
    if report.accounts:
        parts.append("<h2>Share against use</h2>" + _draw_accounts(report))
    parts.append(f"<h2>All figures</h2><pre>{_escape(format_report(report))}</pre>")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{_escape(report.scenario)}</title>'
        f"<style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def _draw(report: Report, names: Sequence[str], unit: str, *, logarithmic: bool = False) -> str:
    figure = Figure(figsize=(9, 2.8), layout="constrained")
    axes = figure.subplots()
    for name in names:
        points = report.series[name]
        axes.plot([point[0] for point in points], [point[1] for point in points], label=name.partition(" ")[2], lw=1.2)
    if logarithmic:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.set_xlabel("seconds")
    axes.set_ylabel(unit)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", ncols=3)
    return _to_svg(figure, names[0])


def _draw_accounts(report: Report) -> str:
    figure = Figure(figsize=(9, 2.8), layout="constrained")
    axes = figure.subplots()
    shown = list(report.accounts.items())[:40]
    for offset, column, label in ((-0.2, 0, "due by its shares"), (0.2, 1, "used")):
        places = [number + offset for number in range(len(shown))]
        axes.bar(places, [pair[column] for _, pair in shown], width=0.4, label=label)
    axes.set_xticks(range(len(shown)), [path.rpartition("/")[2] for path, _ in shown], rotation=45, ha="right")
    axes.set_ylabel("fraction")
    axes.legend(fontsize="small")
    return _to_svg(figure, "accounts")


def _to_svg(figure: Figure, name: str) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    # pictures share a page, so the names inside each must differ from the others'
    prefix = re.sub(r"\W", "-", name)
    svg = re.sub(r'id="', f'id="{prefix}-', svg)
    svg = re.sub(r'href="#', f'href="#{prefix}-', svg)
    svg = re.sub(r"url\(#", f"url(#{prefix}-", svg)
    return svg[svg.index("<svg") :]


def _escape(text: str) -> str:
    return html.escape(text)

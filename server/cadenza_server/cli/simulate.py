"""`cadenza simulate`: scenario files on a virtual clock."""

from pathlib import Path
from typing import Annotated

import typer

from cadenza_server.cli.connection import ended_in_one_voice
from cadenza_server.cli.failure import fail
from cadenza_server.cli.picture import check_picture


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        rich_help_panel="Try",
        epilog="Examples:\ncadenza simulate scenario.yaml\ncadenza simulate scenarios/*.yaml --json\n"
        "cadenza simulate scenario.yaml --plot timeline.svg\ncadenza simulate --compare a.yaml b.yaml",
    )(simulate)


def simulate(
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="Scenario files.")],
    json: Annotated[
        bool, typer.Option("--json", help="One JSON object a file, one a line; {error} for what is no scenario.")
    ] = False,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare",
            help="Print figures of the files side by side (of one, alone): waiting, slowdown, devices, fairness, "
            "failures.",
        ),
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE.svg", help="Draw who had which device when (.svg, .png or .pdf)."),
    ] = None,
) -> None:
    """Run scenarios and workloads through the server's own scheduler on a virtual clock, and print what it decides.

    Exit code 0: every `expect` was met, or there was none; 1: one was not; 2: a file is no scenario.
    """
    import sys

    if plot is not None:
        if compare or len(files) != 1:
            fail("--plot draws one file: give one, and no --compare", 2)
        check_picture("--plot", plot)
    from cadenza_server.simulation import compare_files, run_files

    with ended_in_one_voice():
        code = compare_files(files, json, sys.stdout) if compare else run_files(files, json, sys.stdout, plot=plot)
    raise typer.Exit(code)

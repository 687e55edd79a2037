"""`cadenza simulate`: scenario files on a virtual clock."""

from pathlib import Path
from typing import Annotated

import typer

from cadenza_server.cli.connection import ended_in_one_voice


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        rich_help_panel="Try",
        epilog="Examples:\ncadenza simulate scenario.yaml\ncadenza simulate scenarios/*.yaml --json",
    )(simulate)


def simulate(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Scenario files.")],
    json: Annotated[bool, typer.Option("--json", help="One JSON object a file, one a line.")] = False,
) -> None:
    """Run scenarios through the server's own scheduler on a virtual clock, and print what it decides.

    Exit code 0: every `expect` was met, or there was none; 1: one was not; 2: a file is no scenario.
    """
    import sys

    from cadenza_server.simulation import run_files

    with ended_in_one_voice():
        code = run_files(files, json, sys.stdout)
    raise typer.Exit(code)

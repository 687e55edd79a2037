"""`cadenza demo`: the main job, played end to end."""

from pathlib import Path
from typing import Annotated

import typer

from cadenza_server.cli.connection import ended_in_one_voice
from cadenza_server.cli.picture import check_picture


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="Try", epilog="Examples:\ncadenza demo\ncadenza demo --picture timeline.svg")(demo)


def demo(
    picture: Annotated[
        Path, typer.Option(metavar="FILE", help="Where the timeline is drawn; its suffix says how: png, svg, pdf.")
    ] = Path("cadenza-demo.png"),
) -> None:
    """Watch several users share one simulated device: a session, a calibration, and fair share, in under two minutes.

    It starts a private server, so nothing of yours is touched. Exit code 0: every promise that it checks was kept.
    """
    check_picture("--picture", picture)
    from rich.console import Console

    with ended_in_one_voice():
        from cadenza_server.demo.show import run_demo

        code = run_demo(picture, Console())
    raise typer.Exit(code)

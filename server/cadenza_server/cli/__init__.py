"""The command line. Each module named in `COMMANDS` has a `register(app)` that adds its commands.

Modules import what they need inside their commands, so that `--help` and small commands start at once.
"""

import importlib
from typing import Annotated, Final

import typer

COMMANDS: Final = (
    "serve",
    "config",
    "token",
    "check",
    "demo",
    "simulate",
    "jobs",
    "submit",
    "sessions",
    "devices",
    "shares",
    "reservations",
)
"""Modules of this package, in the order in which `--help` shows them."""


def build_app() -> typer.Typer:
    """The command line with all commands."""
    app = typer.Typer(
        name="cadenza",
        help="A scheduling server for quantum jobs: sessions, fair share, reservations and calibration.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback()
    def root(
        version: Annotated[
            bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
        ] = False,
    ) -> None:
        pass

    for name in COMMANDS:
        importlib.import_module(f"cadenza_server.cli.{name}").register(app)
    return app


def _show_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"cadenza {version('cadenza')}")
        raise typer.Exit


def main() -> None:
    """Run the command that the arguments name, and exit."""
    build_app()()

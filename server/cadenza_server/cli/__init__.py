"""The command line. Each module named in `COMMANDS` has a `register(app)` that adds its commands.

Modules import what they need inside their commands, so that `--help` and small commands start at once.
"""

import importlib
from typing import Final

import typer

COMMANDS: Final = (
    "serve",
    "config",
    "token",
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
    )

    @app.callback()
    def root() -> None:
        pass

    for name in COMMANDS:
        importlib.import_module(f"cadenza_server.cli.{name}").register(app)
    return app


def main() -> None:
    """Run the command that the arguments name, and exit."""
    build_app()()

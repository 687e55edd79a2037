"""The command line. Each module named in `COMMANDS` has a `register(app)` that adds its commands.

Modules import what they need inside their commands, so that `--help` and small commands start at once.
"""

import errno
import importlib
import io
import os
import sys
from typing import Annotated, Any, Final

import typer
from typer.core import TyperCommand

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
    for part in (app, *(group.typer_instance for group in app.registered_groups if group.typer_instance)):
        for command in part.registered_commands:
            command.cls = _Command
    return app


class _Command(TyperCommand):
    """A command whose help shows flags without a type, for they take no value, and whose refusals are in our words."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for each in self.params:
            _hide_type(each)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As ever, but a wrong choice is told without the words of the library that checks it."""
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            said = getattr(error, "message", None)
            if isinstance(said, str):
                error.message = said.removeprefix("Value error, ")  # type: ignore[attr-defined]
            raise

    def get_help_option(self, ctx: Any) -> Any:
        """As it is, without a type."""
        return _hide_type(super().get_help_option(ctx))


def _hide_type(option: Any) -> Any:
    if getattr(option, "is_flag", False):
        option.metavar = " "
    return option


def _show_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"cadenza {version('cadenza')}")
        raise typer.Exit


_CANNOT_WRITE: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
_NOBODY_READS: Final = 128 + 13
"""The exit code of a tool that SIGPIPE ended, as shells have it: `cadenza simulate FILE | head` is no failure."""


def main() -> None:
    """Run the command that the arguments name, and exit."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # A name that the terminal's encoding lacks is no reason to fail.
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            build_app()()
        finally:
            sys.stdout.flush()
    except SystemExit as end:  # the libraries that print and parse make one of a pipe that nobody reads
        if isinstance(end.__context__, BrokenPipeError):
            raise SystemExit(_NOBODY_READS) from None
        raise
    except OSError as error:
        if error.errno not in _CANNOT_WRITE or error.filename is not None:
            raise
        # What is still to be written would fail again, at the interpreter's end, with a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(f"cadenza: the output cannot be written: {error.strerror}", file=sys.stderr)
        raise SystemExit(1) from None

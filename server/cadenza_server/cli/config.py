"""`cadenza config`: what a server would be told."""

from pathlib import Path
from typing import Annotated

import typer

from cadenza_server.cli.failure import fail


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="Server")(config)


def config(
    file: Annotated[
        Path | None, typer.Option("--config", metavar="FILE.toml", help="The configuration to check and complete.")
    ] = None,
) -> None:
    """Print the effective configuration as TOML with comments: a file to start from, or a check of yours."""
    from cadenza_server.config import ConfigError, load_config, print_config

    try:
        typer.echo(print_config(load_config(file)), nl=False)
    except ConfigError as error:
        fail(error, 2)

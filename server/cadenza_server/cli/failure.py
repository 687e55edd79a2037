"""How a command says that it cannot: a sentence on stderr and an exit code that is not 0."""

from typing import NoReturn

import typer


def fail(message: object, code: int = 1) -> NoReturn:
    """End the command. 1: it could not; 2: it was asked wrongly."""
    typer.echo(f"cadenza: {message}", err=True)
    raise typer.Exit(code)

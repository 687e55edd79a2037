"""`cadenza token`: make a token for a user."""

from typing import Annotated

import typer

from cadenza_server.cli.failure import fail


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="Server")(token)


def token(
    user: Annotated[str, typer.Option(metavar="PATH", help="Whose token: a path in the share tree, as lab/alice.")],
    role: Annotated[str, typer.Option(metavar="user|operator", help="What its bearer may do.")] = "user",
    name: Annotated[str, typer.Option(metavar="TEXT", help="A note for people.")] = "",
) -> None:
    """Make a token: print it, and the lines for the server's configuration. The token is shown this once."""
    import secrets

    from cadenza_server.config import print_token
    from cadenza_server.model.paths import check_path
    from cadenza_server.tokens import TokenEntry, hash_token, make_token

    try:
        path = check_path(user)
    except ValueError as error:
        fail(f"--user: {error}", 2)
    if role not in ("user", "operator"):
        fail(f"--role: {role!r} is neither user nor operator", 2)
    made = make_token(secrets.token_bytes)
    entry = TokenEntry(path=path, operator=role == "operator", hash=hash_token(made), name=name)
    typer.echo("# The token; give it to its user, nobody can show it again:")
    typer.echo(f"#   {made}")
    typer.echo("# For the server's configuration file:")
    typer.echo("\n".join(print_token(entry)))

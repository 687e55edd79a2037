"""Commands that call a server: their common options, how they end when it refuses, and how Ctrl-C stops them."""

import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, Final, ParamSpec

import typer

from cadenza_server.cli.failure import fail

if TYPE_CHECKING:
    from cadenza import Client, Tls

P = ParamSpec("P")

INTERRUPTED: Final = 130
"""Exit code after Ctrl-C, as shells have it."""

_PANEL: Final = "Which server, and who calls; each may be set as the variable in brackets"


def _option(name: str, help_text: str, metavar: str | None = None) -> Any:
    """`CADENZA_` and the name is the variable, which the help names in few characters: it stands below each command."""
    variable = "CADENZA_" + name.removeprefix("--").replace("-", "_").upper()
    return typer.Option(
        name,
        envvar=variable,
        show_envvar=False,
        help=f"{help_text} ({variable}).",
        metavar=metavar,
        rich_help_panel=_PANEL,
    )


def _options(
    target: Annotated[str | None, _option("--target", "The server, if not 127.0.0.1:50051", "HOST:PORT")] = None,
    user: Annotated[str | None, _option("--user", "Who you are, where names are trusted", "PATH")] = None,
    token: Annotated[str | None, _option("--token", "Your token, where it wants one", "TEXT")] = None,
    tls: Annotated[bool, _option("--tls", "Encrypt")] = False,
    tls_ca: Annotated[Path | None, _option("--tls-ca", "Encrypt; trust this authority", "FILE")] = None,
    tls_certificate: Annotated[Path | None, _option("--tls-certificate", "Your certificate", "FILE")] = None,
    tls_key: Annotated[Path | None, _option("--tls-key", "Its key", "FILE")] = None,
    tls_server_name: Annotated[str | None, _option("--tls-server-name", "Its name in its certificate", "NAME")] = None,
) -> None:
    """The options that each command gets, by their signature."""


_CONNECTION: Final = inspect.signature(_options)


def calls_server(command: Callable[Concatenate["Client", P], None]) -> Callable[..., None]:
    """The command with the connection's options added to its own, and a client as its first argument.

    What the server refuses ends it with the server's sentence and exit code 1; Ctrl-C with 130.
    """
    own = list(inspect.signature(command).parameters.values())[1:]
    parameters = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own]
    parameters += [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in _CONNECTION.parameters.values()]

    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        connection: dict[str, Any] = {name: kwargs.pop(name) for name in _CONNECTION.parameters}
        with ended_in_one_voice(), connect(**connection) as client:
            command(client, *args, **kwargs)

    run.__name__ = command.__name__
    run.__doc__ = command.__doc__
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return run


@contextmanager
def ended_in_one_voice() -> Iterator[None]:
    """What a command may raise becomes a sentence and an exit code."""
    try:
        yield
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except Exception as error:
        from cadenza import CadenzaError

        if not isinstance(error, CadenzaError):
            raise
        fail(error)


def connect(
    target: str | None,
    user: str | None,
    token: str | None,
    tls: bool,
    tls_ca: Path | None,
    tls_certificate: Path | None,
    tls_key: Path | None,
    tls_server_name: str | None,
) -> "Client":
    """The client that the options ask for. Wrong ones end the command with exit code 2."""
    # What gRPC prints by itself is told in our sentence; whoever wants to see it sets the variable.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from cadenza import Client

    if user is not None:
        check_path_option("--user", user)
    try:
        return Client(
            target, user=user, token=token, tls=_make_tls(tls, tls_ca, tls_certificate, tls_key, tls_server_name)
        )
    except OSError as error:
        fail(f"{error.filename}: it cannot be read: {error.strerror}", 2)


def _make_tls(
    tls: bool, ca: Path | None, certificate: Path | None, key: Path | None, server_name: str | None
) -> "Tls | None":
    from cadenza import Tls

    if (certificate is None) != (key is None):
        fail("--tls-certificate and --tls-key belong together: give both", 2)
    if not tls and ca is None and certificate is None and server_name is None:
        return None
    return Tls(ca=ca, certificate=certificate, key=key, server_name=server_name)


def check_path_option(option: str, path: str) -> str:
    """`path`, if it is one of the share tree; else the command ends with exit code 2."""
    from cadenza_server.model.paths import check_path

    try:
        return check_path(path)
    except ValueError as error:
        fail(f"{option}: {error}", 2)

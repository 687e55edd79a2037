"""`cadenza serve`: run a server."""

from pathlib import Path
from typing import Annotated

import typer

from cadenza_server.cli.failure import fail


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="Server")(serve)


def serve(
    listen: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Where to listen (127.0.0.1:50051; port 0: a free one).")
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(metavar="DIR", help="Where jobs and results are kept.")] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE.toml", help="Devices, shares, tokens; see `cadenza config`.")
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(metavar="[HOST:]PORT", help="Serve metrics for Prometheus there; without HOST: loopback."),
    ] = None,
    log_format: Annotated[str | None, typer.Option(metavar="text|json", help="How logs are written to stderr.")] = None,
    log_level: Annotated[
        str | None, typer.Option(metavar="LEVEL", help="What is logged: debug, info, warning or error.")
    ] = None,
    ready_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help='Write {"address": ...} there when the server is ready.')
    ] = None,
    until_stdin_closes: Annotated[
        bool, typer.Option("--until-stdin-closes", help="Stop when standard input ends: with who started the server.")
    ] = False,
) -> None:
    """Run a server until Ctrl-C or SIGTERM. It prints `listening on HOST:PORT` when it is ready.

    Options go before what the configuration says.
    """
    import asyncio
    import dataclasses
    import os

    # gRPC writes lines of its own to stderr, which is for the log: what matters to an owner is told there. Whoever
    # wants to see them sets the variable. It counts when gRPC is loaded, which is below.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from cadenza_server.app import ServeError
    from cadenza_server.app import serve as run
    from cadenza_server.config import ConfigError, check_logging, load_config, parse_address, parse_metrics_address
    from cadenza_server.logs import set_up_logs

    try:
        loaded = load_config(config)
        if listen is not None:
            loaded = dataclasses.replace(loaded, listen=parse_address(listen))
        if metrics is not None:
            loaded = dataclasses.replace(loaded, metrics=parse_metrics_address(metrics))
        if data_dir is not None:
            loaded = dataclasses.replace(loaded, data_dir=data_dir.expanduser().absolute())
        loaded = dataclasses.replace(loaded, logging=check_logging(loaded.logging, log_format, log_level))
    except (ConfigError, ValueError) as error:
        fail(error, 2)
    set_up_logs(loaded.logging.format, loaded.logging.level)
    try:
        asyncio.run(run(loaded, ready_file=ready_file, until_stdin_closes=until_stdin_closes))
    except ConfigError as error:
        fail(error, 2)
    except ServeError as error:
        fail(error)

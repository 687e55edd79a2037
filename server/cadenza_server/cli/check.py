"""`cadenza check` and `cadenza backup`: a store, with or without a server that writes it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from cadenza_server.cli.failure import fail
from cadenza_server.cli.output import print_json

if TYPE_CHECKING:
    from cadenza_server.store.check import Report

BROKEN: Final = 1
"""The exit code if a promise is broken."""

UNCHECKED: Final = 2
"""The exit code if it could not be checked."""

DataDirOption = Annotated[
    Path | None, typer.Option("--data-dir", metavar="DIR", help="Where the server keeps jobs and results.")
]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", metavar="FILE.toml", help="The server's configuration, which may name it.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(
        rich_help_panel="Server",
        epilog="Examples:\ncadenza check\ncadenza check --data-dir /srv/cadenza --json\n"
        "cadenza check /backups/monday.db",
    )(check)
    app.command(rich_help_panel="Server", epilog="Example:\ncadenza backup /backups/monday.db")(backup)


def check(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="[FILE]", help="A copy that `cadenza backup` made; else the server's store."),
    ] = None,
    data_dir: DataDirOption = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Verify that a store keeps what it promises, without a server and without changing it.

    One final state a job, attempts one after the other, numbers used once, charges that sum to usage, one active
    session and one run a device, results of what succeeded and nothing else, nothing named that is not there, and
    SQLite's own check of the file. A server may be writing it: one moment is looked at. Exit code 0: all is well; 1:
    something is broken, and what; 2: it could not be checked.
    """
    from cadenza_server.store import check as checking
    from cadenza_server.store.errors import StoreError

    try:
        if file is not None and (data_dir is not None or config is not None):
            fail("give FILE or where the server's store is, not both", 2)
        report = checking.check(file if file is not None else _find_store(data_dir, config))
    except StoreError as error:
        fail(error, 2)
    if json:
        print_json(_document(report))
    else:
        _print_report(report)
    if not report.is_sound:
        raise typer.Exit(BROKEN if report.broken else UNCHECKED)


def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The copy to make; it must not exist.")],
    data_dir: DataDirOption = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Copy a store into one file, also while its server runs, and verify the copy.

    The copy is one moment of the store. To go back to it: stop the server, move `cadenza.db`, `cadenza.db-wal` and
    `cadenza.db-shm` away, and put the copy there as `cadenza.db`. Exit codes are those of `cadenza check`.
    """
    from cadenza_server.store import backup as copying
    from cadenza_server.store.errors import StoreError

    try:
        report = copying.back_up(_find_store(data_dir, config), file)
    except StoreError as error:
        fail(error, 2)
    if json:
        print_json({**_document(report), "bytes": str(file.stat().st_size) if report.is_sound else "0"})
    elif report.is_sound:
        typer.echo(f"{file}: {file.stat().st_size:,} bytes, {report.counts['jobs']:,} jobs; verified")
    else:
        _print_report(report)
    if not report.is_sound:
        raise typer.Exit(BROKEN if report.broken else UNCHECKED)


def _find_store(data_dir: Path | None, config: Path | None) -> Path:
    from cadenza_server.config import ConfigError, load_config
    from cadenza_server.store.store import FILE_NAME

    if data_dir is None:
        try:
            data_dir = load_config(config).data_dir
        except ConfigError as error:
            fail(error, 2)
    return data_dir.expanduser() / FILE_NAME


def _document(report: "Report") -> dict[str, object]:
    return {
        "path": str(report.path),
        "schema": report.version,
        "sound": report.is_sound,
        "counts": report.counts,
        "broken": report.broken,
        "unchecked": report.unchecked,
        "findings": [{"promise": each.promise, "subject": each.subject, "text": each.text} for each in report.findings],
    }


def _print_report(report: "Report") -> None:
    from cadenza_server.cli.output import clean
    from cadenza_server.store.check import PROMISES

    texts = {"file": "the file is whole", **{promise.name: promise.text for promise in PROMISES}}
    looked_at = ", ".join(f"{count:,} {table}" for table, count in report.counts.items() if count)
    unread = "nothing in it" if report.is_sound else "nothing that can be read"
    typer.echo(f"{report.path}, schema {report.version}: {looked_at or unread}")
    for name, text in texts.items():
        count = report.broken.get(name)
        if name in report.unchecked:
            typer.echo(f"?       {name}: could not be checked: {report.unchecked[name]}")
            continue
        typer.echo(f"{'ok    ' if count is None else 'BROKEN'}  {name}: {text}")
        shown = [each for each in report.findings if each.promise == name]
        for each in shown:
            typer.echo(f"          {clean(each.subject)} {clean(each.text)}")
        if count is not None and count > len(shown):
            typer.echo(f"          and {count - len(shown):,} more")

"""A copy of a store in one file, made while a server writes it, and verified."""

import os
import sqlite3
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

from cadenza_server.store.check import Report, check, has_log, open_reader
from cadenza_server.store.errors import StoreError


def copy_store(source: Path, target: Path) -> None:
    """Copy one moment of the store at `source` to the file `target`, which must not exist, and wait until it is on
    disk. Raises `sqlite3.Error` and `OSError`; then there may be a part of it."""
    # Made here and not by SQLite: nobody else is to read it (other people's circuits and results are in it).
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    with closing(open_reader(source)) as reader, closing(sqlite3.connect(target)) as writer:
        # All pages in one step: one read transaction, that no commit of a server begins anew.
        reader.backup(writer)
        # One file, without a log beside it, however the source is kept.
        writer.execute("PRAGMA journal_mode = DELETE")
    for path in (target, target.parent):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def back_up(source: Path, target: Path) -> Report:
    """Copy the store at `source` to the new file `target` and check the copy; if it is not sound there is no `target`.
    Raises `StoreError`."""
    if not source.exists():
        raise StoreError(f"there is no store at {source}: give the --data-dir of a server")
    if target.exists():
        raise StoreError(f"{target} exists: name a new file, so that no copy is lost")
    half = target.with_name(target.name + ".part")
    try:
        while True:
            half.unlink(missing_ok=True)
            had_log = has_log(source)
            copy_store(source, half)
            if had_log or not has_log(source):
                break  # else a server has begun to write it in the meantime
        report = replace(check(half), path=target)
        if report.is_sound:
            half.rename(target)
    except (sqlite3.Error, OSError) as error:
        raise StoreError(
            f"cannot copy {source} to {target} ({error}): is there room, and may it be written?"
        ) from error
    finally:
        with suppress(OSError):
            half.unlink(missing_ok=True)
    return report

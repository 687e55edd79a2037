"""Brings a store to the schema of this code, once, at start; a store of a newer server is refused."""

import os
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from cadenza_server.store.errors import StoreError
from cadenza_server.store.schema import HEAD


def schema_version(path: Path) -> str | None:
    """The version of the store at `path`; None: it is new. Raises `StoreError` if it is no store."""
    if not path.exists() or not path.stat().st_size:
        log = path.with_name(path.name + "-wal")
        if log.exists() and log.stat().st_size:
            # SQLite would throw it away beside a new file, or an empty one.
            how = "empty" if path.exists() else "not there"
            raise StoreError(f"{path} is {how}, but {log.name} is there, which belongs to it: restore the file")
        return None
    try:
        with closing(sqlite3.connect(path)) as connection:
            if not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                return None
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.Error as error:
        raise StoreError(f"{path} cannot be read as a store of Cadenza ({error}): restore it from a backup") from error
    return str(row[0]) if row else None


def migrate(path: Path, now: int) -> None:
    """Make or upgrade the store at `path`; an existing one is copied to `path.VERSION-TIME.backup` first, which is
    never deleted: with it an older server can take up what it had."""
    version = schema_version(path)
    if version == HEAD:
        return
    if version is not None and version > HEAD:
        raise StoreError(
            f"{path} has schema {version}, made by a newer server; this one knows up to {HEAD}: start the newer "
            "server, or give another --data-dir"
        )
    if version is not None:
        moment = datetime.fromtimestamp(now / 1e9, UTC).strftime("%Y%m%dT%H%M%SZ")
        backup = path.with_name(f"{path.name}.{version}-{moment}.backup")
        os.close(os.open(backup, os.O_WRONLY | os.O_CREAT, 0o600))  # for its owner only, as the store is
        with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(backup)) as target:
            source.backup(target)
    # Loaded here because it takes long and most starts find nothing to migrate.
    from alembic import command
    from alembic.config import Config
    from sqlalchemy import URL, create_engine
    from sqlalchemy.pool import NullPool

    if version is None:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")).replace("%", "%%"))
    engine = create_engine(URL.create("sqlite", database=str(path)), poolclass=NullPool)
    with engine.begin() as connection_:
        config.attributes["connection"] = connection_
        command.upgrade(config, "head")
    engine.dispose()

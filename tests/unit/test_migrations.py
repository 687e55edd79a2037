"""A store of an older server is brought to the present schema, with what it holds."""

import sqlite3
from contextlib import closing
from pathlib import Path

from alembic import command
from alembic.config import Config
from cadenza_server.store import Store, migration
from cadenza_server.store.reads import read_job
from cadenza_server.store.schema import HEAD
from sqlalchemy import create_engine


def make_store(path: Path, version: str) -> None:
    """A store as the server of that version made it, with one queued job."""
    config = Config()
    config.set_main_option("script_location", str(Path(migration.__file__).with_name("migrations")))
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, version)
    engine.dispose()
    job = {
        "seq": 1,
        "job": "old",
        "user": "lab/ann",
        "device": "aer",
        "job_class": "FAIR_SHARE",
        "program_kind": "SAMPLER",
        "state": "QUEUED",
        "priority": 0,
        "first": 0,
        "estimate_ns": 1,
        "limit_ns": 2,
        "min_duration_ns": 0,
        "create_time": 3,
        "attempts": 0,
        "attempts_lost": 0,
        "charged_ns": 0,
        "accept_event": 1,
        "program": b"program",
    }
    names, marks = ", ".join(job), ", ".join("?" * len(job))
    with closing(sqlite3.connect(path)) as connection_:
        connection_.execute(f"INSERT INTO jobs ({names}) VALUES ({marks})", tuple(job.values()))
        connection_.commit()


async def test_a_store_of_the_first_version_is_upgraded_and_copied_before(tmp_path: Path) -> None:
    path = tmp_path / "cadenza.db"
    make_store(path, "0001")
    store = Store(tmp_path)
    await store.open(0)
    try:
        row = await store.read(lambda connection: read_job(connection, "old"))
    finally:
        await store.close()
    assert row is not None
    assert row.view.user == "lab/ann"
    assert migration.schema_version(path) == HEAD
    backup = tmp_path / "cadenza.db.0001-19700101T000000Z.backup"
    assert migration.schema_version(backup) == "0001"
    assert backup.stat().st_mode & 0o077 == 0

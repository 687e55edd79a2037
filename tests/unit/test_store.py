"""The store by itself: its schema, its lock, its commits, what it says when it cannot be used."""

import asyncio
import json
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, closing
from enum import StrEnum
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from cadenza_server.clock import SystemClock, VirtualClock
from cadenza_server.engine.ids import TimeOrderedIds
from cadenza_server.store import Store, StoreError, StoreInUse, commit_process, committer, lock, migration
from cadenza_server.store.batch import INSERT_EVENT, INSERT_RESULT, PUT_META, Batch
from cadenza_server.store.commit_process import Row
from cadenza_server.store.reads import ResultPiece, iterate_result, read_result_size
from cadenza_server.store.schema import HEAD, meta, metadata
from cadenza_server.store.store import FILE_NAME
from sqlalchemy import Connection, create_engine, select, text


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    store = Store(tmp_path)
    await store.open(0)
    yield store
    await store.close()


def values(connection: Connection) -> dict[str, int]:
    return {row.key: row.value for row in connection.execute(select(meta))}


async def test_the_migrations_make_the_schema_that_the_code_has(store: Store) -> None:
    engine = create_engine(f"sqlite:///{store.path}")
    with engine.connect() as connection:
        differences = compare_metadata(MigrationContext.configure(connection), metadata)
    engine.dispose()
    assert differences == []


def test_the_newest_migration_is_the_version_that_the_code_reads() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(migration.__file__).with_name("migrations")))
    assert ScriptDirectory.from_config(config).get_current_head() == HEAD


async def test_the_log_is_ahead_and_on_disk_at_each_commit(store: Store) -> None:
    def pragmas(connection: Connection) -> str:
        return str(connection.execute(text("PRAGMA journal_mode")).scalar())

    assert await store.read(pragmas) == "wal"
    assert dict(commit_process.PRAGMAS)["synchronous"] == 2  # FULL; the process refuses to open without


def test_a_file_system_without_a_write_ahead_log_is_refused(
    monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    commit_process.run(":memory:")  # where SQLite has no such log either
    answer = capfdbinary.readouterr().out
    assert b"this file system does not allow journal_mode = wal, but memory" in answer


async def test_a_killed_committer_fails_its_commit_and_the_next_one_has_a_new_one(store: Store) -> None:
    assert store._committer is not None
    process = store._committer._process
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    lost = Batch()
    lost.add(PUT_META, ("lost", 1))
    pending = asyncio.ensure_future(store.commit(lost))
    await asyncio.sleep(0)
    process.kill()
    with pytest.raises(StoreError, match="has ended"):
        await pending
    kept = Batch()
    kept.add(PUT_META, ("kept", 1))
    await store.commit(kept)
    assert await store.read(values) == {"kept": 1}


class _Word(StrEnum):
    """`marshal` takes no subclasses."""

    ONE = "one"


@pytest.mark.parametrize("value", [_Word.ONE, "half of a pair: \ud800", 1 << 64])
async def test_a_value_that_cannot_be_written_fails_its_batch_and_no_other(store: Store, value: str | int) -> None:
    assert store._committer is not None
    process = store._committer._process
    assert process is not None
    refused, kept = Batch(), Batch()
    refused.add(PUT_META, ("first", 1))
    refused.add(PUT_META, ("refused", value))
    kept.add(PUT_META, ("kept", 1))
    async with asyncio.timeout(5):
        with pytest.raises(StoreError, match=r"a bug|cannot write"):
            await store.commit(refused)
        await store.commit(kept)
    assert await store.read(values) == {"kept": 1}
    assert process.poll() is None


@pytest.mark.parametrize("end", [b"", b"1234", commit_process.HEADER.pack(9) + b"1234"])
def test_a_committer_whose_server_dies_says_nothing_and_finishes(tmp_path: Path, end: bytes) -> None:
    path = tmp_path / FILE_NAME
    migration.migrate(path, 0)
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", commit_process.__file__, str(path)],
            stdin=theirs.fileno(),
            stdout=theirs.fileno(),
            stderr=subprocess.PIPE,
        )
    assert ours.recv(1 << 10) == commit_process.pack(None)
    process.send_signal(signal.SIGSTOP)
    ours.sendall(commit_process.pack([(PUT_META, [("sent", 1)])]) + end)
    ours.close()
    process.send_signal(signal.SIGCONT)
    _, said = process.communicate(timeout=10)
    assert (process.returncode, said) == (0, b"")
    engine = create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        assert values(connection) == {"sent": 1}
    engine.dispose()


def test_a_committer_whose_server_is_dead_already_says_nothing(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    migration.migrate(path, 0)
    ours, theirs = socket.socketpair()
    ours.close()
    with theirs:
        done = subprocess.run(
            [sys.executable, "-I", "-S", commit_process.__file__, str(path)],
            stdin=theirs.fileno(),
            stdout=theirs.fileno(),
            stderr=subprocess.PIPE,
            timeout=10,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, b"")


async def test_a_committer_that_cannot_be_started_is_a_store_error(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object, **_options: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    assert store._committer is not None
    process = store._committer._process
    assert process is not None
    process.kill()
    while store._committer.is_running:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", fail)
        with pytest.raises(StoreError, match="cannot start the process that writes"):
            await store.commit(Batch())
    batch = Batch()
    batch.add(PUT_META, ("kept", 1))
    await store.commit(batch)
    assert await store.read(values) == {"kept": 1}


async def test_a_committer_that_hangs_is_killed_in_the_end_and_the_store_can_be_taken_up_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committer, "PATIENCE_SECONDS", 0.2)
    store = Store(tmp_path)
    await store.open(0)
    acknowledged = Batch()
    acknowledged.add(PUT_META, ("kept", 1))
    await store.commit(acknowledged)
    assert store._committer is not None
    process = store._committer._process
    assert process is not None
    os.kill(process.pid, signal.SIGSTOP)
    never = Batch()
    never.add(PUT_META, ("unknown", 1))
    waiting = asyncio.ensure_future(store.commit(never))
    with pytest.raises(StoreError, match="hung and was killed"):
        await store.close()
    with pytest.raises(StoreError, match="has ended"):
        await waiting
    await asyncio.to_thread(process.wait)
    again = Store(tmp_path)
    await again.open(0)
    assert (await again.read(values))["kept"] == 1
    await again.close()


async def test_signals_for_the_server_do_not_end_its_committer(store: Store) -> None:
    assert store._committer is not None
    process = store._committer._process
    assert process is not None
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        process.send_signal(number)
    batch = Batch()
    batch.add(PUT_META, ("kept", 1))
    await store.commit(batch)
    assert process.poll() is None


async def test_a_store_is_taken_up_only_when_its_dead_server_s_committer_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import asyncio, os, pathlib, signal, sys\n"
        "from cadenza_server.store import Store\n"
        "from cadenza_server.store.batch import PUT_META, Batch\n"
        "async def main():\n"
        "    store = Store(pathlib.Path(sys.argv[1]))\n"
        "    await store.open(0)\n"
        "    os.kill(store._committer._process.pid, signal.SIGSTOP)\n"
        "    batch = Batch()\n"
        "    batch.add(PUT_META, ('sent', 1))\n"
        "    store._committer.commit(batch)\n"
        "    print(store._committer._process.pid, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())\n"
    )
    dead = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True, check=False
    )
    assert dead.returncode == -signal.SIGKILL
    store = Store(tmp_path)
    with monkeypatch.context() as hurried:
        hurried.setattr(lock, "LAST_WORDS_SECONDS", 0.0)
        with pytest.raises(StoreInUse, match=r"still being written for a server that has died .*kill it"):
            await store.open(0)
    opening = asyncio.create_task(store.open(0))
    assert not (await asyncio.wait([opening], timeout=0.1))[0]
    os.kill(int(dead.stdout), signal.SIGCONT)
    await opening
    assert await store.read(values) == {"sent": 1}
    await store.close()


async def test_a_batch_is_written_all_or_not_at_all(store: Store) -> None:
    batch = Batch()
    batch.add(PUT_META, ("kept", 1))
    await store.commit(batch)
    bad = Batch()
    bad.add(PUT_META, ("kept", 2))
    bad.append(INSERT_EVENT, (1, 0, None, None, "kind", "{}"))
    bad.append(INSERT_EVENT, (1, 0, None, None, "kind", "{}"))
    with pytest.raises(StoreError, match="UNIQUE constraint failed"):
        await store.commit(bad)
    assert await store.read(values) == {"kept": 1}
    again = Batch()
    again.add(PUT_META, ("kept", 3))
    await store.commit(again)
    assert await store.read(values) == {"kept": 3}


def test_a_batch_keeps_the_order_of_what_depends_on_it_and_gathers_the_rest() -> None:
    batch = Batch()
    batch.add("insert", (1,))
    batch.append("history", (1,))
    batch.add("insert", (2,))
    batch.add("update", (1,))
    batch.append("history", (2,))
    batch.add("insert", (3,))
    assert list(commit_process.expand(batch.groups())) == [
        ("insert", (1,)),
        ("insert", (2,)),
        ("update", (1,)),
        ("insert", (3,)),
        ("history", (1,)),
        ("history", (2,)),
    ]


async def test_the_log_is_folded_into_the_file_after_an_answer_and_not_before(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commit_process, "LOG_ROWS", 2)
    file = commit_process._File(str(store.path))

    def in_the_file() -> list[tuple[str]]:
        with closing(sqlite3.connect(f"{store.path.as_uri()}?immutable=1", uri=True)) as connection:
            return connection.execute("SELECT key FROM meta WHERE key LIKE 'row-%' ORDER BY key").fetchall()

    told = []
    for number in range(3):
        assert file.commit([(PUT_META, [(f"row-{number}", number)])]) is None
        told.append(len(in_the_file()))
        file.tidy()
        told.append(len(in_the_file()))
    file.close()
    assert told == [0, 0, 0, 2, 2, 2]


async def test_many_rows_of_one_insert_are_written_in_few_statements_and_all_of_them(store: Store) -> None:
    batch = Batch()
    for number in range(64 + 16 + 4 + 3):
        batch.append("INSERT INTO meta (key, value) VALUES (?, ?)", (f"key {number}", number))
    assert len(list(commit_process.expand(batch.groups()))) == 1 + 1 + 1 + 3
    await store.commit(batch)
    assert await store.read(values) == {f"key {number}": number for number in range(87)}


def test_columns_that_no_row_has_are_written_as_null_and_every_row_is_as_it_was() -> None:
    statement = "INSERT INTO each (number, a, b, kind, c, d) VALUES (?, ?, ?, 'NEW', (SELECT ?), ?)"
    source = random.Random(3)
    for count in range(1, 100):
        gone = [source.random() < 0.5 for _ in range(4)]
        rows: list[Row] = [
            (number, *(None if lost or source.random() < 0.2 else source.choice((1, "?", b"x", 0.5)) for lost in gone))
            for number in range(count)
        ]
        with closing(sqlite3.connect(":memory:")) as connection:
            connection.execute("CREATE TABLE each (number, a, b, kind, c, d)")
            for written, values in commit_process.expand([(statement, rows)]):
                connection.execute(written, values)
            assert connection.execute("SELECT number, a, b, c, d FROM each ORDER BY number").fetchall() == rows
            assert connection.execute("SELECT DISTINCT kind FROM each").fetchall() == [("NEW",)]


@pytest.mark.parametrize("replaced", [False, True])
async def test_nothing_is_on_disk_when_the_file_is_not_there_any_more(store: Store, replaced: bool) -> None:
    store.path.unlink()
    if replaced:
        store.path.touch()
    with pytest.raises(StoreError, match="was removed or replaced"):
        await store.commit(Batch())


@pytest.mark.parametrize("suffix", ["-wal", "-shm"])
async def test_nothing_is_on_disk_when_its_log_is_not_there_any_more_and_a_stop_folds_what_was(
    store: Store, suffix: str
) -> None:
    kept = Batch()
    kept.add(PUT_META, ("kept", 1))
    await store.commit(kept)
    store.path.with_name(store.path.name + suffix).unlink()
    with pytest.raises(StoreError, match=f"{suffix} was removed or replaced .* do not kill it"):
        await store.commit(Batch())
    await store.close()
    with closing(sqlite3.connect(f"{store.path.as_uri()}?immutable=1", uri=True)) as connection:
        assert connection.execute("SELECT value FROM meta WHERE key = 'kept'").fetchall() == [(1,)]


async def test_a_file_that_has_no_log_yet_is_written_with_one(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "data.db")) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("CREATE TABLE notes (word)")
    file = commit_process._File(str(tmp_path / "data.db"))
    for _ in range(2):
        assert file.commit([("INSERT INTO notes VALUES (?)", [("kept",)])]) is None
    file.close()


@pytest.mark.parametrize("again", [False, True])
async def test_nothing_is_written_when_another_server_may_have_the_store(store: Store, again: bool) -> None:
    (store.data_dir / "lock").unlink()
    other = Store(store.data_dir)
    await other.open(1)
    for number in range(2):
        if again:  # a process that writes is started anew, and finds the other's lock in the place of ours
            assert store._committer is not None
            process = store._committer._process
            assert process is not None
            process.kill()
            await asyncio.to_thread(process.wait)
        batch = Batch()
        batch.add(PUT_META, ("lost", number))
        with pytest.raises(StoreError, match=r"lock was removed or replaced .*: stop this one|has ended"):
            await store.commit(batch)
    assert await store.read(values) == {}
    await store.close()
    kept = Batch()
    kept.add(PUT_META, ("kept", 1))
    await other.commit(kept)
    assert await other.read(values) == {"kept": 1}
    await other.close()


@pytest.mark.parametrize("how", ["not there", "empty"])
async def test_a_log_without_its_file_is_kept_and_said(tmp_path: Path, how: str) -> None:
    path = tmp_path / FILE_NAME
    if how == "empty":
        path.touch()
    log = tmp_path / f"{FILE_NAME}-wal"
    log.write_bytes(b"acknowledged")
    with pytest.raises(StoreError, match=f"is {how}, but {log.name} is there, which belongs to it"):
        await Store(tmp_path).open(0)
    assert log.read_bytes() == b"acknowledged"


async def test_no_file_is_made_where_one_was_moved_aside_so_its_log_is_not_thrown_away(store: Store) -> None:
    assert store._committer is not None
    process = store._committer._process
    assert process is not None
    first, lost, kept = Batch(), Batch(), Batch()
    first.add(PUT_META, ("first", 1))
    lost.add(PUT_META, ("lost", 1))
    kept.add(PUT_META, ("kept", 1))
    await store.commit(first)
    aside = store.path.rename(store.path.with_name("aside"))
    process.kill()
    await asyncio.to_thread(process.wait)
    for _ in range(2):
        with pytest.raises(StoreError, match=r"has ended|cannot open"):
            await store.commit(lost)
    with pytest.raises(StoreError, match="unable to open"):
        await store.read(values)
    assert not store.path.exists()
    with pytest.raises(StoreError, match=r"is not there, but cadenza\.db-wal is there, .*: restore the file"):
        migration.migrate(store.path, 0)
    aside.rename(store.path)
    await store.commit(kept)
    assert await store.read(values) == {"first": 1, "kept": 1}


async def test_a_directory_may_have_any_name(tmp_path: Path) -> None:
    store = Store(tmp_path / "50% a?b#c&mode=ro")
    await store.open(0)
    batch = Batch()
    batch.add(PUT_META, ("kept", 1))
    await store.commit(batch)
    assert await store.read(values) == {"kept": 1}
    await store.close()
    assert os.listdir(tmp_path) == [store.data_dir.name]
    assert set(os.listdir(store.data_dir)) == {FILE_NAME, "lock"}


async def test_readers_cannot_write(store: Store) -> None:
    def write(connection: Connection) -> None:
        connection.execute(meta.insert().values(key="sneaked", value=1))

    with pytest.raises(StoreError, match="readonly database"):
        await store.read(write)


async def test_a_store_in_use_is_refused_saying_by_whom(store: Store) -> None:
    with pytest.raises(StoreInUse, match=rf"process {os.getpid()} on .*, since 1970-01-01T00:00:00"):
        await Store(store.data_dir).open(0)
    await store.read(values)


async def test_only_their_owner_sees_the_data(tmp_path: Path) -> None:
    store = Store(tmp_path / "data")
    await store.open(0)
    await store.close()
    assert (tmp_path / "data").stat().st_mode & 0o077 == 0


def lock_elsewhere(data_dir: Path) -> "subprocess.Popen[str]":
    """Another process that holds the lock."""
    code = (
        "import os, pathlib, sys\n"
        "from cadenza_server.store.lock import Lock\n"
        "lock = Lock(pathlib.Path(sys.argv[1]), 0)\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(data_dir)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


async def test_the_lock_of_a_killed_server_is_gone_with_it(tmp_path: Path) -> None:
    with lock_elsewhere(tmp_path) as process:
        with pytest.raises(StoreInUse, match=rf"process {process.pid} on"):
            await Store(tmp_path).open(0)
        process.kill()
        process.wait(10)
    store = Store(tmp_path)
    await store.open(0)
    assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
    await store.close()


async def test_a_store_of_a_newer_server_is_refused_and_left_alone(tmp_path: Path) -> None:
    store = Store(tmp_path)
    await store.open(0)
    await store.close()
    connection = sqlite3.connect(tmp_path / FILE_NAME)
    connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.commit()
    connection.close()
    with pytest.raises(StoreError, match="schema 9999, made by a newer server"):
        await Store(tmp_path).open(0)
    assert migration.schema_version(tmp_path / FILE_NAME) == "9999"


async def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"something else entirely" * 100)
    with pytest.raises(StoreError, match="cannot be read as a store"):
        await Store(tmp_path).open(0)


async def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="give another --data-dir"):
        await Store(tmp_path / "file" / "data").open(0)


async def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = Store(tmp_path)
    await store.open(0)
    await store.close()
    await store.close()
    with pytest.raises(StoreError, match="closed"):
        await store.commit(Batch())
    with pytest.raises(StoreError, match="closed"):
        await store.read(values)


# --- names and time -------------------------------------------------------------------------------------------------
def test_names_sort_by_the_time_of_their_making_and_are_unique() -> None:
    clock = VirtualClock(1_700_000_000_000_000_000)
    ids = TimeOrderedIds(clock, random.Random(1))
    names = []
    for _ in range(50):
        names += [ids.make("job") for _ in range(3_000)]
        clock.advance(1_000_000)
    assert names == sorted(names)
    assert len(set(names)) == len(names)
    assert all(len(name) == len("job-") + 26 and name.islower() for name in names)


def test_the_first_name_is_as_long_as_the_others_also_at_the_beginning_of_time() -> None:
    ids = TimeOrderedIds(VirtualClock(0), random.Random(1))
    names = [ids.make("job"), ids.make("job")]
    assert names == sorted(names)
    assert {len(name) for name in names} == {len("job-") + 26}


def test_a_virtual_clock_fires_what_is_due_in_order_and_at_its_time() -> None:
    clock = VirtualClock(100)
    fired: list[tuple[str, int]] = []
    clock.call_at(130, lambda: fired.append(("late", clock.now())))
    clock.call_at(110, lambda: fired.append(("early", clock.now())))
    cancelled = clock.call_at(120, lambda: fired.append(("never", clock.now())))
    clock.call_at(50, lambda: fired.append(("overdue", clock.now())))
    cancelled.cancel()
    clock.advance(20)
    assert fired == [("overdue", 100), ("early", 110)]
    clock.advance(20)
    assert fired[2:] == [("late", 130)]
    assert clock.now() == 140
    with pytest.raises(ValueError, match="does not go back"):
        clock.advance(-1)


def test_the_system_clock_does_not_go_back() -> None:
    clock = SystemClock()
    times = [clock.now() for _ in range(1000)]
    assert times == sorted(times)


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams wait for whoever takes them, however busy this machine is."""
    monkeypatch.setattr("cadenza_server.store.store.PATIENCE_SECONDS", 60.0)


@pytest.mark.usefixtures("patience")
async def test_what_is_read_as_a_stream_comes_whole_and_in_order(store: Store) -> None:
    assert [item async for item in store.stream(lambda _: iter(range(1000)))] == list(range(1000))


async def test_a_stream_that_fails_gives_what_came_before_and_then_the_error(store: Store) -> None:
    def read(connection: Connection) -> Iterator[int]:
        yield 1
        connection.execute(text("SELECT nothing"))

    stream = store.stream(read)
    assert await anext(stream) == 1
    with pytest.raises(StoreError, match="cannot read"):
        await anext(stream)


async def test_of_a_stream_that_is_taken_slowly_little_is_in_memory_and_its_thread_is_free(store: Store) -> None:
    over = threading.Event()

    def numbers(_: Connection) -> Iterator[int]:
        try:
            yield from range(1000)
        finally:
            over.set()

    stream = store.stream(numbers)
    taken = [await anext(stream)]
    assert over.wait(10)  # while nothing more is taken
    taken += [number async for number in stream]
    assert taken == list(range(len(taken)))
    assert len(taken) <= 3  # one that was taken, and two ahead


async def test_a_stream_that_nobody_takes_any_more_is_read_no_further(store: Store) -> None:
    read_on = threading.Event()
    read: list[int] = []

    def numbers(_: Connection) -> Iterator[int]:
        for number in range(5):
            read.append(number)
            yield number
            read_on.wait()

    async with aclosing(store.stream(numbers)) as stream:
        assert await anext(stream) == 0
    read_on.set()
    await store.close()
    assert read == [0, 1]


@pytest.mark.usefixtures("patience")
async def test_a_result_is_read_in_pieces_from_wherever_it_is_wanted(store: Store) -> None:
    data = random.Random(1).randbytes(10_000)
    batch = Batch()
    batch.append(INSERT_RESULT, ("other", b"x" * 10_000))
    batch.append(INSERT_RESULT, ("job", data))
    await store.commit(batch)

    async def read(offset: int, size: int) -> list[ResultPiece]:
        stream = store.stream(lambda connection: iterate_result(connection, "job", offset, size))
        return [piece async for piece in stream]

    assert await store.read(lambda connection: read_result_size(connection, "job")) == 10_000
    assert await store.read(lambda connection: read_result_size(connection, "no job")) is None
    for offset, size in ((0, 10_000), (0, 4096), (1, 3333), (9_999, 4096), (0, 1 << 20)):
        pieces = await read(offset, size)
        assert b"".join(piece.data for piece in pieces) == data[offset:]
        assert [piece.offset for piece in pieces] == list(range(offset, 10_000, size))
        assert {piece.total for piece in pieces} == {10_000}
        assert all(len(piece.data) == size for piece in pieces[:-1])
    assert await read(10_000, 4096) == [ResultPiece(10_000, b"", 10_000)]

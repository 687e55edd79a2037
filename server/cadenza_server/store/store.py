"""The store: one SQLite file, written by one thread in whole batches, read by a few others.

A batch that `commit` has returned for is on disk (WAL, `synchronous=FULL`). Readers see committed batches only, each
read one moment of the store.
"""

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

from sqlalchemy import Connection, create_engine, event
from sqlalchemy import Engine as SqlEngine
from sqlalchemy.exc import SQLAlchemyError

from cadenza_server.store.batch import Batch
from cadenza_server.store.errors import StoreError
from cadenza_server.store.lock import Lock
from cadenza_server.store.migration import migrate

FILE_NAME: Final = "cadenza.db"
READERS: Final = 2
"""Threads that read: a long listing does not keep a payload waiting."""

T = TypeVar("T")


class Store:
    """The store in `data_dir`. It is opened by `open`, not before. Methods are to be called on one event loop."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.path = data_dir / FILE_NAME
        self._lock: Lock | None = None
        self._writer: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._sql: SqlEngine | None = None
        self._commit_thread: ThreadPoolExecutor | None = None
        self._read_threads: ThreadPoolExecutor | None = None

    async def open(self, now: int) -> None:
        """Lock, migrate and open. Raises `StoreError` with a sentence; then nothing is held."""
        self._commit_thread = ThreadPoolExecutor(1, "store-commit")
        self._read_threads = ThreadPoolExecutor(READERS, "store-read")
        try:
            await asyncio.get_running_loop().run_in_executor(self._commit_thread, self._open, now)
        except BaseException:
            await self.close()
            raise

    def _open(self, now: int) -> None:
        try:
            # other people's circuits and results are in it
            self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot make {self.data_dir}: {error.strerror}; give another --data-dir") from error
        self._lock = Lock(self.data_dir, now)
        try:
            migrate(self.path)
            self._writer = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
            for pragma in ("journal_mode = WAL", "synchronous = FULL", "cache_size = -65536", "foreign_keys = OFF"):
                self._writer.execute(f"PRAGMA {pragma}")
        except sqlite3.Error as error:
            raise StoreError(f"cannot open {self.path} ({error}): free the disk, or restore a backup") from error
        self._file = self._identify()
        self._sql = create_engine(f"sqlite:///{self.path}", pool_size=READERS, max_overflow=0)

        @event.listens_for(self._sql, "connect")
        def _prepare(connection: sqlite3.Connection, _record: object) -> None:
            # The driver's own transactions are off: a read begins one by itself (see `read`).
            connection.isolation_level = None
            connection.execute("PRAGMA query_only = ON")

    async def close(self) -> None:
        """Finish what is being written and read, and let go of everything; closing twice does nothing."""
        commit_thread, self._commit_thread = self._commit_thread, None
        read_threads, self._read_threads = self._read_threads, None
        if read_threads is not None:
            await asyncio.to_thread(read_threads.shutdown)
        if commit_thread is not None:
            await asyncio.to_thread(commit_thread.shutdown)
        if self._sql is not None:
            self._sql.dispose()
            self._sql = None
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    async def commit(self, batch: Batch) -> None:
        """Write one batch, all or nothing; on disk when it returns. Raises `StoreError`: nothing of it is there."""
        if self._commit_thread is None:
            raise StoreError("the store is closed")
        await asyncio.get_running_loop().run_in_executor(self._commit_thread, self._commit, batch)

    def _commit(self, batch: Batch) -> None:
        writer = self._writer
        if writer is None:
            raise StoreError("the store is closed")
        try:
            writer.execute("BEGIN IMMEDIATE")
            for statement, values in batch.statements():
                writer.execute(statement, values)
            writer.execute("COMMIT")
        except (sqlite3.Error, OverflowError) as error:
            try:
                if writer.in_transaction:
                    writer.execute("ROLLBACK")
            except sqlite3.Error as second:
                raise StoreError(f"cannot write {self.path} ({error}), nor roll back ({second})") from error
            raise StoreError(f"cannot write {self.path} ({error})") from error
        if self._identify() != self._file:
            # SQLite goes on writing to a file that nobody can open any more: that is no disk to be on.
            raise StoreError(f"{self.path} was removed or replaced while the server ran: stop it and restore the file")

    def _identify(self) -> tuple[int, int] | None:
        """Which file stands at `path`; None if there is none."""
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino

    async def read(self, query: Callable[[Connection], T]) -> T:
        """Run `query` on a reader thread, in one read transaction. Raises `StoreError`."""
        if self._read_threads is None:
            raise StoreError("the store is closed")
        return await asyncio.get_running_loop().run_in_executor(self._read_threads, self._read, query)

    def _read(self, query: Callable[[Connection], T]) -> T:
        if self._sql is None:
            raise StoreError("the store is closed")
        try:
            with self._sql.connect() as connection:
                connection.exec_driver_sql("BEGIN")
                try:
                    return query(connection)
                finally:
                    connection.exec_driver_sql("ROLLBACK")
        except (sqlite3.Error, SQLAlchemyError) as error:
            raise StoreError(f"cannot read {self.path} ({error})") from error

"""The store: one SQLite file, written by one process in whole batches, read by a few threads.

A batch that `commit` has returned for is on disk (WAL, `synchronous=FULL`). Readers see committed batches only, each
read one moment of the store.
"""

import asyncio
import sqlite3
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

from sqlalchemy import Connection, create_engine
from sqlalchemy import Engine as SqlEngine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.pool import QueuePool

from cadenza_server.store.batch import Batch
from cadenza_server.store.commit_process import connect
from cadenza_server.store.committer import Committer
from cadenza_server.store.errors import StoreError
from cadenza_server.store.lock import Lock
from cadenza_server.store.migration import migrate

FILE_NAME: Final = "cadenza.db"
READERS: Final = 2
"""Threads that read: a long listing does not keep a payload waiting."""

AHEAD_MAX: Final = 2
"""Items that a stream is ahead of whoever takes them."""

PATIENCE_SECONDS: Final = 0.02
"""How long a stream waits on its reader thread for its next item to be taken; then it makes room for others."""

T = TypeVar("T")


class Store:
    """The store in `data_dir`. It is opened by `open`, not before. Methods are to be called on one event loop."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.path = data_dir / FILE_NAME
        self.address = ""
        """Where the server that opens it is found: told to whoever finds the store in use."""
        self._lock: Lock | None = None
        self._committer: Committer | None = None
        self._sql: SqlEngine | None = None
        self._read_threads: ThreadPoolExecutor | None = None

    async def open(self, now: int) -> None:
        """Lock, migrate and open. Raises `StoreError` with a sentence; then nothing is held."""
        self._read_threads = ThreadPoolExecutor(READERS, "store-read")
        try:
            await asyncio.to_thread(self._open, now)
            self._committer = Committer()
            await self._start_committer()
        except BaseException:
            await self.close()
            raise

    def _open(self, now: int) -> None:
        try:
            # other people's circuits and results are in it
            self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot make {self.data_dir}: {error.strerror}; give another --data-dir") from error
        self._lock = Lock(self.data_dir, now, self.address)
        try:
            migrate(self.path, now)
        except (sqlite3.Error, SQLAlchemyError, OSError) as error:
            raise StoreError(f"cannot open {self.path} ({error}): free the disk, or restore a backup") from error
        self._sql = create_engine(
            "sqlite://", creator=self._connect, poolclass=QueuePool, pool_size=READERS, max_overflow=0
        )

    def _connect(self) -> sqlite3.Connection:
        connection = connect(str(self.path), check_same_thread=False)
        connection.execute("PRAGMA query_only = ON")
        return connection

    async def close(self) -> None:
        """Finish what is being written and read, and let go of everything; closing twice does nothing."""
        committer, self._committer = self._committer, None
        read_threads, self._read_threads = self._read_threads, None
        if read_threads is not None:
            await asyncio.to_thread(read_threads.shutdown)
        try:
            if committer is not None:
                await committer.close()
        finally:
            if self._sql is not None:
                self._sql.dispose()
                self._sql = None
            if self._lock is not None:
                self._lock.release()
                self._lock = None

    def commit(self, batch: Batch) -> Awaitable[None]:
        """Write one batch, all or nothing. It is handed over at once, and on disk when what this returns has been
        awaited, which raises `StoreError` if nothing of it is there, or (when the process that writes has died) it is
        not known to be."""
        if self._committer is not None and self._committer.is_running:
            return self._committer.commit(batch)
        return self._start_and_commit(batch)

    async def _start_and_commit(self, batch: Batch) -> None:
        committer = await self._start_committer()
        await committer.commit(batch)

    async def _start_committer(self) -> Committer:
        if self._committer is None or self._lock is None:
            raise StoreError("the store is closed")
        committer = self._committer
        await committer.start(self.path, self._lock.fileno())
        return committer

    async def read(self, query: Callable[[Connection], T]) -> T:
        """Run `query` on a reader thread, in one read transaction. Raises `StoreError`."""
        if self._read_threads is None:
            raise StoreError("the store is closed")
        return await asyncio.get_running_loop().run_in_executor(self._read_threads, self._read, query)

    async def stream(self, query: Callable[[Connection], Iterator[T]]) -> AsyncGenerator[T, None]:
        """What `query` yields on a reader thread, in one read transaction, or only its beginning, if it is taken
        slowly: neither does the thread wait, nor are more than `AHEAD_MAX` items in memory. Ask again for the rest.
        Raises `StoreError`."""
        loop = asyncio.get_running_loop()
        ready: asyncio.Queue[T | None] = asyncio.Queue()
        room = threading.Semaphore(AHEAD_MAX)
        left = threading.Event()

        def run(connection: Connection) -> None:
            for item in query(connection):
                if not room.acquire(timeout=PATIENCE_SECONDS) or left.is_set():
                    return
                loop.call_soon_threadsafe(ready.put_nowait, item)

        reading = asyncio.ensure_future(self.read(run))
        reading.add_done_callback(lambda _: ready.put_nowait(None))
        try:
            while (item := await ready.get()) is not None:
                room.release()
                yield item
            await reading
        finally:
            left.set()
            reading.cancel()

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
            cause = error.orig if isinstance(error, DBAPIError) else error
            raise StoreError(f"cannot read {self.path} ({cause}){_advise(cause)}") from error


def _advise(cause: BaseException | None) -> str:
    """What to do about a file that is damaged; nothing for other errors, which may pass."""
    code = getattr(cause, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return ": the file is damaged; see `cadenza check`, stop the server and restore a backup"
    return ""

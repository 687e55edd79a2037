"""A disk that loses what was not acknowledged, and a store on it: production's own rows, statements and reads."""

import asyncio
import marshal
import random
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final, TypeVar, cast

from cadenza_server.store import Store, StoreError
from cadenza_server.store.batch import Batch
from cadenza_server.store.check import Report, check_connection
from cadenza_server.store.commit_process import expand
from cadenza_server.store.schema import HEAD, metadata
from sqlalchemy import Connection, create_engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import StaticPool

from tests.crash.virtual_loop import VirtualLoop

T = TypeVar("T")
NOWHERE: Final = Path("/nowhere")


class Disk:
    """What has reached the platter: whole batches, as SQLite keeps them. It outlives every server."""

    def __init__(self) -> None:
        self._sql = create_engine(
            "sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False, "isolation_level": None}
        )
        metadata.create_all(self._sql)
        self.commits = 0
        self._connection = self._sql.connect()
        self.raw = cast(sqlite3.Connection, self._connection.connection.dbapi_connection)

    def write(self, frame: bytes) -> None:
        """One batch, all or nothing. Raises `sqlite3.Error`."""
        self.raw.execute("BEGIN")
        try:
            for statement, values in expand(marshal.loads(frame)):
                self.raw.execute(statement, values)
            self.raw.execute("COMMIT")
        except BaseException:
            self.raw.execute("ROLLBACK")
            raise
        self.commits += 1

    def read(self, query: Callable[[Connection], T]) -> T:
        """What is there now. (One moment, without a transaction: nothing else happens meanwhile.)"""
        return query(self._connection)

    def check(self) -> Report:
        """`cadenza check` of it."""
        report = Report(NOWHERE, HEAD)
        check_connection(self.raw, report)
        return report

    def close(self) -> None:
        """Throw it away."""
        self._connection.close()
        self._sql.dispose()


class SimulatedStore(Store):
    """A store of one server on a `Disk`. Commits and reads take time and fail; what is on its way when the server dies
    is written or not, as chance has it."""

    def __init__(self, disk: Disk, loop: VirtualLoop, source: random.Random, faults: dict[str, float]) -> None:
        super().__init__(NOWHERE)
        self._disk = disk
        self._loop = loop
        self._source = source
        self._faults = faults
        self._on_its_way: bytes | None = None
        self._is_open = False

    def _strikes(self, fault: str) -> bool:
        return self._source.random() < self._faults.get(fault, 0)

    def _delay(self) -> float:
        if self._strikes("disk hangs"):
            return self._source.uniform(5, 60)  # some for so long that the engine notices
        slow = self._strikes("slow disk")
        return self._source.uniform(0.5, 5) if slow else self._source.uniform(0.0001, 0.02)

    async def open(self, now: int) -> None:  # noqa: ARG002  (there is no lock to write it into)
        """See `Store`."""
        self._is_open = True

    async def close(self) -> None:
        """See `Store`."""
        self._is_open = False

    def commit(self, batch: Batch) -> Awaitable[None]:
        """See `Store`."""
        self._loop.step()
        frame = marshal.dumps(batch.groups())
        assert self._on_its_way is None, "one batch is on its way at a time"
        self._on_its_way = frame
        done: asyncio.Future[None] = self._loop.create_future()
        self._loop.call_later(self._delay(), self._write, frame, done)
        return done

    def _write(self, frame: bytes, done: "asyncio.Future[None]") -> None:
        fails = self._strikes("commit fails")
        if not fails or self._source.random() < 0.5:
            self._disk.write(frame)
        self._on_its_way = None
        self._loop.step()  # it is on disk, and nobody knows
        self._loop.call_later(self._source.uniform(0, 0.001), self._answer, done, fails)

    @staticmethod
    def _answer(done: "asyncio.Future[None]", fails: bool) -> None:
        if done.done():
            return
        if fails:
            done.set_exception(StoreError("the simulated disk failed"))
        else:
            done.set_result(None)

    def die(self) -> None:
        """The server is dead: its last batch reaches the disk or does not."""
        frame, self._on_its_way = self._on_its_way, None
        if frame is not None and self._source.random() < 0.5:
            self._disk.write(frame)

    async def read(self, query: Callable[[Connection], T]) -> T:
        """See `Store`."""
        if not self._is_open:
            raise StoreError("the store is closed")
        await asyncio.sleep(self._source.uniform(0, 0.002))
        if self._strikes("read fails"):
            raise StoreError("the simulated disk cannot be read")
        try:
            found: Any = self._disk.read(query)
        except (sqlite3.Error, SQLAlchemyError) as error:
            raise StoreError(f"cannot read ({error})") from error
        await asyncio.sleep(self._source.uniform(0, 0.002))
        return found  # type: ignore[no-any-return]

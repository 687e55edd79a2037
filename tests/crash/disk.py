"""A disk that loses what was not acknowledged, and a store on it: production's own rows, statements and reads.

The disk is a real file with a real log, written by the code of the process that writes. When a server dies in the
middle of a batch, what is on its way may be torn: parts of the log's end are not there, or are other bytes, or are
there without what is before them. What SQLite makes of that at the next start is to be the store as it was before the
batch, to the last row.
"""

import asyncio
import marshal
import random
import shutil
import sqlite3
import struct
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from cadenza_server.store import Store, StoreError
from cadenza_server.store.batch import Batch
from cadenza_server.store.check import Report, check_connection
from cadenza_server.store.commit_process import LOG_ROWS, _File, connect
from cadenza_server.store.schema import HEAD, metadata
from cadenza_server.store.store import FILE_NAME
from sqlalchemy import Connection, create_engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import StaticPool

from tests.crash.virtual_loop import VirtualLoop

T = TypeVar("T")
NOWHERE: Final = Path("/nowhere")
MEMORY: Final = Path("/dev/shm")
"""Where a sync costs nothing: what it is for is simulated."""

FULL: Final = 2
"""SQLite's `synchronous` with which each commit is synced."""

LOG_HEADER: Final = struct.Struct(">8x I 20x")
"""Of SQLite's log: the size of its pages (sqlite.org/fileformat2.html, 4.1)."""

FRAME_HEADER: Final = struct.Struct(">I 20x")
"""Before each page in it: the page's number."""

LOG_INDEX_HEADER: Final = struct.Struct("=16x I")
"""Of the log's index, in the machine's own order: how many frames count (sqlite.org/walformat.html, 2.1)."""


@dataclass(frozen=True, slots=True)
class Log:
    """SQLite's log as it lies there, and where the last frame that counts ends: what lies behind is from before the log
    began anew, or of a batch that was torn."""

    content: bytes
    end: int

    @property
    def header(self) -> bytes:
        """It changes when the log begins anew."""
        return self.content[: LOG_HEADER.size]


class Disk:
    """What has reached the platter. It outlives every server; when it is crashed, it goes on with what SQLite finds."""

    def __init__(self, source: random.Random) -> None:
        self._source = source
        self._folder = Path(tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else None))
        self._life = 0
        self.commits = 0
        self.torn = 0
        path = self._enter()
        sqlite3.connect(path).close()
        self._open(path)
        metadata.create_all(self._connection)

    def _enter(self) -> Path:
        """A new place for the file."""
        self._life += 1
        folder = self._folder / str(self._life)
        folder.mkdir()
        return folder / FILE_NAME

    def _open(self, path: Path) -> None:
        self._path = path
        self._log = path.with_name(f"{FILE_NAME}-wal")
        path.touch()
        self._file = _File(str(path))
        self.raw = connect(str(path), check_same_thread=False)
        self._sql = create_engine("sqlite://", creator=lambda: self.raw, poolclass=StaticPool)
        self._connection = self._sql.connect()

    def _close(self) -> None:
        self._connection.close()
        self._sql.dispose()
        self.raw.close()
        self._file.close()

    def write(self, frame: bytes) -> None:
        """One batch, all or nothing."""
        sentence = self._file.commit(marshal.loads(frame))
        assert sentence is None, sentence
        if self._source.random() < 0.05:
            self._file._rows = LOG_ROWS
        self._file.tidy()
        self.commits += 1

    def crash(self, frame: bytes | None) -> None:
        """The server is dead. What it was about to write is there, or not, or was torn on its way; the log was being
        folded into the file, or was not."""
        fate = self._source.choice(("lost", "kept", "torn")) if frame is not None else "lost"
        file, old, before = self._path.read_bytes(), self._read_log(), self._dump()
        if frame is not None and fate != "lost":
            sentence = self._file.commit(marshal.loads(frame))
            assert sentence is None, sentence
            assert self._path.read_bytes() == file, "a commit writes the log alone"
        expected, new = self._dump(), self._read_log()
        if fate == "torn":
            expected = before
        if self._source.random() < 0.3 and old.header == new.header:
            file = self._fold_partly(file, old)
        path = self._enter()
        path.write_bytes(file)
        path.with_name(f"{FILE_NAME}-wal").write_bytes(self._tear(old, new) if fate == "torn" else new.content)
        self._close()
        shutil.rmtree(self._path.parent)
        self._open(path)
        assert self._dump() == expected, f"a batch that was {fate} has left another store"
        self.torn += fate == "torn"
        self.commits += fate == "kept"

    def _read_log(self) -> Log:
        if not self._log.exists() or not (content := self._log.read_bytes()):
            return Log(b"", 0)
        self.raw.execute("SELECT * FROM sqlite_master").fetchall()  # whoever reads first makes the index
        (count,) = LOG_INDEX_HEADER.unpack_from(self._path.with_name(f"{FILE_NAME}-shm").read_bytes())
        (size, *_) = LOG_HEADER.unpack_from(content)
        return Log(content, LOG_HEADER.size + count * (FRAME_HEADER.size + size))

    def _fold_partly(self, file: bytes, log: Log) -> bytes:
        """The file when the log was being folded into it: of the pages that the log has, nothing is sure. (The first is
        left: it is read before the log is.)"""
        folded = bytearray(file)
        for page, size in read_pages(log):
            if page > 1 and page * size <= len(file) and self._source.random() < 0.5:
                folded[(page - 1) * size : page * size] = self._source.randbytes(size)
        return bytes(folded)

    def _tear(self, before: Log, after: Log) -> bytes:
        """The log when the last batch did not wholly reach it."""
        old, new = before.content, after.content
        if old == new:
            return new  # what was written is what was there
        source = self._source
        begin, end = before.end, after.end
        if before.header != after.header:
            begin = 0  # all was folded into the file, and the log has begun anew
        ((synchronous,),) = self._file._connection.execute("PRAGMA synchronous")
        if synchronous < FULL:
            begin = 0  # no commit before this one was synced, either
        log = bytearray(new)
        where = source.randrange(begin, end)
        until = source.randint(where + 1, end)
        match source.choice(("cut", "stale", "zeros", "garbage")):
            case "cut":
                del log[where:]
            case "stale":  # what follows is there, and this is what was there before
                log[where:until] = old[where:until].ljust(until - where, b"\0")
            case "zeros":
                log[where:until] = bytes(until - where)
            case _:
                log[where:until] = source.randbytes(until - where)
        if log == new:  # by chance it is what it should be
            log[where] ^= 0xFF
        return bytes(log)

    def _dump(self) -> list[object]:
        """All that is in it."""
        names = self.raw.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name").fetchall()
        return [(name, self.raw.execute(f"SELECT * FROM {name} ORDER BY 1, 2").fetchall()) for (name,) in names]

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
        self._close()
        shutil.rmtree(self._folder)


def read_pages(log: Log) -> Iterator[tuple[int, int]]:
    """Of each frame that counts its page's number and size."""
    if log.end == 0:
        return
    (size, *_) = LOG_HEADER.unpack_from(log.content)
    for begin in range(LOG_HEADER.size, log.end, FRAME_HEADER.size + size):
        page, *_ = FRAME_HEADER.unpack_from(log.content, begin)
        yield page, size


class SimulatedStore(Store):
    """A store of one server on a `Disk`. Commits and reads take time and fail; what is on its way when the server dies
    is written, torn or lost, as chance has it."""

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
        """The server is dead."""
        frame, self._on_its_way = self._on_its_way, None
        self._disk.crash(frame)

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

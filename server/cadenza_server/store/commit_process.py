"""The process that writes the store: it takes batches from its standard input and answers when they are on disk.

A process and not a thread, since Python's lock would pass to and fro between SQLite and the event loop a dozen times a
commit, and each time costs more than a row. It is run by its path and needs nothing but the standard library, so it
starts in some 20 ms. It ends with its input, and ignores signals that are meant for the server: what was sent is
written.

A frame is the length of its body in 8 bytes, then the body in Python's `marshal` format (both sides are the same
Python). A batch is a list of (statement, rows), in order; the answer is None, or a sentence that says why nothing of it
is written. The first answer says whether the store is open.
"""

import marshal
import os
import signal
import sqlite3
import struct
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from itertools import chain
from operator import itemgetter
from typing import Final

HEADER: Final = struct.Struct("<Q")

LOCK_NAME: Final = "lock"
"""Of the file beside the store's that a server locks, so that no other one writes the store."""

PRAGMAS: Final = (("journal_mode", "wal"), ("synchronous", 2), ("cache_size", -65536), ("foreign_keys", 0))

LOG_ROWS: Final = 3_000
"""After about so many rows the log is folded into the file. SQLite's own way would be in the middle of a commit, whose
callers would wait for it; here it is done when they have been answered."""

LOG_PAGES_MAX: Final = 16_000
"""With so many pages in the log (64 MiB, of very large rows) SQLite folds it all the same."""

WIDTHS: Final = (64, 16, 4, 1)
"""How many rows one insert writes. Only these, as the driver keeps what it has compiled."""

Value = str | int | float | bytes | None
Row = tuple[Value, ...]
Groups = Sequence[tuple[str, Sequence[Row]]]


def pack(body: "str | list[tuple[str, list[Row]]] | None") -> bytes:
    """A frame. Raises `ValueError` for values of other types than SQLite's own (subclasses of these, too)."""
    data = marshal.dumps(body)
    return HEADER.pack(len(data)) + data


def expand(groups: Groups) -> Iterator[tuple[str, Sequence[Value]]]:
    """The statements to execute, in order, and their values: neighbours that are the same insert are one of many
    rows, which is what SQLite is fastest at. A column that none of them has is written as NULL, as the driver takes
    longer to hand None to SQLite than SQLite takes to write a column."""
    for statement, rows in groups:
        if len(rows) < WIDTHS[-2] or not _takes_many(statement):
            for row in rows:
                yield statement, row
            continue
        absent = tuple(column for column, value in enumerate(rows[0]) if value is None and _is_absent(rows, column))
        insert, picked = statement, rows
        present = [column for column in range(len(rows[0])) if column not in absent]
        if absent and len(present) > 1:
            insert = _write_nulls(statement, absent)
            picked = list(map(itemgetter(*present), rows))
        begin = 0
        for width in WIDTHS:
            wide = _widen(insert, width)
            while len(rows) - begin >= width:
                yield wide, list(chain.from_iterable(picked[begin : begin + width]))
                begin += width


def _is_absent(rows: Sequence[Row], column: int) -> bool:
    return [row[column] for row in rows].count(None) == len(rows)


@cache
def _write_nulls(statement: str, columns: tuple[int, ...]) -> str:
    head, values, row = statement.partition(" VALUES ")
    pieces = row.split("?")
    places = ["NULL" if column in columns else "?" for column in range(len(pieces) - 1)]
    return head + values + "".join(chain.from_iterable(zip(pieces, [*places, ""], strict=True)))


@cache
def _takes_many(statement: str) -> bool:
    return statement.startswith("INSERT ") and " VALUES " in statement and " ON CONFLICT " not in statement


@cache
def _widen(statement: str, width: int) -> str:
    head, values, row = statement.partition(" VALUES ")
    return head + values + ", ".join([row] * width)


def connect(path: str, *, check_same_thread: bool = True) -> sqlite3.Connection:
    """To the file at `path`, with transactions as they are asked for. It is never made here: beside a new file SQLite
    throws away the log of one that was moved aside, and with it what was acknowledged."""
    quoted = path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    return sqlite3.connect(
        f"file:{quoted}?mode=rw", uri=True, isolation_level=None, check_same_thread=check_same_thread
    )


class _File:
    """The store's file with its log and the log's index, and whether they are still the ones that were opened. `lock`:
    a descriptor of the lock that this process's server holds."""

    def __init__(self, path: str, lock: int | None = None) -> None:
        self._path = path
        self._lock = None if lock is None else (os.path.join(os.path.dirname(path), LOCK_NAME), _identify(lock))
        self._connection = connect(path)
        for name, value in PRAGMAS:
            self._connection.execute(f"PRAGMA {name} = {value}")
            ((found,),) = self._connection.execute(f"PRAGMA {name}")
            if found != value:
                raise sqlite3.OperationalError(f"this file system does not allow {name} = {value}, but {found}")
        self._connection.execute(f"PRAGMA wal_autocheckpoint = {LOG_PAGES_MAX}")
        self._rows = 0
        """Written since the log was folded."""
        self._connection.execute("SELECT * FROM sqlite_master").fetchall()  # makes the log of a file without one
        self._files = [(each, _identify(each)) for each in (path, f"{path}-wal", f"{path}-shm")]

    def commit(self, groups: Groups) -> str | None:
        """Write one batch, all or nothing; None, or why not."""
        connection = self._connection
        try:
            connection.execute("BEGIN IMMEDIATE")
            if self._lock is not None and _identify(self._lock[0]) != self._lock[1]:
                # Nothing keeps another server from the store any more: two that write it would ruin it.
                connection.execute("ROLLBACK")
                return (
                    f"{self._lock[0]} was removed or replaced while the server ran, so another server may write the "
                    "store: stop this one"
                )
            for statement, values in expand(groups):
                connection.execute(statement, values)
            connection.execute("COMMIT")
        except (sqlite3.Error, OverflowError, UnicodeError, MemoryError) as error:
            try:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
            except sqlite3.Error as second:
                return f"cannot write {self._path} ({error}), nor roll back ({second})"
            return f"cannot write {self._path} ({error})"
        self._rows += sum(len(rows) for _, rows in groups)
        # SQLite goes on writing to files that nobody can open any more: that is no disk to be on.
        for path, identity in self._files:
            if _identify(path) != identity:
                advice = (
                    "stop it and restore the file"
                    if path == self._path
                    else "stop it with SIGTERM, so that what was acknowledged is folded into the file; do not kill it"
                )
                return f"{path} was removed or replaced while the server ran: {advice}"
        return None

    def tidy(self) -> None:
        """Fold the log into the file if it has grown long, as far as nobody reads it. What fails is tried again with
        the next commit, which says what is wrong."""
        if self._rows >= LOG_ROWS:
            with suppress(sqlite3.Error):
                self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
                self._rows = 0

    def close(self) -> None:
        """Fold the log into the file."""
        self._connection.close()


def _identify(path: str | int) -> tuple[int, int] | None:
    """Which file stands at the path, or is open as the descriptor; None if there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def run(path: str, lock: int | None = None) -> None:
    """Open the file at `path` and write what comes in, until nothing comes any more. `lock`: a descriptor of the lock
    beside it; what comes is written as long as that is in its place."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    try:
        file = _File(path, lock)
    except sqlite3.Error as error:
        _answer(f"cannot open {path} ({error}): free the disk, or restore a backup")
        return
    # Whoever sends may die at any time: in the middle of a frame, or with an answer unread.
    with suppress(ConnectionError), open(0, "rb", buffering=1 << 20) as batches:
        _answer(None)
        while len(header := batches.read(HEADER.size)) == HEADER.size:
            (size,) = HEADER.unpack(header)
            body = batches.read(size)
            if len(body) < size:
                break
            _answer(file.commit(marshal.loads(body)))
            file.tidy()
    file.close()


def _answer(sentence: str | None) -> None:
    os.write(1, pack(sentence))


if __name__ == "__main__":
    run(sys.argv[1], *map(int, sys.argv[2:]))

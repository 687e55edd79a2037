"""One server a data directory: a lock that the kernel drops when its holder dies, and a note of who holds it."""

import fcntl
import json
import os
import socket
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cadenza_server.store.commit_process import LOCK_NAME
from cadenza_server.store.errors import StoreError, StoreInUse

LAST_WORDS_SECONDS: Final = 10.0
"""How long to wait for a dead server's process that writes: it finishes the commit that it was sent, and ends."""

_TRY_SECONDS: Final = 0.01


class Lock:
    """Holds `DIR/lock` from its making until `release`; may wait some seconds for a server that has just died. Whoever
    comes later is told of `address`, where this server is found. Raises `StoreInUse` if somebody else holds it."""

    def __init__(self, data_dir: Path, now: int, address: str = "") -> None:
        path = data_dir / LOCK_NAME
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreError(
                f"cannot write {path}: {error.strerror}; give a data directory that is writable"
            ) from error
        patience = LAST_WORDS_SECONDS
        while not self._take():
            note = os.pread(self._file, 4096, 0)
            if patience <= 0 or not _is_dead(note):
                os.close(self._file)
                raise StoreInUse(_describe(data_dir, note))
            time.sleep(_TRY_SECONDS)
            patience -= _TRY_SECONDS
        since = datetime.fromtimestamp(now / 1e9, UTC).isoformat(timespec="seconds")
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": since, "address": address}
        try:
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, json.dumps(holder).encode(), 0)
        except OSError as error:
            os.close(self._file)
            raise StoreError(f"cannot write {path}: {error.strerror}; free the disk") from error

    def _take(self) -> bool:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def fileno(self) -> int:
        """The descriptor. Whoever inherits it holds the lock, too."""
        return self._file

    def release(self) -> None:
        """Let others have it. The file stays: removing it would race the next holder."""
        with suppress(OSError):  # a note that stays is read only while somebody holds the lock
            os.ftruncate(self._file, 0)
        os.close(self._file)


def _is_dead(note: bytes) -> bool:
    """Whether the server that wrote the note is dead, and what it started is finishing its last words."""
    try:
        holder = json.loads(note)
        if holder["host"] == socket.gethostname():
            os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except (ValueError, KeyError, TypeError, OSError):
        pass
    return False


def _describe(data_dir: Path, note: bytes) -> str:
    try:
        holder = json.loads(note)
        if _is_dead(note):
            return (
                f"the store in {data_dir} is still being written for a server that has died (process {holder['pid']}, "
                f"since {holder['since']}): what writes, commit_process.py, ends when its last commit is on disk; if "
                "the disk is well and it does not end, kill it"
            )
        address = holder.get("address")
        where = f", which serves {address}" if address else ""
        who = f"process {holder['pid']} on {holder['host']}{where}, since {holder['since']}"
    except (ValueError, KeyError, TypeError):
        who = "another process"
    return f"the store in {data_dir} is in use by {who}: stop that server, or give another --data-dir"

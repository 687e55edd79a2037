"""One server a data directory: a lock that the kernel drops when its holder dies, and a note of who holds it."""

import fcntl
import json
import os
import socket
from datetime import UTC, datetime
from pathlib import Path

from cadenza_server.store.errors import StoreError, StoreInUse


class Lock:
    """Holds `DIR/lock` from its making until `release`. Raises `StoreInUse` if somebody else does."""

    def __init__(self, data_dir: Path, now: int) -> None:
        path = data_dir / "lock"
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreError(
                f"cannot write {path}: {error.strerror}; give a data directory that is writable"
            ) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._file, 4096, 0)
            os.close(self._file)
            raise StoreInUse(_describe(data_dir, holder)) from error
        since = datetime.fromtimestamp(now / 1e9, UTC).isoformat(timespec="seconds")
        note = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since}).encode()
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, note, 0)

    def release(self) -> None:
        """Let others have it. The file stays: removing it would race the next holder."""
        os.ftruncate(self._file, 0)
        os.close(self._file)


def _describe(data_dir: Path, note: bytes) -> str:
    try:
        holder = json.loads(note)
        who = f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
    except (ValueError, KeyError, TypeError):
        who = "another process"
    return f"the store in {data_dir} is in use by {who}: stop that server, or give another --data-dir"

"""The process that writes the store, as the event loop sees it."""

import asyncio
import marshal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Final

from cadenza_server.store import commit_process
from cadenza_server.store.batch import Batch
from cadenza_server.store.commit_process import HEADER, pack
from cadenza_server.store.errors import StoreError

BUFFER_BYTES: Final = 1 << 20
"""Asked of the kernel for the way to the process: most batches are sent by one call."""


PATIENCE_SECONDS: Final = 10.0
"""How long a stop waits for the process to end."""


class Committer(asyncio.Protocol):
    """Sends batches, and hears when they are on disk. Methods are to be called on one event loop."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._transport: asyncio.Transport | None = None
        self._answers: list[asyncio.Future[None]] = []
        self._received = bytearray()
        self._lost: asyncio.Future[None] | None = None
        """Ends with the connection."""

    @property
    def is_running(self) -> bool:
        """Whether there is a process to write."""
        return self._transport is not None

    async def start(self, path: Path, lock: int) -> None:
        """Start the process on the file at `path`; it holds the descriptor `lock` open as long as it lives. Raises
        `StoreError`."""
        if self._process is not None:
            await asyncio.to_thread(self._process.wait)
        ours, theirs = socket.socketpair()
        with theirs:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
            # -I and -S: nothing of the user's environment is imported, and nothing that takes time.
            command = [sys.executable, "-I", "-S", commit_process.__file__, str(path), str(lock)]
            try:
                self._process = await asyncio.to_thread(
                    lambda: subprocess.Popen(command, stdin=theirs.fileno(), stdout=theirs.fileno(), pass_fds=(lock,))
                )
            except OSError as error:
                ours.close()
                raise StoreError(f"cannot start the process that writes {path}: {error.strerror}") from error
        loop = asyncio.get_running_loop()
        lost = self._lost = loop.create_future()
        self._transport, _ = await loop.create_connection(lambda: self, sock=ours)
        opened: asyncio.Future[None] = loop.create_future()
        self._answers.append(opened)
        try:
            await opened
        except StoreError:
            await lost  # it ends by itself; nothing is to be sent to it any more
            raise

    def commit(self, batch: Batch) -> "asyncio.Future[None]":
        """Write one batch, all or nothing; the future ends when it is on disk, or with a `StoreError`: it is not
        known to be."""
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._transport is None:
            answer.set_exception(StoreError("there is no process that writes"))
            return answer
        try:
            frame = pack(batch.groups())
        except ValueError as error:
            answer.set_exception(StoreError(f"a batch holds what the store has no type for ({error}): this is a bug"))
            return answer
        self._answers.append(answer)
        self._transport.write(memoryview(frame))  # what the kernel does not take at once is copied once, not twice
        return answer

    async def close(self) -> None:
        """Let the process finish what was sent, and wait for its end. Raises `StoreError` if it hangs: then it is
        killed, and what it had not acknowledged may be on disk or not."""
        process, self._process = self._process, None
        if self._transport is not None:
            self._transport.close()
        if process is None:
            return
        try:
            await asyncio.to_thread(process.wait, PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            raise StoreError(
                f"the process that writes the store (process {process.pid}) hung and was killed: is the disk well?"
            ) from None

    # --- what the process says ------------------------------------------------------------------------------------
    def data_received(self, data: bytes) -> None:
        """Answers, or parts of them."""
        received = self._received
        received += data
        while len(received) >= HEADER.size:
            end = HEADER.size + HEADER.unpack_from(received)[0]
            if len(received) < end:
                return
            sentence = marshal.loads(received[HEADER.size : end])
            del received[:end]
            answer = self._answers.pop(0)
            if answer.done():
                continue  # whoever waited has gone
            if sentence is None:
                answer.set_result(None)
            else:
                answer.set_exception(StoreError(sentence))

    def connection_lost(self, exc: Exception | None) -> None:
        """The process has ended, or is to end."""
        del exc  # why, the process itself has said
        self._transport = None
        if self._lost is not None and not self._lost.done():
            self._lost.set_result(None)
        self._received.clear()
        answers, self._answers = self._answers, []
        for answer in answers:
            if not answer.done():
                answer.set_exception(StoreError("the process that writes the store has ended"))

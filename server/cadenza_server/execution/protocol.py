"""Frames between a device and its worker: a kind, a number of parts, the length of each part, the parts.

    kind: uint8 | parts: uint32 | length of part 1: uint64 | ... | part 1 | ...          (little-endian)

The parts of each kind are listed at `Kind`. Nothing is pickled; what a part holds, its reader decodes.
"""

import socket
from enum import IntEnum
from struct import Struct
from typing import Final, NamedTuple

FRAME_BYTES_MAX: Final = 4 * 1024**3
"""A frame that claims to be longer is garbage."""

PARTS_MAX: Final = 100_000
"""Likewise."""

SPACE_BYTES: Final = 256 * 1024
"""So much is read from a socket at a time; at most about what the kernel holds."""

_HEAD: Final = Struct("<BI")
_LENGTH: Final = Struct("<Q")


class Kind(IntEnum):
    """What a frame says. To the worker: SETUP, RUN. From the worker: READY, DONE."""

    SETUP = 1
    """name, JSON of the `DeviceSpec`"""
    READY = 2
    """`cadenza.v1.Device`: its model is loaded, it can take a run up; and what it could not protect itself from"""
    RUN = 3
    """number of the run on its device, attempt, epoch, age of the epoch and limit in ns, epoch of the session's first
    run (int64 each; the last one is empty where there is no session), `cadenza.v1.Program`, then digest and
    `cadenza.v1.Circuit` in turn"""
    DONE = 4
    """number of the run (int64), `RunOutcome`, detail, `cadenza.v1.JobResult`, `cadenza.v1.DeviceProperties` (may be
    empty), and whether the worker ends after this (anything: it does)"""


class Frame(NamedTuple):
    """One message."""

    kind: int
    parts: tuple[bytes, ...]


class FrameError(Exception):
    """The stream does not hold frames; nothing that follows can be read."""


def encode_frame(kind: Kind, *parts: bytes) -> bytes:
    """The bytes of one frame."""
    return b"".join((_HEAD.pack(kind, len(parts)), *(_LENGTH.pack(len(part)) for part in parts), *parts))


def encode_integer(value: int) -> bytes:
    """An int64 part."""
    return value.to_bytes(8, "little", signed=True)


def decode_integer(part: bytes) -> int:
    """The inverse of `encode_integer`."""
    return int.from_bytes(part, "little", signed=True)


class FrameReader:
    """Cuts a stream into frames. Not thread-safe."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._needed = _HEAD.size

    def feed(self, data: bytes | memoryview) -> list[Frame]:
        """Take in what was read; return the frames that it completes. Raises `FrameError` for what is not frames."""
        self._buffer += data
        frames: list[Frame] = []
        while len(self._buffer) >= self._needed and (frame := self._cut()) is not None:
            frames.append(frame)
        return frames

    def _cut(self) -> Frame | None:
        kind, count = _HEAD.unpack_from(self._buffer)
        if kind not in _KINDS or count > PARTS_MAX:
            raise FrameError(f"a frame begins with kind {kind} and {count} parts")
        start = _HEAD.size + count * _LENGTH.size
        if len(self._buffer) < start:
            self._needed = start
            return None
        lengths = [_LENGTH.unpack_from(self._buffer, _HEAD.size + i * _LENGTH.size)[0] for i in range(count)]
        end = start + sum(lengths)
        if end > FRAME_BYTES_MAX:
            raise FrameError(f"a frame claims to be {end} bytes long")
        if len(self._buffer) < end:
            self._needed = end
            return None
        parts = []
        with memoryview(self._buffer) as view:
            for length in lengths:
                parts.append(bytes(view[start : start + length]))
                start += length
        del self._buffer[:end]
        self._needed = _HEAD.size
        return Frame(kind, tuple(parts))


_KINDS: Final = frozenset(Kind)


class FrameSocket:
    """Frames over a blocking stream socket: the worker's side."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._reader = FrameReader()
        self._ready: list[Frame] = []
        # kept: memory that is fresh each time costs more than what is mostly read into it
        self._space = memoryview(bytearray(SPACE_BYTES))

    def receive(self) -> Frame | None:
        """The next frame; None once the other side has closed. Blocks."""
        while not self._ready:
            count = self._socket.recv_into(self._space)
            if not count:
                return None
            self._ready = self._reader.feed(self._space[:count])
        return self._ready.pop(0)

    def send(self, kind: Kind, *parts: bytes) -> None:
        """Send one frame. Blocks until the kernel has it."""
        self._socket.sendall(encode_frame(kind, *parts))

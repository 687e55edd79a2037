"""A worker process: `python -m cadenza_server.execution.worker FD`.

It reads frames from the socket FD: first what its device is, then one run after the other. It is single-threaded, it
keeps its device's model and the circuits that it has parsed, and it ends when the socket closes. Whatever a program
does wrong becomes an answer; only a crash ends the process. What it could do beyond its device it takes away from
itself (`confinement.py`).
"""

import contextlib
import ctypes
import gc
import os
import secrets
import signal
import socket
import sys
import warnings

from cadenza.v1.circuit_pb2 import Circuit
from cadenza.v1.program_pb2 import Program
from google.protobuf.message import DecodeError

from cadenza_server.execution.confinement import (
    count_data_bytes,
    cut_network,
    limit_files,
    limit_memory,
    limit_processor,
)
from cadenza_server.execution.plugins import Executor, Forgetful, load_kind
from cadenza_server.execution.protocol import Frame, FrameError, FrameSocket, Kind, decode_integer
from cadenza_server.execution.spec import KINDS, DeviceSpec
from cadenza_server.model.words import RunOutcome

UNWANTED = ("qiskit_experiments", "qiskit_ibm_runtime")
"""Packages that Qiskit's transpiler would load, where they are installed, for plugins that nothing here asks for: each
of them takes as long as all else of a worker's start."""

_PR_SET_PDEATHSIG = 1
"""linux/prctl.h"""


def main(descriptor: int) -> None:
    """Serve the socket until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _die_with_parent()
    limit_files()
    warnings.simplefilter("ignore")  # advice of libraries for whoever calls them, and that is not the job's author
    with socket.socket(fileno=descriptor) as sock:
        frames = FrameSocket(sock)
        # the server's end may close at any time, and nobody is left to be told
        with contextlib.suppress(ConnectionError):
            serve(frames)


def serve(frames: FrameSocket) -> None:
    """Build the device and run what comes."""
    first = frames.receive()
    if first is None:
        return
    if first.kind != Kind.SETUP:
        raise FrameError(f"the first frame is of kind {first.kind}: it must be SETUP")
    name, spec = first.parts[0].decode(), DeviceSpec.from_json(first.parts[1].decode())
    complaints = []
    if not spec.network:
        if complaint := cut_network():
            complaints.append(f"it keeps its network: {complaint}")
        _die_with_parent()  # the kernel forgets it when privileges change
    executor = _make_executor(name, spec)
    executor.warm_up()
    # Beyond this, what is left over of programs takes away from the ones that follow.
    much = count_data_bytes() + spec.memory_bytes // 2
    if complaint := limit_memory(spec.memory_bytes):
        complaints.append(f"its memory is not limited: {complaint}")
    # what is loaded stays: the collector need not look at it again
    gc.collect()
    gc.freeze()
    frames.send(Kind.READY, executor.describe().SerializeToString(), "; ".join(complaints).encode())
    while (frame := frames.receive()) is not None:
        if frame.kind != Kind.RUN:
            raise FrameError(f"a frame of kind {frame.kind} came: only RUN can follow")
        limit_processor(decode_integer(frame.parts[4]), spec.threads)
        outcome, detail, result, properties = _run(executor, frame)
        # some parsers do not give back what they took; the device goes on with another worker then
        leaves = count_data_bytes() > much and not _make_room(executor, much)
        end = b"1" if leaves else b""
        frames.send(Kind.DONE, frame.parts[0], outcome.encode(), detail.encode(), result, properties, end)
        if leaves:
            return


def _make_room(executor: Executor, much: int) -> bool:
    """Give back what is kept only so that later programs need not wait. Returns whether that was enough."""
    if isinstance(executor, Forgetful):
        executor.forget()
    gc.collect()
    return count_data_bytes() <= much


def _make_executor(name: str, spec: DeviceSpec) -> Executor:
    """Imports only what the kind needs, and only now: it takes most of a worker's start."""

    def draw_seed() -> int:
        return secrets.randbits(63)

    if spec.kind not in KINDS:
        return load_kind(spec.kind)(name, spec, draw_seed)
    for package in UNWANTED:
        if spec.kind != "snapshot" or package != "qiskit_ibm_runtime":  # which has the snapshots
            sys.modules[package] = None  # type: ignore[assignment]
    from cadenza_server.execution.executor import AerExecutor

    return AerExecutor(name, spec, draw_seed)


def _run(executor: Executor, frame: Frame) -> tuple[RunOutcome, str, bytes, bytes]:
    from cadenza_server.execution.errors import ProgramError

    _number, attempt, epoch, age, _limit, first_epoch, program, *rest = frame.parts
    try:
        circuits = {rest[i]: Circuit.FromString(rest[i + 1]) for i in range(0, len(rest), 2)}
        executed = executor.execute(
            Program.FromString(program),
            circuits,
            epoch=decode_integer(epoch),
            attempt=decode_integer(attempt),
            age_ns=decode_integer(age),
        )
        if first_epoch:
            executed.result.execution.session_first_epoch = decode_integer(first_epoch)
        properties = b"" if executed.properties is None else executed.properties.SerializeToString()
        return RunOutcome.SUCCEEDED, "", executed.result.SerializeToString(), properties
    except ProgramError as error:
        return RunOutcome.EXECUTION_ERROR, str(error), b"", b""
    except DecodeError:
        return RunOutcome.EXECUTION_ERROR, "the program is no cadenza.v1.Program: send a serialised one", b"", b""
    except MemoryError:
        detail = "the program needs more memory than there is: use fewer qubits, shots or sets of values"
        return RunOutcome.EXECUTION_ERROR, detail, b"", b""
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        # a panic in Qiskit's Rust code is no Exception
        return RunOutcome.EXECUTION_ERROR, f"the program failed: {type(error).__name__}: {error}"[:1000], b"", b""


def _die_with_parent() -> None:
    """Where the platform can: a worker deep in Aer does not see that its socket has closed."""
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]))

"""A device whose programs misbehave on request: the text of the first PUB's circuit says how."""

import os
import resource
import signal
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from cadenza.v1.circuit_pb2 import Circuit
from cadenza.v1.device_pb2 import Device
from cadenza.v1.program_pb2 import Program
from cadenza.v1.result_pb2 import JobResult
from cadenza_server.execution.plugins import Executed
from cadenza_server.execution.spec import DeviceSpec


class Unruly:
    """`request argument` -> misbehaviour; what came of it stands in the result's metadata."""

    def __init__(self, name: str, spec: DeviceSpec, draw_seed: Callable[[], int]) -> None:
        self._name = name
        self._kept: list[bytearray] = []

    def describe(self) -> Device:
        return Device(name=self._name)

    def warm_up(self) -> None:
        """Waits for the file that the variable names, if it is set."""
        while (gate := os.environ.get("UNRULY_GATE")) and not Path(gate).exists():
            time.sleep(0.01)

    def execute(
        self, program: Program, circuits: Mapping[bytes, Circuit], *, epoch: int, attempt: int, age_ns: int = 0
    ) -> Executed:
        # Behind a server the text has to look like OpenQASM: what is asked for is a comment then.
        asked = program.sampler.pubs[0].circuit.openqasm3.rpartition("// ")[2]
        request, _, argument = asked.partition(" ")
        result = JobResult()
        if request == "abort":
            os.write(2, argument.encode() + b"\n")
            os.abort()
        elif request == "signal":
            os.kill(os.getpid(), getattr(signal, argument))
        elif request == "hang":
            while True:
                pass
        elif request == "sleep":
            time.sleep(float(argument))
        elif request == "allocate":
            result.metadata["size"] = len(bytearray(int(argument)))
        elif request == "keep":
            self._kept.append(bytearray(int(argument)))
        elif request == "open":
            result.metadata["opened"] = _count_files()
        elif request == "connect":
            host, port = argument.split(":")
            with socket.create_connection((host, int(port)), timeout=5):
                result.metadata["connected"] = True
        elif request == "limits":
            for name in argument.split():
                result.metadata[name] = resource.getrlimit(getattr(resource, name))[0]
        return Executed(result)


def _count_files() -> int:
    """How many files can be opened."""
    opened = []
    try:
        while True:
            opened.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        return len(opened)
    finally:
        for descriptor in opened:
            os.close(descriptor)

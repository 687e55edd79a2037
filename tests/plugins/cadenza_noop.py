"""A device that does nothing: every program succeeds with an empty result, at once, or after S with `options = {
seconds = S }`. For measuring all but devices, and for servers that are killed.

With this folder on PYTHONPATH a configuration may say `kind = "noop"`; its workers start in a fraction of the time of
Aer's, for they load no Qiskit.
"""

import time
from collections.abc import Callable, Mapping

from cadenza.v1.circuit_pb2 import Circuit
from cadenza.v1.device_pb2 import Device
from cadenza.v1.program_pb2 import Program
from cadenza.v1.result_pb2 import JobResult
from cadenza_server.execution.plugins import Executed
from cadenza_server.execution.spec import DeviceSpec


class Noop:
    """Answers with as many empty results as the job has PUBs."""

    def __init__(self, name: str, spec: DeviceSpec, draw_seed: Callable[[], int]) -> None:
        self._name = name
        self._seconds = float(spec.options.get("seconds", 0))

    def describe(self) -> Device:
        return Device(name=self._name, description="does nothing")

    def warm_up(self) -> None:
        pass

    def execute(
        self, program: Program, circuits: Mapping[bytes, Circuit], *, epoch: int, attempt: int, age_ns: int = 0
    ) -> Executed:
        if self._seconds:
            time.sleep(self._seconds)
        result = JobResult()
        kind = program.WhichOneof("kind")
        for _ in getattr(program, kind).pubs if kind else ():
            result.pubs.add()
        result.execution.device = self._name
        result.execution.epoch = epoch
        result.execution.attempt = attempt
        return Executed(result)

"""Kinds of devices that other packages bring, and the seam that they fill. Imports neither Qiskit nor NumPy.

A plugin is an entry point of the group `cadenza.devices`. Its name is the `kind` to write in the configuration; it
loads a callable `make(name, spec, draw_seed) -> Executor`, which runs in the device's worker process, once.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

from cadenza.v1.circuit_pb2 import Circuit
from cadenza.v1.device_pb2 import Device, DeviceProperties
from cadenza.v1.program_pb2 import Program
from cadenza.v1.result_pb2 import JobResult

if TYPE_CHECKING:
    from cadenza_server.execution.spec import DeviceSpec

GROUP: Final = "cadenza.devices"
"""The group of entry points."""


@dataclass(frozen=True, slots=True)
class Executed:
    """What a program brought."""

    result: JobResult
    properties: DeviceProperties | None = None
    """What a calibration measured."""


class Executor(Protocol):
    """Executes the programs of one device, one after the other, in the worker's only thread."""

    def describe(self) -> Device:
        """What the device publishes of itself; scheduling's part is not set."""

    def warm_up(self) -> None:
        """Load what the first program would have to wait for."""

    def execute(
        self, program: Program, circuits: Mapping[bytes, Circuit], *, epoch: int, attempt: int, age_ns: int = 0
    ) -> Executed:
        """Run a program. `circuits`, by digest: those that it names so. `epoch`: the calibration epoch of the device,
        `age_ns`: how long it lasts.

        Raises `ProgramError` if it is the program that is wrong.
        """


@runtime_checkable
class Forgetful(Protocol):
    """An executor that keeps something so that later programs need not wait for it."""

    def forget(self) -> None:
        """Give it back: memory runs short."""


MakeExecutor = Callable[[str, "DeviceSpec", Callable[[], int]], Executor]
"""(device's name, spec, seeds below 2**63 for jobs that ask for none) -> its executor."""


def find_kinds() -> dict[str, EntryPoint]:
    """The plugins that are installed, by kind."""
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def check_kind(kind: str, builtin: tuple[str, ...]) -> None:
    """Raise `ValueError` if no plugin brings `kind`."""
    kinds = find_kinds()
    if kind not in kinds:
        raise ValueError(
            f"kind is {kind!r}: it must be one of {', '.join((*builtin, *sorted(kinds)))}, or the name of a plugin "
            f"that is installed (an entry point of the group {GROUP})"
        )


def load_kind(kind: str) -> MakeExecutor:
    """What makes the executors of a plugin's devices. Raises what loading it raises."""
    make: MakeExecutor = find_kinds()[kind].load()
    return make

"""What a device executes its jobs with, as configured. Imports neither Qiskit nor NumPy."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, Final

from cadenza_server.execution.plugins import check_kind
from cadenza_server.execution.snapshots import find_snapshot

KINDS: Final = ("aer", "generic", "snapshot")
"""`aer`: Qiskit Aer without noise. `generic`: Aer with the noise of Qiskit's `GenericBackendV2`. `snapshot`: Aer with
the noise of a real device, as qiskit-ibm-runtime publishes it. Others are plugins (`plugins.py`)."""

NOISY_KINDS: Final = ("generic", "snapshot")

ACCELERATORS: Final = ("cpu", "gpu", "auto")
"""What computes: `auto` is a GPU where there is one."""

PRECISIONS: Final = ("double", "single")
"""Of the simulator's numbers."""

METHODS: Final = (
    "automatic",
    "statevector",
    "density_matrix",
    "stabilizer",
    "matrix_product_state",
    "extended_stabilizer",
)
"""Simulation methods of Aer (`AerSimulator.available_methods`) that can run sampled circuits on a CPU."""

COUPLINGS: Final = ("heavy-hex", "line", "ring", "full")
"""Coupling maps by name. `heavy-hex` is the 27-qubit map of IBM's Falcon processors."""

HEAVY_HEX_QUBITS: Final = 27

DRIFT_MAX: Final = 2.0
"""A standard deviation in the logarithm: rates that are mostly within a factor of 55 of the calibrated ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSpec:
    """One device's executor and its settings. Raises `ValueError` with a sentence that begins with a setting's name."""

    kind: str = "aer"
    """One of `KINDS`, or the name of a plugin."""
    num_qubits: int = 27
    """How many qubits it has; for `aer`, how many a circuit may have at most; for `snapshot`, those of the snapshot."""
    method: str = "automatic"
    """The simulation method of jobs that name none, one of `METHODS`."""
    precision: str = "double"
    """One of `PRECISIONS`."""
    accelerator: str = "cpu"
    """One of `ACCELERATORS`; what a device was told, not what it found."""
    gpus: tuple[int, ...] = ()
    """Numbers of the GPUs that its workers take turns on; empty: all that there are."""
    batched_shots: bool = True
    """GPU: whether the shots of a circuit with noise run together."""
    custatevec: bool = False
    """GPU: whether cuStateVec of NVIDIA's cuQuantum computes."""
    snapshot: str = ""
    """`snapshot`: the name of a backend in `qiskit_ibm_runtime.fake_provider`, such as `FakeSherbrooke`."""
    coupling: str | tuple[tuple[int, int], ...] = "heavy-hex"
    """`generic`: one of `COUPLINGS`, or pairs of qubits; each pair works both ways."""
    basis_gates: tuple[str, ...] = ("cx", "id", "rz", "sx", "x")
    """`generic`: the gates that it has, by Qiskit's names."""
    seed: int = 42
    """`generic`: chooses the error rates and durations. With drift, chooses that, too."""
    noise: bool = True
    """`generic`, `snapshot`: whether it is noisy."""
    drift: float = 0.0
    """`generic`, `snapshot`: how far error rates wander from their calibrated values in the long run, as the standard
    deviation of their natural logarithm; 0: not at all (`drift.py`)."""
    drift_time_ns: int = 3_600 * 1_000_000_000
    """How long it takes until they have: the correlation time."""
    default_shots: int = 1024
    """Shots of jobs that name none."""
    default_precision: float = 0.0
    """Precision of Estimator jobs that name none; 0: exact."""
    transpile_level: int = 1
    """How much jobs are transpiled that do not say, 0 to 3."""
    threads: int = 1
    """Threads of a worker (OpenMP and BLAS)."""
    circuits_cached_max: int = 256
    """How many parsed circuits a worker keeps ready, the latest used ones."""
    memory_bytes_max: int = 0
    """Memory that a worker's programs may take, beyond what the worker itself has loaded; 0: half of the machine's."""
    network: bool = False
    """Whether a worker may use the network; False: it is cut off where the platform allows it."""
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """A plugin's own settings: what JSON can hold."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            check_kind(self.kind, KINDS)
        _check_one_of("method", self.method, METHODS)
        _check_one_of("precision", self.precision, PRECISIONS)
        _check_one_of("accelerator", self.accelerator, ACCELERATORS)
        for name, least, most in (
            ("num_qubits", 1, 10_000),
            ("default_shots", 1, 10_000_000),
            ("transpile_level", 0, 3),
            ("threads", 1, 1_024),
            ("seed", 0, 2**63 - 1),
            ("circuits_cached_max", 1, 1_000_000),
            ("memory_bytes_max", 0, 2**62),
            ("drift_time_ns", 1_000_000_000, 2**62),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                raise ValueError(f"{name} is {value!r}: it must be an integer from {least} to {most}")
        if not 0.0 <= self.default_precision < float("inf"):
            raise ValueError(f"default_precision is {self.default_precision!r}: it must be a number of at least 0")
        if not 0.0 <= self.drift <= DRIFT_MAX:
            raise ValueError(f"drift is {self.drift!r}: it must be a number from 0 to {DRIFT_MAX:g}")
        if not self.is_noisy and self.drift:
            raise ValueError("drift is set, and the device has no noise that could: leave it out, or set noise = true")
        numbers = [gpu for gpu in self.gpus if isinstance(gpu, int) and 0 <= gpu < 1024]
        if len(set(numbers)) < len(self.gpus):
            raise ValueError(f"gpus is {list(self.gpus)!r}: it must be different numbers of GPUs, from 0")
        if self.gpus and self.accelerator == "cpu":
            raise ValueError('gpus are named, and accelerator is \'cpu\': set accelerator = "gpu" or "auto"')
        if self.kind == "generic":
            self._check_generic()
        elif self.kind == "snapshot":
            found = find_snapshot(self.snapshot)
            if self.num_qubits != found.num_qubits:
                raise ValueError(f"num_qubits is {self.num_qubits}: {self.snapshot} has {found.num_qubits}")

    @property
    def is_noisy(self) -> bool:
        """Whether results are noisy."""
        return self.kind in NOISY_KINDS and self.noise

    @property
    def memory_bytes(self) -> int:
        """`memory_bytes_max`, or what stands for 0 on this machine."""
        return self.memory_bytes_max or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2

    def _check_generic(self) -> None:
        if isinstance(self.coupling, str):
            _check_one_of("coupling", self.coupling, COUPLINGS)
            if self.coupling == "heavy-hex" and self.num_qubits != HEAVY_HEX_QUBITS:
                raise ValueError(
                    f"coupling 'heavy-hex' is a map of {HEAVY_HEX_QUBITS} qubits: set num_qubits to it, or give pairs"
                )
        else:
            for pair in self.coupling:
                if len(pair) != 2 or pair[0] == pair[1] or not all(0 <= qubit < self.num_qubits for qubit in pair):
                    raise ValueError(
                        f"coupling has {list(pair)!r}: a pair is two different qubits from 0 to {self.num_qubits - 1}"
                    )
        if not self.basis_gates or not all(isinstance(gate, str) and gate for gate in self.basis_gates):
            raise ValueError("basis_gates must name at least one gate")

    def to_json(self) -> str:
        """For the worker."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return json.dumps({**values, "options": dict(self.options)})

    @classmethod
    def from_json(cls, text: str) -> "DeviceSpec":
        """The inverse of `to_json`."""
        values = json.loads(text)
        values["basis_gates"] = tuple(values["basis_gates"])
        values["gpus"] = tuple(values["gpus"])
        values["options"] = MappingProxyType(values["options"])
        if not isinstance(values["coupling"], str):
            values["coupling"] = tuple((first, second) for first, second in values["coupling"])
        return cls(**values)


def _check_one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}: it must be one of {', '.join(allowed)}")

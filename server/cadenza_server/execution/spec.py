"""What a device executes its jobs with, as configured. Imports neither Qiskit nor NumPy."""

import json
from dataclasses import dataclass, fields
from typing import Final

KINDS: Final = ("aer", "generic")
"""`aer`: Qiskit Aer without noise. `generic`: Aer with the noise of Qiskit's `GenericBackendV2`."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSpec:
    """One device's executor and its settings. Raises `ValueError` with a sentence that begins with a setting's name."""

    kind: str = "aer"
    """One of `KINDS`."""
    num_qubits: int = 27
    """How many qubits it has; for `aer`, how many a circuit may have at most."""
    method: str = "automatic"
    """The simulation method of jobs that name none, one of `METHODS`."""
    coupling: str | tuple[tuple[int, int], ...] = "heavy-hex"
    """`generic`: one of `COUPLINGS`, or pairs of qubits; each pair works both ways."""
    basis_gates: tuple[str, ...] = ("cx", "id", "rz", "sx", "x")
    """`generic`: the gates that it has, by Qiskit's names."""
    seed: int = 42
    """`generic`: chooses the error rates and durations."""
    noise: bool = True
    """`generic`: whether it is noisy."""
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

    def __post_init__(self) -> None:
        _check_one_of("kind", self.kind, KINDS)
        _check_one_of("method", self.method, METHODS)
        for name, least, most in (
            ("num_qubits", 1, 10_000),
            ("default_shots", 1, 10_000_000),
            ("transpile_level", 0, 3),
            ("threads", 1, 1_024),
            ("seed", 0, 2**63 - 1),
            ("circuits_cached_max", 1, 1_000_000),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                raise ValueError(f"{name} is {value!r}: it must be an integer from {least} to {most}")
        if not 0.0 <= self.default_precision < float("inf"):
            raise ValueError(f"default_precision is {self.default_precision!r}: it must be a number of at least 0")
        if self.kind == "generic":
            self._check_generic()

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
        return json.dumps({field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def from_json(cls, text: str) -> "DeviceSpec":
        """The inverse of `to_json`."""
        values = json.loads(text)
        values["basis_gates"] = tuple(values["basis_gates"])
        if not isinstance(values["coupling"], str):
            values["coupling"] = tuple((first, second) for first, second in values["coupling"])
        return cls(**values)


def _check_one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}: it must be one of {', '.join(allowed)}")

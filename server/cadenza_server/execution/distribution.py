"""Circuits whose measurements come last: their outcomes are drawn here from the probabilities that Aer computes once.

Aer draws shots one by one and writes each as text: 1,000 shots of two qubits take it 1.4 ms, 0.1 ms of which is the
circuit; 8,000,000 shots of 20 qubits take it a minute and a half. Where a circuit without noise measures only at its
end, its outcomes are independent draws from one distribution. So Aer is asked for the probabilities of the measured
qubits, in a single execution, and the shots are drawn from them by inverting the cumulative distribution: exact up to
the rounding of doubles, as Aer's own sampling is.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from qiskit.circuit import Gate, ParameterExpression
from qiskit_aer.library import SaveProbabilities

LABEL: Final = "probabilities"

METHODS_WITH_PROBABILITIES: Final = frozenset({"automatic", "statevector", "density_matrix"})
"""Methods whose probabilities cost no more than a few shots. The others hold no vector that they could be read from."""

QUBITS_MAX: Final = 24
"""A state vector of 256 MiB. What is larger is left to Aer, which looks at the memory there is and chooses a method."""

MEASURED_MAX: Final = 20
"""8 MiB of probabilities, which take as long to add up as Aer takes for 1,000 shots."""

STATEVECTOR_QUBITS: Final = 12
"""Up to here a state vector beats the stabilizer method, even for Clifford circuits and 100 shots: under 0.6 ms."""

STABILIZER_SHOT_AMPLITUDES: Final = 32
"""A shot of a Clifford circuit by the stabilizer method (some 8 us) takes as long as so many amplitudes of a state
vector."""

TABLE_MEASURED_MAX: Final = 10
"""Up to here the packed bits of every outcome are kept with the circuit."""

CHUNK_SHOTS: Final = 1 << 20
"""So many shots are drawn and packed at a time; it bounds the memory, and changes nothing in what is drawn."""

# What Aer's automatic method gives to the stabilizer method; rz only by multiples of a right angle.
_CLIFFORD: Final = frozenset(
    {"cx", "cy", "cz", "ecr", "h", "id", "pauli", "rz", "s", "sdg", "swap", "sx", "sxdg", "x", "y", "z"}
)


@dataclass(frozen=True, slots=True)
class FinalMeasurements:
    """What a circuit measures, all at its end."""

    qubits: tuple[int, ...]
    """Those whose outcomes stay in a classical bit. Bit j of an outcome's number is what qubits[j] was measured to."""
    sources: tuple[int, ...]
    """For each classical bit of the circuit, which of `qubits` it holds; -1: none, it stays 0."""
    num_qubits: int
    """How many qubits the circuit touches; no other is simulated."""
    is_clifford: bool
    """Whether Aer's automatic method would not use a state vector."""

    def choose_method(self, method: str, shots: int) -> str | None:
        """The method by which Aer is to compute the probabilities; None: drawing each shot by itself is better."""
        if method not in METHODS_WITH_PROBABILITIES:
            return None
        if self.num_qubits > QUBITS_MAX or len(self.qubits) > MEASURED_MAX:
            return None
        if method != "automatic":
            return method
        if (
            self.is_clifford
            and self.num_qubits > STATEVECTOR_QUBITS
            and shots * STABILIZER_SHOT_AMPLITUDES < 1 << self.num_qubits
        ):
            return None
        return "statevector"


def find_final_measurements(circuit: Any) -> FinalMeasurements | None:
    """What the circuit measures, if it consists of gates, delays, barriers and measurements, and neither gate nor delay
    follows a measurement on its qubit. None for every other circuit: there, what comes may depend on what was drawn.

    A qubit that is measured twice in a row has the same outcome twice; a classical bit that is written twice keeps what
    came last.
    """
    held: dict[int, int] = {}
    measured: set[int] = set()
    touched: set[int] = set()
    is_clifford = True
    for instruction in circuit.data:
        operation = instruction.operation
        if operation.name == "barrier":
            continue
        qubits = [circuit.find_bit(qubit).index for qubit in instruction.qubits]
        touched.update(qubits)
        if operation.name == "measure":
            measured.update(qubits)
            held[circuit.find_bit(instruction.clbits[0]).index] = qubits[0]
            continue
        if not measured.isdisjoint(qubits):
            return None
        if operation.name == "delay":
            continue
        if not isinstance(operation, Gate) or instruction.clbits:
            return None
        is_clifford = is_clifford and is_clifford_gate(operation)
    if not held:
        return None
    order = tuple(dict.fromkeys(held[clbit] for clbit in sorted(held)))
    places = {qubit: place for place, qubit in enumerate(order)}
    return FinalMeasurements(
        qubits=order,
        sources=tuple(places[held[clbit]] if clbit in held else -1 for clbit in range(circuit.num_clbits)),
        num_qubits=len(touched),
        is_clifford=is_clifford,
    )


def save_probabilities(circuit: Any, measurements: FinalMeasurements) -> Any:
    """The circuit without its measurements, which has the probabilities of the outcomes saved instead."""
    saved = circuit.copy_empty_like()
    for instruction in circuit.data:
        if instruction.operation.name not in ("measure", "barrier"):
            saved.append(instruction)
    saved.append(SaveProbabilities(len(measurements.qubits), LABEL), list(measurements.qubits))
    return saved


class OutcomePacker:
    """The bits of one classical register in each outcome, as Qiskit's `BitArray` has them."""

    def __init__(self, measurements: FinalMeasurements, clbits: Sequence[int]) -> None:
        self.size = (len(clbits) + 7) // 8
        """Bytes a shot."""
        self._num_measured = len(measurements.qubits)
        self._sources = [measurements.sources[clbit] for clbit in clbits]
        self._table = self._tabulate() if self._num_measured <= TABLE_MEASURED_MAX else None

    def table(self, shots: int) -> NDArray[np.uint8] | None:
        """The bits of every outcome, for `pack`; None if so many shots are packed faster one by one."""
        if self._table is None and shots >= 1 << self._num_measured:
            return self._tabulate()
        return self._table

    def pack(self, outcomes: NDArray[np.intp], table: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
        """The bits in these outcomes, a row of `size` bytes each."""
        return self._pack(outcomes) if table is None else table[outcomes]

    def _tabulate(self) -> NDArray[np.uint8]:
        return self._pack(np.arange(1 << self._num_measured))

    def _pack(self, outcomes: NDArray[np.intp]) -> NDArray[np.uint8]:
        rows = np.zeros((len(outcomes), self.size), np.uint8)
        for bit, source in enumerate(self._sources):
            if source >= 0:
                byte = rows[:, self.size - 1 - bit // 8]
                byte |= (((outcomes >> source) & 1) << (bit % 8)).astype(np.uint8)
        return rows


def draw_outcomes(
    probabilities: NDArray[np.float64], shots: int, random: np.random.Generator
) -> Iterator[NDArray[np.intp]]:
    """The outcomes of so many shots, as numbers of the places in `probabilities`, in chunks."""
    cumulative = np.cumsum(np.maximum(probabilities, 0.0))  # rounding may leave a zero below zero
    cumulative /= cumulative[-1]  # the last is 1 now, and what is drawn is below it
    for begin in range(0, shots, CHUNK_SHOTS):
        yield cumulative.searchsorted(random.random(min(CHUNK_SHOTS, shots - begin)), side="right")


def is_clifford_gate(gate: Any) -> bool:
    """Whether Aer's automatic method gives it to the stabilizer method."""
    if gate.name not in _CLIFFORD:
        return False
    if gate.name != "rz":
        return True
    (angle,) = gate.params
    if isinstance(angle, ParameterExpression) and angle.parameters:
        return False
    return abs(math.remainder(float(angle), math.pi / 2)) < 1e-8

"""The calibration of a device: what its readout and its gates do wrong, found from the results of circuits.

Readout: every qubit is prepared in 0 and in 1 and measured. Gates: a gate G with G^r = 1 is run K times, K a multiple
of r, on the eigenstates of X, Y and Z, and what is left of the states is compared with K = 0. Averaged over bases and
signs this gives the decay of each class of Pauli operators, which together are the gate's process fidelity F:
for one qubit F = (1 + 3 f) / 4, for two F = (1 + 3 f10 + 3 f01 + 9 f11) / 16, with f the decay a gate. Published is the
average gate infidelity d (1 - F) / (d + 1), d = 2^n. (Cycle benchmarking's argument, Erhard et al., Nature
Communications 10, 5347 (2019), without the twirl: the noise of the simulated devices has no coherent part.)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from cadenza.v1.device_pb2 import DeviceProperties, GateProperties, QubitProperties
from numpy.typing import NDArray
from qiskit import QuantumCircuit
from qiskit.circuit.library import get_standard_gate_name_mapping
from qiskit.quantum_info import Operator
from qiskit.transpiler import generate_preset_pass_manager

from cadenza_server.execution.aer import SEED_MAX, execute, prepare
from cadenza_server.execution.programs import Bench

READOUT_SHOTS: Final = 8192
GATE_SHOTS: Final = 2048
REPETITIONS: Final[dict[int, int]] = {1: 240, 2: 48}
"""How often a gate on one and on two qubits is run: a multiple of every order up to `ORDER_MAX`, and long enough that
errors of 1e-4 and 1e-3 show."""
ORDER_MAX: Final = 4

_EIGENSTATES: Final = ("0", "1", "+", "-", "r", "l")
"""Of Z, X and Y; the first of each pair has eigenvalue 1."""
_BASIS_PAIRS: Final = ((0, 1), (1, 2), (2, 0))
"""Of the two qubits: each basis once on each."""


@dataclass(frozen=True, slots=True)
class _Gate:
    operation: Any
    repetitions: int


def calibrate(bench: Bench) -> DeviceProperties:
    """Measure the readout errors of all qubits and the errors of all gates that have no parameters."""
    model = bench.model
    laboratory = _Laboratory(bench)
    properties = DeviceProperties()
    properties.CopyFrom(model.describe("").properties)
    if not properties.qubits:
        properties.qubits.extend(QubitProperties(qubit=qubit) for qubit in range(model.spec.num_qubits))
    for qubit in properties.qubits:
        wrong = laboratory.measure_readout(qubit.qubit)
        qubit.prob_meas1_prep0, qubit.prob_meas0_prep1 = wrong
        qubit.readout_error = sum(wrong) / 2
    gates = laboratory.gates()
    if model.backend is None:
        for name, gate in gates.items():
            error = laboratory.measure_gate(gate, range(gate.operation.num_qubits))
            properties.gates.append(GateProperties(gate=name, error=error))
        return properties
    for entry in properties.gates:
        if entry.gate in gates:
            entry.error = laboratory.measure_gate(gates[entry.gate], entry.qubits)
    return properties


class _Laboratory:
    """Circuits in the device's own gates, and what they bring."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._model = bench.model
        self._experiment = 0
        basis = list(self._model.spec.basis_gates) if self._model.backend is not None else ["x", "sx", "rz"]
        self._to_basis = generate_preset_pass_manager(
            optimization_level=1, basis_gates=[*basis, "measure"], seed_transpiler=0
        )
        self._preparations = {state: self._prepare(state) for state in _EIGENSTATES}
        self._references: dict[int, float] = {}

    def gates(self) -> dict[str, _Gate]:
        """Gates of the device without parameters, on one or two qubits, that come back to the identity soon."""
        known = get_standard_gate_name_mapping()
        names = self._model.spec.basis_gates if self._model.backend is not None else ("x", "sx", "cx")
        gates = {}
        for name in names:
            operation = known.get(name)
            if operation is None or operation.params or operation.num_qubits not in REPETITIONS:
                continue
            step = power = Operator(operation)
            for _ in range(ORDER_MAX):
                if power.equiv(Operator(np.eye(2**operation.num_qubits))):
                    gates[name] = _Gate(operation, REPETITIONS[operation.num_qubits])
                    break
                power = power @ step
        return gates

    def measure_readout(self, qubit: int) -> tuple[float, float]:
        """(probability of 1 after 0, probability of 0 after 1). What the preparation of 1 does wrong is in it."""
        zero = self._run(self._experiment_on([qubit], ["0"], None, 0, undo=False), READOUT_SHOTS)
        one = self._run(self._experiment_on([qubit], ["1"], None, 0, undo=False), READOUT_SHOTS)
        return float(zero[:, 0].mean()), float(1.0 - one[:, 0].mean())

    def measure_gate(self, gate: _Gate, qubits: Sequence[int]) -> float:
        """The average gate infidelity on these qubits."""
        references = [self._reference(qubit) for qubit in qubits]
        count = gate.repetitions
        if len(qubits) == 1:
            decay = _root(self._one_qubit(qubits[0], gate, count) / references[0], count)
            return 2 / 3 * (1 - (1 + 3 * decay) / 4)
        left = self._two_qubits(qubits, gate, count)
        first, second = references
        f10, f01, f11 = (
            _root(value / reference, count)
            for value, reference in zip(left, (first, second, first * second), strict=True)
        )
        return 4 / 5 * (1 - (1 + 3 * f10 + 3 * f01 + 9 * f11) / 16)

    def _reference(self, qubit: int) -> float:
        """What preparing and measuring leaves of the states of a qubit."""
        if qubit not in self._references:
            self._references[qubit] = self._one_qubit(qubit, None, 0)
        return self._references[qubit]

    def _one_qubit(self, qubit: int, gate: _Gate | None, count: int) -> float:
        left = [
            1 - 2 * self._run(self._experiment_on([qubit], [state], gate, count), GATE_SHOTS)[:, 0].mean()
            for state in _EIGENSTATES
        ]
        return float(np.mean(left))

    def _two_qubits(self, qubits: Sequence[int], gate: _Gate, count: int) -> NDArray[np.float64]:
        """What is left of operators on the first, on the second, and on both qubits."""
        left = np.zeros(3)
        for first, second in _BASIS_PAIRS:
            for sign in (0, 1):
                states = [_EIGENSTATES[2 * first + sign], _EIGENSTATES[2 * second + sign]]
                signs = 1 - 2 * self._run(self._experiment_on(qubits, states, gate, count), GATE_SHOTS).astype(float)
                left += signs[:, 0].mean(), signs[:, 1].mean(), (signs[:, 0] * signs[:, 1]).mean()
        return left / (2 * len(_BASIS_PAIRS))

    def _experiment_on(
        self, qubits: Sequence[int], states: Sequence[str], gate: _Gate | None, count: int, *, undo: bool = True
    ) -> Any:
        """Prepare a state on each of the qubits, run the gate `count` times, take the preparation back, measure."""
        circuit = QuantumCircuit(self._model.spec.num_qubits, len(qubits))
        for qubit, state in zip(qubits, states, strict=True):
            circuit.compose(self._preparations[state][0], [qubit], inplace=True)
        for _ in range(count if gate else 0):
            circuit.append(gate.operation if gate else None, list(qubits))
        for place, (qubit, state) in enumerate(zip(qubits, states, strict=True)):
            if undo:
                circuit.compose(self._preparations[state][1], [qubit], inplace=True)
            circuit.measure(qubit, place)
        return circuit

    def _prepare(self, state: str) -> tuple[Any, Any]:
        """The state's preparation and its inverse in the device's gates."""
        circuit = QuantumCircuit(1)
        if state in "1-l":
            circuit.x(0)
        if state in "+-":
            circuit.h(0)
        elif state in "rl":
            circuit.sxdg(0)
        return self._to_basis.run(circuit), self._to_basis.run(circuit.inverse())

    def _run(self, circuit: Any, shots: int) -> NDArray[np.int_]:
        """The outcomes: a row a shot, a column a classical bit."""
        seed = self._bench.seed
        if seed is not None:
            self._experiment += 1
            seed = int(np.random.SeedSequence([seed, self._experiment]).generate_state(1, np.uint64)[0]) & SEED_MAX
        prepared = prepare(self._model, circuit, (), noisy=self._bench.noisy)
        execution = execute(
            self._model,
            prepared,
            np.empty((1, 0)),
            shots=shots,
            seed=seed,
            method=self._bench.method,
            memory=False,
        )
        counts = execution.data[0]["counts"]
        outcomes = np.repeat([int(outcome, 16) for outcome in counts], list(counts.values()))
        return (outcomes[:, None] >> np.arange(circuit.num_clbits)) & 1


def _root(value: float, count: int) -> float:
    """The decay of one gate out of `count`; what is gone altogether counts as gone at the last."""
    return float(min(1.0, max(value, 1e-6)) ** (1 / count))

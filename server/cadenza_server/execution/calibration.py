"""The calibration of a device: what its readout and its gates do wrong, found from the results of circuits.

Readout: every qubit is prepared in 0 and in 1 and measured. T1: what is left of 1 after a wait of about T1. T2: what is
left of + after a wait of about T2 (a Hahn echo would see the same: no frequency of a simulated device is detuned).
What is stated of each is five standard deviations, of the shots alone: readout 0.0055, T1 8 %, T2 16 %, gates on one
qubit 4e-4, on two 2.5e-3 (for errors of up to 1 %; more above). Gates: a gate G with G^r = 1 is run K times, K a
multiple of r, on the eigenstates of X, Y and Z, and what is left of the states is compared with K = 0. Averaged over
bases and signs this gives the decay of each class of Pauli operators, which together are the gate's process fidelity F:
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
from qiskit.circuit import CircuitInstruction
from qiskit.circuit.library import get_standard_gate_name_mapping
from qiskit.quantum_info import Operator
from qiskit.transpiler import generate_preset_pass_manager

from cadenza_server.execution.aer import PreparedCircuit, execute, prepare, prepare_batch
from cadenza_server.execution.programs import Bench

READOUT_SHOTS: Final = 4096
GATE_SHOTS: Final = 1000
PAIR_SHOTS: Final = 600
"""Of each circuit."""
WAIT_SHOTS: Final = 16_384
REPETITIONS: Final[dict[int, int]] = {1: 120, 2: 36}
"""How often a gate on one and on two qubits is run: a multiple of every order up to `ORDER_MAX`, and so long that
errors of 1e-4 and 1e-3 show above the noise of the shots."""
ORDER_MAX: Final = 4

_EIGENSTATES: Final = ("0", "1", "+", "-", "r", "l")
"""Of Z, X and Y; the first of each pair has eigenvalue 1."""
_GATES_OF_AER: Final = ("x", "sx", "cx")
"""Gates that stand for all, where there is no noise."""
_PAIR_STATES: Final = (
    *((first + second, 1.0) for first in "+r" for second in "+r"),
    *(("0+", 1.0), ("1r", 1.0), ("+0", 1.0), ("r1", 1.0), ("00", 0.5), ("11", 0.5)),
)
"""States of two qubits and their weights: each pair of bases once. Relaxation shifts what is left of Z, so on each
qubit 0 and 1 weigh the same."""


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
    singles = {name: gate for name, gate in laboratory.gates.items() if gate.operation.num_qubits == 1}
    single_errors: dict[tuple[str, int], float] = {}
    for qubit in properties.qubits:
        # without noise all qubits are alike: the gates of the first two stand for all
        with_gates = model.backend is not None or qubit.qubit < 2
        found = laboratory.measure_qubit(qubit.qubit, singles if with_gates else None)
        qubit.prob_meas1_prep0, qubit.prob_meas0_prep1 = found.wrong
        qubit.readout_error = sum(found.wrong) / 2
        single_errors.update({(name, qubit.qubit): error for name, error in found.errors.items()})
        if bench.noisy and qubit.HasField("t1_s") and qubit.HasField("t2_s"):
            qubit.t1_s, qubit.t2_s = laboratory.measure_times(qubit.qubit, qubit.t1_s, qubit.t2_s, found.wrong)
    if model.backend is None:
        for name, gate in laboratory.gates.items():
            error = single_errors[name, 0] if name in singles else laboratory.measure_pair(gate, (0, 1))
            properties.gates.append(GateProperties(gate=name, error=error))
        return properties
    for entry in properties.gates:
        if entry.gate in singles:
            entry.error = single_errors[entry.gate, entry.qubits[0]]
        elif entry.gate in laboratory.gates:
            entry.error = laboratory.measure_pair(laboratory.gates[entry.gate], tuple(entry.qubits))
    return properties


@dataclass(frozen=True, slots=True)
class _QubitFindings:
    wrong: tuple[float, float]
    """Probability of 1 after 0, and of 0 after 1. What the preparation of 1 does wrong is in it."""
    errors: dict[str, float]
    """Average infidelity of each gate."""


class _Laboratory:
    """Circuits in the device's own gates, and what they bring."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._model = bench.model
        self._experiment = 0
        self._basis = self._model.gate_names()
        """Empty: whatever Aer does."""
        self.gates = self._find_gates()
        basis = self._basis or ["x", "sx", "rz"]
        to_basis = generate_preset_pass_manager(optimization_level=1, basis_gates=basis, seed_transpiler=0)
        self._preparations = {state: _prepare(state, to_basis) for state in _EIGENSTATES}
        self._references: dict[int, float] = {}
        """What preparing and measuring leaves of the states of each qubit."""

    def _find_gates(self) -> dict[str, _Gate]:
        """Gates of the device without parameters, on one or two qubits, that come back to the identity soon. Not `id`:
        it only waits.
        """
        known = get_standard_gate_name_mapping()
        gates = {}
        for name in self._basis or _GATES_OF_AER:
            operation = known.get(name)
            few = operation is not None and operation.num_qubits <= min(2, self._model.spec.num_qubits)
            if not few or operation.params or name == "id":
                continue
            step = power = Operator(operation)
            for _ in range(ORDER_MAX):
                if power.equiv(Operator(np.eye(2**operation.num_qubits))):
                    gates[name] = _Gate(operation, REPETITIONS[operation.num_qubits])
                    break
                power = power @ step
        return gates

    def measure_qubit(self, qubit: int, gates: dict[str, _Gate] | None) -> _QubitFindings:
        """Readout and, unless `gates` is None, reference and one-qubit gates of a qubit."""
        readout = [self._circuit((qubit,), (state,), None, undo=False) for state in "01"]
        after_zero, after_one = (float(ones[:, 0].mean()) for ones in self._run(readout, (qubit,), READOUT_SHOTS))
        if gates is None:
            return _QubitFindings((after_zero, 1 - after_one), {})
        circuits = [
            self._circuit((qubit,), (state,), gate) for gate in (None, *gates.values()) for state in _EIGENSTATES
        ]
        ones = [outcomes[:, 0].mean() for outcomes in self._run(circuits, (qubit,), GATE_SHOTS)]
        signs = 1 - 2 * np.array(ones).reshape(-1, len(_EIGENSTATES)).mean(axis=1)
        self._references[qubit] = float(signs[0])
        errors = {}
        for (name, gate), left in zip(gates.items(), signs[1:], strict=True):
            decay = _root(left / self._references[qubit], gate.repetitions)
            errors[name] = 2 / 3 * (1 - (1 + 3 * decay) / 4)
        return _QubitFindings((after_zero, 1 - after_one), errors)

    def measure_times(self, qubit: int, t1: float, t2: float, wrong: tuple[float, float]) -> tuple[float, float]:
        """T1 and T2 in seconds. `t1`, `t2`: what they were; `wrong`: what its readout does wrong."""
        visible = 1 - sum(wrong)
        dt = self._model.backend.dt or 1e-9
        found = []
        for state, wait in (("1", t1), ("+", t2)):
            ticks = max(1, round(wait / dt))
            circuit = QuantumCircuit(self._model.spec.num_qubits, 1)
            circuit.compose(self._preparations[state][0], [qubit], inplace=True)
            circuit.delay(ticks * dt, qubit, unit="s")
            if state == "+":
                circuit.compose(self._preparations[state][1], [qubit], inplace=True)
            circuit.measure(qubit, 0)
            prepared = prepare(self._model, circuit, (), noisy=True)
            # what relaxes for so long would be followed shot by shot with a state vector
            ones = float(self._measure([circuit], prepared, WAIT_SHOTS, method="density_matrix")[0].mean())
            of_one = (ones - wrong[0]) / visible
            left = of_one if state == "1" else 1 - 2 * of_one
            found.append(ticks * dt / -np.log(min(1 - 1e-6, max(1e-6, left))))
        return found[0], min(found[1], 2 * found[0])

    def measure_pair(self, gate: _Gate, qubits: tuple[int, ...]) -> float:
        """The average infidelity of a two-qubit gate. Both qubits must have been measured."""
        circuits = [self._circuit(qubits, states, gate) for states, _ in _PAIR_STATES]
        left = np.zeros(3)
        for (_, weight), outcomes in zip(_PAIR_STATES, self._run(circuits, qubits, PAIR_SHOTS), strict=True):
            signs = 1.0 - 2.0 * outcomes
            left += weight * np.array((signs[:, 0].mean(), signs[:, 1].mean(), (signs[:, 0] * signs[:, 1]).mean()))
        left /= sum(weight for _, weight in _PAIR_STATES)
        first, second = (self._references[qubit] for qubit in qubits)
        f10, f01, f11 = (
            _root(value / reference, gate.repetitions)
            for value, reference in zip(left, (first, second, first * second), strict=True)
        )
        return 4 / 5 * (1 - (1 + 3 * f10 + 3 * f01 + 9 * f11) / 16)

    def _circuit(self, qubits: Sequence[int], states: Sequence[str], gate: _Gate | None, *, undo: bool = True) -> Any:
        """Prepare a state on each of the qubits, repeat the gate, take the preparation back, measure."""
        circuit = QuantumCircuit(self._model.spec.num_qubits, len(qubits))
        for qubit, state in zip(qubits, states, strict=True):
            circuit.compose(self._preparations[state][0], [qubit], inplace=True)
        if gate is not None:
            step = CircuitInstruction(gate.operation, [circuit.qubits[qubit] for qubit in qubits])
            for _ in range(gate.repetitions):
                circuit._append(step)
        for place, (qubit, state) in enumerate(zip(qubits, states, strict=True)):
            if undo:
                circuit.compose(self._preparations[state][1], [qubit], inplace=True)
            circuit.measure(qubit, place)
        return circuit

    def _run(self, circuits: Sequence[Any], qubits: Sequence[int], shots: int) -> list[NDArray[np.int_]]:
        """The outcomes of each circuit: a row a shot, a column a classical bit."""
        return self._measure(circuits, prepare_batch(self._model, circuits, qubits, noisy=self._bench.noisy), shots)

    def _measure(
        self, circuits: Sequence[Any], prepared: PreparedCircuit, shots: int, method: str | None = None
    ) -> list[NDArray[np.int_]]:
        self._experiment += 1
        execution = execute(
            self._model,
            prepared,
            np.empty((1, 0)),
            shots=shots,
            seed=self._bench.seed_of(self._experiment),
            method=method or self._bench.method,
            memory=False,
        )
        found = []
        for circuit, data in zip(circuits, execution.data, strict=True):
            outcomes = np.repeat([int(outcome, 16) for outcome in data["counts"]], list(data["counts"].values()))
            found.append((outcomes[:, None] >> np.arange(circuit.num_clbits)) & 1)
        return found


def _prepare(state: str, to_basis: Any) -> tuple[Any, Any]:
    """A state's preparation and its inverse in the device's gates."""
    circuit = QuantumCircuit(1)
    if state in "1-l":
        circuit.x(0)
    if state in "+-":
        circuit.h(0)
    elif state in "rl":
        circuit.sxdg(0)
    return to_basis.run(circuit), to_basis.run(circuit.inverse())


def _root(value: float, count: int) -> float:
    """The decay of one gate out of `count`; what is gone altogether counts as gone at the last."""
    return float(min(1.0, max(value, 1e-6)) ** (1 / count))

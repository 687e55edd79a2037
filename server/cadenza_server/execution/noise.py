"""A device's noise in the form that Aer's simulator takes, as it was calibrated and as it has drifted since."""

from functools import reduce
from itertools import product
from typing import Any, Final

import numpy as np
from qiskit.circuit import Gate
from qiskit.providers import QubitProperties
from qiskit.quantum_info import Kraus, SuperOp
from qiskit.transpiler import InstructionProperties, Target
from qiskit_aer.noise import NoiseModel, QuantumError
from qiskit_aer.noise.device import basic_device_gate_errors
from scipy.linalg import fractional_matrix_power

from cadenza_server.execution.cache import LatestUsed
from cadenza_server.execution.drift import Drift
from cadenza_server.execution.spec import DeviceSpec

NOISES_KEPT: Final = 256
"""How many circuits' noise is kept as it is in the present step."""

JOINED_QUBITS_MAX: Final = 2
"""Errors of so many qubits are made one superoperator, of 4 KiB."""

ERROR_MAX: Final = 0.5
"""Of a readout: worse than a coin it cannot be."""


class DriftingNoise:
    """The noise of a device that drifts.

    On each qubit 1/T1 and 1/T2 drift together, by one factor, the error of the readout by another, and the error that
    the target gives each gate on each of its places by one more. The errors of gates are then made as
    `NoiseModel.from_backend` makes them, anew for each step of the drift and only where a circuit meets them: 1 to 3 ms
    each.
    """

    def __init__(self, target: Target, spec: DeviceSpec) -> None:
        self._target = target
        self._gates = [
            (name, qubits)
            for name in sorted(target.operation_names)
            if isinstance(target.operation_from_name(name), Gate)
            for qubits, known in (target[name] or {}).items()
            if qubits is not None and known is not None and known.error
        ]
        self._places = {gate: 2 * target.num_qubits + index for index, gate in enumerate(self._gates)}
        size = 2 * target.num_qubits + len(self._gates)
        self._drift = Drift(spec.seed, size, spec.drift, spec.drift_time_ns)
        self._moment = (0, 0)
        self._factors = np.ones(size)
        self._qubits = list(target.qubit_properties or ())
        self._errors: dict[tuple[str, tuple[int, ...]], dict[str, Any] | None] = {}
        self._noises: LatestUsed[int, tuple[dict[str, Any], dict[str, Any]]] = LatestUsed(NOISES_KEPT)

    def set_age(self, epoch: int, age_ns: int) -> None:
        """Drift for `age_ns` from the calibration that began `epoch`."""
        moment = epoch, self._drift.step(age_ns)
        if moment != self._moment:
            self._moment = moment
            self.set_factors(np.exp(self._drift.logarithms(*moment)))

    def set_factors(self, factors: Any) -> None:
        """Set what the rates are multiplied with: of decoherence by qubit, of readout by qubit, and of the gates."""
        self._factors = np.asarray(factors, np.float64)
        self._errors.clear()
        self._noises = LatestUsed(NOISES_KEPT)
        self._qubits = [
            QubitProperties(
                t1=known.t1 and known.t1 / self.decoherence(qubit),
                t2=known.t2 and known.t2 / self.decoherence(qubit),
                frequency=known.frequency,
            )
            for qubit, known in enumerate(self._target.qubit_properties or ())
        ]

    @property
    def size(self) -> int:
        """How many rates drift."""
        return len(self._factors)

    def decoherence(self, qubit: int) -> float:
        """The factor of 1/T1 and 1/T2."""
        return float(self._factors[qubit])

    def readout(self, qubit: int) -> float:
        """The factor of the readout error."""
        return float(self._factors[self._target.num_qubits + qubit])

    def gate(self, name: str, qubits: tuple[int, ...]) -> float:
        """The factor of the error that the target gives a gate."""
        place = self._places.get((name, qubits))
        return 1.0 if place is None else float(self._factors[place])

    def apply(self, noise: dict[str, Any]) -> dict[str, Any]:
        """Calibrated noise, in Aer's form, as it is now."""
        if not noise or (self._moment[1] == 0 and (self._factors == 1.0).all()):
            return noise
        # the noise is kept with what was made of it, so that its id stays its own
        _, drifted = self._noises.get_or_make(id(noise), lambda: (noise, self._apply(noise)))
        return drifted

    def _apply(self, noise: dict[str, Any]) -> dict[str, Any]:
        drifted = []
        for error in noise["errors"]:
            (name,) = error["operations"]
            if "relaxes" in error:
                drifted.append(_power(error, self.decoherence(error["relaxes"])))
                continue
            for qubits in error["gate_qubits"]:
                found = self._error(name, tuple(qubits), error)
                if found is not None:
                    drifted.append(found)
        return {"errors": drifted}

    def _error(self, name: str, qubits: tuple[int, ...], calibrated: dict[str, Any]) -> dict[str, Any] | None:
        key = name, qubits
        if key not in self._errors:
            if calibrated["type"] == "roerror":
                self._errors[key] = self._readout_error(qubits[0], calibrated)
            else:
                self._errors[key] = self._gate_error(name, qubits)
        return self._errors[key]

    def _readout_error(self, qubit: int, calibrated: dict[str, Any]) -> dict[str, Any]:
        (_, one_after_zero), (zero_after_one, _) = calibrated["probabilities"]
        factor = self.readout(qubit)
        up, down = (min(ERROR_MAX, factor * wrong) for wrong in (one_after_zero, zero_after_one))
        return {**calibrated, "probabilities": [[1 - up, up], [down, 1 - down]]}

    def _gate_error(self, name: str, qubits: tuple[int, ...]) -> dict[str, Any] | None:
        """As Aer makes it of a target, of one with nothing else in it. None: there is none."""
        target = Target(num_qubits=self._target.num_qubits, dt=self._target.dt, qubit_properties=self._qubits)
        known = self._target[name][qubits]
        error = known.error and min(1.0, known.error * self.gate(name, qubits))
        target.add_instruction(
            self._target.operation_from_name(name),
            {qubits: InstructionProperties(duration=known.duration, error=error)},
        )
        model = NoiseModel()
        for _, _, made in basic_device_gate_errors(target=target):
            model.add_quantum_error(made, name, qubits)
        found = read_noise(model)
        return found[0] if found else None


def _power(error: dict[str, Any], exponent: float) -> dict[str, Any]:
    """The error of a wait that is longer by `exponent`, or of relaxation that is so much faster."""
    channel = SuperOp(fractional_matrix_power(SuperOp(to_quantum_error(error)).data, exponent))
    model = NoiseModel()
    model.add_all_qubit_quantum_error(QuantumError(Kraus(channel)), error["operations"])
    (made,) = read_noise(model)
    return {**error, "instructions": made["instructions"], "probabilities": made["probabilities"]}


def to_quantum_error(error: dict[str, Any]) -> QuantumError:
    """An error in Aer's form as a channel."""
    instructions = [
        [{**one, "params": _join_parts(one["params"])} if one["name"] == "kraus" else one for one in instruction]
        for instruction in error["instructions"]
    ]
    return QuantumError.from_dict({**error, "instructions": instructions})


def _join_parts(matrices: Any) -> list[Any]:
    """Complex matrices of pairs of real and imaginary parts."""
    return [np.asarray(matrix, np.float64) @ (1, 1j) for matrix in matrices]


def read_noise(noise_model: Any) -> list[dict[str, Any]]:
    """The errors of a noise model as Aer's simulator takes them, each with as few terms as say the same.

    A two-qubit gate that depolarises and relaxes comes as 16 x 9 products of a Pauli and what relaxation does; only 25
    of them differ, and reading the terms is most of the time of a small run.
    """
    return [_merge_terms(error) for error in noise_model.to_dict(serializable=True)["errors"]]


def _merge_terms(error: dict[str, Any]) -> dict[str, Any]:
    """Add up the terms of an error that do the same. Errors of anything but Paulis and resets stay as they are."""
    if error["type"] != "qerror":
        return error
    merged: dict[tuple[tuple[int, str], ...], float] = {}
    for instructions, probability in zip(error["instructions"], error["probabilities"], strict=True):
        effects = _read_effects(instructions)
        if effects is None:
            return error
        key = tuple(sorted((qubit, effect) for qubit, effect in effects.items() if effect))
        merged[key] = merged.get(key, 0.0) + probability
    return {
        **error,
        "instructions": [_spell(effects) for effects in merged],
        "probabilities": list(merged.values()),
    }


def _read_effects(instructions: list[dict[str, Any]]) -> dict[int, str] | None:
    """What a term does to each qubit (see `_follow`); None: something else than Paulis and resets."""
    effects: dict[int, str] = {}
    for instruction in instructions:
        letters = _LETTERS.get(instruction["name"]) or "".join(map(str, instruction.get("params", ())))[::-1]
        if instruction["name"] not in _LETTERS and instruction["name"] != "pauli":
            return None
        for qubit, letter in zip(instruction["qubits"], letters, strict=True):
            effects[qubit] = _follow(effects.get(qubit, ""), letter)
    return effects


def join_terms(error: dict[str, Any]) -> dict[str, Any]:
    """An error of gates as the one superoperator that all its terms are together. Those of readouts stay as they are,
    and those of more than two qubits, whose superoperators are large.

    The density matrix method adds the terms up by itself, at each run: 1.2 ms for the 25 terms of a two-qubit gate, and
    0.1 ms if there is nothing to add up.
    """
    if error["type"] != "qerror":
        return error
    num_qubits = 1 + max(qubit for term in error["instructions"] for one in term for qubit in one["qubits"])
    if num_qubits > JOINED_QUBITS_MAX:
        return error
    operators: list[Any] = []
    for instructions, probability in zip(error["instructions"], error["probabilities"], strict=True):
        effects = _read_effects(instructions)
        if effects is None:
            joined = SuperOp(to_quantum_error(error)).data
            break
        choices = [_OPERATORS[effects.get(qubit, "")] for qubit in reversed(range(num_qubits))]
        operators += [reduce(np.kron, factors) * np.sqrt(probability) for factors in product(*choices)]
    else:
        kraus = np.array(operators)
        joined = np.einsum("kab,kcd->acbd", kraus.conj(), kraus).reshape(4**num_qubits, -1)
    superoperator = {"name": "superop", "qubits": list(range(num_qubits)), "params": [np.ascontiguousarray(joined)]}
    return {**error, "instructions": [[superoperator]], "probabilities": [1.0]}


_LETTERS: Final = {"id": "I", "x": "X", "y": "Y", "z": "Z", "reset": "R"}
_NAMES: Final = {"X": "x", "Y": "y", "Z": "z", "R": "reset"}
_PAULIS: Final = {
    "": np.eye(2, dtype=np.complex128),
    "X": np.array([[0, 1], [1, 0]], np.complex128),
    "Y": np.array([[0, -1j], [1j, 0]]),
    "Z": np.diag([1, -1]).astype(np.complex128),
}
_RESET: Final = np.array([[[1, 0], [0, 0]], [[0, 1], [0, 0]]], np.complex128)
_OPERATORS: Final = {letter: [matrix] for letter, matrix in _PAULIS.items()} | {
    "R" + letter: [matrix @ one for one in _RESET] for letter, matrix in _PAULIS.items()
}
"""Kraus operators of what `_follow` names."""

_PAULI_PRODUCTS: Final = {frozenset("XY"): "Z", frozenset("YZ"): "X", frozenset("XZ"): "Y"}


def _follow(effect: str, letter: str) -> str:
    """What an effect on a qubit and then one more do together, up to a phase: nothing, a Pauli, or a reset and maybe a
    Pauli."""
    if letter == "I":
        return effect
    if letter == "R":
        return "R"
    reset, pauli = ("R", effect[1:]) if effect.startswith("R") else ("", effect)
    product = letter if not pauli else "" if pauli == letter else _PAULI_PRODUCTS[frozenset((pauli, letter))]
    return reset + product


def _spell(effects: tuple[tuple[int, str], ...]) -> list[dict[str, Any]]:
    instructions = [{"name": _NAMES[letter], "qubits": [qubit]} for qubit, effect in effects for letter in effect]
    return instructions or [{"name": "id", "qubits": [0]}]

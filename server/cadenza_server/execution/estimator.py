"""The Estimator: expectation values of observables, exact as far as the simulation is, and with a normal error of the
precision asked for.

The semantics, and with one PUB the results for a seed, are those of qiskit_aer's EstimatorV2: each Pauli string is
saved once in the circuit, for every set of values; with a precision above 0 a normal deviate of that size is added.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from cadenza.arrays import tensor_from_array
from cadenza.v1.program_pb2 import EstimatorPub, Observable, ObservablesArray
from cadenza.v1.result_pb2 import DataField, PubResult
from numpy.typing import NDArray
from qiskit.quantum_info import Pauli
from qiskit_aer.library import SaveExpectationValue

from cadenza_server.execution.aer import PreparedCircuit, execute, prepare
from cadenza_server.execution.errors import ProgramError
from cadenza_server.execution.models import is_measured_at_the_end
from cadenza_server.execution.programs import Bench, prepare_once, read_values

TERMS_MAX: Final = 65_536
"""Pauli strings that one term with projectors may stand for."""

SHOTS_OF_TRAJECTORIES: Final = 1024
"""Runs that are averaged where the simulation draws the noise or a measurement; Aer's default."""

_FACTORS: Final[dict[str, tuple[tuple[str, float], ...]]] = {
    "I": (("I", 1.0),),
    "X": (("X", 1.0),),
    "Y": (("Y", 1.0),),
    "Z": (("Z", 1.0),),
    "0": (("I", 0.5), ("Z", 0.5)),
    "1": (("I", 0.5), ("Z", -0.5)),
    "+": (("I", 0.5), ("X", 0.5)),
    "-": (("I", 0.5), ("X", -0.5)),
    "r": (("I", 0.5), ("Y", 0.5)),
    "l": (("I", 0.5), ("Y", -0.5)),
}


@dataclass(frozen=True, slots=True)
class _Prepared:
    circuit: PreparedCircuit
    parameters: tuple[Any, ...]
    shape: tuple[int, ...]
    """Of the observables."""
    paulis: tuple[str, ...]
    """The labels under which their expectation values are saved; without the identity."""
    factors: NDArray[np.float64]
    """Of each saved value (column) in each observable (row)."""
    constants: NDArray[np.float64]
    """What the identity adds to each observable."""


def run_estimator_pub(bench: Bench, index: int, pub: EstimatorPub, default_precision: float) -> tuple[PubResult, str]:
    """Run PUB number `index` of a job; returns its result and the method that was used. Raises `ProgramError`."""
    precision = pub.precision if pub.HasField("precision") else default_precision
    if not 0.0 <= precision < math.inf:
        raise ProgramError(f"precision is {precision}: it must be a number of at least 0")
    watch = bench.watch
    watch.lap()
    key, circuit = bench.workshop.loader.load(pub.circuit, bench.circuits)
    observables = pub.observables.SerializeToString(deterministic=True)
    watch.parse_ns += watch.lap()
    prepared: _Prepared = prepare_once(
        bench, ("estimator", key, observables), lambda: _prepare(bench, circuit, pub.observables)
    )
    watch.transpile_ns += watch.lap()
    sets_shape, values = read_values(pub, prepared.parameters)
    sets, rows = _broadcast(sets_shape, prepared.shape)
    watch.parse_ns += watch.lap()
    method = bench.method
    seed = bench.seed_of(index)
    saved = np.zeros((len(values), len(prepared.paulis)))
    if saved.size and sets.size:
        execution = execute(
            bench.model,
            prepared.circuit,
            values,
            shots=SHOTS_OF_TRAJECTORIES,
            seed=seed,
            method=bench.method,
            memory=False,
        )
        method = execution.method
        for row, data in zip(saved, execution.data, strict=True):
            row[:] = [data[pauli] for pauli in prepared.paulis]
    watch.execute_ns += watch.lap()
    grid = saved @ prepared.factors.T + prepared.constants
    evs = grid[sets, rows]
    if precision > 0.0:
        evs = np.random.default_rng(seed).normal(evs, precision, evs.shape)
    result = PubResult(shape=evs.shape)
    result.fields.append(DataField(name="evs", tensor=tensor_from_array(evs)))
    result.fields.append(DataField(name="stds", tensor=tensor_from_array(np.full(evs.shape, precision))))
    result.metadata["target_precision"] = precision
    return result, method


def _broadcast(
    sets_shape: tuple[int, ...], observables_shape: tuple[int, ...]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """For each entry of the result its set of values and its observable. Raises `ProgramError`."""
    rows = np.arange(math.prod(observables_shape)).reshape(observables_shape)
    if not sets_shape:  # what an iterative program sends; NumPy takes 20 us for the general case
        return np.zeros_like(rows), rows
    sets = np.arange(math.prod(sets_shape)).reshape(sets_shape)
    try:
        sets, rows = np.broadcast_arrays(sets, rows)
    except ValueError:
        raise ProgramError(
            f"parameter values of shape {sets_shape} and observables of shape {observables_shape} do not broadcast: "
            "align the shapes at the last axis, an axis of length 1 stretches"
        ) from None
    return sets, rows


def _prepare(bench: Bench, circuit: Any, observables: ObservablesArray) -> _Prepared:
    if is_measured_at_the_end(circuit):
        raise ProgramError(
            "the circuit ends with measurements: the Estimator measures by itself, so take them away, "
            "as remove_final_measurements() does"
        )
    shape = tuple(observables.shape)
    if any(length < 0 for length in shape) or math.prod(shape) != len(observables.observables):
        raise ProgramError(
            f"observables has shape {shape} and holds {len(observables.observables)}: "
            "it must hold as many as the product of the shape"
        )
    sums = [_expand(observable, circuit.num_qubits) for observable in observables.observables]
    identity = "I" * circuit.num_qubits
    paulis = tuple(dict.fromkeys(pauli for terms in sums for pauli in terms if pauli != identity))
    columns = {pauli: column for column, pauli in enumerate(paulis)}
    factors = np.zeros((len(sums), len(paulis)))
    constants = np.zeros(len(sums))
    for row, terms in enumerate(sums):
        for pauli, factor in terms.items():
            if pauli == identity:
                constants[row] = factor
            else:
                factors[row, columns[pauli]] = factor
    parameters = tuple(circuit.parameters)
    fitted = bench.model.fit(circuit, bench.level, strict=bench.strict, method=bench.method)
    layout = fitted.layout.final_index_layout() if fitted.layout is not None else range(circuit.num_qubits)
    measured = fitted.copy()
    for pauli in paulis:
        _save(measured, pauli, layout)
    return _Prepared(
        circuit=prepare(bench.model, measured, parameters, noisy=bench.noisy),
        parameters=parameters,
        shape=shape,
        paulis=paulis,
        factors=factors,
        constants=constants,
    )


def _expand(observable: Observable, num_qubits: int) -> dict[str, float]:
    """An observable as a sum of Pauli strings."""
    terms: dict[str, float] = {}
    for term in observable.terms:
        if len(term.pauli) != num_qubits:
            raise ProgramError(
                f"the observable {term.pauli[:64]!r} has {len(term.pauli)} characters and the circuit {num_qubits} "
                "qubits: write one character a qubit, the last one for qubit 0"
            )
        if not math.isfinite(term.coefficient):
            raise ProgramError(f"the coefficient of {term.pauli[:64]!r} is not finite: send a number")
        try:
            factors = [_FACTORS[character] for character in term.pauli]
        except KeyError as error:
            raise ProgramError(
                f"the observable {term.pauli[:64]!r} has the character {error.args[0]!r}: use only {' '.join(_FACTORS)}"
            ) from None
        if math.prod(len(factor) for factor in factors) > TERMS_MAX:
            raise ProgramError(
                f"the observable {term.pauli[:64]!r} has too many projectors: "
                f"it may stand for {TERMS_MAX} Pauli strings at most"
            )
        for pauli, factor in _multiply(factors):
            terms[pauli] = terms.get(pauli, 0.0) + factor * term.coefficient
    return terms


def _multiply(factors: Sequence[tuple[tuple[str, float], ...]]) -> list[tuple[str, float]]:
    products = [("", 1.0)]
    for choices in factors:
        if len(choices) == 1:
            letter = choices[0][0]
            products = [(pauli + letter, factor) for pauli, factor in products]
        else:
            products = [(pauli + letter, factor * half) for pauli, factor in products for letter, half in choices]
    return products


def _save(circuit: Any, pauli: str, layout: Sequence[int]) -> None:
    """Save the expectation value of `pauli` at the end of the circuit, under its own name.

    On all qubits, as qiskit_aer's EstimatorV2 does: with only those that it acts on, Aer 0.18 leaves out gates that
    matter when it cuts the circuit down to what is saved, and the value is wrong.
    """
    circuit.append(SaveExpectationValue(Pauli(pauli), label=pauli), list(layout))

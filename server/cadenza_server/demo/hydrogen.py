"""The ground-state energy of the hydrogen molecule, as a variational program finds it with any Estimator.

The Hamiltonian is H2 at 0.735 angstrom in the STO-3G basis, in parity mapping with its two symmetry qubits removed.
Coefficients: Qiskit Algorithms, tutorial "An Introduction to Algorithms using Qiskit" (`H2_op`), which has them from
Qiskit Nature (PySCF driver). They give the electronic energy; the repulsion of the two protons comes on top.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from qiskit.circuit import QuantumCircuit
from qiskit.circuit.library import efficient_su2
from qiskit.primitives import BaseEstimatorV2
from qiskit.quantum_info import SparsePauliOp
from scipy.optimize import minimize

BOHR: Final = 0.529177210903
"""Angstrom (CODATA 2018)."""

DISTANCE: Final = 0.735
"""Between the protons, in angstrom."""

NUCLEAR_REPULSION: Final = BOHR / DISTANCE
"""In hartree: one over the distance in bohr."""

HAMILTONIAN: Final = SparsePauliOp(
    ["II", "IZ", "ZI", "ZZ", "XX"],
    [-1.052373245772859, 0.39793742484318045, -0.39793742484318045, -0.01128010425623538, 0.18093119978423156],
)

CHEMICAL_ACCURACY: Final = 1.6e-3
"""Hartree; one kcal/mol."""


@dataclass(frozen=True)
class Minimum:
    """What a variational search found."""

    energy: float
    """Total energy in hartree, nuclear repulsion included."""
    parameters: np.ndarray[tuple[int], np.dtype[np.float64]]
    """Shape (4,), radians."""
    evaluations: int


def exact_energy() -> float:
    """Total ground-state energy of `HAMILTONIAN` by diagonalisation, in hartree: about -1.137."""
    return float(np.linalg.eigvalsh(HAMILTONIAN.to_matrix())[0]) + NUCLEAR_REPULSION


def ansatz() -> QuantumCircuit:
    """Two qubits, two layers of RY rotations around one entangling gate: 4 parameters."""
    return efficient_su2(2, su2_gates=["ry"], reps=1)


def energy(estimator: BaseEstimatorV2, circuit: QuantumCircuit, parameters: object) -> float:
    """Total energy in hartree of `circuit` at `parameters`: one job."""
    return float(estimator.run([(circuit, HAMILTONIAN, parameters)]).result()[0].data.evs) + NUCLEAR_REPULSION


def find_minimum(
    estimator: BaseEstimatorV2, seed: int = 0, after_each: Callable[[int, float], None] | None = None
) -> Minimum:
    """Run VQE: COBYLA proposes parameters, one job evaluates them, some 70 times.

    `after_each(evaluations, energy)` is called after every job.
    """
    circuit = ansatz()
    evaluations = 0

    def evaluate(parameters: object) -> float:
        nonlocal evaluations
        value = energy(estimator, circuit, parameters)
        evaluations += 1
        if after_each is not None:
            after_each(evaluations, value)
        return value

    start = np.random.default_rng(seed).normal(0, 0.1, circuit.num_parameters)
    found = minimize(evaluate, start, method="COBYLA", tol=1e-3, options={"rhobeg": 0.5})
    return Minimum(energy=float(found.fun), parameters=found.x, evaluations=evaluations)

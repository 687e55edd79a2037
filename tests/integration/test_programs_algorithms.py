"""Programs of qiskit_algorithms, as published, with the library's primitives in a session of a real server.

The reference values are those of exact diagonalisation by NumPy, and of the algorithms' own documentation for H2.
"""

import warnings
from collections.abc import Iterator

import numpy as np
import pytest
from cadenza import CadenzaService, EstimatorV2, SamplerV2, Session
from qiskit.circuit.library import efficient_su2
from qiskit.quantum_info import SparsePauliOp

with warnings.catch_warnings():
    # What a published package still calls is not this project's to mend.
    warnings.simplefilter("ignore")
    algorithms = pytest.importorskip("qiskit_algorithms")
    from qiskit_algorithms import QAOA, VQE, SamplingVQE
    from qiskit_algorithms.optimizers import COBYLA, SLSQP
    from qiskit_algorithms.utils import algorithm_globals

pytestmark = pytest.mark.filterwarnings("default")

H2 = SparsePauliOp(
    ["II", "IZ", "ZI", "ZZ", "XX"],
    [-1.052373245772859, 0.39793742484318045, -0.39793742484318045, -0.01128010425623538, 0.18093119978423156],
)
"""Two-qubit hydrogen at 0.735 angstrom, from the documentation of qiskit_algorithms' VQE."""

MAXCUT = SparsePauliOp(["IIZZ", "IZZI", "ZZII", "ZIIZ"], [0.5, 0.5, 0.5, 0.5])
"""A ring of four nodes: its largest cut is two opposite corners, with energy -2."""


@pytest.fixture(scope="module")
def service() -> Iterator[CadenzaService]:
    with CadenzaService.local() as made:
        yield made


def test_vqe_in_a_session_finds_the_ground_state_of_hydrogen(service: CadenzaService) -> None:
    algorithm_globals.random_seed = 7
    exact = float(np.linalg.eigvalsh(H2.to_matrix())[0])
    ansatz = efficient_su2(2, su2_gates=["ry"], reps=1)
    with Session(service.backend("aer")) as session:
        estimator = EstimatorV2(mode=session, options={"default_precision": 0.0})
        vqe = VQE(estimator, ansatz, SLSQP(maxiter=100), initial_point=np.full(ansatz.num_parameters, 0.3))
        found = vqe.compute_minimum_eigenvalue(H2)
        assert session.details()["jobs"]["succeeded"] == len(service.jobs(limit=None, session_id=session.session_id))
    assert found.eigenvalue.real == pytest.approx(exact, abs=1e-5)
    assert exact == pytest.approx(-1.85727503, abs=1e-7)


def test_sampling_vqe_in_a_session_finds_the_best_bits_of_a_diagonal_operator(service: CadenzaService) -> None:
    algorithm_globals.random_seed = 7
    ansatz = efficient_su2(4, su2_gates=["ry"], reps=1)
    with Session(service.backend("aer")) as session:
        sampler = SamplerV2(mode=session, options={"default_shots": 1_000, "simulator": {"seed_simulator": 11}})
        start = np.full(ansatz.num_parameters, 0.7)
        found = SamplingVQE(sampler, ansatz, COBYLA(maxiter=60), initial_point=start).compute_minimum_eigenvalue(MAXCUT)
    assert found.best_measurement["value"].real == pytest.approx(-2.0)
    assert found.best_measurement["bitstring"] in {"0101", "1010"}


def test_qaoa_in_a_session_finds_the_largest_cut(service: CadenzaService) -> None:
    algorithm_globals.random_seed = 7
    with Session(service.backend("aer")) as session:
        sampler = SamplerV2(mode=session, options={"default_shots": 1_000, "simulator": {"seed_simulator": 11}})
        qaoa = QAOA(sampler, COBYLA(maxiter=25), reps=1, initial_point=[0.4, 0.4])
        found = qaoa.compute_minimum_eigenvalue(MAXCUT)
    assert found.best_measurement["bitstring"] in {"0101", "1010"}
    # One layer of QAOA reaches three quarters of the cut of a ring in theory: an energy of -1.
    assert found.eigenvalue.real == pytest.approx(-1.0, abs=0.15)

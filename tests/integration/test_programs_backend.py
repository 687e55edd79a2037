"""Qiskit's primitives over any backend, and programs that call `backend.run`, on a device of a real server."""

from collections.abc import Iterator

import numpy as np
import pytest
from cadenza import CadenzaBackend, CadenzaService, InvalidRequestError, JobFailedError, OptionError
from qiskit import ClassicalRegister, QuantumCircuit, QuantumRegister, transpile
from qiskit.circuit import Parameter
from qiskit.primitives import BackendEstimatorV2, BackendSamplerV2, StatevectorEstimator
from qiskit.providers import JobStatus
from qiskit.quantum_info import SparsePauliOp

PATIENCE_S = 30.0


@pytest.fixture(scope="module")
def service() -> Iterator[CadenzaService]:
    with CadenzaService.local() as made:
        yield made


@pytest.fixture
def aer(service: CadenzaService) -> CadenzaBackend:
    return service.backend("aer")


def two_registers() -> QuantumCircuit:
    """Always `10` in the first register, and 1 in bit 8 of the second."""
    first, second = ClassicalRegister(2, "first"), ClassicalRegister(9, "second")
    circuit = QuantumCircuit(QuantumRegister(3), first, second)
    circuit.x([1, 2])
    circuit.measure([0, 1], first)
    circuit.measure(2, second[8])
    circuit.metadata = {"which": "two"}
    return circuit


def test_backend_run_gives_qiskit_s_result_with_counts_and_memory(aer: CadenzaBackend) -> None:
    bell = QuantumCircuit(2, name="bell")
    bell.h(0)
    bell.cx(0, 1)
    bell.measure_all()
    job = aer.run([bell, two_registers()], shots=100, memory=True, seed_simulator=3)
    result = job.result(PATIENCE_S)
    assert (job.status(), result.success, result.job_id) == (JobStatus.DONE, True, job.job_id())
    assert set(result.get_counts(bell)) == {"00", "11"}
    assert sum(result.get_counts("bell").values()) == 100
    assert result.get_counts(1) == {"100000000 10": 100}
    assert result.get_memory(1) == ["100000000 10"] * 100
    assert result.results[1].header["metadata"] == {"which": "two"}
    assert aer.run(bell, shots=100, seed_simulator=3).result().get_counts() == result.get_counts(0)


def test_what_backend_run_cannot_do_is_refused(aer: CadenzaBackend) -> None:
    loose = QuantumCircuit(1)
    loose.add_bits([ClassicalRegister(1)[0]])
    loose.measure(0, 0)
    with pytest.raises(InvalidRequestError, match="in no register"):
        aer.run(loose)
    with pytest.raises(TypeError, match="no circuit"):
        aer.run(["h q[0]"])
    with pytest.raises(OptionError, match="meas_level"):
        aer.run(two_registers(), meas_level=1)
    with pytest.raises(OptionError, match="rep_delay"):
        aer.run(two_registers(), rep_delay=1e-4)
    free = QuantumCircuit(1, 1)
    free.rx(Parameter("a"), 0)
    free.measure(0, 0)
    with pytest.raises((InvalidRequestError, JobFailedError)):
        aer.run(free).result(PATIENCE_S)


def test_backend_sampler_over_a_device_gives_every_register_and_shape(aer: CadenzaBackend) -> None:
    angle = Parameter("angle")
    circuit = QuantumCircuit(QuantumRegister(1), ClassicalRegister(1, "end"))
    circuit.ry(angle, 0)
    circuit.measure(0, 0)
    sampler = BackendSamplerV2(backend=aer, options={"seed_simulator": 2})
    first, second = sampler.run([(circuit, np.array([[0.0], [np.pi]])), two_registers()], shots=50).result()
    assert first.data.end.shape == (2,)
    assert [first.data.end.get_counts(index) for index in (0, 1)] == [{"0": 50}, {"1": 50}]
    assert second.data.first.get_counts() == {"10": 50}
    assert second.data.second.get_int_counts() == {256: 50}


def test_backend_estimator_over_a_device_agrees_with_the_statevector(aer: CadenzaBackend) -> None:
    circuit = QuantumCircuit(3)
    circuit.h(0)
    circuit.cx(0, 1)
    circuit.rx(0.7, 2)
    observables = [SparsePauliOp("IXX"), SparsePauliOp(["ZII", "IZZ"], [0.5, 2.0])]
    estimator = BackendEstimatorV2(backend=aer, options={"default_precision": 0.02, "seed_simulator": 4})
    ours = estimator.run([(circuit, observables)]).result()[0].data
    theirs = StatevectorEstimator().run([(circuit, observables)]).result()[0].data
    # Five standard errors of the coarser of the two.
    np.testing.assert_allclose(ours.evs, theirs.evs, atol=5 * 0.02 * 2.5)


def test_a_circuit_transpiled_for_the_backend_runs_on_the_noisy_device(service: CadenzaService) -> None:
    noisy = service.backend("aer_noisy")
    bell = QuantumCircuit(2)
    bell.h(0)
    bell.cx(0, 1)
    bell.measure_all()
    counts = noisy.run(transpile(bell, noisy, seed_transpiler=1), shots=500, strict_isa=True).result().get_counts()
    assert counts["00"] + counts["11"] > 400

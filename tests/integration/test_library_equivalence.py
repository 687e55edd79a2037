"""The primitives against Qiskit's own and Aer's, on seeded random circuits through a real server.

Exact where exact is possible (expectation values at precision 0, circuits whose outcomes are certain). Where shots are
drawn: a chi-squared test of two samples per distribution at a significance of 1e-6, and differences of means of at most
5.5 standard errors (4e-8 a comparison). Seeds are fixed on both sides, so that a pass stays one on the same versions.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from cadenza import Batch, CadenzaBackend, CadenzaService, EstimatorV2, JobFailedError, SamplerV2, Session
from qiskit import ClassicalRegister, QuantumCircuit, QuantumRegister
from qiskit.circuit import Parameter, ParameterVector
from qiskit.circuit.random import random_circuit
from qiskit.primitives import BitArray, StatevectorEstimator, StatevectorSampler
from qiskit.quantum_info import SparsePauliOp, random_pauli_list
from qiskit.transpiler import generate_preset_pass_manager
from qiskit_aer.primitives import EstimatorV2 as AerEstimator
from qiskit_aer.primitives import SamplerV2 as AerSampler
from scipy.stats import chi2_contingency

PATIENCE_S = 60.0
SIGNIFICANCE = 1e-6
SIGMAS = 5.5

CONFIG = """
[devices.sim]
kind = "aer"
num_qubits = 12
[devices.line]
kind = "generic"
num_qubits = 5
coupling = "line"
"""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CadenzaService]:
    config = tmp_path_factory.mktemp("config") / "cadenza.toml"
    config.write_text(CONFIG)
    with CadenzaService.local(config) as made:
        yield made


@pytest.fixture
def sim(service: CadenzaService) -> CadenzaBackend:
    return service.backend("sim")


def check_same_distribution(ours: BitArray, theirs: BitArray) -> None:
    """Both drew from the same distribution, as far as a chi-squared test at `SIGNIFICANCE` can tell."""
    assert (ours.num_bits, ours.num_shots, ours.shape) == (theirs.num_bits, theirs.num_shots, theirs.shape)
    for index in np.ndindex(ours.shape):
        mine, other = ours.get_int_counts(index), theirs.get_int_counts(index)
        values = sorted(mine.keys() | other.keys())
        table = np.array([[mine.get(value, 0), other.get(value, 0)] for value in values])
        # Rare outcomes together: the test needs some of each.
        rare = table.sum(axis=1) < 20
        table = np.vstack([table[~rare], table[rare].sum(axis=0)])
        table = table[table.sum(axis=1) > 0]
        if len(table) > 1:
            assert chi2_contingency(table).pvalue > SIGNIFICANCE


def random_ansatz(seed: int, qubits: int = 3) -> QuantumCircuit:
    """Random rotations and entanglers, with an element of a vector and a free parameter of its own."""
    draw = np.random.default_rng(seed)
    angles, free = ParameterVector("angle", 4), Parameter("a_free_one")
    circuit = QuantumCircuit(qubits)
    for angle in (*angles, free):
        for qubit in range(qubits):
            circuit.rx(float(draw.normal()), qubit)
        circuit.ry(angle * float(draw.normal()) + 0.1, int(draw.integers(qubits)))
        first, second = draw.choice(qubits, 2, replace=False)
        circuit.cx(int(first), int(second))
        circuit.rz(free, int(first))
    return circuit


# --- the Estimator ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_exact_expectation_values_are_those_of_the_statevector_in_every_form_and_shape(
    sim: CadenzaBackend, seed: int
) -> None:
    draw = np.random.default_rng(seed)
    circuit = random_ansatz(seed)
    plain = random_circuit(4, 5, max_operands=3, seed=seed)
    values = draw.normal(size=(3, 1, 5))
    paulis = random_pauli_list(3, 6, seed=seed, phase=False)
    operator = SparsePauliOp(paulis, draw.normal(size=6))
    named = {("a_free_one",): values[..., :1], tuple(f"angle[{index}]" for index in range(4)): values[..., 1:]}
    pubs: list[Any] = [
        (plain, "ZXYI"),
        (plain, [SparsePauliOp("XXXX"), "ZZII"], None),
        (circuit, operator, values[0, 0]),
        (circuit, [operator, "ZZI"], values),
        (circuit, [[operator, "XYZ", {"IIZ": 2.0, "III": -0.5}]], named),
        (circuit, "ZII", values, 0.0),
    ]
    ours = EstimatorV2(mode=sim).run(pubs, precision=0.0).result(PATIENCE_S)
    theirs = StatevectorEstimator().run([pub[:3] for pub in pubs]).result()
    assert [pub.data.evs.shape for pub in ours] == [(), (2,), (), (3, 2), (3, 3), (3, 1)]
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine.data.evs, other.data.evs, atol=1e-9)
        assert mine.data.evs.dtype == other.data.evs.dtype
        assert mine.data.stds.shape == other.data.stds.shape
        assert (mine.data.shape, list(mine.data)) == (other.data.shape, list(other.data))
        assert mine.metadata["target_precision"] == 0.0
        assert mine.metadata["circuit_metadata"] == other.metadata["circuit_metadata"]


def test_precision_of_a_pub_goes_before_that_of_the_run_and_that_before_the_options(sim: CadenzaBackend) -> None:
    circuit = random_ansatz(1)
    values = np.random.default_rng(1).normal(size=(200, 5))
    estimator = EstimatorV2(mode=sim, options={"default_precision": 0.2, "seed_estimator": 3})
    pubs = [(circuit, "ZZZ", values, 0.02), (circuit, "ZZZ", values)]
    by_run = estimator.run(pubs, precision=0.1).result(PATIENCE_S)
    by_options = estimator.run(pubs[1:]).result(PATIENCE_S)
    exact = StatevectorEstimator().run([pubs[1]]).result()[0].data.evs
    for pub, precision in ((by_run[0], 0.02), (by_run[1], 0.1), (by_options[0], 0.2)):
        assert pub.metadata["target_precision"] == precision
        error = pub.data.evs - exact
        # 200 values: their root mean square is the precision, or less, within five and a half of its own errors.
        assert np.sqrt(np.mean(error**2)) < precision * (1 + SIGMAS / np.sqrt(2 * 200))
        assert np.abs(error).max() < SIGMAS * precision
        assert np.sqrt(np.mean(error**2)) > 0.3 * precision


def test_expectation_values_are_those_of_aer_s_estimator(sim: CadenzaBackend) -> None:
    pubs = [(random_ansatz(seed), ["XXZ", SparsePauliOp(["ZII", "IZZ"], [1.0, 0.5])], np.ones(5)) for seed in (5, 6)]
    ours = EstimatorV2(mode=sim).run(pubs, precision=0.0).result(PATIENCE_S)
    theirs = AerEstimator(options={"default_precision": 0.0}).run(pubs).result()
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine.data.evs, other.data.evs, atol=1e-9)


# --- the Sampler ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_samples_are_drawn_from_the_distribution_of_the_statevector(sim: CadenzaBackend, seed: int) -> None:
    circuit = random_circuit(4, 4, max_operands=2, seed=seed)
    circuit.measure_all()
    bound = random_ansatz(seed)
    first, second = ClassicalRegister(2, "first"), ClassicalRegister(10, "second")
    bound.add_register(first, second)
    bound.measure([0, 1], first)
    bound.measure(2, second[9])
    values = np.random.default_rng(seed).normal(size=(2, 3, 5))
    pubs = [circuit, (bound, values), (bound, values[0, 0], 1_000)]
    ours = SamplerV2(mode=sim, options={"simulator": {"seed_simulator": seed}}).run(pubs, shots=4_000)
    theirs = StatevectorSampler(seed=seed).run(pubs, shots=4_000).result()
    for mine, other in zip(ours.result(PATIENCE_S), theirs, strict=True):
        assert list(mine.data) == list(other.data)
        for name in other.data:
            check_same_distribution(mine.data[name], other.data[name])
        assert mine.metadata["shots"] == other.metadata["shots"]
        # Which outcomes come together matters, too.
    joint = ours.result()[1].data
    reference = theirs[1].data
    check_same_distribution(
        BitArray.concatenate_bits([joint.first, joint.second]),
        BitArray.concatenate_bits([reference.first, reference.second]),
    )


def steered() -> QuantumCircuit:
    """Mid-circuit measurements, reset, a condition, a switch, loops: outcomes that depend on each other."""
    qubits, mid, end = QuantumRegister(3), ClassicalRegister(2, "mid"), ClassicalRegister(3, "end")
    circuit = QuantumCircuit(qubits, mid, end)
    circuit.h(0)
    circuit.rx(1.1, 1)
    circuit.measure([0, 1], mid)
    circuit.reset(0)
    with circuit.if_test((mid[0], 1)) as otherwise:
        circuit.x(2)
    with otherwise:
        circuit.ry(0.8, 2)
    with circuit.switch(mid) as case:
        with case(3):
            circuit.x(0)
        with case(case.DEFAULT):
            circuit.h(0)
    with circuit.for_loop(range(2)):
        circuit.rx(0.3, 1)
    circuit.measure(qubits, end)
    return circuit


def test_measurement_in_the_middle_and_control_flow_are_those_of_aer_s_sampler(sim: CadenzaBackend) -> None:
    ours = SamplerV2(mode=sim, options={"simulator": {"seed_simulator": 1}}).run([steered()], shots=20_000)
    theirs = AerSampler(seed=2).run([steered()], shots=20_000).result()[0].data
    mine = ours.result(PATIENCE_S)[0].data
    check_same_distribution(
        BitArray.concatenate_bits([mine.mid, mine.end]), BitArray.concatenate_bits([theirs.mid, theirs.end])
    )
    # Where both were measured as 1 the switch sets qubit 0, and the condition qubit 2.
    both = mine.mid.array[:, 0] == 3
    assert both.any()
    assert (mine.end.array[both, 0] & 0b101 == 0b101).all()


def test_shots_of_a_pub_go_before_those_of_the_run_and_those_before_the_options(sim: CadenzaBackend) -> None:
    circuit = QuantumCircuit(1, 1)
    circuit.measure(0, 0)
    sampler = SamplerV2(mode=sim, options={"default_shots": 30})
    result = sampler.run([(circuit, None, 10), circuit], shots=20).result(PATIENCE_S)
    assert [pub.data.c.num_shots for pub in result] == [10, 20]
    assert sampler.run([circuit]).result(PATIENCE_S)[0].data.c.num_shots == 30


@pytest.mark.parametrize("mode", [Session, Batch])
def test_the_same_seed_gives_the_same_results_in_a_session_a_batch_and_alone(
    sim: CadenzaBackend, mode: type[Session]
) -> None:
    circuit = random_circuit(3, 4, seed=9)
    circuit.measure_all()
    options = {"simulator": {"seed_simulator": 42}}
    alone = SamplerV2(mode=sim, options=options).run([circuit], shots=500).result(PATIENCE_S)[0].data.meas
    with mode(sim) as session:
        sampler = SamplerV2(mode=session, options=options)
        for _ in range(2):
            again = sampler.run([circuit], shots=500).result(PATIENCE_S)[0].data.meas
            assert again.get_counts() == alone.get_counts()


# --- devices with a basis and a coupling ------------------------------------------------------------------------------


def test_without_noise_a_device_that_transpiles_gives_the_same_distribution(service: CadenzaService) -> None:
    line = service.backend("line")
    circuit = random_circuit(5, 3, max_operands=2, seed=3)
    circuit.measure_all()
    options = {"simulator": {"noise": False, "seed_simulator": 8}}
    ours = SamplerV2(mode=line, options=options).run([circuit], shots=5_000).result(PATIENCE_S)[0].data.meas
    theirs = StatevectorSampler(seed=8).run([circuit], shots=5_000).result()[0].data.meas
    check_same_distribution(ours, theirs)


@pytest.mark.parametrize("wrong", ["gate", "coupling"])
def test_a_circuit_that_does_not_fit_is_transpiled_or_refused_as_the_caller_chose(
    service: CadenzaService, wrong: str
) -> None:
    line = service.backend("line")
    circuit = QuantumCircuit(5, 1)
    if wrong == "gate":
        circuit.h(0)
        circuit.h(0)
        circuit.x(0)
    else:
        circuit.x(0)
        circuit.cx(0, 3)
        circuit.cx(0, 3)
    circuit.measure(0, 0)
    loose = SamplerV2(mode=line, options={"default_shots": 200, "simulator": {"noise": False}})
    assert loose.run([circuit]).result(PATIENCE_S)[0].data.c.get_counts() == {"1": 200}
    strict = SamplerV2(mode=line, options={"strict_isa": True})
    with pytest.raises(JobFailedError) as caught:
        strict.run([circuit]).result(PATIENCE_S)
    assert caught.value.reason == "EXECUTION_ERROR"
    fitting = generate_preset_pass_manager(1, target=line.target, seed_transpiler=4).run(circuit)
    strict.options.simulator.noise = False
    assert strict.run([fitting], shots=50).result(PATIENCE_S)[0].data.c.get_counts() == {"1": 50}
    observable = SparsePauliOp("ZIIII")
    estimator = EstimatorV2(mode=line, options={"strict_isa": True, "simulator": {"noise": False}})
    bare = circuit.remove_final_measurements(inplace=False)
    with pytest.raises(JobFailedError):
        estimator.run([(bare, observable)]).result(PATIENCE_S)

"""Programs on real Aer, in this process: the results against Qiskit's and Aer's own primitives."""

import dataclasses
import hashlib
import io
import itertools
from typing import Any

import numpy as np
import pytest
from cadenza._backend import make_target
from cadenza._codec import CircuitWriter
from cadenza.arrays import array_from_tensor, bit_array_from_message, tensor_from_array
from cadenza.v1.circuit_pb2 import Circuit
from cadenza.v1.program_pb2 import EstimatorPub, Program, SamplerPub
from cadenza.v1.result_pb2 import PubResult
from cadenza_server.execution.aer import execute, prepare
from cadenza_server.execution.errors import ProgramError
from cadenza_server.execution.executor import AerExecutor
from cadenza_server.execution.noise import join_terms, read_noise, to_quantum_error
from cadenza_server.execution.spec import METHODS, DeviceSpec
from numpy.typing import NDArray
from qiskit import QuantumCircuit, qasm2, qasm3, qpy
from qiskit.circuit import (
    AnnotatedOperation,
    ClassicalRegister,
    ControlModifier,
    Gate,
    IfElseOp,
    InverseModifier,
    Parameter,
    ParameterVector,
    PowerModifier,
    QuantumRegister,
)
from qiskit.circuit.classical import expr
from qiskit.circuit.library import (
    CUGate,
    DiagonalGate,
    MCPhaseGate,
    PauliGate,
    RXGate,
    StatePreparation,
    UnitaryGate,
    efficient_su2,
    get_standard_gate_name_mapping,
)
from qiskit.exceptions import QiskitError
from qiskit.primitives import BitArray, StatevectorEstimator, StatevectorSampler
from qiskit.quantum_info import (
    Clifford,
    Pauli,
    SparseObservable,
    SparsePauliOp,
    Statevector,
    SuperOp,
    average_gate_fidelity,
)
from qiskit.transpiler import generate_preset_pass_manager
from qiskit_aer.library import SaveExpectationValue
from qiskit_aer.noise import NoiseModel, depolarizing_error, thermal_relaxation_error
from qiskit_aer.primitives import EstimatorV2 as AerEstimator
from qiskit_aer.primitives import SamplerV2 as AerSampler

SEED = 17


@pytest.fixture(scope="module")
def aer() -> AerExecutor:
    return AerExecutor("aer", DeviceSpec(), itertools.count(2**40).__next__)


@pytest.fixture(scope="module")
def noisy() -> AerExecutor:
    return AerExecutor("noisy", DeviceSpec(kind="generic"), itertools.count(2**40).__next__)


def written(circuit: QuantumCircuit) -> bytes:
    stream = io.BytesIO()
    qpy.dump(circuit, stream)
    return stream.getvalue()


def sampler_pub(circuit: Any, values: Any = None, **fields: Any) -> SamplerPub:
    pub = SamplerPub(circuit=circuit if isinstance(circuit, Circuit) else Circuit(qpy=written(circuit)), **fields)
    if values is not None:
        pub.parameter_values.CopyFrom(tensor_from_array(values))
    return pub


def estimator_pub(circuit: QuantumCircuit, observables: Any, values: Any = None, **fields: Any) -> EstimatorPub:
    """`observables`: an array of dicts from labels to coefficients."""
    pub = EstimatorPub(circuit=Circuit(qpy=written(circuit)), **fields)
    array = np.array(observables, dtype=object)
    pub.observables.shape.extend(array.shape)
    for entry in array.ravel():
        message = pub.observables.observables.add()
        for label, coefficient in entry.items():
            message.terms.add(pauli=label, coefficient=coefficient)
    if values is not None:
        pub.parameter_values.CopyFrom(tensor_from_array(values))
    return pub


def sample(executor: AerExecutor, *pubs: SamplerPub, shots: int = 1000, **options: Any) -> list[dict[str, BitArray]]:
    program = Program()
    program.sampler.pubs.extend(pubs)
    program.sampler.default_shots = shots
    program.sampler.options.seed = SEED
    for name, value in options.items():
        setattr(program.sampler.options, name, value)
    result = executor.execute(program, {}, epoch=0, attempt=1).result
    return [{field.name: BitArray(*bit_array_from_message(field.bits)) for field in pub.fields} for pub in result.pubs]


def estimate(executor: AerExecutor, pub: EstimatorPub, **options: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    program = Program()
    program.estimator.pubs.append(pub)
    program.estimator.options.seed = SEED
    for name, value in options.items():
        setattr(program.estimator.options, name, value)
    result: PubResult = executor.execute(program, {}, epoch=0, attempt=1).result.pubs[0]
    evs, stds = (array_from_tensor(field.tensor) for field in result.fields)
    assert [field.name for field in result.fields] == ["evs", "stds"]
    assert evs.shape == stds.shape == tuple(result.shape)
    return evs, stds


def two_registers() -> QuantumCircuit:
    circuit = QuantumCircuit(QuantumRegister(4, "q"), ClassicalRegister(9, "long"), ClassicalRegister(1, "short"))
    circuit.h(0)
    circuit.cx(0, 1)
    circuit.ry(0.7, 2)
    circuit.measure([0, 1, 2], [8, 3, 9])
    return circuit


@pytest.mark.parametrize("device", ["aer", "noisy"])
def test_without_a_seed_each_job_and_each_pub_draws_anew(device: str, request: pytest.FixtureRequest) -> None:
    executor: AerExecutor = request.getfixturevalue(device)
    circuit = QuantumCircuit(4)
    circuit.h(range(4))
    circuit.measure_all()
    program = Program()
    program.sampler.pubs.extend([sampler_pub(circuit, shots=200), sampler_pub(circuit, shots=200)])
    results = [executor.execute(program, {}, epoch=0, attempt=1).result for _ in range(3)]
    drawn = {pub.fields[0].bits.data for result in results for pub in result.pubs}
    assert len(drawn) == 6


def test_what_is_executed_shot_by_shot_has_the_bits_of_aers_sampler_for_a_seed(aer: AerExecutor) -> None:
    theta = ParameterVector("theta", 3)
    circuit = QuantumCircuit(QuantumRegister(2, "q"), ClassicalRegister(1, "early"), ClassicalRegister(2, "meas"))
    circuit.ry(theta[0] + theta[1] ** 2, 0)
    circuit.measure(0, 0)
    circuit.rx(theta[2], 0)
    circuit.rx(theta[2], 1)
    circuit.cx(0, 1)
    circuit.measure([0, 1], [1, 2])
    values = np.random.default_rng(1).uniform(-3, 3, (2, 3, 3))
    (ours,) = sample(aer, sampler_pub(circuit, values))
    theirs = AerSampler(seed=SEED).run([(circuit, values)], shots=1000).result()[0].data
    assert ours["meas"].shape == (2, 3)
    assert ours == {"early": theirs.early, "meas": theirs.meas}
    (two,) = sample(aer, sampler_pub(two_registers()), method="matrix_product_state")
    options = {"backend_options": {"method": "matrix_product_state"}}
    both = AerSampler(seed=SEED, options=options).run([two_registers()], shots=1000).result()[0].data
    assert two == {"long": both.long, "short": both.short}


def test_a_circuit_that_the_worker_keeps_runs_with_the_shots_seed_method_and_values_of_each_job(
    aer: AerExecutor,
) -> None:
    circuit = QuantumCircuit(2, 4)
    circuit.ry(Parameter("a"), 0)
    circuit.measure(0, 2)
    circuit.cx(0, 1)
    circuit.h(0)
    circuit.measure([0, 1], [0, 1])
    for shots, seed, method, value in [
        (100, 1, "automatic", 0.4),
        (300, 2, "statevector", 2.0),
        (50, 1, "matrix_product_state", 1.1),
        (200, 3, "automatic", 1.1),
    ]:
        (ours,) = sample(aer, sampler_pub(circuit, [value]), shots=shots, seed=seed, method=method)
        options = {"backend_options": {"method": method}}
        theirs = AerSampler(seed=seed, options=options).run([(circuit, [value])], shots=shots).result()[0].data.c
        assert ours["c"] == theirs


def test_sampler_follows_the_distribution_of_the_state_vector(aer: AerExecutor) -> None:
    circuit = efficient_su2(3, reps=1)
    circuit.measure_all()
    values = np.random.default_rng(2).uniform(-3, 3, (2, circuit.num_parameters))
    shots = 20_000
    (ours,) = sample(aer, sampler_pub(circuit, values), shots=shots)
    theirs = StatevectorSampler(seed=SEED).run([(circuit, values)], shots=shots).result()[0].data.meas
    for index in range(2):
        one, other = ours["meas"][index].get_int_counts(), theirs[index].get_int_counts()
        # two-sample chi-squared with 7 degrees of freedom: above 30 with probability 1e-4
        statistic = sum(
            (one.get(k, 0) - other.get(k, 0)) ** 2 / (one.get(k, 0) + other.get(k, 0)) for k in {*one, *other}
        )
        assert statistic < 30


def test_names_say_in_which_order_the_values_come(aer: AerExecutor) -> None:
    circuit = QuantumCircuit(2)
    circuit.rx(Parameter("b"), 0)
    circuit.rx(Parameter("a"), 1)
    circuit.measure_all()
    # a turns qubit 1, b qubit 0
    assert sample(aer, sampler_pub(circuit, [np.pi, 0.0]))[0]["meas"].get_counts() == {"10": 1000}
    assert sample(aer, sampler_pub(circuit, [np.pi, 0.0], parameter_names=["b", "a"]))[0]["meas"].get_counts() == {
        "01": 1000
    }
    for dtype in ("float32", "int64", "int32"):
        assert sample(aer, sampler_pub(circuit, np.zeros(2, dtype)))[0]["meas"].get_counts() == {"00": 1000}


def test_measurements_inside_and_control_flow_are_executed(aer: AerExecutor, noisy: AerExecutor) -> None:
    circuit = QuantumCircuit(2, 2)
    circuit.h(0)
    circuit.measure(0, 0)
    with circuit.if_test((circuit.clbits[0], 1)):
        circuit.x(1)
    circuit.measure(1, 1)
    counts = sample(aer, sampler_pub(circuit))[0]["c"].get_counts()
    assert set(counts) == {"00", "11"}
    assert abs(counts["00"] - 500) < 100
    noisy_counts = sample(noisy, sampler_pub(circuit))[0]["c"].get_counts()
    assert noisy_counts["00"] + noisy_counts["11"] > 950


def test_sets_of_values_that_change_nothing_are_runs_of_their_own(aer: AerExecutor) -> None:
    circuit = QuantumCircuit(1)
    circuit.h(0)
    circuit.measure_all()
    bits = sample(aer, sampler_pub(circuit, np.empty((3, 0))))[0]["meas"]
    assert bits.shape == (3,)
    assert len({bits[index].array.tobytes() for index in range(3)}) == 3
    assert sample(aer, sampler_pub(circuit, np.empty((0, 0))))[0]["meas"].shape == (0,)


def test_pubs_of_one_job_are_independent_and_a_job_is_repeatable(aer: AerExecutor) -> None:
    circuit = QuantumCircuit(1)
    circuit.h(0)
    circuit.measure_all()
    first, second = sample(aer, sampler_pub(circuit), sampler_pub(circuit))
    assert first != second
    assert sample(aer, sampler_pub(circuit), sampler_pub(circuit)) == [first, second]
    assert sample(aer, sampler_pub(circuit, shots=3), shots=7)[0]["meas"].num_shots == 3


def test_estimator_is_exact_without_noise_and_broadcasts(aer: AerExecutor) -> None:
    circuit = efficient_su2(3, reps=1)
    rng = np.random.default_rng(3)
    values = rng.uniform(-3, 3, (4, 1, circuit.num_parameters))
    observables = [{"XYZ": 0.5, "ZII": -1.5}, {"III": 2.0, "IIX": 1.0}, {"ZZZ": 1.0}]
    evs, stds = estimate(aer, estimator_pub(circuit, observables, values))
    operators = [SparsePauliOp(list(entry), list(entry.values())) for entry in observables]
    exact = StatevectorEstimator().run([(circuit, operators, values)]).result()[0].data.evs
    assert evs.shape == (4, 3)
    assert np.allclose(evs, exact, atol=1e-10)
    assert not stds.any()


def test_projectors_are_what_qiskit_takes_them_for(aer: AerExecutor) -> None:
    circuit = efficient_su2(4, reps=1)
    values = np.random.default_rng(4).uniform(-3, 3, circuit.num_parameters)
    labels = ["01+-", "rl0I", "X1rZ", "llll"]
    evs, _ = estimate(aer, estimator_pub(circuit, [{label: 1.5} for label in labels], values))
    operators = [SparsePauliOp.from_sparse_observable(SparseObservable(label).as_paulis()) * 1.5 for label in labels]
    exact = StatevectorEstimator().run([(circuit, operators, values)]).result()[0].data.evs
    assert np.allclose(evs, exact, atol=1e-10)


def test_estimator_adds_the_error_that_aers_estimator_adds_for_a_seed(aer: AerExecutor) -> None:
    circuit = efficient_su2(2, reps=1)
    values = np.random.default_rng(5).uniform(-3, 3, (3, circuit.num_parameters))
    evs, stds = estimate(aer, estimator_pub(circuit, {"ZX": 1.0}, values, precision=0.25))
    aers = AerEstimator(options={"run_options": {"seed_simulator": SEED}})
    theirs = aers.run([(circuit, "ZX", values)], precision=0.25).result()[0].data
    assert np.allclose(evs, theirs.evs, atol=1e-10)
    assert np.array_equal(stds, theirs.stds)


def test_every_standard_gate_takes_its_angles_from_the_values(aer: AerExecutor) -> None:
    """Controlled gates among them, whose angles are those of the gate that they control."""
    observables = [{"".join(label): 1.0} for label in itertools.product("XYZ", repeat=3)]
    paulis = [SparsePauliOp(label) for entry in observables for label in entry]
    found = 0
    for name, gate in get_standard_gate_name_mapping().items():
        if not gate.params or name in ("delay", "global_phase") or gate.num_qubits > 3:
            continue
        found += 1
        angles = ParameterVector("angle", len(gate.params))
        circuit = QuantumCircuit(3)
        for qubit in range(3):
            circuit.ry(0.3 + qubit, qubit)
            circuit.rx(0.5 + 0.9 * qubit, qubit)
        circuit.append(type(gate)(*angles), range(gate.num_qubits))
        values = 0.7 + 0.6 * np.arange(len(angles))
        (got, _) = estimate(aer, estimator_pub(circuit, observables, values))
        state = Statevector(circuit.assign_parameters(values))
        np.testing.assert_allclose(
            got, [state.expectation_value(pauli).real for pauli in paulis], atol=1e-9, err_msg=name
        )
    assert found >= 18


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_controlled_gates_of_complex_numbers_matrices_and_texts_do_what_they_say(aer: AerExecutor, level: int) -> None:
    circuit = QuantumCircuit(4)
    for qubit in range(4):
        circuit.ry(0.3 + qubit, qubit)
        circuit.rx(0.5 + 0.9 * qubit, qubit)
    circuit.append(DiagonalGate([1, 1j, -1, 1]).control(1), [0, 1, 2])
    circuit.append(DiagonalGate([1j, 1, 1, -1j]).control(1), [0, 1, 2])
    circuit.append(UnitaryGate(np.array([[0, 1j], [1, 0]])).control(1), [2, 3])
    circuit.append(StatePreparation([0.6, 0.8j]).control(1), [3, 0])
    circuit.append(PauliGate("XY").control(1, ctrl_state=0), [1, 2, 3])
    labels = ["XYZI", "ZIXY", "IZZX", "YYIZ", "XXXX"]
    (got, _) = estimate(aer, estimator_pub(circuit, [{label: 1.0} for label in labels]), transpile_level=level)
    state = Statevector(circuit)
    np.testing.assert_allclose(got, [state.expectation_value(SparsePauliOp(x)).real for x in labels], atol=1e-9)


@pytest.mark.parametrize("inside", ["the circuit", "a branch"])
def test_a_parameter_that_only_an_annotated_operation_has_takes_its_value(aer: AerExecutor, inside: str) -> None:
    angle = Parameter("angle")
    turned = AnnotatedOperation(AnnotatedOperation(RXGate(angle), [InverseModifier()]), [ControlModifier(1)])
    circuit = QuantumCircuit(2, 2)
    circuit.x(0)
    if inside == "the circuit":
        circuit.append(turned, [0, 1])
    else:
        with circuit.if_test((circuit.clbits[0], 0)):
            circuit.append(turned, [0, 1])
    circuit.measure([0, 1], [0, 1])
    (registers,) = sample(aer, sampler_pub(circuit, [[0.0], [np.pi]]), shots=20)
    assert registers["c"].get_counts(0) == {"01": 20}
    assert registers["c"].get_counts(1) == {"11": 20}


def test_a_circuit_without_parameters_and_an_observable_without_terms_give_single_numbers(aer: AerExecutor) -> None:
    circuit = QuantumCircuit(1)
    circuit.x(0)
    assert estimate(aer, estimator_pub(circuit, {"Z": 1.0}))[0] == pytest.approx(-1.0)
    assert estimate(aer, estimator_pub(circuit, {}))[0].shape == ()
    assert estimate(aer, estimator_pub(circuit, {}))[0] == 0.0


def test_a_state_that_the_memory_does_not_hold_is_told_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = DeviceSpec(kind="aer", memory_bytes_max=64 * 2**20)
    executor = AerExecutor("small", spec, itertools.count(2**40).__next__)
    circuit = QuantumCircuit(24)
    for qubit in range(23):
        circuit.rx(0.3, qubit)
        circuit.cx(qubit, qubit + 1)
    told = "the circuit uses 24 qubits, .* more memory than a program may take on this device, 0.0625 GiB: use fewer"
    with pytest.raises(ProgramError, match=told):
        estimate(executor, estimator_pub(circuit, [{"Z" * 24: 1.0}]))

    class Full:
        def execute(self, *_: object) -> dict[str, object]:
            return {"status": "ERROR: Cannot allocate memory by posix_memalign"}

    monkeypatch.setattr(executor._workshop.model.simulator, "_controller", Full())
    with pytest.raises(ProgramError, match=told):
        estimate(executor, estimator_pub(circuit, [{"Z" * 24: 1.0}]))


def test_noise_cut_to_a_circuit_is_the_whole_noise(noisy: AerExecutor) -> None:
    model = noisy._workshop.model
    circuit = efficient_su2(3, reps=1)
    values = np.random.default_rng(6).uniform(-3, 3, circuit.num_parameters)
    bound = circuit.assign_parameters(values)
    evs, _ = estimate(noisy, estimator_pub(circuit, [{"ZZI": 1.0}, {"XYZ": 1.0}], values))
    fitted = model.fit(bound, 1, strict=False)
    operators = [SparsePauliOp(label).apply_layout(fitted.layout) for label in ("ZZI", "XYZ")]
    whole = AerEstimator(options={"backend_options": {"noise_model": model.noise_model, "method": "density_matrix"}})
    theirs = whole.run([(fitted, operators)]).result()[0].data.evs
    ideal = StatevectorEstimator().run([(bound, ["ZZI", "XYZ"])]).result()[0].data.evs
    assert np.allclose(evs, theirs, atol=1e-9)
    assert np.abs(evs - ideal).max() > 1e-3
    without, _ = estimate(noisy, estimator_pub(circuit, [{"ZZI": 1.0}, {"XYZ": 1.0}], values), noise=False)
    assert np.allclose(without, ideal, atol=1e-9)


def noisy_circuits() -> dict[str, QuantumCircuit]:
    """Of each of them Aer's automatic method takes something else, or they are of a kind of their own."""
    rotated = QuantumCircuit(3)
    rotated.ry(0.3, range(3))
    rotated.cx([0, 1], [1, 2])
    right = QuantumCircuit(3)  # Clifford, if one looks at the angles
    right.h(0)
    right.rz(np.pi / 2, 0)
    right.cx([0, 1], [1, 2])
    wide = QuantumCircuit(6)
    wide.ry(0.2, range(6))
    wide.cx(range(5), range(1, 6))
    waiting = rotated.copy()
    waiting.delay(400_000, 1, unit="dt")
    waiting.ry(0.1, 1)
    inside = QuantumCircuit(3, 3)
    inside.ry(0.4, 0)
    inside.measure(0, 0)
    inside.reset(1)
    inside.ry(0.8, range(3))
    branching = inside.copy()
    with branching.if_test((0, True)):
        branching.x(2)
    return {
        "rotated": rotated,
        "right": right,
        "wide": wide,
        "waiting": waiting,
        "inside": inside,
        "branching": branching,
    }


@pytest.mark.parametrize(("shots", "method"), [(1000, "automatic"), (8, "automatic"), (1000, "density_matrix")])
@pytest.mark.parametrize("name", sorted(noisy_circuits()))
def test_noise_as_one_superoperator_changes_neither_bits_nor_method(
    noisy: AerExecutor, name: str, shots: int, method: str
) -> None:
    model = noisy._workshop.model
    circuit = noisy_circuits()[name]
    circuit.measure_all()
    fitted = model.fit(circuit, 1, strict=False)
    values = np.empty((1, 0))
    prepared = prepare(model, fitted, (), noisy=True)
    joined, apart = (
        execute(model, each, values, shots=shots, seed=SEED, method=method, memory=True)
        for each in (prepared, dataclasses.replace(prepared, dense_shots=None))
    )
    assert joined.method == apart.method
    assert joined.data[0]["memory"] == apart.data[0]["memory"]


@pytest.mark.parametrize("method", ["automatic", "density_matrix", "statevector"])
def test_a_circuit_that_the_worker_keeps_meets_the_same_noise_each_time(noisy: AerExecutor, method: str) -> None:
    model = noisy._workshop.model
    circuit = noisy_circuits()["wide"]  # on qubits of the device that are not its first ones
    pub = estimator_pub(circuit, {"ZZZZZZ": 1.0})
    evs = [float(estimate(noisy, pub, method=method)[0]) for _ in range(3)]
    assert len(set(evs)) == 1
    if method != "statevector":
        fitted = model.fit(circuit, 1, strict=False)
        whole = AerEstimator(options={"backend_options": {"noise_model": model.noise_model, "method": method}})
        operator = SparsePauliOp("ZZZZZZ").apply_layout(fitted.layout)
        theirs = whole.run([(fitted, operator)]).result()[0].data.evs
        assert evs[0] == pytest.approx(float(theirs), abs=1e-6)
    circuit.measure_all()
    counts = [sample(noisy, sampler_pub(circuit), method=method)[0]["meas"].get_counts() for _ in range(2)]
    assert counts[0] == counts[1]


def test_a_parametrised_circuit_has_the_same_values_with_noise_as_one_superoperator(noisy: AerExecutor) -> None:
    model = noisy._workshop.model
    fitted = model.fit(efficient_su2(3, reps=1), 1, strict=False)
    for label in ("ZZI", "XIY"):
        fitted.append(SaveExpectationValue(Pauli(label), label), fitted.layout.final_index_layout())
    prepared = prepare(model, fitted, tuple(fitted.parameters), noisy=True)
    assert prepared.dense_shots == 8
    values = np.vstack([np.random.default_rng(7).uniform(-3, 3, (3, 12)), np.zeros(12)])
    joined, apart = (
        execute(model, each, values, shots=1024, seed=SEED, method="automatic", memory=False)
        for each in (prepared, dataclasses.replace(prepared, dense_shots=None))
    )
    assert joined.method == apart.method == "density_matrix"
    for ours, theirs in zip(joined.data, apart.data, strict=True):
        assert [ours[label] for label in ("ZZI", "XIY")] == pytest.approx(
            [theirs[label] for label in ("ZZI", "XIY")], abs=1e-12
        )


def test_the_superoperator_of_an_error_is_that_of_its_channel(noisy: AerExecutor) -> None:
    errors = noisy._workshop.model.noise_errors
    relaxing = NoiseModel()
    relaxing.add_all_qubit_quantum_error(thermal_relaxation_error(50.0, 70.0, 10.0), ["id"])  # T2 > T1: no Paulis
    three = NoiseModel()
    three.add_all_qubit_quantum_error(depolarizing_error(0.1, 3), ["ccx"])
    for error in [*errors, *read_noise(relaxing)]:
        joined = join_terms(error)
        if error["type"] == "roerror":
            assert joined is error
            continue
        ((superoperator,),) = joined["instructions"]
        assert joined["probabilities"] == [1.0]
        assert np.allclose(superoperator["params"][0], SuperOp(to_quantum_error(error)).data, atol=1e-12)
    (large,) = read_noise(three)
    assert join_terms(large) is large


def test_drift_is_felt_in_noise_as_one_superoperator() -> None:
    spec = DeviceSpec(kind="generic", num_qubits=3, coupling="line", drift=0.5, drift_time_ns=10**9)
    executor = AerExecutor("drifting", spec, itertools.count(2**40).__next__)
    model = executor._workshop.model
    circuit = QuantumCircuit(2)
    circuit.ry(0.3, 0)
    circuit.cx(0, 1)
    fitted = model.fit(circuit, 1, strict=False)
    fitted.append(SaveExpectationValue(Pauli("ZZ"), "ZZ"), fitted.layout.final_index_layout())
    prepared = prepare(model, fitted, (), noisy=True)
    apart = dataclasses.replace(prepared, dense_shots=None)
    found = []
    for age_ns in (0, 2 * 10**9, 5 * 10**9, 0):
        model.set_age(0, age_ns)
        found.append(
            [
                execute(model, each, np.empty((1, 0)), shots=1024, seed=SEED, method="automatic", memory=False).data[0][
                    "ZZ"
                ]
                for each in (prepared, apart)
            ]
        )
    assert [ours for ours, _ in found] == pytest.approx([theirs for _, theirs in found], abs=1e-12)
    assert len({round(ours, 9) for ours, _ in found}) == 3
    assert found[0][0] == found[3][0]


def test_a_delay_that_is_a_parameter_is_nothing_without_noise_and_refused_with_it(
    aer: AerExecutor, noisy: AerExecutor
) -> None:
    cycles = Parameter("cycles")
    circuit = QuantumCircuit(1)
    circuit.x(0)
    circuit.delay(cycles, 0, "dt")
    assert estimate(aer, estimator_pub(circuit, {"Z": 1.0}, [[450_000.0]]))[0] == pytest.approx([-1.0])
    with pytest.raises(ProgramError, match="assign it, and send a circuit for each length"):
        estimate(noisy, estimator_pub(circuit, {"Z": 1.0}, [[450_000.0]]))


def test_delays_relax_on_a_noisy_device(noisy: AerExecutor) -> None:
    circuit = QuantumCircuit(1)
    circuit.x(0)
    circuit.delay(4_500_000, 0, unit="dt")  # 1 ms; QPY does not keep other units
    evs, _ = estimate(noisy, estimator_pub(circuit, {"Z": 1.0}))
    assert evs > 0.9  # T1 is below 200 us: it has fallen back to 0


def test_calibration_finds_the_errors_that_the_device_was_made_with(noisy: AerExecutor) -> None:
    program = Program()
    program.calibration.options.seed = SEED
    executed = noisy.execute(program, {}, epoch=4, attempt=1)
    properties = executed.properties
    assert properties is not None
    assert executed.result.calibration == properties
    assert properties.epoch == 5
    made = noisy.describe().properties
    assert len(properties.qubits) == 27
    for found, true in zip(properties.qubits, made.qubits, strict=True):
        # 4,096 shots: 5 standard deviations of an error of 0.5 % are 0.0055
        assert abs(found.readout_error - true.readout_error) < 0.0055
    errors = noisy._workshop.model.noise_model._local_quantum_errors
    for gate, allowed in (("sx", 4e-4), ("x", 4e-4), ("cx", 2.5e-3)):
        found_errors = {tuple(entry.qubits): entry.error for entry in properties.gates if entry.gate == gate}
        true_errors = {qubits: 1 - average_gate_fidelity(error) for qubits, error in errors[gate].items()}
        deviations = np.array([found_errors[qubits] - true_errors[qubits] for qubits in true_errors])
        assert np.abs(deviations).max() < allowed
        # and on the average over the device much better than one by one
        assert abs(deviations.mean()) < allowed / 8


def test_calibration_of_a_noiseless_device_finds_nothing(aer: AerExecutor) -> None:
    program = Program()
    program.calibration.SetInParent()
    properties = aer.execute(program, {}, epoch=0, attempt=1).properties
    assert properties is not None
    assert max(qubit.readout_error for qubit in properties.qubits) == 0.0
    assert {gate.gate for gate in properties.gates} == {"x", "sx", "cx"}
    assert max(gate.error for gate in properties.gates) < 1e-6


def test_calibration_with_pubs_runs_them(aer: AerExecutor) -> None:
    program = Program()
    program.calibration.pubs.append(sampler_pub(two_registers()))
    executed = aer.execute(program, {}, epoch=0, attempt=1)
    assert executed.properties is None
    assert not executed.result.HasField("calibration")
    assert executed.result.pubs[0].fields[0].bits.shape == [1024]


def test_every_format_gives_the_same_counts(aer: AerExecutor) -> None:
    circuit = QuantumCircuit(2, 2)
    circuit.x(1)
    circuit.measure([0, 1], [0, 1])
    for message in (
        Circuit(qpy=written(circuit)),
        Circuit(openqasm3=qasm3.dumps(circuit)),
        Circuit(openqasm2=qasm2.dumps(circuit)),
    ):
        assert sample(aer, sampler_pub(message))[0]["c"].get_counts() == {"10": 1000}


def test_inputs_of_openqasm3_are_parameters(aer: AerExecutor) -> None:
    text = (
        'OPENQASM 3.0;\ninclude "stdgates.inc";\ninput float a;\ninput angle b;\nqubit[2] q;\nbit[2] c;\n'
        "rx(a) q[0];\nrx(2*b) q[1];\nc = measure q;\n"
    )
    pub = sampler_pub(Circuit(openqasm3=text), [0.0, np.pi / 2])
    assert sample(aer, pub)[0]["c"].get_counts() == {"10": 1000}


def test_a_digest_names_a_circuit_of_the_session_or_of_an_earlier_pub(aer: AerExecutor) -> None:
    data = written(two_registers())
    digest = hashlib.sha256(data).digest()
    by_digest = sampler_pub(Circuit(digest=digest))
    assert len(sample(aer, sampler_pub(Circuit(qpy=data)), by_digest)) == 2
    program = Program()
    program.sampler.pubs.append(by_digest)
    assert aer.execute(program, {digest: Circuit(qpy=data)}, epoch=0, attempt=1).result.pubs
    with pytest.raises(ProgramError, match="no circuit with digest"):
        aer.execute(program, {}, epoch=0, attempt=1)


NAMES = [f"{letter}{number}" for number in range(2) for letter in "abcd"]
ANGLED = {name: gate for name, gate in get_standard_gate_name_mapping().items() if gate.params and gate.num_qubits}
GATES = {
    **{
        name: type(gate)(*map(Parameter, NAMES[: len(gate.params)])) for name, gate in ANGLED.items() if name != "delay"
    },
    "cu_o0": CUGate(*map(Parameter, NAMES[:4]), ctrl_state=0),
    "mcphase": MCPhaseGate(Parameter("a0"), 3),
}


@pytest.mark.parametrize("name", GATES)
@pytest.mark.parametrize("level", [0, 2])
def test_a_gate_is_sampled_and_estimated_with_its_values(aer: AerExecutor, name: str, level: int) -> None:
    gate = GATES[name]
    circuit = QuantumCircuit(gate.num_qubits)
    for qubit in range(gate.num_qubits):
        circuit.ry(0.4 + qubit, qubit)
    circuit.append(gate, range(gate.num_qubits))
    for qubit in range(gate.num_qubits):
        circuit.rx(0.9 - qubit, qubit)
    rows = np.array([[0.3, 0.8, -1.2, 0.5], [1.3, -0.8, 0.2, 2.5]])[:, : circuit.num_parameters]
    measured = circuit.copy()
    measured.measure_all()
    shots = 20_000
    bits = sample(aer, sampler_pub(measured, rows), shots=shots, transpile_level=level)[0]["meas"]
    observable = "Z" * gate.num_qubits
    evs, _ = estimate(aer, estimator_pub(circuit, {observable: 1.0}, rows), transpile_level=level)
    for index, row in enumerate(rows):
        exact = Statevector(circuit.assign_parameters(row))
        counts = bits.get_counts(index)
        difference = sum(abs(counts.get(key, 0) / shots - value) for key, value in exact.probabilities_dict().items())
        assert difference < 0.05
        assert abs(evs[index] - exact.expectation_value(Pauli(observable)).real) < 1e-9


def bell() -> QuantumCircuit:
    circuit = QuantumCircuit(2)
    circuit.h(0)
    circuit.cx(0, 1)
    return circuit


def turned() -> QuantumCircuit:
    circuit = QuantumCircuit(1)
    circuit.rx(Parameter("angle"), 0)
    circuit.measure_all()
    return circuit


def measured(num_qubits: int) -> QuantumCircuit:
    circuit = QuantumCircuit(num_qubits)
    circuit.measure_all()
    return circuit


QASM3 = 'OPENQASM 3.0;\ninclude "stdgates.inc";\n'


@pytest.mark.parametrize(
    ("pub", "sentence"),
    [
        (sampler_pub(bell()), "measures nothing"),
        (sampler_pub(QuantumCircuit(1, 1)), "measures nothing"),
        (sampler_pub(measured(28)), "has 28 qubits, the device 27"),
        (
            sampler_pub(Circuit(openqasm3=QASM3 + "qubit[2] q;\nbit[1e30] c;")),
            "declares 1e\\+30 qubits and bits",
        ),
        (sampler_pub(Circuit(openqasm3=QASM3 + "qubit [0x80000] q;")), "declares 524288 qubits and bits"),
        (sampler_pub(Circuit(openqasm2="OPENQASM 2.0;\nqreg q[60000];\ncreg c[90000];")), "declares 150000 qubits"),
        (
            sampler_pub(Circuit(openqasm3=QASM3 + "qubit[2] q;\nfor int i in [0:1] { h q[i]; }")),
            r"a register's index is not a literal \(of a loop, say\): write the loop out",
        ),
        (sampler_pub(turned()), r"1 parameter \(angle\) and the PUB no values"),
        (sampler_pub(turned(), [[1.0, 2.0]]), "the last axis must be 1 long"),
        (sampler_pub(turned(), 1.0), "the last axis must be 1 long"),
        (sampler_pub(turned(), [np.nan]), "NaN"),
        (sampler_pub(turned(), [1j]), "real numbers"),
        (sampler_pub(turned(), [1.0], parameter_names=["other"]), "name each once"),
        (sampler_pub(turned(), [1.0], parameter_names=["angle", "angle"]), "name each once"),
        (sampler_pub(measured(1), shots=0), "at least 1"),
        (sampler_pub(Circuit()), "has no circuit"),
        (sampler_pub(Circuit(qpy=b"hello")), "not QPY"),
        (sampler_pub(Circuit(qpy=written(measured(2))[:-3])), "cut off or damaged"),
        (sampler_pub(Circuit(openqasm3=QASM3 + "qubit q;\nhh q;")), r"line 4, column 1: gate 'hh' is not defined"),
        (sampler_pub(Circuit(openqasm3=QASM3 + "U(1,2 q;\n")), "line 3, column 7"),
        (sampler_pub(Circuit(openqasm3=QASM3 + "qubit[2] q\nh q[0];\n")), "line 3, column 11: expected SEMICOLON"),
        (sampler_pub(Circuit(openqasm3="")), "OpenQASM 3 text cannot be read"),
        (sampler_pub(Circuit(openqasm3='OPENQASM 3.0;\ninclude "/etc/passwd";\nqubit q;')), "non-stdgates imports"),
        (sampler_pub(Circuit(openqasm3='OPENQASM 3.0;\ninclude/**/"/etc/passwd";\nqubit q;')), "cannot be read"),
        (sampler_pub(Circuit(openqasm2='OPENQASM 2.0;\ninclude "/etc/passwd";\n')), "line 2, column 9: unable to find"),
        (
            sampler_pub(Circuit(openqasm2="OPENQASM 2.0;\nqreg q[1];\nhh q[0];")),
            "line 3, column 1: 'hh' is not defined",
        ),
        (sampler_pub(Circuit(openqasm2="")), "is empty"),
        (sampler_pub(Circuit(openqasm3="OPENQASM 3.0;\nbit c;\n")), "no qubits"),
    ],
)
def test_wrong_sampler_pubs_are_told_what_to_change(aer: AerExecutor, pub: SamplerPub, sentence: str) -> None:
    with pytest.raises(ProgramError, match=sentence):
        sample(aer, pub)


@pytest.mark.parametrize(
    ("pub", "sentence"),
    [
        (estimator_pub(measured(1), {"Z": 1.0}), "ends with measurements"),
        (estimator_pub(bell(), {"Z": 1.0}), "has 1 characters and the circuit 2"),
        (estimator_pub(bell(), {"ZQ": 1.0}), "the character 'Q'"),
        (estimator_pub(bell(), {"ZZ": float("inf")}), "not finite"),
        (estimator_pub(bell(), {"ZZ": 1.0}, precision=-1.0), "at least 0"),
        (estimator_pub(bell(), [{"ZZ": 1.0}] * 3, np.empty((2, 0))), r"\(2,\) and observables of shape \(3,\)"),
        (estimator_pub(QuantumCircuit(17), {"0" * 17: 1.0}), "too many projectors"),
    ],
)
def test_wrong_estimator_pubs_are_told_what_to_change(aer: AerExecutor, pub: EstimatorPub, sentence: str) -> None:
    with pytest.raises(ProgramError, match=sentence):
        estimate(aer, pub)


def test_observables_that_do_not_fill_their_shape_are_refused(aer: AerExecutor) -> None:
    pub = estimator_pub(bell(), [{"ZZ": 1.0}])
    pub.observables.shape[:] = [2]
    with pytest.raises(ProgramError, match="holds 1"):
        estimate(aer, pub)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"method": "magic"}, "'magic' is unknown"),
        ({"noise": True}, "has no noise"),
        ({"transpile_level": 4}, "goes from 0 to 3"),
        ({"method": "stabilizer"}, "Aer cannot execute"),
    ],
)
def test_wrong_options_are_told_what_to_change(aer: AerExecutor, options: dict[str, Any], sentence: str) -> None:
    circuit = QuantumCircuit(1)
    circuit.t(0)
    circuit.measure_all()
    with pytest.raises(ProgramError, match=sentence):
        sample(aer, sampler_pub(circuit), **options)


def test_the_pub_that_is_wrong_is_named(aer: AerExecutor) -> None:
    with pytest.raises(ProgramError, match="PUB 1: the circuit measures nothing"):
        sample(aer, sampler_pub(measured(1)), sampler_pub(bell()))


def test_strict_isa_refuses_what_the_device_does_not_have(aer: AerExecutor, noisy: AerExecutor) -> None:
    circuit = QuantumCircuit(2)
    circuit.h(0)
    circuit.measure_all()
    with pytest.raises(ProgramError, match="does not execute h on qubits"):
        sample(noisy, sampler_pub(circuit), strict_isa=True)
    far = QuantumCircuit(27)
    far.cx(0, 26)
    far.measure_all()
    with pytest.raises(ProgramError, match=r"does not execute cx on qubits \[0, 26\]"):
        sample(noisy, sampler_pub(far), strict_isa=True)
    outer = QuantumCircuit(1)
    outer.append(QuantumCircuit(1, name="my_gate").to_instruction(), [0])
    outer.measure_all()
    with pytest.raises(ProgramError, match="does not execute my_gate"):
        sample(aer, sampler_pub(outer), strict_isa=True)
    assert sample(aer, sampler_pub(outer))[0]["meas"].get_counts() == {"0": 1000}
    near = QuantumCircuit(27, 2)
    near.x(0)
    near.cx(0, 1)
    near.measure([0, 1], [0, 1])
    assert sample(noisy, sampler_pub(near), strict_isa=True)[0]["c"].get_counts()["11"] > 950


def branching() -> QuantumCircuit:
    """Its second bit is always 1, and its first is what ended the loop: 1."""
    circuit = QuantumCircuit(2, 2)
    with circuit.for_loop(range(40)):
        circuit.h(0)
        circuit.measure(0, 0)
        with circuit.if_test((circuit.clbits[0], 1)):
            circuit.break_loop()
    with circuit.if_test((circuit.clbits[0], 1)):
        circuit.x(1)
    circuit.delay(111, 0, "ns")
    circuit.measure(1, 1)
    return circuit


def test_control_flow_and_delays_are_published_as_what_a_circuit_can_be_transpiled_for(
    aer: AerExecutor, noisy: AerExecutor
) -> None:
    flow = {"if_else", "for_loop", "while_loop", "switch_case", "break_loop", "continue_loop", "delay"}
    for executor in (aer, noisy):
        device = executor.describe()
        assert flow <= set(device.basis_gates)
        manager = generate_preset_pass_manager(1, target=make_target(device), layout_method="trivial")
        fitting = manager.run(branching())
        written = CircuitWriter(frozenset(), qpy.QPY_VERSION, lambda: None).write(fitting)
        counts = sample(executor, sampler_pub(written), strict_isa=True, noise=False)[0]["c"].get_counts()
        assert counts == {"11": 1000}


def test_strict_isa_looks_into_control_flow(aer: AerExecutor) -> None:
    circuit = QuantumCircuit(1, 1)
    with circuit.if_test((circuit.clbits[0], 0)):
        circuit.append(QuantumCircuit(1, name="my_gate").to_instruction(), [0])
    circuit.measure(0, 0)
    with pytest.raises(ProgramError, match="does not execute my_gate"):
        sample(aer, sampler_pub(circuit), strict_isa=True)
    with pytest.raises(ProgramError, match="does not execute if_else"):
        sample(aer, sampler_pub(circuit), strict_isa=True, method="extended_stabilizer")


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_every_transpile_level_gives_the_same_distribution(aer: AerExecutor, noisy: AerExecutor, level: int) -> None:
    circuit = bell()
    circuit.measure_all()
    assert set(sample(aer, sampler_pub(circuit), transpile_level=level)[0]["meas"].get_counts()) == {"00", "11"}
    counts = sample(noisy, sampler_pub(circuit), transpile_level=level)[0]["meas"].get_counts()
    assert counts["00"] + counts["11"] > 950


def test_a_damaged_qpy_payload_never_ends_the_process(aer: AerExecutor) -> None:
    data = written(two_registers())
    rng = np.random.default_rng(8)
    refused = 0
    for length in range(0, len(data), 7):
        with pytest.raises(ProgramError):
            sample(aer, sampler_pub(Circuit(qpy=data[:length])))
    for _ in range(100):
        broken = bytearray(data)
        # past the head, whose counts could ask for all memory
        broken[rng.integers(90, len(data))] ^= int(rng.integers(1, 256))
        try:
            sample(aer, sampler_pub(Circuit(qpy=bytes(broken))))
        except ProgramError:
            refused += 1
    assert refused > 0


STANDARD_GATES = {
    name: gate
    for name, gate in get_standard_gate_name_mapping().items()
    if isinstance(gate, Gate) and name not in ("global_phase", "delay")
}


def with_numbers(gate: Gate) -> Gate:
    """`gate` with multiples of pi/2 for angles: such are Clifford gates wherever the gate can be one."""
    return type(gate)(*[np.pi / 2] * len(gate.params)) if gate.params else gate


# extended_stabilizer is left out: it approximates, and takes a minute for these
@pytest.mark.parametrize("method", [method for method in METHODS if method != "extended_stabilizer"])
def test_every_standard_gate_runs_by_every_method_that_can_do_it(aer: AerExecutor, method: str) -> None:
    wrong = []
    for name, gate in STANDARD_GATES.items():
        gate = with_numbers(gate)
        circuit = QuantumCircuit(gate.num_qubits)
        circuit.x(range(gate.num_qubits))
        circuit.append(gate, range(gate.num_qubits))
        if method == "stabilizer":
            try:
                Clifford(circuit)
            except QiskitError:
                continue
        expected = Statevector(circuit).probabilities()
        circuit.measure_all()
        try:
            (registers,) = sample(aer, sampler_pub(circuit), shots=400, method=method)
        except ProgramError as error:
            wrong.append(f"{name}: {error}")
            continue
        counts = registers["meas"].get_int_counts()
        # six standard deviations of a share, which is at most 0.025 at 400 shots
        if any(abs(counts.get(index, 0) / 400 - share) > 0.15 for index, share in enumerate(expected)):
            wrong.append(f"{name}: {counts}")
    assert not wrong


@pytest.mark.parametrize("coupled", [False, True], ids=["aer", "generic"])
@pytest.mark.parametrize("level", range(4))
def test_clifford_circuits_stay_so_when_they_are_transpiled(aer: AerExecutor, level: int, coupled: bool) -> None:
    generic = DeviceSpec(kind="generic", num_qubits=4, coupling="line", noise=False)
    executor = AerExecutor("line", generic, itertools.count().__next__) if coupled else aer
    drawn = np.random.default_rng(17)
    for _ in range(12):
        circuit = QuantumCircuit(3)
        for _ in range(4):
            for qubit in range(3):
                getattr(circuit, drawn.choice(["h", "s", "x", "sx", "z", "sdg"]))(qubit)
            getattr(circuit, drawn.choice(["cx", "iswap", "dcx", "cy"]))(*map(int, drawn.choice(3, 2, replace=False)))
        observable = "".join(drawn.choice(list("XYZ"), 3))
        pub = estimator_pub(circuit, {observable: 1.0})
        values, _ = estimate(executor, pub, method="stabilizer", transpile_level=level)
        exact = Statevector(circuit).expectation_value(SparsePauliOp(observable)).real
        assert values == pytest.approx(exact, abs=1e-9)


@pytest.mark.parametrize("nested", [False, True])
def test_control_flow_may_be_on_qubits_that_are_not_measured(aer: AerExecutor, nested: bool) -> None:
    angle = Parameter("angle")
    circuit = QuantumCircuit(3, 2)
    with circuit.if_test((circuit.clbits[0], 1)) as otherwise:
        circuit.rx(angle, 0)
    with otherwise:
        circuit.ry(2 * angle, 0)
        if nested:
            with circuit.while_loop((circuit.clbits[0], 1)):
                circuit.rz(angle, 1)
    # the qubits of a block are the outer ones by their places: the transpiler leaves them with each other's names
    block = QuantumCircuit([circuit.qubits[2]], circuit.clbits)
    block.rx(angle, 0)
    circuit.append(IfElseOp((circuit.clbits[0], 1), block), [1], [0, 1])
    circuit.measure(2, 1)
    for level in range(4):
        (registers,) = sample(aer, sampler_pub(circuit, np.zeros((2, 1))), shots=20, transpile_level=level)
        assert [registers["c"].get_counts(row) for row in range(2)] == [{"00": 20}] * 2
    loop = QuantumCircuit(3, 4)
    with loop.for_loop(range(2)):
        loop.ry(0.5, 1)
    loop.measure(2, 0)
    (registers,) = sample(aer, sampler_pub(loop), shots=20)
    assert registers["c"].get_counts() == {"0000": 20}
    circuit.remove_final_measurements()
    values, _ = estimate(aer, estimator_pub(circuit, {"ZII": 1.0}, np.zeros((2, 1))))
    assert values == pytest.approx(1)


@pytest.mark.parametrize("level", [0, 2])
@pytest.mark.parametrize("method", ["automatic", "statevector", "density_matrix", "matrix_product_state"])
def test_a_circuit_brings_qubits_into_a_state_by_every_method(aer: AerExecutor, method: str, level: int) -> None:
    state = np.array([0.2 - 0.5j, 0.4 + 0.6j, 0.1, -0.3 - 0.2j])
    state /= np.linalg.norm(state)
    circuit = QuantumCircuit(3, 4)
    circuit.x(1)
    circuit.measure(1, 3)
    circuit.initialize(state, [2, 0])
    with circuit.if_test((circuit.clbits[3], 1)):
        circuit.initialize("l", [1])
        circuit.sx(1)
    circuit.measure(range(3), range(3))
    (registers,) = sample(aer, sampler_pub(circuit), shots=4000, method=method, transpile_level=level)
    counts = registers["c"].get_int_counts()
    for outcome, share in enumerate(np.abs(state) ** 2):
        number = 10 + 4 * (outcome & 1) + (outcome >> 1)
        # six standard deviations of a share, which is at most 0.008 at 4,000 shots
        assert abs(counts.get(number, 0) / 4000 - share) < 0.048, counts


def test_a_gate_that_an_openqasm2_text_defines_goes_before_the_standard_one(aer: AerExecutor) -> None:
    text = (
        "OPENQASM 2.0; // gate sx is not defined here\n"
        "gate h a { U(pi, 0, pi) a; } qreg q[2]; creg c[2]; h q[0]; sx q[1]; sx q[1]; measure q -> c;"
    )
    (registers,) = sample(aer, sampler_pub(Circuit(openqasm2=text)), shots=50)
    assert registers["c"].get_counts() == {"11": 50}


@pytest.mark.parametrize("bits", [1, 8])
@pytest.mark.parametrize("before", [False, True])
def test_a_circuit_may_end_with_a_loop_that_measures(
    aer: AerExecutor, noisy: AerExecutor, before: bool, bits: int
) -> None:
    circuit = QuantumCircuit(QuantumRegister(2), ClassicalRegister(bits, "c"))
    if before:
        circuit.measure(1, 0)
    with circuit.while_loop((circuit.clbits[0], 0)):
        circuit.x(0)
        circuit.measure(0, 0)
    (registers,) = sample(aer, sampler_pub(circuit), shots=20)
    assert registers["c"].get_counts() == {"1".zfill(bits): 20}
    (registers,) = sample(noisy, sampler_pub(circuit), shots=20)
    assert registers["c"].get_counts() == {"1".zfill(bits): 20}


def test_gates_of_ones_own_deep_in_control_flow_do_what_they_say(aer: AerExecutor) -> None:
    own = QuantumCircuit(1, name="h")
    own.x(0)
    circuit = QuantumCircuit(2, 2)
    with circuit.for_loop(range(3)), circuit.if_test((circuit.clbits[0], 0)):
        circuit.append(own.to_gate(), [0])
        with circuit.if_test((circuit.clbits[1], 0)):
            circuit.append(own.to_gate(), [1])
    circuit.measure([0, 1], [0, 1])
    (registers,) = sample(aer, sampler_pub(circuit), shots=20)
    assert registers["c"].get_counts() == {"11": 20}


@pytest.mark.parametrize("level", [0, 2])
def test_control_flow_that_only_looks_at_bits_runs_in_its_place(aer: AerExecutor, level: int) -> None:
    """Aer put the end of a loop without qubits before what stands before the loop, and so left that out."""
    first, second, last = (ClassicalRegister(size, name) for size, name in ((2, "first"), (3, "second"), (1, "last")))
    circuit = QuantumCircuit(QuantumRegister(1), first, second, last)
    with circuit.if_test(expr.less(second, 7)) as otherwise:
        circuit.measure(0, second[2])
    with otherwise:
        pass
    differ = expr.bit_xor(second[0], first[0])
    with circuit.if_test(differ) as otherwise, circuit.for_loop(range(2)), circuit.if_test((first[1], 1)):
        circuit.break_loop()
    with otherwise:
        circuit.x(0)
    circuit.measure(0, last)
    (registers,) = sample(aer, sampler_pub(circuit), shots=20, transpile_level=level)
    assert registers["last"].get_counts() == {"1": 20}


@pytest.mark.parametrize("angle", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("inside", ["the circuit", "a branch", "a gate of its own", "the global phase"])
def test_an_angle_that_is_no_number_is_an_error_and_no_counts(aer: AerExecutor, inside: str, angle: float) -> None:
    circuit = QuantumCircuit(1, 1)
    circuit.h(0)
    if inside == "the circuit":
        circuit.rx(angle, 0)
    elif inside == "a branch":
        circuit.measure(0, 0)
        with circuit.if_test((circuit.clbits[0], 1)):
            circuit.rx(angle, 0)
    elif inside == "a gate of its own":
        own = QuantumCircuit(1, name="own")
        own.rx(angle, 0)
        circuit.append(own.to_gate(), [0])
    else:
        circuit.global_phase = angle
    circuit.measure(0, 0)
    with pytest.raises(ProgramError, match="finite"):
        sample(aer, sampler_pub(circuit), shots=10)


@pytest.mark.parametrize("name", ["h", "sx", "barrier", "delay", "reset", "measure", "save_state", "mine"])
@pytest.mark.parametrize("inside", ["the circuit", "a branch", "a gate of its own", "an annotated operation"])
def test_a_gate_of_ones_own_does_what_it_says_whatever_its_name(aer: AerExecutor, name: str, inside: str) -> None:
    own = QuantumCircuit(1, name=name)
    own.x(0)
    circuit = QuantumCircuit(1, 1)
    if inside == "the circuit":
        circuit.append(own.to_gate(), [0])
    elif inside == "a branch":
        circuit.measure(0, 0)
        with circuit.if_test((circuit.clbits[0], 0)):
            circuit.append(own.to_gate(), [0])
    elif inside == "an annotated operation":
        circuit.append(AnnotatedOperation(own.to_gate(), [PowerModifier(3)]), [0])
    else:
        outer = QuantumCircuit(1, name="outer")
        outer.append(own.to_gate(), [0])
        circuit.append(outer.to_gate(), [0])
    circuit.measure(0, 0)
    (registers,) = sample(aer, sampler_pub(circuit), shots=20)
    assert registers["c"].get_counts() == {"1": 20}

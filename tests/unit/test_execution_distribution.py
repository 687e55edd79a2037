"""Circuits whose measurements come last are drawn from their probabilities: the same distribution as shot by shot."""

import io
import itertools
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from cadenza.arrays import bit_array_from_message, tensor_from_array
from cadenza.v1.program_pb2 import Program
from cadenza_server.execution import distribution
from cadenza_server.execution.distribution import draw_outcomes, find_final_measurements
from cadenza_server.execution.executor import AerExecutor
from cadenza_server.execution.spec import DeviceSpec
from numpy.typing import NDArray
from qiskit import QuantumCircuit, qpy, transpile
from qiskit.circuit import ClassicalRegister, Clbit, Parameter, QuantumRegister
from qiskit.circuit.library import efficient_su2
from qiskit.circuit.random import random_circuit
from qiskit.primitives import BitArray, StatevectorSampler
from qiskit.quantum_info import Statevector
from qiskit_aer.primitives import SamplerV2 as AerSampler

SEED = 5


@pytest.fixture(scope="module")
def aer() -> AerExecutor:
    return AerExecutor("aer", DeviceSpec(num_qubits=60), itertools.count(2**40).__next__)


def run(executor: AerExecutor, *pubs: tuple[QuantumCircuit, Any], shots: int, **options: Any) -> tuple[str, list[Any]]:
    """The method that was used, and for each PUB its registers as `BitArray`s."""
    program = Program()
    program.sampler.default_shots = shots
    program.sampler.options.seed = SEED
    for name, value in options.items():
        setattr(program.sampler.options, name, value)
    for circuit, values in pubs:
        stream = io.BytesIO()
        qpy.dump(circuit, stream)
        pub = program.sampler.pubs.add()
        pub.circuit.qpy = stream.getvalue()
        if values is not None:
            pub.parameter_values.CopyFrom(tensor_from_array(values))
    result = executor.execute(program, {}, epoch=0, attempt=1).result
    registers = [
        {field.name: BitArray(*bit_array_from_message(field.bits)) for field in pub.fields} for pub in result.pubs
    ]
    return result.execution.method, registers


def sample(executor: AerExecutor, circuit: QuantumCircuit, values: Any = None, **options: Any) -> dict[str, BitArray]:
    registers: dict[str, BitArray] = run(executor, (circuit, values), **options)[1][0]
    return registers


def joint(registers: dict[str, BitArray], index: Any = ()) -> Counter[tuple[int, ...]]:
    """How often each combination of the registers' values came."""
    columns = []
    for _, bits in sorted(registers.items()):
        array = bits.array[index].reshape(-1, bits.array.shape[-1])
        columns.append([int.from_bytes(row.tobytes(), "big") for row in array])
    return Counter(zip(*columns, strict=True))


def assert_drawn_from(counts: Counter[Any], probabilities: dict[Any, float]) -> None:
    """Chi-squared test of counts against their distribution, at significance 1e-5; what is impossible never came.

    Outcomes that are expected fewer than five times are taken together, as the test wants it.
    """
    shots = sum(counts.values())
    assert all(probabilities.get(outcome, 0.0) > 1e-15 for outcome in counts)
    cells, rare, rare_expected = [], 0, 0.0
    for outcome, probability in probabilities.items():
        if shots * probability >= 5:
            cells.append((counts.get(outcome, 0), shots * probability))
        else:
            rare, rare_expected = rare + counts.get(outcome, 0), rare_expected + shots * probability
    if rare_expected >= 5:
        cells.append((rare, rare_expected))
    else:
        assert rare <= 30
    statistic = sum((found - expected) ** 2 / expected for found, expected in cells)
    assert statistic <= chi_squared_limit(len(cells) - 1)


def assert_drawn_alike(one: Counter[Any], other: Counter[Any]) -> None:
    """Two-sample chi-squared test at significance 1e-5, for samples of the same size."""
    outcomes = [outcome for outcome in {*one, *other} if one[outcome] + other[outcome] >= 10]
    statistic = sum((one[k] - other[k]) ** 2 / (one[k] + other[k]) for k in outcomes)
    assert sum(one.values()) == sum(other.values())
    assert statistic <= chi_squared_limit(max(1, len(outcomes)))


def chi_squared_limit(freedom: int) -> float:
    """What a chi-squared variable exceeds with probability 1e-5 (Wilson and Hilferty's approximation; at few degrees it
    is a little above)."""
    if freedom == 0:
        return 1e-6
    part = 2 / (9 * freedom)
    return max(19.5, freedom * (1 - part + 4.265 * math.sqrt(part)) ** 3)


def probabilities_of(circuit: QuantumCircuit, layout: list[tuple[str, list[int | None]]]) -> dict[Any, float]:
    """The distribution of the registers' values, by the state vector: `layout` says for each register the qubits that
    its bits hold, None for a bit that stays 0."""
    found: dict[tuple[int, ...], float] = {}
    for state, probability in enumerate(Statevector(circuit).probabilities()):
        values = [
            sum((state >> qubit & 1) << bit for bit, qubit in enumerate(qubits) if qubit is not None)
            for _, qubits in sorted(layout)
        ]
        found[tuple(values)] = found.get(tuple(values), 0.0) + float(probability)
    return found


def rotations(num_qubits: int, seed: int) -> QuantumCircuit:
    """A circuit without measurements that gives every outcome another probability."""
    random = np.random.default_rng(seed)
    circuit = QuantumCircuit(num_qubits)
    for _ in range(2):
        for qubit in range(num_qubits):
            circuit.ry(random.uniform(0.3, 2.8), qubit)
        for qubit in range(num_qubits - 1):
            circuit.cx(qubit, qubit + 1)
    return circuit


def with_registers(bare: QuantumCircuit, *registers: ClassicalRegister) -> QuantumCircuit:
    circuit = QuantumCircuit(*bare.qregs, *registers)
    return circuit.compose(bare)


def test_registers_get_the_bits_that_were_measured_into_them(aer: AerExecutor) -> None:
    bare = rotations(5, 1)
    circuit = with_registers(
        bare, ClassicalRegister(11, "wide"), ClassicalRegister(2, "odd"), ClassicalRegister(1, "no")
    )
    circuit.measure([4, 0, 2], [10, 3, 8])  # the others stay 0
    circuit.measure([1, 3], [12, 11])
    wide: list[int | None] = [None] * 11
    wide[10], wide[3], wide[8] = 4, 0, 2
    exact = probabilities_of(bare, [("wide", wide), ("odd", [3, 1]), ("no", [None])])
    assert_drawn_from(joint(sample(aer, circuit, shots=60_000)), exact)


def test_a_bit_that_is_written_twice_keeps_what_came_last(aer: AerExecutor) -> None:
    bare = rotations(3, 2)
    circuit = with_registers(bare, ClassicalRegister(2, "c"))
    circuit.measure([0, 1], [0, 1])
    circuit.barrier()
    circuit.measure(2, 0)
    measurements = find_final_measurements(circuit)
    assert measurements is not None
    assert measurements.qubits == (2, 1)
    counts = joint(sample(aer, circuit, shots=40_000))
    assert_drawn_from(counts, probabilities_of(bare, [("c", [2, 1])]))
    assert_drawn_alike(counts, joint({"c": AerSampler(seed=SEED).run([circuit], shots=40_000).result()[0].data.c}))


def test_a_qubit_that_is_measured_twice_in_a_row_says_the_same_twice(aer: AerExecutor) -> None:
    bare = rotations(2, 3)
    circuit = with_registers(bare, ClassicalRegister(3, "c"))
    circuit.measure([0, 1, 0], [0, 1, 2])
    assert find_final_measurements(circuit) is not None
    assert_drawn_from(joint(sample(aer, circuit, shots=40_000)), probabilities_of(bare, [("c", [0, 1, 0])]))


def test_registers_may_share_bits(aer: AerExecutor) -> None:
    bits = [Clbit() for _ in range(3)]
    bare = rotations(3, 4)
    circuit = QuantumCircuit(QuantumRegister(bits=bare.qubits, name="q"))
    circuit.add_bits(bits)
    circuit.add_register(
        ClassicalRegister(bits=bits[:2], name="low"), ClassicalRegister(bits=bits[::-1], name="turned")
    )
    circuit = circuit.compose(bare)
    circuit.measure(range(3), bits)
    exact = probabilities_of(bare, [("low", [0, 1]), ("turned", [2, 1, 0])])
    assert_drawn_from(joint(sample(aer, circuit, shots=40_000)), exact)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("method", ["automatic", "statevector", "density_matrix"])
def test_random_circuits_have_the_distribution_of_qiskits_sampler(aer: AerExecutor, seed: int, method: str) -> None:
    random = np.random.default_rng(seed)
    bare = random_circuit(4, 4, max_operands=3, seed=seed)
    if method == "density_matrix":
        bare = transpile(bare, basis_gates=["u", "cx"], seed_transpiler=seed)
    circuit = with_registers(bare, ClassicalRegister(4, "one"), ClassicalRegister(3, "two"))
    clbits = random.permutation(7)[:4].tolist()
    circuit.measure(random.permutation(4).tolist(), clbits)
    ours = sample(aer, circuit, shots=20_000, method=method)
    theirs = StatevectorSampler(seed=seed).run([circuit], shots=20_000).result()[0].data
    assert_drawn_alike(joint(ours), joint({"one": theirs.one, "two": theirs.two}))


def test_every_set_of_values_has_its_own_distribution_and_draws(aer: AerExecutor) -> None:
    circuit = efficient_su2(3, reps=1)
    bare = circuit.copy()
    circuit.measure_all()
    values = np.random.default_rng(6).uniform(-3, 3, (2, 3, circuit.num_parameters))
    values[1, 2] = values[0, 0]
    bits = sample(aer, circuit, values, shots=30_000)["meas"]
    assert bits.shape == (2, 3)
    for index in np.ndindex(2, 3):
        exact = probabilities_of(bare.assign_parameters(values[index]), [("meas", [0, 1, 2])])
        assert_drawn_from(joint({"meas": bits}, index), exact)
    assert not np.array_equal(bits.array[1, 2], bits.array[0, 0])


def test_many_sets_are_asked_of_aer_in_parts(aer: AerExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    circuit = QuantumCircuit(2)
    circuit.rx(Parameter("a"), 0)
    circuit.measure_all()
    values = np.linspace(0, math.pi, 11)[:, None]
    whole = sample(aer, circuit, values, shots=50)["meas"]
    monkeypatch.setattr("cadenza_server.execution.sampler.SETS_PROBABILITIES_MAX", 12)
    assert sample(aer, circuit, values, shots=50)["meas"] == whole
    assert whole[0].get_counts() == {"00": 50}
    assert whole[10].get_counts() == {"01": 50}


def test_shots_are_drawn_in_parts_without_a_seam(aer: AerExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    circuit = rotations(3, 7)
    circuit.measure_all()
    whole = sample(aer, circuit, shots=1_000)["meas"]
    monkeypatch.setattr(distribution, "CHUNK_SHOTS", 64)
    assert sample(aer, circuit, shots=1_000)["meas"] == whole
    assert sample(aer, circuit, shots=64)["meas"].array.tolist() == whole.array[:64].tolist()


def test_a_seed_gives_the_same_bits_again_and_pubs_are_independent(aer: AerExecutor) -> None:
    circuit = rotations(3, 8)
    circuit.measure_all()
    _, (first, second) = run(aer, (circuit, None), (circuit, None), shots=500)
    _, again = run(aer, (circuit, None), (circuit, None), shots=500)
    assert again == [first, second]
    assert first != second
    assert sample(aer, circuit, shots=500, seed=SEED + 1) != first
    pairs = joint({"one": first["meas"], "two": second["meas"]})
    exact = probabilities_of(rotations(3, 8), [("meas", [0, 1, 2])])
    product = {(*a, *b): p * q for (a, p), (b, q) in itertools.product(exact.items(), exact.items())}
    assert_drawn_from(pairs, product)


@pytest.mark.parametrize(("num_qubits", "shots", "method"), [(10, 2_000, "statevector"), (40, 500, "stabilizer")])
def test_clifford_circuits_of_any_size_run(aer: AerExecutor, num_qubits: int, shots: int, method: str) -> None:
    circuit = QuantumCircuit(num_qubits)
    circuit.h(0)
    for qubit in range(num_qubits - 1):
        circuit.cx(qubit, qubit + 1)
    circuit.measure_all()
    used, (registers,) = run(aer, (circuit, None), shots=shots)
    assert used == method
    counts = registers["meas"].get_counts()
    assert set(counts) == {"0" * num_qubits, "1" * num_qubits}
    assert abs(counts["0" * num_qubits] - shots / 2) < 5 * math.sqrt(shots / 4)


def test_a_clifford_circuit_is_drawn_where_that_is_faster() -> None:
    circuit = QuantumCircuit(18, 18)
    circuit.h(range(18))
    circuit.rz(math.pi / 2, 0)
    circuit.measure(range(18), range(18))
    measurements = find_final_measurements(circuit)
    assert measurements is not None
    assert measurements.choose_method("automatic", 1_000) is None
    assert measurements.choose_method("automatic", 1_000_000) == "statevector"
    assert measurements.choose_method("density_matrix", 1_000) == "density_matrix"
    assert measurements.choose_method("stabilizer", 1_000_000) is None
    assert measurements.choose_method("matrix_product_state", 1_000_000) is None
    circuit = QuantumCircuit(18, 18)
    circuit.rz(1.0, range(18))
    circuit.measure(range(18), range(18))
    measurements = find_final_measurements(circuit)
    assert measurements is not None
    assert measurements.choose_method("automatic", 1) == "statevector"


def test_a_few_bits_of_a_large_circuit_are_drawn(aer: AerExecutor) -> None:
    circuit = QuantumCircuit(40, 2)
    circuit.ry(1.0, 33)
    circuit.cx(33, 7)
    circuit.measure([7, 33], [0, 1])
    measurements = find_final_measurements(circuit)
    assert measurements is not None
    assert measurements.num_qubits == 2
    counts = sample(aer, circuit, shots=20_000)["c"].get_counts()
    assert set(counts) == {"00", "11"}
    assert abs(counts["11"] - 20_000 * math.sin(0.5) ** 2) < 5 * math.sqrt(20_000 / 4)


def mid_circuit() -> QuantumCircuit:
    circuit = QuantumCircuit(2, 2)
    circuit.h(0)
    circuit.measure(0, 0)
    circuit.h(0)
    circuit.measure([0, 1], [0, 1])
    return circuit


def with_reset() -> QuantumCircuit:
    circuit = QuantumCircuit(2)
    circuit.h(0)
    circuit.cx(0, 1)
    circuit.reset(0)
    circuit.measure_all()
    return circuit


def with_branch() -> QuantumCircuit:
    circuit = QuantumCircuit(2, 2)
    circuit.h(0)
    circuit.measure(0, 0)
    with circuit.if_test((circuit.clbits[0], 1)):
        circuit.x(1)
    circuit.measure(1, 1)
    return circuit


def with_initialize() -> QuantumCircuit:
    circuit = QuantumCircuit(2)
    circuit.initialize([1 / math.sqrt(2), 1 / math.sqrt(2)], 0)
    circuit.measure_all()
    return circuit


@pytest.mark.parametrize("make", [mid_circuit, with_reset, with_branch, with_initialize])
def test_other_circuits_are_left_to_aer(aer: AerExecutor, make: Any) -> None:
    circuit = make()
    assert find_final_measurements(circuit) is None
    name = circuit.cregs[0].name
    ours = sample(aer, circuit, shots=4_000)[name]
    theirs = getattr(AerSampler(seed=SEED).run([circuit], shots=4_000).result()[0].data, name)
    assert_drawn_alike(joint({"c": ours}), joint({"c": theirs}))


def test_delays_do_nothing_without_noise_but_end_no_measurement() -> None:
    circuit = QuantumCircuit(1, 1)
    circuit.delay(100, 0)
    circuit.measure(0, 0)
    assert find_final_measurements(circuit) is not None
    circuit.delay(100, 0)
    circuit.measure(0, 0)
    assert find_final_measurements(circuit) is None


def test_noise_is_executed_shot_by_shot_and_left_out_where_the_job_says_so() -> None:
    noisy = AerExecutor("noisy", DeviceSpec(kind="generic"), itertools.count(2**40).__next__)
    circuit = QuantumCircuit(2)
    circuit.x(0)
    circuit.x(1)
    circuit.measure_all()
    assert len(sample(noisy, circuit, shots=5_000)["meas"].get_counts()) > 1
    assert sample(noisy, circuit, shots=5_000, noise=False)["meas"].get_counts() == {"11": 5_000}


def test_what_cannot_come_is_never_drawn() -> None:
    probabilities = np.array([0.0, 0.25, 0.0, 0.75, -1e-18, 0.0])

    class Extremes:
        """A generator that draws the least and the largest numbers below 1."""

        def random(self, size: int) -> NDArray[np.float64]:
            return np.resize(np.array([0.0, 0.25, np.nextafter(1.0, 0.0), np.nextafter(0.25, 0.0)]), size)

    (outcomes,) = draw_outcomes(probabilities, 4, Extremes())  # type: ignore[arg-type]
    assert outcomes.tolist() == [1, 3, 3, 1]

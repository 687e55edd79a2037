"""The Python library without a server: what it offers, what it loads, how it writes and reads."""

import copy
import hashlib
import io
import pickle
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import cadenza
import numpy as np
import pytest
from cadenza import EstimatorOptions, InvalidRequestError, OptionError, SamplerOptions, make_circuit, sampler_program
from cadenza._backend import make_target
from cadenza._codec import (
    OBSERVABLES_REMEMBERED_MAX,
    QPY_VERSION,
    CircuitWriter,
    CountedBitArray,
    ObservablesMemory,
    choose_qpy_version,
    decode_result,
    encode_estimator,
    encode_observables,
    encode_sampler,
)
from cadenza._delays import put_delays_into_cycles
from cadenza._times import make_timestamp, parse_length, read_time
from cadenza.arrays import array_from_tensor, bit_array_to_message, tensor_from_array
from cadenza.v1 import device_pb2, program_pb2, result_pb2
from qiskit import ClassicalRegister, QuantumCircuit, QuantumRegister, qpy
from qiskit.circuit import Parameter, ParameterVector
from qiskit.primitives import BitArray, PrimitiveResult, PubResult, SamplerPubResult
from qiskit.primitives.containers.estimator_pub import EstimatorPub
from qiskit.primitives.containers.observables_array import ObservablesArray
from qiskit.primitives.containers.sampler_pub import SamplerPub
from qiskit.quantum_info import SparsePauliOp
from qiskit.transpiler import generate_preset_pass_manager


def bell() -> QuantumCircuit:
    circuit = QuantumCircuit(2)
    circuit.h(0)
    circuit.cx(0, 1)
    circuit.measure_all()
    return circuit


# --- what it offers ---------------------------------------------------------------------------------------------------

PUBLIC = [
    "AlreadyExistsError",
    "AsyncClient",
    "BackendProperties",
    "BackendStatus",
    "Batch",
    "CadenzaBackend",
    "CadenzaError",
    "CadenzaService",
    "CadenzaTimeoutError",
    "Client",
    "EnvironmentOptions",
    "Estimator",
    "EstimatorOptions",
    "EstimatorV2",
    "ExhaustedError",
    "InternalError",
    "InvalidRequestError",
    "Job",
    "JobCancelledError",
    "JobError",
    "JobFailedError",
    "JobUpdate",
    "NotFoundError",
    "NotReadyError",
    "OptionError",
    "OutOfRangeError",
    "PermissionDeniedError",
    "PreconditionError",
    "Reservation",
    "Retry",
    "Sampler",
    "SamplerOptions",
    "SamplerV2",
    "ServerStartError",
    "Session",
    "SimulatorOptions",
    "Tls",
    "UnauthenticatedError",
    "UnavailableError",
    "Watch",
    "job_spec",
    "make_circuit",
    "sampler_program",
]


def test_the_public_list_is_exact_and_every_name_loads() -> None:
    assert sorted(cadenza.__all__) == sorted(PUBLIC)
    assert len(set(cadenza.__all__)) == len(cadenza.__all__)
    assert dir(cadenza) == sorted(cadenza.__all__)
    for name in cadenza.__all__:
        assert getattr(cadenza, name).__name__ == {"Sampler": "SamplerV2", "Estimator": "EstimatorV2"}.get(name, name)
        assert getattr(cadenza, name).__doc__, name


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="NoSuchThing"):
        cadenza.NoSuchThing  # noqa: B018


@pytest.mark.parametrize(
    ("touch", "absent"),
    [
        ("None", "qiskit grpc numpy google"),
        ("cadenza.Client", "qiskit numpy"),
        ("cadenza.SamplerOptions", "qiskit numpy"),
    ],
)
def test_importing_loads_nothing_heavy_before_it_is_used(touch: str, absent: str) -> None:
    program = f"import sys, cadenza; {touch}; print(*{{m.split('.')[0] for m in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not set(absent.split()) & set(done.stdout.split())


# --- times ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "nanoseconds"),
    [
        (90, 90_000_000_000),
        (0.1, 100_000_000),
        ("2h 30m", 9_000_000_000_000),
        ("2h30m 40s", 9_040_000_000_000),
        ("1.5s", 1_500_000_000),
        ("250ms", 250_000_000),
        ("90", 90_000_000_000),
        ("1d", 86_400_000_000_000),
        (timedelta(minutes=1, microseconds=3), 60_000_003_000),
        (0, 0),
    ],
)
def test_lengths_of_time_are_read_exactly(written: float | str | timedelta, nanoseconds: int) -> None:
    assert parse_length(written) == nanoseconds


@pytest.mark.parametrize("written", ["", "2x", "h", "2h 30", "-1s", -1, float("nan"), float("inf"), True, "1..5s"])
def test_what_is_no_length_of_time_is_refused_with_its_name(written: float | str) -> None:
    with pytest.raises(InvalidRequestError, match="max_time") as caught:
        parse_length(written, "max_time")
    assert caught.value.field == "max_time"


def test_points_of_time_keep_their_zone_and_microseconds() -> None:
    moment = datetime(2026, 3, 1, 12, 0, 0, 123_456, tzinfo=timezone(timedelta(hours=5)))
    assert read_time(make_timestamp(moment)) == moment
    local = datetime(2026, 3, 1, 12, 0, 0)
    assert read_time(make_timestamp(local)) == local.astimezone()
    assert make_timestamp(0.25).ToNanoseconds() == 250_000_000
    assert read_time(make_timestamp(0)) == datetime(1970, 1, 1, tzinfo=UTC)


# --- options ----------------------------------------------------------------------------------------------------------


def test_options_are_taken_from_nested_dictionaries_and_attributes() -> None:
    options = SamplerOptions.make({"default_shots": 100, "simulator": {"seed_simulator": 7}})
    options.environment.job_tags = ["a"]
    options.update(simulator={"method": "statevector"}, transpile_level=2)
    execution = options.make_execution()
    assert (options.default_shots, options.environment.job_tags) == (100, ["a"])
    assert (execution.seed, execution.method, execution.transpile_level) == (7, "statevector", 2)
    assert not execution.HasField("noise")


def test_options_are_copied_so_that_two_primitives_do_not_share_them() -> None:
    first = SamplerOptions(default_shots=10)
    second = SamplerOptions.make(first)
    second.simulator.seed_simulator = 3
    assert first.simulator.seed_simulator is None
    assert second.default_shots == 10


def test_absent_options_are_absent_on_the_wire() -> None:
    execution = EstimatorOptions().make_execution()
    assert execution == program_pb2.ExecutionOptions()
    assert EstimatorOptions().precision() is None


def test_an_estimator_seed_and_shots_mean_what_they_do_in_runtime() -> None:
    options = EstimatorOptions.make({"seed_estimator": 5, "default_shots": 400, "simulator": {"seed_simulator": 6}})
    assert options.make_execution().seed == 5
    assert options.precision() == pytest.approx(0.05)
    options.default_precision = 0.0
    assert options.precision() == 0.0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"defualt_shots": 3}, "did you mean 'default_shots'"),
        ({"simulator": {"seed": 3}}, "did you mean 'seed_simulator'"),
        ({"environment": {"tags": ["a"]}}, "job_tags"),
        ({"resilience_level": 1}, "leave it out"),
        ({"default_shots": 0}, "at least 1"),
        ({"default_shots": 1.5}, "whole number"),
        ({"default_shots": True}, "whole number"),
        ({"transpile_level": 4}, "at most 3"),
        ({"priority": -101}, "at least -100"),
        ({"simulator": {"seed_simulator": -1}}, "at least 0"),
        ({"simulator": 3}, "dictionary"),
        ({"environment": {"job_tags": "a"}}, "list of texts"),
        ({"max_execution_time": 0}, "longer than 0"),
        ("default_shots", "dictionary"),
    ],
)
def test_a_wrong_option_is_named_where_it_is_written(given: object, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        SamplerOptions.make(given)  # type: ignore[arg-type]


def test_a_wrong_option_set_later_is_refused_and_changes_nothing() -> None:
    options = SamplerOptions(default_shots=5)
    with pytest.raises(OptionError, match="did you mean 'default_shots'"):
        options.default_shot = 10
    with pytest.raises(OptionError, match="at least 1"):
        options.default_shots = -1
    assert options.default_shots == 5


def test_a_group_of_options_that_has_no_meaning_here_is_refused_where_it_is_reached_into() -> None:
    options: Any = EstimatorOptions()
    with pytest.raises(OptionError, match="'twirling': exists in qiskit_ibm_runtime, but has no meaning"):
        options.twirling.enable_gates = True
    assert not hasattr(options, "resilience")
    with pytest.raises(AttributeError, match="has no attribute 'twirlin'") as raised:
        _ = options.twirlin
    assert not isinstance(raised.value, OptionError)
    assert copy.deepcopy(options) == pickle.loads(pickle.dumps(options)) == options


# --- programs without Qiskit ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("OPENQASM 3.0;\nqubit q;", "openqasm3"),
        ("// hello\nOPENQASM 2.0;\nqreg q[1];", "openqasm2"),
        ("OPENQASM 3;", "openqasm3"),
        ("qubit q;", "openqasm3"),
        (b"QISKIT", "qpy"),
    ],
)
def test_the_format_of_a_circuit_is_told_by_its_head(source: str | bytes, kind: str) -> None:
    circuit = make_circuit(source)
    assert circuit.WhichOneof("source") == kind
    assert getattr(circuit, kind) == source


def test_a_sampler_program_is_made_without_qiskit() -> None:
    job = sampler_program(["OPENQASM 3;", b"QISKIT"], shots=10, seed=0).sampler
    assert (len(job.pubs), job.default_shots, job.options.seed) == (2, 10, 0)
    assert not sampler_program("OPENQASM 3;").sampler.HasField("default_shots")


# --- PUBs -------------------------------------------------------------------------------------------------------------


def writer(known: frozenset[bytes] = frozenset()) -> CircuitWriter:
    return CircuitWriter(known, QPY_VERSION, lambda: None)


def send_delays(circuit: QuantumCircuit, dt_s: float | None) -> QuantumCircuit:
    """The circuit as a server reads it."""
    sent = CircuitWriter(frozenset(), QPY_VERSION, lambda: dt_s).write(circuit)
    return qpy.load(io.BytesIO(sent.qpy))[0]


@pytest.mark.parametrize(
    ("length", "unit", "dt_s", "cycles"),
    [
        (200, "us", 2e-9, 100_000),
        (2e-4, "s", 2e-9, 100_000),
        (0.5, "ms", 2e-9, 250_000),
        (101, "ns", 2e-9, 50),
        (7, "dt", 2e-9, 7),
        (0.5, "us", None, 500),
    ],
)
def test_a_delay_in_seconds_is_sent_in_cycles_of_the_device(
    length: float, unit: str, dt_s: float | None, cycles: int
) -> None:
    circuit = QuantumCircuit(2, 1)
    circuit.delay(length, 0, unit)
    circuit.measure(1, 0)
    with circuit.if_test((circuit.clbits[0], 1)), circuit.for_loop(range(2)):
        circuit.delay(length, 1, unit)
    before = circuit.copy()
    sent = send_delays(circuit, dt_s)
    (loop,) = sent.data[2].operation.blocks[0].data
    for delay in (sent.data[0].operation, loop.operation.blocks[0].data[0].operation):
        assert (delay.duration, delay.unit) == (cycles, "dt")
    assert circuit == before


def test_delays_whose_unit_would_be_lost_are_refused() -> None:
    late = QuantumCircuit(1)
    late.delay(Parameter("t"), 0, "us")
    with pytest.raises(InvalidRequestError, match="a delay in us cannot be a parameter"):
        send_delays(late, 1e-9)
    inner = QuantumCircuit(1, name="wait")
    inner.delay(3, 0, "us")
    outer = QuantumCircuit(1)
    outer.append(inner.to_instruction(), [0])
    with pytest.raises(InvalidRequestError, match="'wait' has a delay in seconds"):
        send_delays(outer, 1e-9)
    cycles = QuantumCircuit(1)
    cycles.delay(Parameter("t"), 0, "dt")
    assert put_delays_into_cycles(cycles, 1e-9) is cycles


def test_a_circuit_goes_whole_once_and_by_digest_after_that() -> None:
    circuit = bell()
    first = writer()
    whole, again = first.write(circuit), first.write(circuit)
    assert qpy.load(io.BytesIO(whole.qpy))[0] == circuit
    assert again.digest == hashlib.sha256(whole.qpy).digest()
    later = writer(frozenset(first.sent))
    assert later.write(circuit).digest == again.digest
    assert (later.named, later.sent) == (True, set())


def test_a_circuit_that_was_changed_in_place_goes_whole_again() -> None:
    circuit = bell()
    first = writer()
    first.write(circuit)
    circuit.data[0] = circuit.data[0].replace(qubits=(circuit.qubits[1],))
    assert writer(frozenset(first.sent)).write(circuit).WhichOneof("source") == "qpy"


def test_the_qpy_version_is_the_newest_that_both_sides_know() -> None:
    assert choose_qpy_version(13, 14) == 14
    assert choose_qpy_version(13, 99) == QPY_VERSION
    with pytest.raises(InvalidRequestError, match="upgrade"):
        choose_qpy_version(QPY_VERSION + 1, QPY_VERSION + 2)


def test_parameter_values_keep_their_names_and_shape() -> None:
    theta, phi = ParameterVector("theta", 2), Parameter("phi")
    circuit = QuantumCircuit(1, 1)
    circuit.rx(theta[0], 0)
    circuit.ry(theta[1] + phi, 0)
    circuit.measure(0, 0)
    values = np.arange(18.0).reshape(3, 2, 3)
    program = encode_sampler([SamplerPub.coerce((circuit, values, 5))], writer(), program_pb2.ExecutionOptions(), None)
    (pub,) = program.sampler.pubs
    assert list(pub.parameter_names) == ["phi", "theta[0]", "theta[1]"]
    np.testing.assert_array_equal(array_from_tensor(pub.parameter_values), values)
    assert pub.shots == 5
    assert not program.sampler.HasField("default_shots")


def test_parameter_values_in_several_arrays_become_one() -> None:
    a, b, c = (Parameter(name) for name in "abc")
    circuit = QuantumCircuit(1)
    circuit.u(a, b, c, 0)
    bound = {(a, c): [[1.0, 3.0], [10.0, 30.0]], b: [2.0, 20.0]}
    (pub,) = encode_estimator(
        [EstimatorPub.coerce((circuit, "Z", bound))], writer(), program_pb2.ExecutionOptions(), 0.0, ObservablesMemory()
    ).estimator.pubs
    values = dict(zip(pub.parameter_names, array_from_tensor(pub.parameter_values).T.tolist(), strict=True))
    assert values == {"a": [1.0, 10.0], "b": [2.0, 20.0], "c": [3.0, 30.0]}


def test_a_circuit_without_parameters_has_no_values() -> None:
    (pub,) = encode_sampler([SamplerPub.coerce(bell())], writer(), program_pb2.ExecutionOptions(), 7).sampler.pubs
    assert not pub.HasField("parameter_values")
    assert not pub.HasField("shots")


def test_observables_keep_their_shape_and_terms() -> None:
    array = ObservablesArray([[SparsePauliOp(["XZ", "II"], [0.5, -1.0])], [{"0r": 2.0}]])
    message = encode_observables(array)
    assert list(message.shape) == [2, 1]
    terms = [{term.pauli: term.coefficient for term in one.terms} for one in message.observables]
    assert terms == [{"XZ": 0.5, "II": -1.0}, {"0r": 2.0}]
    single = encode_observables(ObservablesArray.coerce("ZI"))
    assert (list(single.shape), len(single.observables)) == ([], 1)


# --- results ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "observables",
    ["XZ", ["XX", "ZZ"], SparsePauliOp("XY"), [[SparsePauliOp(["XX", "IZ"], [0.5, 2.0])], ["YY"]]],
)
def test_observables_that_came_before_are_those_that_qiskit_makes_of_them(observables: Any) -> None:
    memory = ObservablesMemory()
    first = memory.recall(observables)
    assert first is not None
    assert id(memory.recall(copy.deepcopy(observables))) == id(first)
    assert memory.encode(first) is memory.encode(first)
    expected: Any = ObservablesArray.coerce(observables)
    assert first.tolist() == expected.tolist()
    assert first.shape == expected.shape
    assert memory.encode(first) == encode_observables(expected)


def test_an_operator_that_was_changed_in_place_is_another_observable() -> None:
    memory, operator = ObservablesMemory(), SparsePauliOp(["XX", "ZZ"], [1.0, 2.0])
    first = memory.recall(operator)
    operator.coeffs[1] = 3.0
    second = memory.recall(operator)
    assert first is not None
    assert second is not None
    assert (first[()]["ZZ"], second[()]["ZZ"]) == (2.0, 3.0)
    operator.paulis[0] = "YY"
    assert "YY" in memory.recall(operator)[()]  # type: ignore[index]


def test_only_so_many_observables_are_remembered_and_what_is_no_observable_is_left_to_qiskit() -> None:
    memory = ObservablesMemory()
    for number in range(OBSERVABLES_REMEMBERED_MAX + 5):
        memory.recall(SparsePauliOp("Z", number + 1))
    assert len(memory.entries) == OBSERVABLES_REMEMBERED_MAX
    assert memory.recall({"Z": 1.0}) is None
    assert memory.recall(SparsePauliOp("Z", [Parameter("a")])) is None
    assert memory.recall([]) is None


def test_a_sampler_result_has_qiskit_s_types_and_shapes() -> None:
    samples = np.array([[[2, 3], [0, 2]]], dtype=np.uint8)
    message = result_pb2.JobResult(
        pubs=[
            result_pb2.PubResult(
                fields=[result_pb2.DataField(name="c", bits=bit_array_to_message(samples, 10))], shape=[1]
            )
        ]
    )
    message.pubs[0].metadata.update({"shots": 2, "nested": {"list": [1.5, True, None, "x"]}})
    message.execution.device = "aer"
    result = decode_result(message, program_pb2.PROGRAM_KIND_SAMPLER)
    assert isinstance(result, PrimitiveResult)
    assert isinstance(result[0], SamplerPubResult)
    bits = result[0].data.c
    assert isinstance(bits, BitArray)
    assert (bits.shape, bits.num_shots, bits.num_bits, result[0].data.shape) == ((1,), 2, 10, (1,))
    assert bits.get_counts() == {"1000000011": 1, "0000000010": 1}
    assert result[0].metadata == {"shots": 2, "nested": {"list": [1.5, True, None, "x"]}}
    assert type(result[0].metadata["shots"]) is int
    assert result.metadata["execution"]["device"] == "aer"


@pytest.mark.parametrize("shape", [(), (2, 3), (0,)])
def test_an_estimator_result_has_arrays_of_the_pub_s_shape(shape: tuple[int, ...]) -> None:
    values = np.arange(float(np.prod(shape))).reshape(shape)
    fields = [result_pb2.DataField(name=name, tensor=tensor_from_array(values)) for name in ("evs", "stds")]
    message = result_pb2.JobResult(pubs=[result_pb2.PubResult(fields=fields, shape=shape)])
    (pub,) = decode_result(message, program_pb2.PROGRAM_KIND_ESTIMATOR)
    assert type(pub) is PubResult
    assert pub.data.shape == pub.data.evs.shape == shape
    np.testing.assert_array_equal(pub.data.evs, values)
    evs = pub.data.evs
    evs += 1.0  # results are the caller's own
    assert isinstance(evs, np.ndarray)


@pytest.mark.parametrize(("bits", "shape"), [(1, (50,)), (8, (40,)), (9, (3, 30)), (70, (2, 2, 20))])
def test_counting_in_c_counts_as_qiskit_does(bits: int, shape: tuple[int, ...]) -> None:
    draw = np.random.default_rng(bits)
    array = BitArray.from_bool_array(draw.integers(0, 2, (*shape, bits)).astype(bool)).array
    ours, theirs = CountedBitArray(array, bits), BitArray(array, bits)
    for loc in (None, (0,) * (len(shape) - 1), 0 if len(shape) > 1 else None):
        assert list(ours.get_counts(loc).items()) == list(theirs.get_counts(loc).items())
        assert ours.get_int_counts(loc) == theirs.get_int_counts(loc)
    assert ours == theirs


# --- devices ----------------------------------------------------------------------------------------------------------


def test_an_ideal_device_takes_any_circuit_as_it_is() -> None:
    device = device_pb2.Device(
        name="aer", num_qubits=5, basis_gates=["h", "cx", "ccx", "unitary", "if_else", "measure", "save_expval"]
    )
    target = make_target(device)
    assert target.num_qubits == 5
    assert set(target.operation_names) == {"h", "cx", "ccx", "unitary", "if_else", "measure"}
    circuit = QuantumCircuit(QuantumRegister(4), ClassicalRegister(1, "c"))
    circuit.h(3)
    circuit.ccx(3, 0, 2)
    circuit.measure(2, 0)
    made = generate_preset_pass_manager(1, target=target, layout_method="trivial").run(circuit)
    assert made.count_ops() == circuit.count_ops()


def test_a_device_with_coupling_and_errors_becomes_a_target_that_says_so() -> None:
    device = device_pb2.Device(
        name="line",
        num_qubits=3,
        basis_gates=["rz", "sx", "x", "cx", "ccx", "measure", "delay"],
        coupling_map=[device_pb2.Coupling(first=a, second=b) for a, b in ((0, 1), (1, 2))],
    )
    device.properties.dt_s = 1e-9
    for qubit in range(3):
        device.properties.qubits.add(qubit=qubit, t1_s=1e-4, readout_error=0.01 * qubit)
    device.properties.gates.add(gate="cx", qubits=[0, 1], error=0.02, duration_s=3e-7)
    device.properties.gates.add(gate="cx", qubits=[1, 2], error=0.03)
    target = make_target(device)
    assert set(target["cx"]) == {(0, 1), (1, 2)}
    assert target["cx"][(0, 1)].error == 0.02
    assert target["cx"][(1, 2)].duration is None
    assert set(target["sx"]) == {(0,), (1,), (2,)}
    assert "ccx" not in target
    assert target["measure"][(2,)].error == pytest.approx(0.02)
    assert (target.dt, target.qubit_properties[1].t1) == (1e-9, 1e-4)
    far = QuantumCircuit(3)
    far.cx(0, 2)
    made = generate_preset_pass_manager(1, target=target, seed_transpiler=1).run(far)
    pairs = {tuple(made.find_bit(q).index for q in i.qubits) for i in made.data if i.operation.name == "cx"}
    assert pairs <= {(0, 1), (1, 2)}

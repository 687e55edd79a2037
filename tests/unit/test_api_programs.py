"""What a submit is checked for before anything parses a circuit."""

import hashlib
import io
import struct
import time
from typing import Any

import pytest
from cadenza.v1.circuit_pb2 import Circuit
from cadenza.v1.program_pb2 import EstimatorPub, Observable, ObservablesArray, PauliTerm, Program, SamplerPub
from cadenza.v1.tensor_pb2 import DTYPE_BOOL, DTYPE_FLOAT64, Dtype, Tensor
from cadenza_server.api.programs import DeviceFacts, ProgramChecker, _broadcast
from cadenza_server.config import Limits
from cadenza_server.engine import JobContent, ProgramKind, make_workload
from cadenza_server.model.errors import Code, Refusal
from hypothesis import given
from hypothesis import strategies as st
from qiskit import QuantumCircuit, qpy

DEVICE = DeviceFacts(
    name="qpu",
    num_qubits=5,
    methods=("automatic", "statevector"),
    noisy=False,
    default_shots=1000,
    calibration_duration=60_000_000_000,
)


def dump(qubits: int, version: int | None = None) -> bytes:
    circuit = QuantumCircuit(qubits, 1)
    circuit.measure(0, 0)
    buffer = io.BytesIO()
    qpy.dump(circuit, buffer, **({"version": version} if version else {}))
    return buffer.getvalue()


BELL = dump(2)
QASM3 = "OPENQASM 3.0;\nqubit q; bit c; c = measure q;\n"


def bell(work: int) -> bytes:
    return make_workload("SAMPLER", (hashlib.sha256(BELL).digest(),), qubits=2, size=len(BELL), work=work)


def floats(*shape: int) -> Tensor:
    count = 1
    for axis in shape:
        count *= axis
    return Tensor(dtype=DTYPE_FLOAT64, shape=shape, data=struct.pack(f"<{count}d", *([0.5] * count)))


def check(
    program: Program, *, owner: str = "ann", in_session: bool = False, checker: ProgramChecker | None = None
) -> JobContent:
    return (checker or ProgramChecker(Limits())).check(program, DEVICE, owner=owner, in_session=in_session)


def sampler(**fields: Any) -> Program:
    program = Program()
    program.sampler.pubs.append(SamplerPub(**{"circuit": Circuit(qpy=BELL), **fields}))
    return program


def estimator(**fields: Any) -> Program:
    program = Program()
    observables = ObservablesArray(observables=[observable(("ZZ", 1.0))])
    program.estimator.pubs.append(EstimatorPub(**{"circuit": Circuit(qpy=BELL), "observables": observables, **fields}))
    return program


def observable(*terms: tuple[str, float]) -> Observable:
    return Observable(terms=[PauliTerm(pauli=pauli, coefficient=factor) for pauli, factor in terms])


def refusal(program: Program, **options: Any) -> Refusal:
    with pytest.raises(Refusal) as caught:
        check(program, **options)
    return caught.value


def test_a_good_program_is_passed_on_as_it_came() -> None:
    program = sampler(shots=100)
    content = check(program)
    assert content.program == program.SerializeToString()
    assert content.program_kind is ProgramKind.SAMPLER
    assert content.new_circuits == {}
    assert content.workload == bell(100)


def test_a_sessions_circuits_are_kept_by_their_digest() -> None:
    content = check(sampler(), in_session=True)
    assert content.new_circuits == {hashlib.sha256(BELL).digest(): Circuit(qpy=BELL).SerializeToString()}
    text = check(sampler(circuit=Circuit(openqasm3=QASM3)), in_session=True)
    assert list(text.new_circuits) == [hashlib.sha256(QASM3.encode()).digest()]
    digest = hashlib.sha256(QASM3.encode()).digest()
    assert text.workload == make_workload("SAMPLER", (digest,), qubits=None, size=len(QASM3), work=1000)


def test_a_circuit_is_the_same_work_whether_it_is_sent_or_named() -> None:
    checker = ProgramChecker(Limits())
    digest = hashlib.sha256(BELL).digest()
    sent = check(sampler(shots=100), in_session=True, checker=checker)
    named = check(sampler(shots=100, circuit=Circuit(digest=digest)), in_session=True, checker=checker)
    assert sent.workload == named.workload == bell(100)


def test_a_seed_makes_no_other_work_and_a_method_does() -> None:
    seeded, chosen = sampler(shots=100), sampler(shots=100)
    seeded.sampler.options.seed = 7
    seeded.sampler.options.method = chosen.sampler.options.method = "statevector"
    assert check(seeded).workload == check(chosen).workload != bell(100)


def test_a_calibration_is_no_work_to_learn_from() -> None:
    program = Program()
    program.calibration.SetInParent()
    content = check(program)
    assert (content.workload, content.min_duration_ns) == (None, DEVICE.calibration_duration)


def test_a_digest_in_a_session_is_left_to_the_engine() -> None:
    digest = hashlib.sha256(BELL).digest()
    assert check(sampler(circuit=Circuit(digest=digest)), in_session=True).digests == {digest}


def test_a_digest_may_name_an_earlier_pub_and_no_later_one() -> None:
    digest = hashlib.sha256(BELL).digest()
    program = sampler()
    program.sampler.pubs.append(SamplerPub(circuit=Circuit(digest=digest)))
    assert check(program).digests == frozenset()
    turned = Program()
    turned.sampler.pubs.extend(reversed(program.sampler.pubs))
    assert refusal(turned).reason == "UNKNOWN_CIRCUIT"
    assert refusal(turned).code is Code.NOT_FOUND


def test_a_circuit_named_by_digest_is_checked_for_its_qubits_too() -> None:
    checker = ProgramChecker(Limits())
    big = dump(9)
    wide = DeviceFacts(**{**{name: getattr(DEVICE, name) for name in DEVICE.__slots__}, "num_qubits": 20})
    checker.check(sampler(circuit=Circuit(qpy=big)), wide, owner="ann", in_session=True)
    digest = hashlib.sha256(big).digest()
    refused = refusal(sampler(circuit=Circuit(digest=digest)), in_session=True, checker=checker)
    assert refused.reason == "TOO_MANY_QUBITS"


def test_what_is_wrong_with_a_named_circuit_does_not_tell_that_another_user_has_sent_it() -> None:
    checker = ProgramChecker(Limits())
    digest = hashlib.sha256(BELL).digest()
    wide = observable(("ZZZ", 1.0))
    program = estimator(circuit=Circuit(digest=digest), observables=ObservablesArray(observables=[wide]))
    check(sampler(), owner="ann", in_session=True, checker=checker)
    assert refusal(program, owner="ann", in_session=True, checker=checker).reason == "INVALID_FIELD"
    assert check(program, owner="bob", in_session=True, checker=checker).digests == {digest}  # the engine refuses it


CIRCUITS = [
    (Circuit(), "INVALID_FIELD", "circuit"),
    (Circuit(qpy=b""), "INVALID_CIRCUIT", "circuit.qpy"),
    (Circuit(qpy=b"no such thing"), "INVALID_CIRCUIT", "circuit.qpy"),
    (Circuit(qpy=b"QISK"), "INVALID_CIRCUIT", "circuit.qpy"),
    (Circuit(qpy=BELL[:20]), "INVALID_CIRCUIT", "circuit.qpy"),
    (Circuit(qpy=BELL[:70]), "INVALID_CIRCUIT", "circuit.qpy"),
    (Circuit(qpy=BELL[:6] + b"\x05" + BELL[7:]), "UNSUPPORTED_QPY_VERSION", "circuit.qpy"),
    (Circuit(qpy=BELL[:6] + b"\xff" + BELL[7:]), "UNSUPPORTED_QPY_VERSION", "circuit.qpy"),
    (Circuit(qpy=dump(6)), "TOO_MANY_QUBITS", "circuit"),
    (Circuit(openqasm3=""), "INVALID_CIRCUIT", "circuit.openqasm3"),
    (Circuit(openqasm3="qubit q;"), "INVALID_CIRCUIT", "circuit.openqasm3"),
    (Circuit(openqasm3="OPENQASM 2.0;"), "INVALID_CIRCUIT", "circuit.openqasm3"),
    (Circuit(openqasm2="OPENQASM 3.0;"), "INVALID_CIRCUIT", "circuit.openqasm2"),
    (Circuit(digest=b"short"), "INVALID_CIRCUIT", "circuit.digest"),
    (Circuit(digest=b"x" * 32), "UNKNOWN_CIRCUIT", ""),
]


@pytest.mark.parametrize(("circuit", "reason", "field"), CIRCUITS)
def test_what_cannot_be_a_circuit_is_refused(circuit: Circuit, reason: str, field: str) -> None:
    refused = refusal(sampler(circuit=circuit))
    assert refused.reason == reason
    assert refused.field == (f"sampler.pubs[0].{field}" if field else "sampler.pubs")
    assert refused.message.startswith(refused.field)


@pytest.mark.parametrize("version", range(13, qpy.common.QPY_VERSION + 1))
def test_every_version_that_is_said_to_be_read_is_accepted(version: int) -> None:
    assert check(sampler(circuit=Circuit(qpy=dump(3, version)))).workload is not None


@pytest.mark.parametrize(
    "text",
    [
        "OPENQASM 3;",
        "OPENQASM 3.0;",
        "  // hello\n/* more\n */ // again\n OPENQASM   3.1 ;",
        "/* a */ /* b */OPENQASM 3.0;qubit q;",
    ],
)
def test_comments_may_go_before_the_version_statement(text: str) -> None:
    check(sampler(circuit=Circuit(openqasm3=text)))


def test_no_text_makes_the_check_slow() -> None:
    long = 1_000_000
    for text in ("/**/" * long, "/*" * long, "//\n" * long + "x", " " * long, "OPENQASM 3" + "." * long):
        begin = time.perf_counter()
        assert refusal(sampler(circuit=Circuit(openqasm3=text))).reason == "INVALID_CIRCUIT"
        assert time.perf_counter() - begin < 2


PARAMETERS = [
    (Tensor(shape=[1], data=b"x" * 8), "INVALID_TENSOR"),
    (Tensor(dtype=77, shape=[1], data=b"x" * 8), "INVALID_TENSOR"),  # type: ignore[arg-type]
    (Tensor(dtype=DTYPE_BOOL, shape=[1], data=b"x"), "INVALID_TENSOR"),
    (Tensor(dtype=DTYPE_FLOAT64, shape=[2], data=b"x" * 15), "INVALID_TENSOR"),
    (Tensor(dtype=DTYPE_FLOAT64, shape=[2], data=b"x" * 17), "INVALID_TENSOR"),
    (Tensor(dtype=DTYPE_FLOAT64, shape=[-1, -2], data=b"x" * 16), "INVALID_TENSOR"),
    (Tensor(dtype=DTYPE_FLOAT64, shape=[2**40, 2**40], data=b""), "INVALID_TENSOR"),
    (Tensor(dtype=DTYPE_FLOAT64, shape=[], data=b"x" * 8), "INVALID_TENSOR"),
    (Tensor(dtype=DTYPE_FLOAT64, shape=[1] * 33, data=b"x" * 8), "INVALID_TENSOR"),
]


@pytest.mark.parametrize(("tensor", "reason"), PARAMETERS)
def test_a_tensor_that_is_not_what_it_says_is_refused(tensor: Tensor, reason: str) -> None:
    for program in (sampler(parameter_values=tensor), estimator(parameter_values=tensor)):
        refused = refusal(program)
        assert refused.reason == reason
        assert refused.field is not None
        assert refused.field.endswith("pubs[0].parameter_values")


@given(st.sampled_from([d for d in Dtype.values() if d]), st.lists(st.integers(0, 5), max_size=4), st.integers(0, 2000))
def test_only_the_size_that_dtype_and_shape_ask_for_is_taken(dtype: Any, shape: list[int], length: int) -> None:
    np = pytest.importorskip("numpy")
    size = np.dtype(
        {1: "f8", 2: "f4", 3: "i8", 4: "i4", 5: "u1", 6: "?", 7: "c16"}[dtype],
    ).itemsize * int(np.prod(shape, dtype=int))
    tensor = Tensor(dtype=dtype, shape=shape, data=bytes(length))
    if length == size and dtype <= 4 and shape:
        check(sampler(parameter_values=tensor))
    else:
        assert refusal(sampler(parameter_values=tensor)).reason == "INVALID_TENSOR"


def test_parameter_names_fit_their_values() -> None:
    check(sampler(parameter_values=floats(3, 2), parameter_names=["a", "b"]))
    for names in (["a"], ["a", "a"]):
        refused = refusal(sampler(parameter_values=floats(3, 2), parameter_names=names))
        assert (refused.reason, refused.field) == ("INVALID_FIELD", "sampler.pubs[0].parameter_names")
    assert refusal(sampler(parameter_names=["a"])).reason == "INVALID_FIELD"


@pytest.mark.parametrize("shots", [0, -1, -(2**63)])
def test_shots_are_at_least_one(shots: int) -> None:
    refused = refusal(sampler(shots=shots))
    assert (refused.reason, refused.field) == ("INVALID_FIELD", "sampler.pubs[0].shots")
    program = sampler()
    program.sampler.default_shots = shots
    assert refusal(program).field == "sampler.default_shots"


def test_shots_are_counted_over_all_sets_of_values() -> None:
    limits = Limits(shots_per_pub_max=1000)
    checker = ProgramChecker(limits)
    assert check(sampler(shots=100, parameter_values=floats(10, 1)), checker=checker).workload == bell(1000)
    refused = refusal(sampler(shots=100, parameter_values=floats(11, 1)), checker=checker)
    assert (refused.code, refused.reason) == (Code.RESOURCE_EXHAUSTED, "QUOTA_JOB_SIZE")
    assert refused.metadata["limit"] == "shots_per_pub_max"


def test_expectation_values_are_counted_after_broadcasting() -> None:
    checker = ProgramChecker(Limits(shots_per_pub_max=12))
    array = ObservablesArray(shape=[3], observables=[observable(("ZZ", 1.0))] * 3)
    check(estimator(observables=array, parameter_values=floats(4, 1, 2)), checker=checker)
    refused = refusal(estimator(observables=array, parameter_values=floats(5, 1, 2)), checker=checker)
    assert (refused.code, refused.reason) == (Code.RESOURCE_EXHAUSTED, "QUOTA_JOB_SIZE")
    assert refused.metadata["limit"] == "shots_per_pub_max"
    # Sets without parameters take no bytes, so any number of them fits into a message.
    empty = Tensor(dtype=Dtype.DTYPE_FLOAT64, shape=[10**9, 0])
    assert refusal(estimator(parameter_values=empty)).reason == "QUOTA_JOB_SIZE"


@pytest.mark.parametrize("precision", [-0.1, float("nan"), float("inf")])
def test_precision_is_finite_and_not_negative(precision: float) -> None:
    refused = refusal(estimator(precision=precision))
    assert (refused.reason, refused.field) == ("INVALID_FIELD", "estimator.pubs[0].precision")
    check(estimator(precision=0.0))


OBSERVABLES = [
    ([2], [observable(("ZZ", 1.0))], "INVALID_TENSOR", "observables"),
    ([], [], "INVALID_TENSOR", "observables"),
    ([-1], [], "INVALID_TENSOR", "observables"),
    ([], [observable(("ZQ", 1.0))], "INVALID_FIELD", "observables.observables[0].terms[0].pauli"),
    ([], [observable(("", 1.0))], "INVALID_FIELD", "observables.observables[0].terms[0].pauli"),
    ([], [observable(("ZZZ", 1.0))], "INVALID_FIELD", "observables.observables[0].terms[0].pauli"),
    ([], [observable(("ZZ", float("nan")))], "INVALID_FIELD", "observables.observables[0].terms[0].coefficient"),
    ([], [observable(("ZZ", 1e308), ("ZZ", 1e308))], "INVALID_FIELD", "observables.observables[0].terms"),
]


@pytest.mark.parametrize(("shape", "observables", "reason", "field"), OBSERVABLES)
def test_observables_fit_their_shape_and_circuit(
    shape: list[int], observables: list[Observable], reason: str, field: str
) -> None:
    refused = refusal(estimator(observables=ObservablesArray(shape=shape, observables=observables)))
    assert (refused.reason, refused.field) == (reason, f"estimator.pubs[0].{field}")


def test_shapes_that_do_not_broadcast_are_refused() -> None:
    array = ObservablesArray(shape=[3], observables=[observable(("ZZ", 1.0))] * 3)
    digest = hashlib.sha256(BELL).digest()
    known = make_workload("ESTIMATOR", (digest,), qubits=2, size=len(BELL), work=12)
    assert check(estimator(observables=array, parameter_values=floats(4, 1, 2))).workload == known
    assert refusal(estimator(observables=array, parameter_values=floats(4, 2))).reason == "INVALID_TENSOR"


SHAPES = st.lists(st.integers(0, 3), max_size=4).map(tuple)


@given(SHAPES, SHAPES)
def test_broadcasting_is_numpys(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    import numpy as np

    try:
        expected = np.broadcast_shapes(first, second)
    except ValueError:
        with pytest.raises(Refusal):
            _broadcast(first, second)
    else:
        assert _broadcast(first, second) == expected


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"method": "magic"}, "sampler.options.method"),
        ({"transpile_level": 4}, "sampler.options.transpile_level"),
        ({"transpile_level": -1}, "sampler.options.transpile_level"),
        ({"noise": True}, "sampler.options.noise"),
    ],
)
def test_options_are_those_of_the_device(options: dict[str, Any], field: str) -> None:
    program = sampler()
    for name, value in options.items():
        setattr(program.sampler.options, name, value)
    assert refusal(program).field == field


def test_a_job_has_a_program_and_pubs() -> None:
    assert refusal(Program()).reason == "INVALID_FIELD"
    empty = Program()
    empty.sampler.SetInParent()
    assert refusal(empty).field == "sampler.pubs"
    many = sampler()
    many.sampler.pubs.extend([many.sampler.pubs[0]] * 2)
    refused = refusal(many, checker=ProgramChecker(Limits(pubs_per_job_max=2)))
    assert (refused.reason, refused.metadata["limit"]) == ("QUOTA_JOB_SIZE", "pubs_per_job_max")


def test_the_terms_of_all_observables_of_a_job_are_counted() -> None:
    def count(limit: int, observables: list[Observable], shape: list[int]) -> Refusal | None:
        program = estimator()
        program.estimator.pubs.add(
            circuit=program.estimator.pubs[0].circuit,
            observables=ObservablesArray(shape=shape, observables=observables),
        )
        try:
            check(program, checker=ProgramChecker(Limits(terms_per_job_max=limit)))
        except Refusal as refused:
            return refused
        return None

    three = [observable(("ZZ", 1.0), ("XX", 0.5), ("YY", 0.5))]
    assert count(4, three, []) is None
    refused = count(3, three, [])
    assert refused is not None
    assert (refused.reason, refused.metadata["limit"]) == ("QUOTA_JOB_SIZE", "terms_per_job_max")
    assert refused.field == "estimator.pubs[1].observables"
    # what has no terms is not free either
    assert count(6, [observable()] * 5, [5]) is None
    assert count(5, [observable()] * 5, [5]) is not None


def test_a_calibration_needs_no_pubs_and_has_the_devices_duration() -> None:
    program = Program()
    program.calibration.SetInParent()
    content = check(program)
    assert content.program_kind is ProgramKind.CALIBRATION
    assert content.min_duration_ns == DEVICE.calibration_duration
    program.calibration.duration.seconds = 2
    assert check(program).min_duration_ns == 2_000_000_000
    program.calibration.duration.seconds = -2
    assert refusal(program).field == "calibration.duration"

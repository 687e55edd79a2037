"""Qiskit's PUBs and results to and from the messages of the contract."""

import hashlib
import io
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from google.protobuf.struct_pb2 import ListValue, Struct, Value
from qiskit import QuantumCircuit, qasm3, qpy
from qiskit.primitives import BitArray, DataBin, PrimitiveResult, PubResult, SamplerPubResult
from qiskit.primitives.containers.bindings_array import BindingsArray
from qiskit.primitives.containers.estimator_pub import EstimatorPub
from qiskit.primitives.containers.observables_array import ObservablesArray
from qiskit.primitives.containers.sampler_pub import SamplerPub
from qiskit.quantum_info import SparsePauliOp

from cadenza._delays import put_delays_into_cycles
from cadenza._errors import InvalidRequestError
from cadenza._times import read_seconds
from cadenza.arrays import array_from_tensor, bit_array_from_message, tensor_from_array
from cadenza.v1.circuit_pb2 import Circuit
from cadenza.v1.program_pb2 import (
    PROGRAM_KIND_SAMPLER,
    EstimatorJob,
    ExecutionOptions,
    Observable,
    PauliTerm,
    Program,
    ProgramKind,
    SamplerJob,
)
from cadenza.v1.program_pb2 import EstimatorPub as EstimatorPubMessage
from cadenza.v1.program_pb2 import ObservablesArray as ObservablesArrayMessage
from cadenza.v1.program_pb2 import SamplerPub as SamplerPubMessage
from cadenza.v1.result_pb2 import ExecutionInfo, JobResult
from cadenza.v1.result_pb2 import PubResult as PubResultMessage
from cadenza.v1.tensor_pb2 import Tensor

QPY_VERSION: Final[int] = qpy.common.QPY_VERSION
"""The newest QPY version that this Qiskit writes."""

QPY_VERSION_MIN: Final[int] = qpy.common.QPY_COMPATIBILITY_VERSION
"""The oldest that it can still write."""


OBSERVABLES_REMEMBERED_MAX: Final = 64
"""Of how many PUBs, and how many of one list."""


class CountedBitArray(BitArray):  # type: ignore[misc]
    """Qiskit's `BitArray` that counts in C: `get_counts` of 1000 shots of up to 8 bits takes 0.01 ms instead of 0.7."""

    def _get_counts(
        self, *, loc: int | tuple[int, ...] | None, converter: Callable[[bytes], str | int]
    ) -> dict[Any, int]:
        rows = self._array if loc is None else self._array[loc]
        size = rows.shape[-1]
        if size == 0 or (loc is not None and rows.ndim != 2):
            return super()._get_counts(loc=loc, converter=converter)  # type: ignore[no-any-return]
        counts: dict[Any, int] = {}
        if size == 1:
            found, data = np.bincount(rows.reshape(-1)), rows.tobytes()
            shots = sorted((bytes((value,)) for value in np.flatnonzero(found).tolist()), key=data.index)
            return {converter(shot): int(found[shot[0]]) for shot in shots}
        for shot, count in Counter(np.frombuffer(rows.tobytes(), f"V{size}").tolist()).items():
            key = converter(shot)
            counts[key] = counts.get(key, 0) + count
        return counts


@dataclass
class CircuitWriter:
    """Writes the circuits of one job: in full those that the server does not know, by digest the others.

    `known`: digests that the job's session holds. `version`: of QPY. `cycle`: says how many seconds a cycle of the
    device takes (None: it has none); asked if there are delays. A circuit is written as QPY each time (40 us for a
    small one, less than a faithful comparison of two circuits), so a circuit that was changed gets a new digest.
    """

    known: frozenset[bytes]
    version: int
    cycle: Callable[[], float | None]
    sent: set[bytes] = field(default_factory=set)
    """Digests of the circuits that were written in full."""
    named: bool = False
    """Whether one was named by a digest of `known`."""

    def write(self, circuit: QuantumCircuit) -> Circuit:
        """The message for one circuit. Raises `InvalidRequestError` for delays that QPY would lose the unit of."""
        data = self._dump(circuit)
        if b"Delay" in data and (settled := put_delays_into_cycles(circuit, self.cycle())) is not circuit:
            data = self._dump(settled)
        digest = hashlib.sha256(data).digest()
        if digest in self.sent:
            return Circuit(digest=digest)
        if digest in self.known:
            self.named = True
            return Circuit(digest=digest)
        self.sent.add(digest)
        return Circuit(qpy=data)

    def _dump(self, circuit: QuantumCircuit) -> bytes:
        file = io.BytesIO()
        qpy.dump(circuit, file, version=self.version)
        return file.getvalue()


@dataclass
class ObservablesMemory:
    """Observables that were coerced and encoded before: iterative programs send the same ones again and again, and
    eight of them cost more than the rest of a PUB. Remembered by content, as operators can be changed in place.
    """

    entries: OrderedDict[object, tuple[ObservablesArray, ObservablesArrayMessage]] = field(default_factory=OrderedDict)

    def recall(self, observables: object) -> ObservablesArray | None:
        """The array that `observables` are; None for what it does not know how to compare, or what is wrong."""
        key = _observables_key(observables)
        if key is None:
            return None
        entry = self.entries.get(key)
        if entry is None:
            array = ObservablesArray.coerce(observables)
            entry = self.entries[key] = (array, encode_observables(array))
            if len(self.entries) > OBSERVABLES_REMEMBERED_MAX:
                self.entries.popitem(last=False)
        return entry[0]

    def encode(self, array: ObservablesArray) -> ObservablesArrayMessage:
        """The message for an array; that of `recall` at once."""
        for known, message in self.entries.values():
            if known is array:
                return message
        return encode_observables(array)


def _observables_key(observables: Any) -> object:
    """Equal for equal observables; None: no telling."""
    if isinstance(observables, str):
        return observables
    if type(observables) is SparsePauliOp and observables.coeffs.dtype == np.complex128:
        paulis = observables.paulis
        return (paulis.x.tobytes(), paulis.z.tobytes(), paulis.phase.tobytes(), observables.coeffs.tobytes())
    if type(observables) is list and 0 < len(observables) <= OBSERVABLES_REMEMBERED_MAX:
        keys = tuple(map(_observables_key, observables))
        return None if None in keys else keys
    return None


def choose_qpy_version(server_min: int, server_max: int) -> int:
    """The newest QPY version that this Qiskit writes and the server reads. Raises `InvalidRequestError` if none."""
    version = min(QPY_VERSION, server_max) if server_max else QPY_VERSION
    if version < max(QPY_VERSION_MIN, server_min):
        raise InvalidRequestError(
            f"this Qiskit writes QPY versions {QPY_VERSION_MIN} to {QPY_VERSION}, the server reads {server_min} to "
            f"{server_max}: upgrade the older of the two",
            code="INVALID_ARGUMENT",
            reason="UNSUPPORTED_QPY_VERSION",
        )
    return version


def encode_sampler(
    pubs: Iterable[SamplerPub], writer: CircuitWriter, options: ExecutionOptions, default_shots: int | None
) -> Program:
    """A call of the Sampler."""
    return Program(
        sampler=SamplerJob(
            pubs=[_encode_sampler_pub(pub, writer) for pub in pubs], default_shots=default_shots, options=options
        )
    )


def encode_estimator(
    pubs: Iterable[EstimatorPub],
    writer: CircuitWriter,
    options: ExecutionOptions,
    default_precision: float | None,
    memory: ObservablesMemory,
) -> Program:
    """A call of the Estimator."""
    return Program(
        estimator=EstimatorJob(
            pubs=[_encode_estimator_pub(pub, writer, memory) for pub in pubs],
            default_precision=default_precision,
            options=options,
        )
    )


def _encode_sampler_pub(pub: SamplerPub, writer: CircuitWriter) -> SamplerPubMessage:
    names, values = _encode_bindings(pub.parameter_values)
    return SamplerPubMessage(
        circuit=writer.write(pub.circuit), parameter_values=values, parameter_names=names, shots=pub.shots
    )


def _encode_estimator_pub(pub: EstimatorPub, writer: CircuitWriter, memory: ObservablesMemory) -> EstimatorPubMessage:
    names, values = _encode_bindings(pub.parameter_values)
    return EstimatorPubMessage(
        circuit=writer.write(pub.circuit),
        observables=memory.encode(pub.observables),
        parameter_values=values,
        parameter_names=names,
        precision=pub.precision,
    )


def _encode_bindings(bindings: BindingsArray) -> tuple[tuple[str, ...], Tensor | None]:
    """Names, and values of shape (..., names)."""
    data: Mapping[tuple[str, ...], np.ndarray[Any, np.dtype[Any]]] = bindings.data
    if not bindings.num_parameters and not bindings.shape:
        return (), None
    if len(data) == 1:
        ((names, array),) = data.items()
        return names, tensor_from_array(array)
    names = tuple(name for key in data for name in key)
    shape = (*bindings.shape, 0)
    return names, tensor_from_array(np.concatenate([np.empty(shape), *data.values()], axis=-1))


def encode_observables(observables: ObservablesArray) -> ObservablesArrayMessage:
    """An array of observables, term by term."""
    array = np.asarray(observables)
    return ObservablesArrayMessage(
        shape=array.shape,
        observables=[
            Observable(terms=[PauliTerm(pauli=pauli, coefficient=factor) for pauli, factor in terms.items()])
            for terms in array.reshape(-1)
        ],
    )


def list_circuits(program: Program) -> list[Circuit]:
    """The circuits of its PUBs."""
    kind = program.WhichOneof("kind")
    return [pub.circuit for pub in getattr(program, kind).pubs] if kind else []


def circuit_digest(circuit: Circuit) -> bytes:
    """SHA-256 of the circuit's bytes, or the digest that it is named by."""
    source = circuit.WhichOneof("source")
    if source in (None, "digest"):
        return circuit.digest
    value: str | bytes = getattr(circuit, source)
    return hashlib.sha256(value.encode() if isinstance(value, str) else value).digest()


def read_circuit(circuit: Circuit) -> QuantumCircuit:
    """The circuit itself. OpenQASM 3 needs `qiskit_qasm3_import`."""
    match circuit.WhichOneof("source"):
        case "qpy":
            return qpy.load(io.BytesIO(circuit.qpy))[0]
        case "openqasm2":
            return QuantumCircuit.from_qasm_str(circuit.openqasm2)
        case _:
            return qasm3.loads(circuit.openqasm3)


def read_inputs(program: Program, find: Callable[[bytes], Circuit]) -> dict[str, Any]:
    """What `Job.inputs` shows. `find` gives the circuits that are named by digest."""
    kind = program.WhichOneof("kind") or "calibration"
    job = getattr(program, kind)
    known = {circuit_digest(circuit): circuit for circuit in list_circuits(program) if not circuit.digest}

    def read_pub(pub: Any) -> tuple[Any, ...]:
        digest = pub.circuit.digest
        if digest and digest not in known:
            known[digest] = find(digest)
        circuit = read_circuit(known[digest] if digest else pub.circuit)
        values = None
        if pub.HasField("parameter_values"):
            array = array_from_tensor(pub.parameter_values)
            names = tuple(pub.parameter_names) or tuple(parameter.name for parameter in circuit.parameters)
            values = BindingsArray({names: array}, shape=array.shape[:-1]).as_array(circuit.parameters)
        if kind == "estimator":
            precision = pub.precision if pub.HasField("precision") else None
            return (circuit, _read_observables(pub.observables).tolist(), values, precision)
        return (circuit, values, pub.shots if pub.HasField("shots") else None)

    default = "default_precision" if kind == "estimator" else "default_shots"
    return {
        "pubs": [read_pub(pub) for pub in job.pubs],
        "options": {name.name: value for name, value in job.options.ListFields()},
        default: getattr(job, default) if job.HasField(default) else None,
    }


def _read_observables(message: ObservablesArrayMessage) -> ObservablesArray:
    terms = np.empty(len(message.observables), dtype=object)
    for index, observable in enumerate(message.observables):
        summed: dict[str, float] = {}
        for term in observable.terms:
            summed[term.pauli] = summed.get(term.pauli, 0.0) + term.coefficient
        terms[index] = summed
    return ObservablesArray(terms.reshape(tuple(message.shape)))


def decode_result(result: JobResult, kind: ProgramKind.ValueType) -> PrimitiveResult:
    """What Qiskit's primitives return. `BitArray`s are read-only views of what was received, other arrays copies."""
    pub_type = SamplerPubResult if kind == PROGRAM_KIND_SAMPLER else PubResult
    metadata = read_struct(result.metadata)
    if result.HasField("execution"):
        metadata["execution"] = _read_execution(result.execution)
    return PrimitiveResult([_decode_pub(pub, pub_type) for pub in result.pubs], metadata)


def _decode_pub(pub: PubResultMessage, pub_type: type[PubResult]) -> PubResult:
    fields: dict[str, Any] = {}
    for item in pub.fields:
        if item.WhichOneof("value") == "bits":
            samples, num_bits = bit_array_from_message(item.bits)
            fields[item.name] = CountedBitArray(samples, num_bits)
        else:
            fields[item.name] = array_from_tensor(item.tensor).copy()
    return pub_type(DataBin(**fields, shape=tuple(pub.shape)), read_struct(pub.metadata))


def _read_execution(info: ExecutionInfo) -> dict[str, Any]:
    in_session = info.HasField("session_first_epoch")
    return {
        "device": info.device,
        "epoch": info.epoch,
        "session_first_epoch": info.session_first_epoch if in_session else None,
        "epoch_changed": info.session_first_epoch != info.epoch if in_session else None,
        "attempt": info.attempt,
        "method": info.method,
        "parse_s": read_seconds(info.parse_duration),
        "transpile_s": read_seconds(info.transpile_duration),
        "execute_s": read_seconds(info.execute_duration),
    }


def read_struct(struct: Struct) -> dict[str, Any]:
    """A JSON object as a dict; whole numbers are ints."""
    return {key: _read_value(value) for key, value in struct.fields.items()}


def _read_value(value: Value) -> Any:
    match value.WhichOneof("kind"):
        case "number_value":
            number = value.number_value
            return int(number) if number.is_integer() else number
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case "struct_value":
            return read_struct(value.struct_value)
        case "list_value":
            return _read_list(value.list_value)
        case _:
            return None


def _read_list(values: ListValue) -> list[Any]:
    return [_read_value(value) for value in values.values]

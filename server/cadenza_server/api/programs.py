"""Checks of what a job executes, as far as that needs no parsing of circuits: sizes, encodings, headers, shapes.

What only parsing can find ends the job as EXECUTION_ERROR. Nothing here imports Qiskit or NumPy, and all of it is on
the path of every submit: messages are read once, and fields are named only when they are wrong.
"""

import hashlib
import math
import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from cadenza.v1.program_pb2 import (
    CalibrationJob,
    EstimatorJob,
    EstimatorPub,
    ExecutionOptions,
    ObservablesArray,
    Program,
    SamplerJob,
    SamplerPub,
)
from cadenza.v1.tensor_pb2 import (
    DTYPE_BOOL,
    DTYPE_COMPLEX128,
    DTYPE_FLOAT32,
    DTYPE_FLOAT64,
    DTYPE_INT32,
    DTYPE_INT64,
    DTYPE_UINT8,
    Dtype,
    Tensor,
)

from cadenza_server.api.fields import check_length, invalid, moved
from cadenza_server.config import Limits
from cadenza_server.engine import JobContent, ProgramKind, make_workload
from cadenza_server.model.errors import Code, Refusal
from cadenza_server.model.qpy import QPY_VERSION_MAX, QPY_VERSION_MIN, read_qpy_header

DIGEST_BYTES: Final = 32
AXES_MAX: Final = 32
CIRCUITS_REMEMBERED_MAX: Final = 100_000
"""Of how many circuits the number of qubits is remembered, so that a digest can be checked like the circuit itself."""

SMALL_CIRCUIT_BYTES: Final = 4096

_ELEMENT_BYTES: Final = {
    DTYPE_FLOAT64: 8,
    DTYPE_FLOAT32: 4,
    DTYPE_INT64: 8,
    DTYPE_INT32: 4,
    DTYPE_UINT8: 1,
    DTYPE_BOOL: 1,
    DTYPE_COMPLEX128: 16,
}
_REAL: Final = frozenset({DTYPE_FLOAT64, DTYPE_FLOAT32, DTYPE_INT64, DTYPE_INT32})
_PAULI: Final = re.compile(r"[IXYZ01+\-rl]+")
_FACTORS: Final = frozenset("IXYZ01+-rl")
_QPY_MAGIC: Final = b"QISKIT"
_SAMPLER, _ESTIMATOR, _CALIBRATION = ProgramKind
_NONE: Final[frozenset[bytes]] = frozenset()
_BLANK: Final = r"\s*+(?:(?://[^\n]*+(?:\n|\Z)|(?>/\*.*?\*/))\s*+)*+"
"""White space and comments; possessive, so that no text makes it slow."""
_OPENQASM: Final = {
    "openqasm3": re.compile(_BLANK + r"OPENQASM\s++3(?:\.\d++)?\s*+;", re.DOTALL),
    "openqasm2": re.compile(_BLANK + r"OPENQASM\s++2(?:\.\d++)?\s*+;", re.DOTALL),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFacts:
    """What a program is checked against. `calibration_duration` in nanoseconds."""

    name: str
    num_qubits: int
    methods: tuple[str, ...]
    noisy: bool
    default_shots: int
    calibration_duration: int


class _Circuits:
    """The circuits of one program, while it is checked."""

    __slots__ = ("brought", "digests", "keep", "named", "owner", "qubits", "size")

    def __init__(self, owner: str, keep: bool) -> None:
        self.owner = owner
        self.keep = keep
        """Whether circuits that the program brings are kept for later jobs (of a session), or for later PUBs."""
        self.brought: dict[bytes, bytes] = {}
        self.named: set[bytes] = set()
        self.digests: list[bytes] = []
        """One a PUB."""
        self.qubits: int | None = 0
        """The most that a circuit has; None: not known of all."""
        self.size = 0
        """Bytes of the circuits of all PUBs, as far as it is known."""


class ProgramChecker:
    """Checks programs. It remembers how many qubits and bytes circuits have that it saw; nothing else lasts."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._known: OrderedDict[tuple[str, bytes], tuple[int | None, int]] = OrderedDict()
        """Qubits (None: not known without parsing) and bytes, by user and digest: what is found wrong with a job that
        names a circuit shall not tell that somebody else has sent it."""

    def check(
        self,
        program: Program,
        device: DeviceFacts,
        *,
        owner: str,
        in_session: bool,
        tags: tuple[str, ...] = (),
        estimate_hint_ns: int | None = None,
    ) -> JobContent:
        """What the engine is given of `program`, which `owner` sends. Raises `Refusal`, the field relative to the
        program."""
        kind = program.WhichOneof("kind")
        if kind is None:
            raise invalid("", "the program is missing: set one of sampler, estimator, calibration")
        job = getattr(program, kind)
        pubs = job.pubs
        circuits = _Circuits(owner, in_session or _names_circuits(pubs))
        duration = 0
        workload = None
        try:
            if kind == "sampler":
                word, work = _SAMPLER, self._check_sampler(job, pubs, device, circuits)
                workload = _make_workload(job, "SAMPLER", circuits, work)
            elif kind == "estimator":
                word, work = _ESTIMATOR, self._check_estimator(job, pubs, device, circuits)
                workload = _make_workload(job, "ESTIMATOR", circuits, work)
            else:
                word, duration = _CALIBRATION, self._check_calibration(job, pubs, device, circuits)
        except Refusal as refusal:
            raise moved(refusal, kind) from None
        most = self._limits.circuits_per_job_max
        if len(circuits.digests) > most and len(set(circuits.digests)) > most:
            raise _too_large(
                f"{kind}.pubs",
                f"there are {len(set(circuits.digests))} different circuits, this server takes {most}: split the job",
                "circuits_per_job_max",
            )
        if circuits.named and not in_session:
            raise _unknown_circuit(f"{kind}.pubs", next(iter(circuits.named)))
        return JobContent(
            program=program.SerializeToString(),
            program_kind=word,
            tags=tags,
            estimate_hint_ns=estimate_hint_ns,
            min_duration_ns=duration,
            new_circuits=circuits.brought,
            digests=frozenset(circuits.named) if circuits.named else _NONE,
            workload=workload,
        )

    # --- programs -----------------------------------------------------------------------------------------------

    def _check_sampler(
        self, job: SamplerJob, pubs: Sequence[SamplerPub], device: DeviceFacts, circuits: _Circuits
    ) -> int:
        if job.HasField("options"):
            self._check_options(job.options, device)
        default = _check_shots(job, "default_shots", device.default_shots)
        return self._check_sampler_pubs(pubs, default, device, circuits)

    def _check_sampler_pubs(
        self, pubs: Sequence[SamplerPub], default_shots: int, device: DeviceFacts, circuits: _Circuits
    ) -> int:
        self._check_count(len(pubs))
        total = 0
        for index, pub in enumerate(pubs):
            try:
                self._check_circuit(pub, device, circuits)
                sets = math.prod(_check_parameters(pub))
                shots = sets * _check_shots(pub, "shots", default_shots)
                if shots > self._limits.shots_per_pub_max:
                    raise _too_large(
                        "shots",
                        f"{shots} shots (over {sets} sets of parameter values) are more than this server takes, "
                        f"{self._limits.shots_per_pub_max}: split the PUB",
                        "shots_per_pub_max",
                    )
            except Refusal as refusal:
                raise moved(refusal, f"pubs[{index}]") from None
            total += shots
        return total

    def _check_estimator(
        self, job: EstimatorJob, pubs: Sequence[EstimatorPub], device: DeviceFacts, circuits: _Circuits
    ) -> int:
        if job.HasField("options"):
            self._check_options(job.options, device)
        _check_precision(job, "default_precision")
        self._check_count(len(pubs))
        total = terms = 0
        for index, pub in enumerate(pubs):
            try:
                qubits = self._check_circuit(pub, device, circuits)
                values = _check_parameters(pub)
                terms += self._count_terms(pub.observables, terms)
                _check_observables(pub.observables, qubits)
                count = math.prod(_broadcast(values, tuple(pub.observables.shape)))
                if count > self._limits.shots_per_pub_max:
                    raise _too_large(
                        "observables",
                        f"{count} expectation values are more than this server takes, "
                        f"{self._limits.shots_per_pub_max}: split the PUB",
                        "shots_per_pub_max",
                    )
                total += count
                _check_precision(pub, "precision")
            except Refusal as refusal:
                raise moved(refusal, f"pubs[{index}]") from None
        return total

    def _check_calibration(
        self, job: CalibrationJob, pubs: Sequence[SamplerPub], device: DeviceFacts, circuits: _Circuits
    ) -> int:
        """How long it keeps the device, in nanoseconds."""
        if job.HasField("options"):
            self._check_options(job.options, device)
        default = _check_shots(job, "default_shots", device.default_shots)
        if pubs:
            self._check_sampler_pubs(pubs, default, device, circuits)
        return check_length(job.duration, "duration") if job.HasField("duration") else device.calibration_duration

    def _check_count(self, count: int) -> None:
        if count == 0:
            raise invalid("pubs", "there are no PUBs: at least one is needed")
        if count > self._limits.pubs_per_job_max:
            raise _too_large(
                "pubs",
                f"there are {count} PUBs, this server takes {self._limits.pubs_per_job_max}: split the job",
                "pubs_per_job_max",
            )

    def _count_terms(self, array: ObservablesArray, before: int) -> int:
        """Terms of all observables, one without any counted as one; `before`: those of earlier PUBs."""
        most = self._limits.terms_per_job_max - before
        count = len(array.observables)
        if count <= most:
            count = sum(len(observable.terms) or 1 for observable in array.observables)
        if count > most:
            raise _too_large(
                "observables",
                f"the observables have more terms than this server takes in a job, {self._limits.terms_per_job_max}: "
                "split the job",
                "terms_per_job_max",
            )
        return count

    def _check_options(self, options: ExecutionOptions, device: DeviceFacts) -> None:
        if options.method and options.method not in device.methods:
            raise invalid(
                "options.method", f"{options.method!r} is not a method of {device.name}: {', '.join(device.methods)}"
            )
        if not 0 <= options.transpile_level <= 3:
            raise invalid("options.transpile_level", f"{options.transpile_level} is out of range: 0 to 3")
        if options.HasField("noise") and options.noise and not device.noisy:
            raise invalid("options.noise", f"{device.name} has no noise: leave it out, or take a noisy device")

    # --- circuits -----------------------------------------------------------------------------------------------

    def _check_circuit(self, pub: SamplerPub | EstimatorPub, device: DeviceFacts, circuits: _Circuits) -> int | None:
        """How many qubits the circuit has, if that can be had."""
        circuit = pub.circuit
        source = circuit.WhichOneof("source")
        if source is None:
            raise invalid("circuit", "it is missing: set one of qpy, openqasm3, openqasm2, digest")
        if source == "digest":
            digest = circuit.digest
            if len(digest) != DIGEST_BYTES:
                raise _bad_circuit("circuit.digest", f"it has {len(digest)} bytes: a SHA-256 has {DIGEST_BYTES}")
            if digest not in circuits.brought:
                circuits.named.add(digest)
            qubits, size = self._known.get((circuits.owner, digest), (None, 0))
        else:
            content = circuit.qpy if source == "qpy" else getattr(circuit, source).encode()
            qubits, size = None, len(content)
            if source == "qpy":
                qubits, digest = _check_qpy(content)
            else:
                _check_text(getattr(circuit, source), source)
                digest = hashlib.sha256(content).digest()
            if circuits.keep:
                circuits.brought[digest] = circuit.SerializeToString()
                self._remember((circuits.owner, digest), qubits, size)
        circuits.digests.append(digest)
        circuits.size += size
        if qubits is None:
            circuits.qubits = None
            return None
        if qubits > device.num_qubits:
            raise invalid(
                "circuit",
                f"it has {qubits} qubits, {device.name} has {device.num_qubits}: take a larger device",
                "TOO_MANY_QUBITS",
            )
        if circuits.qubits is not None and qubits > circuits.qubits:
            circuits.qubits = qubits
        return qubits

    def _remember(self, key: tuple[str, bytes], qubits: int | None, size: int) -> None:
        known = self._known
        known[key] = (qubits, size)
        known.move_to_end(key)
        if len(known) > CIRCUITS_REMEMBERED_MAX:
            known.popitem(last=False)


def _names_circuits(pubs: Sequence[SamplerPub | EstimatorPub]) -> bool:
    """Whether a PUB names a circuit by digest."""
    return len(pubs) > 1 and any(pub.circuit.WhichOneof("source") == "digest" for pub in pubs)


def _make_workload(job: SamplerJob | EstimatorJob, kind: str, circuits: _Circuits, work: int) -> bytes:
    """What the predictor knows the job by. The seed makes no run longer, so it does not count."""
    chosen: tuple[object, ...] = ()
    if job.HasField("options"):
        options = job.options
        level = options.transpile_level if options.HasField("transpile_level") else None
        chosen = (options.method, level, options.noise if options.HasField("noise") else None)
    return make_workload(
        kind, tuple(circuits.digests), qubits=circuits.qubits, size=circuits.size, work=work, options=chosen
    )


def _check_qpy(content: bytes) -> tuple[int, bytes]:
    """How many qubits the circuit has, and its digest. Many jobs bring the same small circuit, so small ones are
    remembered."""
    return _check_small_qpy(content) if len(content) <= SMALL_CIRCUIT_BYTES else _read_qpy(content)


@lru_cache(maxsize=1024)
def _check_small_qpy(content: bytes) -> tuple[int, bytes]:
    return _read_qpy(content)


def _read_qpy(content: bytes) -> tuple[int, bytes]:
    try:
        return read_qpy_header(content).num_qubits, hashlib.sha256(content).digest()
    except ValueError as error:
        version = content[len(_QPY_MAGIC)] if content[: len(_QPY_MAGIC)] == _QPY_MAGIC and len(content) > 6 else None
        if version is not None and not QPY_VERSION_MIN <= version <= QPY_VERSION_MAX:
            raise invalid("circuit.qpy", str(error), "UNSUPPORTED_QPY_VERSION") from None
        raise _bad_circuit("circuit.qpy", str(error)) from None


def _check_text(text: str, source: str) -> None:
    if not _OPENQASM[source].match(text):
        number = source[-1]
        raise _bad_circuit(
            f"circuit.{source}", f"it does not begin with a version statement: the first line is `OPENQASM {number}.0;`"
        )


def _bad_circuit(field: str, message: str) -> Refusal:
    return invalid(field, message, "INVALID_CIRCUIT")


def _unknown_circuit(field: str, digest: bytes) -> Refusal:
    return Refusal(
        Code.NOT_FOUND,
        "UNKNOWN_CIRCUIT",
        f"{field}: no circuit with the digest {digest.hex()} is known here: send the circuit itself (a digest names "
        "one that an earlier PUB of the job or an accepted job of the same session brought)",
        field,
        {"digest": digest.hex()},
    )


def _too_large(field: str, message: str, limit: str) -> Refusal:
    return Refusal(Code.RESOURCE_EXHAUSTED, "QUOTA_JOB_SIZE", f"{field}: {message}", field, {"limit": limit})


# --- numbers ----------------------------------------------------------------------------------------------------------


def _check_shots(message: SamplerPub | SamplerJob | CalibrationJob, field: str, default: int) -> int:
    if not message.HasField(field):  # type: ignore[arg-type]
        return default
    shots: int = getattr(message, field)
    if shots < 1:
        raise invalid(field, f"{shots} is out of range: at least 1, or leave it out for {default}")
    return shots


def _check_precision(message: EstimatorPub | EstimatorJob, field: str) -> None:
    precision: float = getattr(message, field)
    if not 0.0 <= precision < math.inf:
        raise invalid(field, f"{precision} is out of range: a finite number of at least 0, 0 for exact")


def _check_parameters(pub: SamplerPub | EstimatorPub) -> tuple[int, ...]:
    """The PUB's own shape: that of the parameter values without their last axis."""
    names = pub.parameter_names
    if not pub.HasField("parameter_values"):
        if names:
            raise invalid("parameter_names", f"there are {len(names)} names and no parameter_values: send both")
        return ()
    tensor = pub.parameter_values
    shape = check_tensor(tensor, "parameter_values")
    if tensor.dtype not in _REAL:
        raise _bad_tensor("parameter_values", f"{Dtype.Name(tensor.dtype)} is not allowed here: take DTYPE_FLOAT64")
    if not shape:
        raise _bad_tensor("parameter_values", "it has no axes: the last one is the parameters, also if there is one")
    if names:
        if len(names) != shape[-1]:
            raise invalid("parameter_names", f"there are {len(names)} names for {shape[-1]} values: send one for each")
        if len(set(names)) != len(names):
            raise invalid("parameter_names", "a name is there twice")
    return shape[:-1]


def check_tensor(tensor: Tensor, field: str) -> tuple[int, ...]:
    """The shape of a tensor whose data has the size that dtype and shape ask for."""
    size = _ELEMENT_BYTES.get(tensor.dtype)
    if size is None:
        raise _bad_tensor(field, "its dtype is missing or unknown: set one of cadenza.v1.Dtype")
    shape = _check_shape(tensor.shape, field)
    expected = math.prod(shape) * size
    if len(tensor.data) != expected:
        raise _bad_tensor(
            field,
            f"its data has {len(tensor.data)} bytes, {Dtype.Name(tensor.dtype)} of shape {list(shape)} has {expected}",
        )
    return shape


def _check_shape(axes: Sequence[int], field: str) -> tuple[int, ...]:
    shape = tuple(axes)
    if len(shape) > AXES_MAX:
        raise _bad_tensor(field, f"it has {len(shape)} axes: {AXES_MAX} are allowed")
    for axis in shape:
        if axis < 0:
            raise _bad_tensor(field, f"its shape {list(shape)} has a negative axis")
    return shape


def _check_observables(array: ObservablesArray, qubits: int | None) -> None:
    shape = _check_shape(array.shape, "observables")
    expected = math.prod(shape)
    if len(array.observables) != expected:
        raise _bad_tensor(
            "observables", f"there are {len(array.observables)} observables, shape {list(shape)} has {expected}"
        )
    for index, observable in enumerate(array.observables):
        terms = observable.terms
        paulis = [term.pauli for term in terms]
        lengths = set(map(len, paulis))
        if (
            (lengths == {qubits} or (qubits is None and len(lengths) == 1 and 0 not in lengths))
            and _FACTORS.issuperset("".join(paulis))
            and math.isfinite(sum(abs(term.coefficient) for term in terms))
        ):
            (qubits,) = lengths
            continue
        for number, term in enumerate(terms):
            pauli = term.pauli
            if not _PAULI.fullmatch(pauli):
                raise invalid(
                    f"observables.observables[{index}].terms[{number}].pauli",
                    f"{pauli[:80]!r} is no product of operators: one of I X Y Z 0 1 + - r l for each qubit",
                )
            if qubits is None:
                qubits = len(pauli)
            if len(pauli) != qubits:
                raise invalid(
                    f"observables.observables[{index}].terms[{number}].pauli",
                    f"it has {len(pauli)} characters, the circuit has {qubits} qubits: one character for each",
                )
            if not math.isfinite(term.coefficient):
                raise invalid(
                    f"observables.observables[{index}].terms[{number}].coefficient",
                    f"{term.coefficient} is no finite number",
                )
        if not math.isfinite(sum(abs(term.coefficient) for term in observable.terms)):
            raise invalid(
                f"observables.observables[{index}].terms", "the coefficients add up to more than a number holds"
            )


def _broadcast(values: tuple[int, ...], observables: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that both stretch to, as NumPy does it."""
    if not observables or values == observables:
        return values
    longer, shorter = (values, observables) if len(values) >= len(observables) else (observables, values)
    result = list(longer)
    for position, axis in enumerate(shorter, start=len(longer) - len(shorter)):
        if result[position] == 1:
            result[position] = axis
        elif axis not in (1, result[position]):
            raise _bad_tensor(
                "parameter_values",
                f"the shape of its sets {list(values)} does not broadcast with that of the observables "
                f"{list(observables)}: from the last axis on, lengths are equal or one is 1",
            )
    return tuple(result)


def _bad_tensor(field: str, message: str) -> Refusal:
    return invalid(field, message, "INVALID_TENSOR")

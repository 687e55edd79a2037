"""Circuits from the bytes that a program brought. Only workers import this: it parses what strangers wrote."""

import contextlib
import hashlib
import io
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import numpy as np
import qiskit_qasm3_import
from cadenza.v1.circuit_pb2 import Circuit
from qiskit import QuantumCircuit, qasm2, qasm3, qpy
from qiskit.circuit import AnnotatedOperation, ControlFlowOp, Delay, Gate, Instruction, ParameterExpression
from qiskit.circuit.exceptions import CircuitError

from cadenza_server.execution.cache import LatestUsed
from cadenza_server.execution.errors import ProgramError
from cadenza_server.model.qpy import read_qpy_header

_LIBRARY: Final = "qiskit.circuit.library"
_DECLARATION: Final = re.compile(r"\b(?:(?:qu)?bit|[qc]reg\s+\w+)\s*\[\s*([\w.+]+)\s*\]")
"""Registers in either version of OpenQASM; the parsers know only literal sizes."""

BITS_MAX: Final = 100_000
"""Qubits and bits that a text may declare: parsers make an object of each, 20 s and gigabytes for ten millions."""

_PLAINER: Final = {
    "index must be int, slice or list": "a register's index is not a literal (of a loop, say): write the loop out",
}
"""What parsers say, and what it means."""

_COMMENT: Final = re.compile(r"//[^\n]*")
_GATE_DEFINITION: Final = re.compile(r"\bgate\s+(\w+)")
_INCLUDE: Final = re.compile(r"\binclude\b")
_INCLUDE_STDGATES: Final = re.compile(r'\binclude\s+"stdgates\.inc"\s*;')


class CircuitLoader:
    """Parses circuits once and keeps the latest used ones, by content.

    The circuits that it gives out are shared: callers must not change them.
    """

    def __init__(self, *, cached_max: int, num_qubits_max: int) -> None:
        self._num_qubits_max = num_qubits_max
        self._loaded: LatestUsed[tuple[str, bytes], Any] = LatestUsed(cached_max)

    def load(self, message: Circuit, known: Mapping[bytes, Circuit]) -> tuple[tuple[str, bytes], Any]:
        """The circuit and a key that stands for its content. `known` holds the circuits that a digest may name,
        each by its own.

        Raises `ProgramError`.
        """
        digest = b""
        if message.WhichOneof("source") == "digest":
            digest = message.digest
            named = known.get(message.digest)
            if named is None or named.WhichOneof("source") == "digest":
                raise ProgramError(
                    f"no circuit with digest {message.digest.hex()[:16]}... is known any more: send the circuit itself"
                )
            message = named
        source = message.WhichOneof("source")
        if source is None:
            raise ProgramError("the PUB has no circuit: set qpy, openqasm3, openqasm2 or digest")
        key = (source, digest or circuit_digest(message))
        return key, self._loaded.get_or_make(key, lambda: self._parse(message, source))

    def _parse(self, message: Circuit, source: str) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if source == "qpy":
                circuit = _parse_qpy(message.qpy)
            else:
                text = getattr(message, source)
                _check_declarations(text)
                circuit = _parse_openqasm3(text) if source == "openqasm3" else _parse_openqasm2(text)
        if circuit.num_qubits > self._num_qubits_max:
            raise ProgramError(
                f"the circuit has {circuit.num_qubits} qubits, the device {self._num_qubits_max}: "
                "use fewer qubits or a larger device"
            )
        if circuit.num_qubits == 0:
            raise ProgramError("the circuit has no qubits: add at least one")
        return _settle(circuit)


def circuit_digest(message: Circuit) -> bytes:
    """The SHA-256 of a circuit's bytes, for text of its UTF-8, as `Circuit.digest` has it."""
    source = message.WhichOneof("source")
    content = getattr(message, source) if source else b""
    return hashlib.sha256(content if isinstance(content, bytes) else content.encode()).digest()


def _settle(circuit: Any) -> Any:
    """`circuit`, or one in its place, with gates of its own named apart.

    Refuses what is not finite: the simulator takes NaN and infinity as angles or in matrices, and gives results that
    mean nothing. Both it and the transpiler know gates by their names: one that a circuit defines by itself and calls
    `h` would run as Hadamard.
    """
    _check_finite("the global phase", circuit.global_phase)
    settled = []
    changed = False
    for instruction in circuit.data:
        try:
            operation = instruction.operation
        except CircuitError:
            # Qiskit's reader of QPY gives a delay that is a parameter a unit that Qiskit does not know.
            operation = Delay(instruction.params[0], "dt")
            instruction = instruction.replace(operation=operation)
            changed = True
        for value in getattr(operation, "params", ()):
            if not isinstance(value, QuantumCircuit):
                _check_finite(f"a parameter of {operation.name}", value)
        if isinstance(operation, ControlFlowOp):
            blocks = [_settle(block) for block in operation.blocks]
            if any(block is not before for block, before in zip(blocks, operation.blocks, strict=True)):
                operation = operation.replace_blocks(blocks)
        else:
            operation = _name_apart(operation)
        # reading QPY leaves out the parameters inside an annotated operation: put into a circuit again, they count
        changed = changed or operation is not instruction.operation or isinstance(operation, AnnotatedOperation)
        settled.append(instruction.replace(operation=operation))
    if not changed:
        return circuit
    anew = circuit.copy_empty_like()
    for instruction in settled:
        anew.append(instruction)
    return anew


def _name_apart(operation: Any) -> Any:
    """The operation itself or, where a definition of its own is behind it, a plain one of another name with that."""
    if isinstance(operation, AnnotatedOperation):
        base = _name_apart(operation.base_op)
        return operation if base is operation.base_op else AnnotatedOperation(base, operation.modifiers)
    # the definitions of the library's own gates hold nothing but their parameters
    kind = getattr(operation, "base_class", type(operation))
    definition = None if str(kind.__module__).startswith(_LIBRARY) else getattr(operation, "definition", None)
    if definition is None:
        return operation
    name = f"{operation.name} (own)"
    own = (
        Gate(name, operation.num_qubits, _real_parts(operation.params))
        if isinstance(operation, Gate)
        else Instruction(name, operation.num_qubits, operation.num_clbits, operation.params)
    )
    own.definition = _settle(definition)
    return own


def _real_parts(parameters: Iterable[Any]) -> list[Any]:
    """What a plain gate takes of the parameters of any: a complex number as two real ones, texts and matrices not.

    Numbers only tell gates of one name apart, the definition says what they do; expressions still get their values.
    """
    parts: list[Any] = []
    for value in parameters:
        if isinstance(value, (complex, np.complexfloating)):
            parts += (float(value.real), float(value.imag))
        elif isinstance(value, (ParameterExpression, int, float, np.integer, np.floating)):
            parts.append(value)
    return parts


def _check_finite(what: str, value: Any) -> None:
    if isinstance(value, ParameterExpression):
        if value.parameters:
            return  # its values come with the PUB, and are checked there
        value = complex(value)
    if isinstance(value, (int, float, complex, np.number, np.ndarray)) and not np.isfinite(value).all():
        raise ProgramError(f"{what} is NaN or infinite: write a finite number")


def _parse_qpy(data: bytes) -> Any:
    try:
        header = read_qpy_header(data)
    except ValueError as error:
        raise ProgramError(str(error)) from error
    if header.version > qpy.QPY_VERSION:
        raise ProgramError(
            f"QPY version {header.version} is newer than the server's Qiskit reads: "
            f"write the circuit with qiskit.qpy.dump(..., version={qpy.QPY_VERSION})"
        )
    try:
        (circuit,) = qpy.load(io.BytesIO(data))
    except BaseException as error:
        _raise_if_not_of_the_parser(error)
        raise ProgramError(
            f"the QPY payload cannot be read, it may be cut off or damaged: {_first_line(error)}"
        ) from error
    if not isinstance(circuit, QuantumCircuit):
        raise ProgramError("the QPY payload does not hold a circuit: write a QuantumCircuit with qiskit.qpy.dump")
    return circuit


def _check_declarations(text: str) -> None:
    declared = 0.0
    for size in _DECLARATION.findall(text):
        with contextlib.suppress(ValueError, OverflowError):  # the parser will say so
            declared += int(size, 0) if size[:2] in ("0x", "0b", "0o") else float(size)
    if declared > BITS_MAX:
        raise ProgramError(f"it declares {declared:.15g} qubits and bits: at most {BITS_MAX} can be")


def _parse_openqasm3(text: str) -> Any:
    """By Qiskit's native parser where it can, else by qiskit-qasm3-import, which knows `input` and says lines."""
    includes = len(_INCLUDE.findall(text))
    printed: list[str] = []
    # the native parser opens the files that a program includes; the other one knows only the standard gates
    if "input" not in text and text.strip() and includes == len(_INCLUDE_STDGATES.findall(text)):
        with _caught_output() as printed:
            try:
                return qasm3.loads_experimental(text)
            except BaseException as error:
                _raise_if_not_of_the_parser(error)
    complaints = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaints), contextlib.redirect_stdout(complaints):
            return qiskit_qasm3_import.parse(text)
    except BaseException as error:
        _raise_if_not_of_the_parser(error)
        said = complaints.getvalue().strip().splitlines()
        if str(error):
            reason = _with_line(_first_line(error))
            reason = _PLAINER.get(reason, reason)
        elif said:
            reason = _with_line(said[0])
        else:
            reason = _read_native_complaint("".join(printed)) or "its syntax is wrong"
        raise ProgramError(f"the OpenQASM 3 text cannot be read: {reason}") from error


@contextlib.contextmanager
def _caught_output() -> Iterator[list[str]]:
    """Keep from the standard output what the native parser prints there, past Python's own; at the end, the list has
    it. Where that cannot be done, it is printed."""
    printed: list[str] = []
    try:
        kept = os.dup(1)
    except OSError:  # it is closed
        yield printed
        return
    try:
        with contextlib.ExitStack() as stack:
            try:
                file = stack.enter_context(tempfile.TemporaryFile())
            except OSError:
                yield printed
                return
            sys.stdout.flush()
            os.dup2(file.fileno(), 1)
            try:
                yield printed
            finally:
                os.dup2(kept, 1)
                file.seek(0)
                printed.append(file.read().decode(errors="replace"))
    finally:
        os.close(kept)


def _read_native_complaint(printed: str) -> str | None:
    """`Error: expected ;` above a drawing with `[no file:3:11]` says `line 3, column 11: expected ;`."""
    found = _NATIVE_COMPLAINT.search(printed)
    return f"line {found[2]}, column {found[3]}: {found[1]}" if found else None


def _parse_openqasm2(text: str) -> Any:
    if not text.strip():
        raise ProgramError("the OpenQASM 2 text is empty: it begins with OPENQASM 2.0;")
    try:
        # Qiskit takes its own gate for each of these, also where the text defines another one by that name
        defined = set(_GATE_DEFINITION.findall(_COMMENT.sub("", text)))
        known = [gate for gate in qasm2.LEGACY_CUSTOM_INSTRUCTIONS if gate.name not in defined]
        return qasm2.loads(text, include_path=(), custom_instructions=known)
    except BaseException as error:
        _raise_if_not_of_the_parser(error)
        reason = _first_line(error).replace("<input>:", "")
        raise ProgramError(f"the OpenQASM 2 text cannot be read: {_with_line(reason)}") from error


_PLACE: Final = re.compile(r"^(?:line )?(\d+)[,:](\d+):? ?")
_NATIVE_COMPLAINT: Final = re.compile(r"^Error: (.*)\n.*\[.*:(\d+):(\d+)\]", re.MULTILINE)


def _with_line(reason: str) -> str:
    """`4,0: ...` and `line 4:0 ...` say `line 4, column 1: ...`: parsers count columns from 0, and editors from 1.

    Without a reason, that there is none.
    """
    if not reason:
        return "its syntax is wrong"
    return _PLACE.sub(lambda found: f"line {found[1]}, column {int(found[2]) + 1}: ", reason)


def _first_line(error: BaseException) -> str:
    """The first line that says something, without frames and quotes around it."""
    text = str(getattr(error, "message", None) or error)
    lines = [line.strip(" '\"") for line in text.splitlines()]
    return next((line for line in lines if line and line[0].isascii()), type(error).__name__)[:300]


def _raise_if_not_of_the_parser(error: BaseException) -> None:
    """A panic of a parser in Rust is no `Exception`, yet no reason to end the worker."""
    if isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError)):
        raise error

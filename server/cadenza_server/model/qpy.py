"""The head of a QPY payload, read without Qiskit: enough to refuse at submit what cannot be a circuit for the device.

The layout is the one that Qiskit documents (`qiskit.qpy`, section "QPY Format"): the file header of version 10 and
later, the circuit table of version 16, the circuit header of version 12. Versions before 13 are refused: their
parameter expressions are sympy or symengine payloads. Nothing here parses a circuit; a payload whose head is good can
still be broken further on, which only the worker finds.
"""

from dataclasses import dataclass
from struct import Struct
from typing import Final

QPY_VERSION_MIN: Final = 13
"""The first version whose parameter expressions are Qiskit's own encoding (Qiskit 1.3)."""

QPY_VERSION_MAX: Final = 18
"""The newest version whose layout is known here (Qiskit 2.6)."""

_MAGIC: Final = b"QISKIT"
_FILE: Final = Struct("!6sBBBBQc")
_KIND: Final = Struct("!c")
_TABLE_ENTRY: Final = Struct("!Q")
_TABLE_SINCE: Final = 16
_CIRCUIT: Final = Struct("!H1cHIIQIQI")
_INSTRUCTION_SIZE_MIN: Final = 33
"""Bytes of an instruction's header (version 5 and later); a lower bound of what must follow, to notice truncation."""


@dataclass(frozen=True, slots=True)
class QpyHeader:
    """What the head of a QPY payload says about its only circuit."""

    version: int
    qiskit_version: tuple[int, int, int]
    symbolic_encoding: str
    """`p` (sympy) or `e` (symengine). From version 13 on no payload needs either."""
    num_qubits: int
    num_clbits: int
    num_instructions: int
    """Of the outermost level: instructions inside control flow and definitions are not counted."""


def read_qpy_header(data: bytes) -> QpyHeader:
    """Read the head of `data`. Raises `ValueError` with a sentence that says what is wrong and what to do."""
    if data[: len(_MAGIC)] != _MAGIC[: len(data)] or not data:
        raise ValueError("this is not QPY (it does not begin with QISKIT): write the circuit with qiskit.qpy.dump")
    if len(data) <= len(_MAGIC):
        raise _truncated(data)
    version = data[len(_MAGIC)]
    if not QPY_VERSION_MIN <= version <= QPY_VERSION_MAX:
        raise ValueError(
            f"QPY version {version} is not supported: write the circuit with "
            f"qiskit.qpy.dump(..., version=N), N from {QPY_VERSION_MIN} to {QPY_VERSION_MAX} (Qiskit 1.3 or newer)"
        )
    if len(data) < _FILE.size:
        raise _truncated(data)
    _, version, major, minor, patch, programs, encoding = _FILE.unpack_from(data)
    if programs != 1:
        raise ValueError(f"the QPY payload holds {programs} circuits: send each circuit by itself")
    offset = _FILE.size
    if len(data) < offset + _KIND.size:
        raise _truncated(data)
    (kind,) = _KIND.unpack_from(data, offset)
    if kind != b"q":
        raise ValueError("the QPY payload does not hold a circuit: write a QuantumCircuit with qiskit.qpy.dump")
    offset += _KIND.size
    if version >= _TABLE_SINCE:
        if len(data) < offset + _TABLE_ENTRY.size:
            raise _truncated(data)
        (start,) = _TABLE_ENTRY.unpack_from(data, offset)
        if start < offset + _TABLE_ENTRY.size:
            raise ValueError("the QPY payload is damaged (its circuit table points into its header): write it again")
        offset = start
    if len(data) < offset + _CIRCUIT.size:
        raise _truncated(data)
    name, _, phase, num_qubits, num_clbits, metadata, registers, instructions, variables = _CIRCUIT.unpack_from(
        data, offset
    )
    least = offset + _CIRCUIT.size + name + phase + metadata + registers + variables
    if len(data) < least + instructions * _INSTRUCTION_SIZE_MIN:
        raise _truncated(data)
    return QpyHeader(
        version=version,
        qiskit_version=(major, minor, patch),
        symbolic_encoding=encoding.decode("latin-1"),
        num_qubits=num_qubits,
        num_clbits=num_clbits,
        num_instructions=instructions,
    )


def _truncated(data: bytes) -> ValueError:
    return ValueError(f"the QPY payload is cut off after {len(data)} bytes: send all that qiskit.qpy.dump wrote")

"""Circuits from files, and observables from arguments: read, recognised, and checked before anything is sent."""

import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cadenza_server.cli.failure import fail

if TYPE_CHECKING:
    from cadenza.v1.circuit_pb2 import Circuit
    from cadenza.v1.program_pb2 import Observable

QPY_MAGIC: Final = b"QISKIT"
QUBITS_UNBOUND: Final = 2**31 - 1
MISSING_NAMED_MAX: Final = 10
"""How many of a circuit's missing parameters a refusal names."""

_JOINT: Final = re.compile(r"\s+([+-])\s+")
_TERM: Final = re.compile(r"([+-]?)\s*(?:([0-9.]+(?:[eE][+-]?[0-9]+)?)\s*\*\s*)?([IXYZ01rl+-]+)")


def read_circuit(path: Path) -> "Circuit":
    """The circuit in a file, `-` for the standard input: QPY by its magic, else OpenQASM 2 or 3 by its version line.

    What is neither ends the command with exit code 2.
    """
    from cadenza import make_circuit

    try:
        data = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    except OSError as error:
        fail(f"{path}: it cannot be read: {error.strerror}", 2)
    if data.startswith(QPY_MAGIC):
        return make_circuit(data)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        fail(f"{path}: this is neither QPY (which begins with QISKIT) nor text: give OpenQASM 2, OpenQASM 3 or QPY", 2)
    if not text.strip():
        fail(f"{path}: the file is empty: give OpenQASM 2, OpenQASM 3 or QPY", 2)
    return make_circuit(text)


def check_circuit(path: Path, message: "Circuit", parameters: Mapping[str, float], observables: Sequence[str]) -> Any:
    """Parse the circuit as a worker would and check what the job needs of it; the circuit. Loads Qiskit.

    What is wrong ends the command with exit code 2.
    """
    from cadenza_server.execution.circuits import CircuitLoader
    from cadenza_server.execution.errors import ProgramError

    try:
        _, circuit = CircuitLoader(cached_max=1, num_qubits_max=QUBITS_UNBOUND).load(message, {})
    except ProgramError as error:
        fail(f"{path}: {error}", 2)
    names = [each.name for each in circuit.parameters]
    missing = [name for name in names if name not in parameters]
    if missing:
        wanted = " ".join(f"--parameter {name}=NUMBER" for name in missing[:MISSING_NAMED_MAX])
        more = f", and {len(missing) - MISSING_NAMED_MAX} more" if len(missing) > MISSING_NAMED_MAX else ""
        fail(f"{path}: the circuit has parameters without values: give {wanted}{more}", 2)
    unknown = [name for name in parameters if name not in names]
    if unknown:
        fail(f"--parameter: {unknown[0]!r} is no parameter of the circuit; it has {', '.join(names) or 'none'}", 2)
    for text in observables:
        for term in parse_observable(text).terms:
            if len(term.pauli) != circuit.num_qubits:
                fail(
                    f"--observable: {term.pauli!r} has {len(term.pauli)} letters, the circuit {circuit.num_qubits} "
                    "qubits: give one letter a qubit, the last for qubit 0",
                    2,
                )
    if observables and _ends_measured(circuit):
        fail(
            f"{path}: the circuit ends with measurements, and an --observable is measured by itself: take them out of "
            "the file, or leave out --observable to get counts",
            2,
        )
    if not observables and not (circuit.cregs and _measures(circuit)):
        fail(
            f"{path}: the circuit measures nothing into a classical register: add some, or ask for an --observable",
            2,
        )
    return circuit


def _ends_measured(circuit: Any) -> bool:
    from cadenza_server.execution.models import is_measured_at_the_end

    return bool(is_measured_at_the_end(circuit))


def _measures(circuit: Any) -> bool:
    """Whether something writes classical bits in it, or in what it branches to."""
    for each in circuit.data:
        blocks = getattr(each.operation, "blocks", None)
        if any(map(_measures, blocks)) if blocks is not None else bool(each.clbits):
            return True
    return False


def parse_observable(text: str) -> "Observable":
    """`ZZ`, or a sum such as `0.5*ZZ - 1.2*XI`: signs between terms stand between spaces.

    What cannot be read ends the command with exit code 2.
    """
    from cadenza.v1.program_pb2 import Observable, PauliTerm

    pieces = _JOINT.split(text.strip())
    signs = ["+", *pieces[1::2]]
    terms = []
    for sign, piece in zip(signs, pieces[::2], strict=True):
        found = _TERM.fullmatch(piece)
        try:
            coefficient = float(found[2] or "1") if found else math.nan
        except ValueError:
            coefficient = math.nan
        if found is None or not math.isfinite(coefficient):
            fail(
                f"--observable: {piece!r} is no term: write `ZZ`, or a sum such as `0.5*ZZ - 1.2*XI`; "
                "the letters are I X Y Z 0 1 + - r l, the last for qubit 0",
                2,
            )
        negative = (sign == "-") != (found[1] == "-")
        terms.append(PauliTerm(pauli=found[3], coefficient=-coefficient if negative else coefficient))
    return Observable(terms=terms)


def parse_parameters(given: Sequence[str]) -> dict[str, float]:
    """Values by parameter from `NAME=NUMBER`. What cannot be read ends the command with exit code 2."""
    found: dict[str, float] = {}
    for each in given:
        name, _, number = each.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not name or not math.isfinite(value):
            fail(f"--parameter: {each!r} is not NAME=NUMBER, such as theta=0.5", 2)
        if name in found:
            fail(f"--parameter: {name!r} is given twice", 2)
        found[name] = value
    return found

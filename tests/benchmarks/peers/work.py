"""The work that every peer does, as functions. Each gives the time of its start in nanoseconds since 1970, as the peers
do not tell it alike."""

import functools
import io
import time
from typing import Any

PAYLOAD_BYTES = 2_048
SHOTS = 1_000


def do_nothing(payload: bytes) -> int:
    """A job that is over as soon as it starts."""
    return time.time_ns()


def count_ghz(payload: bytes) -> int:
    """Parse a 2-qubit circuit (QPY) and count what 1,000 shots of it give, as a worker that stays up would."""
    start = time.time_ns()
    from qiskit import qpy

    (circuit,) = qpy.load(io.BytesIO(payload))
    counts = simulator().run(circuit, shots=SHOTS).result().get_counts()
    assert sum(counts.values()) == SHOTS
    return start


@functools.cache
def simulator() -> Any:
    """Aer, made once in each worker."""
    from qiskit_aer import AerSimulator

    return AerSimulator()


@functools.cache
def make_payload(kind: str) -> bytes:
    """2 KB: a GHZ circuit filled up by its metadata, or zeros."""
    if kind == "nothing":
        return bytes(PAYLOAD_BYTES)
    from qiskit import QuantumCircuit, qpy

    circuit = QuantumCircuit(2)
    circuit.h(0)
    circuit.cx(0, 1)
    circuit.measure_all()
    buffer = io.BytesIO()
    qpy.dump(circuit, buffer)
    circuit.metadata = {"filling": "." * (PAYLOAD_BYTES - len(buffer.getvalue()) - 16)}
    buffer = io.BytesIO()
    qpy.dump(circuit, buffer)
    return buffer.getvalue()


FUNCTIONS = {"nothing": do_nothing, "ghz": count_ghz}

"""Delays in seconds. QPY keeps a delay's number and loses its unit (Qiskit's issue 8293): 200 us would come out as 200
cycles of the device. Before a circuit is written its delays are therefore put into cycles (`dt`).
"""

from collections.abc import Iterable
from typing import Any, Final

from qiskit import QuantumCircuit
from qiskit.circuit import ControlFlowOp, Delay, ParameterExpression
from qiskit.utils import apply_prefix

from cadenza._errors import InvalidRequestError

_KEPT: Final = ("dt", "expr")
"""Units with which QPY does what it should."""

_ANY_DT_S: Final = 1e-9
"""On a device without a cycle time nothing depends on a delay's length."""


def put_delays_into_cycles(circuit: QuantumCircuit, dt_s: float | None) -> QuantumCircuit:
    """`circuit`, or a copy with all delays in whole cycles of `dt_s` seconds, those inside control flow, too.

    Raises `InvalidRequestError` for delays in seconds that are a parameter or stand inside the definition of a gate.
    """
    if not _has_seconds(circuit):
        return circuit
    changed = circuit.copy_empty_like()  # setting single instructions of a copy with control flow makes Qiskit panic
    for instruction in circuit.data:
        changed.append(instruction.replace(operation=_settle(instruction.operation, dt_s)))
    return changed


def _settle(operation: Any, dt_s: float | None) -> Any:
    if isinstance(operation, ControlFlowOp):
        return operation.replace_blocks([put_delays_into_cycles(block, dt_s) for block in operation.blocks])
    if isinstance(operation, Delay):
        if operation.unit in _KEPT:
            return operation
        if isinstance(operation.duration, ParameterExpression):
            raise _refuse(
                f"a delay in {operation.unit} cannot be a parameter: assign it first, or write the delay in dt"
            )
        seconds: float = apply_prefix(operation.duration, operation.unit)
        return Delay(round(seconds / (dt_s or _ANY_DT_S)), "dt")
    if _has_seconds(_definition(operation)):
        raise _refuse(f"the gate {operation.name!r} has a delay in seconds inside: decompose it first")
    return operation


def _has_seconds(instructions: Iterable[Any]) -> bool:
    for instruction in instructions:
        operation = instruction.operation
        if isinstance(operation, Delay):
            if operation.unit not in _KEPT:
                return True
        elif isinstance(operation, ControlFlowOp):
            if any(map(_has_seconds, operation.blocks)):
                return True
        elif _has_seconds(_definition(operation)):
            return True
    return False


def _definition(operation: Any) -> Iterable[Any]:
    return getattr(operation, "definition", None) or ()


def _refuse(sentence: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"{sentence} (a circuit is sent as QPY, which keeps no units of delays)",
        code="INVALID_ARGUMENT",
        reason="INVALID_CIRCUIT",
        field="pubs",
    )

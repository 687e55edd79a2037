"""Aer, called with circuits that are prepared once.

`AerSimulator.run` compiles a circuit, converts it, writes out the noise model and starts a thread at every call. Here
the same steps are done once a circuit (`prepare`), and a run is only Aer's own execution (`execute`), with the errors
of the noise model that the circuit can meet. The steps and their order are those of `AerBackend._execute_circuits_job`
(qiskit-aer 0.17 and 0.18).
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from qiskit.circuit import Clbit, ControlFlowOp, Parameter, ParameterExpression, Qubit
from qiskit_aer.backends.aer_compiler import assemble_circuits, generate_aer_config
from qiskit_aer.backends.backend_utils import LIBRARY_DIR
from qiskit_aer.backends.controller_wrappers import AerConfig
from qiskit_aer.library import SaveExpectationValue

from cadenza_server.execution.distribution import is_clifford_gate
from cadenza_server.execution.errors import ProgramError
from cadenza_server.execution.models import DeviceModel
from cadenza_server.execution.noise import read_noise

DENSE_QUBITS_MAX: Final = 10
"""A density matrix of 16 MiB. The larger it is, the less it matters how fast noise is read."""

SEED_MAX: Final = 2**63 - 1
"""Aer's seeds are int64."""

_LACK_OF_MEMORY: Final = ("Insufficient memory", "Cannot allocate memory", "bad_alloc")
"""What Aer says when a state is too large: by its own reckoning, or when the system gives no more."""

_PHASE: Final = (AerConfig.GLOBAL_PHASE_POS, -1)
"""The place of a circuit's global phase."""


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a value goes: an operation of the converted circuit, and which of its angles."""

    place: tuple[int, int]
    column: int | None
    """The column of the values that goes there as it is; None: `expression` is computed."""
    expression: Any = None


@dataclass(frozen=True, slots=True)
class PreparedCircuit:
    """A circuit as Aer's simulator takes it. Can be executed any number of times."""

    circuit: Any
    converted: list[Any]
    parameters: tuple[Any, ...]
    """In the order of the columns of the values."""
    slots: tuple[Slot, ...]
    noise: dict[str, Any]
    """Aer's form of the noise that the circuit can meet; empty: none."""
    dense_shots: int | None = None
    """With more shots than these the automatic method takes a density matrix for the circuit with its noise; None: it
    takes another one, or it is not said."""
    configs: dict[tuple[str, bool], Any] = field(default_factory=dict)
    """By method and whether shots are remembered: what Aer is told of a run. Filling one in anew takes 0.09 ms."""


@dataclass(frozen=True, slots=True)
class Execution:
    """What Aer returned: one entry a set of values, in their order."""

    data: list[dict[str, Any]]
    method: str


def prepare(model: DeviceModel, circuit: Any, parameters: Sequence[Any], *, noisy: bool) -> PreparedCircuit:
    """Compile and convert a circuit that fits the device. `parameters` are those of the circuit as it was sent.

    Raises `ProgramError` for what Aer cannot execute.
    """
    relaxation = model.relaxation if noisy else None
    if relaxation is not None and any(
        instruction.name == "delay" and isinstance(instruction.params[0], ParameterExpression)
        for instruction in circuit.data
    ):
        raise ProgramError(
            "a delay's length is a parameter, and what happens during it is worked out before the values are known: "
            "assign it, and send a circuit for each length"
        )
    try:
        # _compile copies the noise model that it gets, to add to it what delays bring: it gets one without errors
        (compiled,), used = model.simulator._compile([_anchor(_close(circuit))], noise_model=relaxation)
        # Converting writes zeros for the parameters of some gates (`cu`) into those very gates, and the circuit is
        # prepared more than once.
        converted, index_maps = assemble_circuits([copy.deepcopy(compiled)])
    except Exception as error:
        raise ProgramError(f"Aer cannot execute the circuit: {error}") from error
    converted[0].circ_id = 0
    errors = model.noise_errors if noisy else []
    if used is not relaxation:
        errors = [*errors, *_read_added(used, compiled)]
    return PreparedCircuit(
        circuit=compiled,
        converted=converted,
        parameters=tuple(parameters),
        slots=tuple(_slots(compiled, index_maps[0], parameters)),
        noise=_cut_to(errors, compiled) if errors else {},
        dense_shots=_dense_shots(model, compiled) if errors else None,
    )


def _tells(instruction: Any) -> bool:
    """Whether a result comes of it."""
    return instruction.name == "measure" or bool(instruction.name.startswith("save_"))


def _close(circuit: Any) -> Any:
    """`circuit`, or, if it ends with control flow, one that ends with a measurement into a bit that nobody reads: Aer
    leaves out what comes behind the last measurement, and if that is in a loop, also where the loop ends."""
    for instruction in reversed(circuit.data):
        if _tells(instruction):
            break
        if isinstance(instruction.operation, ControlFlowOp):
            closed = circuit.copy()
            closed.add_bits((Clbit(),))
            closed.measure(instruction.qubits[0] if instruction.qubits else closed.qubits[0], closed.clbits[-1])
            return closed
    return circuit


def _anchor(circuit: Any) -> Any:
    """`circuit`, or one in its place in which control flow has a qubit that Aer keeps.

    Aer takes control flow apart into operations that it puts into order by their qubits: those of a loop that only
    looks at bits would run whenever. And it leaves out what acts on qubits that nothing is told of, and then misses the
    rest of the control flow. The qubit is one that the circuit uses anyway, so that the state does not grow.
    """
    if not circuit.qubits:
        return circuit
    told = [instruction.qubits[0] for instruction in circuit.data if _tells(instruction)]
    used = (instruction.qubits[0] for instruction in circuit.data if instruction.qubits)
    anchor = told[-1] if told else next(used, circuit.qubits[0])
    changed = False
    anchored = []
    for instruction in circuit.data:
        operation, qubits = instruction.operation, instruction.qubits
        if isinstance(operation, ControlFlowOp):
            blocks = list(operation.blocks)
            if anchor not in qubits:
                qubits = (*qubits, anchor)
                blocks = [block.copy() for block in blocks]
                for block in blocks:
                    block.add_bits((Qubit(),))  # which of the outer ones it is, its place says
            blocks = [_anchor(block) for block in blocks]
            if any(block is not before for block, before in zip(blocks, operation.blocks, strict=True)):
                instruction = instruction.replace(operation=operation.replace_blocks(blocks), qubits=qubits)
                changed = True
        anchored.append(instruction)
    if not changed:
        return circuit
    anew = circuit.copy_empty_like()
    for instruction in anchored:
        anew.append(instruction)
    return anew


def prepare_batch(
    model: DeviceModel, circuits: Sequence[Any], qubits: Sequence[int], *, noisy: bool
) -> PreparedCircuit:
    """Convert circuits on the same qubits, without parameters, labels, control flow or delays, to be executed in one
    call: their noise is read once. The results come in their order.
    """
    converted, _ = assemble_circuits(list(circuits))
    for number, one in enumerate(converted):
        one.circ_id = number
    names: set[str | None] = {name for circuit in circuits for name in circuit.count_ops()}
    return PreparedCircuit(
        circuit=max(circuits, key=lambda circuit: circuit.num_clbits),
        converted=converted,
        parameters=(),
        slots=(),
        noise=_cut(model.noise_errors, set(qubits), names) if noisy else {},
    )


def execute(
    model: DeviceModel,
    prepared: PreparedCircuit,
    values: NDArray[np.float64],
    *,
    shots: int,
    seed: int,
    method: str,
    memory: bool,
) -> Execution:
    """Run a prepared circuit once for each of the rows of `values`, which has a column a parameter.

    Raises `ProgramError` with what Aer says.
    """
    config = prepared.configs.get((method, memory))
    if config is None:
        config = generate_aer_config([prepared.circuit], model.simulator.options, memory=memory, method=method)
        config.library_dir = LIBRARY_DIR
        prepared.configs[method, memory] = config
    config.shots = shots
    config.seed_simulator = seed
    if prepared.slots:
        config.parameterizations = [_bind(prepared.slots, prepared.parameters, values)]
    else:
        # Aer renumbers the qubits of a circuit that it executes, in place, and then finds the noise of others: it is
        # given a value for what has it already, as it copies a circuit to put values into it
        config.parameterizations = [[(_PHASE, [one.global_phase_angle])] for one in prepared.converted]
    dense = prepared.dense_shots is not None and (
        method == "density_matrix" or (method == "automatic" and shots > prepared.dense_shots)
    )
    results = _run(model, prepared, config, dense)
    if not prepared.slots and len(values) > 1:
        # no angle depends on the values: each set is still a run of its own
        for _ in range(len(values) - 1):
            seed = (seed + 1) & SEED_MAX
            config.seed_simulator = seed
            results += _run(model, prepared, config, dense)
    return Execution([result["data"] for result in results], results[0]["metadata"].get("method", method))


def _run(model: DeviceModel, prepared: PreparedCircuit, config: Any, dense: bool) -> list[dict[str, Any]]:
    noise = model.joined_noise_now(prepared.noise) if dense else model.noise_now(prepared.noise)
    output = model.simulator._controller.execute(prepared.converted, noise, config)
    results: list[dict[str, Any]] = output.get("results", [])
    said = [result["status"] for result in results if not result.get("success", False)] if results else []
    if said or not output.get("success", False):
        reason = _reason(said[0] if said else output.get("status"))
        if any(sign in reason for sign in _LACK_OF_MEMORY):
            raise ProgramError(f"{_explain_lack_of_memory(model, prepared.circuit)} (Aer: {reason})")
        raise ProgramError(f"Aer cannot execute the circuit: {reason}")
    return results


def _reason(status: object) -> str:
    text = str(status).strip()
    return text.removeprefix("ERROR:").strip() or "it gives no reason"


def _explain_lack_of_memory(model: DeviceModel, circuit: Any) -> str:
    count = len({qubit for instruction in circuit.data for qubit in instruction.qubits})
    return (
        f"the circuit uses {count} qubits, and the simulation method that was chosen for it needs more memory than a "
        f"program may take on this device, {model.spec.memory_bytes / 2**30:.3g} GiB: use fewer qubits, or another "
        "method, such as matrix_product_state, which needs little where there is little entanglement"
    )


def _slots(circuit: Any, index_map: Sequence[int], parameters: Sequence[Any]) -> list[Slot]:
    columns = {parameter: column for column, parameter in enumerate(parameters)}
    slots = []

    def add(place: tuple[int, int], value: Any) -> None:
        if isinstance(value, Parameter):
            slots.append(Slot(place, columns[value]))
        elif isinstance(value, ParameterExpression) and value.parameters:
            slots.append(Slot(place, None, value))

    add(_PHASE, circuit.global_phase)
    for index, instruction in enumerate(circuit.data):
        # not only if `is_parameterized`: Qiskit's controlled gates say no where the gate that they control says yes
        for position, value in enumerate(getattr(instruction.operation, "params", ())):
            add((index_map[index], position), value)
    return slots


def _bind(
    slots: Sequence[Slot], parameters: Sequence[Any], values: NDArray[np.float64]
) -> list[tuple[tuple[int, int], list[float]]]:
    columns = values.T.tolist()
    table = []
    for slot in slots:
        if slot.column is not None:
            table.append((slot.place, columns[slot.column]))
            continue
        needed = [(parameter, parameters.index(parameter)) for parameter in slot.expression.parameters]
        try:
            bound = [
                float(slot.expression.bind({parameter: row[column] for parameter, column in needed}))
                for row in values.tolist()
            ]
        except Exception as error:
            raise ProgramError(f"the angle {slot.expression} cannot be computed: {error}") from error
        table.append((slot.place, bound))
    return table


def _read_added(added: Any, circuit: Any) -> list[dict[str, Any]]:
    """The errors that stand in the circuit itself, as those of its delays do, each with the qubit that it `relaxes`."""
    qubits = {
        instruction.operation.label: circuit.find_bit(instruction.qubits[0]).index for instruction in circuit.data
    }
    return [{**error, "relaxes": qubits[error["operations"][0]]} for error in read_noise(added)]


def _dense_shots(model: DeviceModel, circuit: Any) -> int | None:
    """See `PreparedCircuit.dense_shots`; the rule is that of Aer's `Controller::automatic_simulation_method`. What is
    not certain is not said: the noise then comes in a form that every method reads."""
    known = model.find_gates("density_matrix")
    used: set[int] = set()
    is_clifford, is_measured = True, False
    for instruction in circuit.data:
        operation = instruction.operation
        used.update(circuit.find_bit(qubit).index for qubit in instruction.qubits)
        if operation.name == "measure":
            is_measured = True
        elif is_measured and operation.name != "barrier":
            return None
        if isinstance(operation, SaveExpectationValue) or operation.name in ("measure", "barrier", "delay"):
            continue
        if operation.name not in known:
            return None
        is_clifford = is_clifford and is_clifford_gate(operation)
    return None if is_clifford or len(used) > DENSE_QUBITS_MAX else 1 << len(used)


def _cut_to(errors: list[dict[str, Any]], circuit: Any) -> dict[str, Any]:
    """The noise of the qubits and instructions that a circuit uses: most of a run's time goes into reading it."""
    used = {circuit.find_bit(qubit).index for instruction in circuit.data for qubit in instruction.qubits}
    # an error in a delay stands for itself in the circuit, under its own label
    names = {instruction.operation.label for instruction in circuit.data} | set(circuit.count_ops())
    return _cut(errors, used, names)


def _cut(errors: list[dict[str, Any]], used: set[int], names: set[str | None]) -> dict[str, Any]:
    met = [
        error
        for error in errors
        if names.intersection(error["operations"])
        and ("gate_qubits" not in error or any(used.issuperset(qubits) for qubits in error["gate_qubits"]))
    ]
    return {"errors": met} if met else {}


def derive_seed(seed: int, index: int) -> int:
    """The seed of the PUB number `index`: that of the job for the first, independent ones for the others."""
    if index == 0 and seed <= SEED_MAX:
        return seed
    return int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0]) & SEED_MAX

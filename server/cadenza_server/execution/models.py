"""What a device is made of, built once a worker: simulator, target, noise and what the device publishes of itself.

Sources: Aer's noise model of a backend (`NoiseModel.from_backend`), Qiskit's `GenericBackendV2`, and IBM's 27-qubit
heavy-hex coupling map (Falcon processors).
"""

import math
import warnings
from functools import partial
from typing import Any, Final

from cadenza.v1.device_pb2 import Coupling, Device, DeviceProperties, GateProperties, QubitProperties
from qiskit import QuantumCircuit
from qiskit.circuit import BreakLoopOp, ContinueLoopOp, ControlFlowOp, Gate
from qiskit.providers.fake_provider import GenericBackendV2
from qiskit.transpiler import CouplingMap, generate_preset_pass_manager
from qiskit_aer import AerSimulator
from qiskit_aer.noise import NoiseModel

from cadenza_server.execution.cache import LatestUsed
from cadenza_server.execution.description import describe_spec
from cadenza_server.execution.errors import ProgramError
from cadenza_server.execution.noise import DriftingNoise, join_terms, read_noise
from cadenza_server.execution.spec import DeviceSpec

# fmt: off
_FALCON: Final = (
    (0, 1), (1, 2), (1, 4), (2, 3), (3, 5), (4, 7), (5, 8), (6, 7), (7, 10), (8, 9), (8, 11), (10, 12), (11, 14),
    (12, 13), (12, 15), (13, 14), (14, 16), (15, 18), (16, 19), (17, 18), (18, 21), (19, 20), (19, 22), (21, 23),
    (22, 25), (23, 24), (24, 25), (25, 26),
)
_AER_GATES: Final = frozenset({
    "ccx", "ccz", "cp", "crx", "cry", "crz", "cswap", "csx", "cu", "cu1", "cu3", "cx", "cy", "cz", "ecr", "h", "id",
    "mcp", "mcx", "p", "r", "rx", "rxx", "ry", "ryy", "rz", "rzx", "rzz", "s", "sdg", "swap", "sx", "sxdg", "t", "tdg",
    "u", "u1", "u2", "u3", "unitary", "x", "y", "z",
})
"""Gates that Aer's state vector method executes as they are; what another method does, Aer says (`find_gates`)."""
# fmt: on
_AER_INSTRUCTIONS: Final = frozenset({"measure", "reset", "barrier", "delay"})
_CONTROL_FLOW: Final = frozenset({"if_else", "for_loop", "while_loop", "switch_case", "break_loop", "continue_loop"})
_CLIFFORD_METHODS: Final = frozenset({"stabilizer", "extended_stabilizer"})
_ROTATIONS: Final = frozenset({"rz", "p", "u1"})
"""Gates with an angle that these methods execute, if it makes them Clifford gates."""

ERRORS_JOINED_MAX: Final = 1024
"""How many errors are kept as one superoperator each, of 4 KiB at most."""

ANGLE_ERROR_MAX: Final = 1e-9

_FREE: Final = frozenset({"barrier"})
"""Directives: they need no support of the device."""


class DeviceModel:
    """A device's simulator, target and noise. Building it takes up to a second; only its age is changed afterwards."""

    def __init__(self, spec: DeviceSpec) -> None:
        self.spec = spec
        self.simulator = AerSimulator(**_simulator_options(spec))
        self.backend: Any = None
        self.noise_model: Any = None
        self.relaxation: Any = None
        """A noise model that has nothing but what delays do."""
        self.noise_errors: list[dict[str, Any]] = []
        """The errors of `noise_model` as Aer's simulator takes them."""
        self._joined: LatestUsed[int, tuple[dict[str, Any], dict[str, Any]]] = LatestUsed(ERRORS_JOINED_MAX)
        self._pass_managers: dict[tuple[int, str], Any] = {}
        self._gates_of: dict[str, frozenset[str]] = {}
        self._control_flow_of: dict[str, frozenset[str]] = {}
        if spec.kind == "generic":
            self.backend = GenericBackendV2(
                spec.num_qubits,
                basis_gates=list(spec.basis_gates),
                coupling_map=_coupling_map(spec),
                control_flow=True,
                seed=spec.seed,
            )
            for name, operation in (("break_loop", BreakLoopOp), ("continue_loop", ContinueLoopOp)):
                # Qiskit has them there by names that its transpiler does not look for: "break" and "continue"
                if name not in self.backend.target:
                    self.backend.target.add_instruction(operation, name=name)
        elif spec.kind == "snapshot":
            self.backend = _load_snapshot(spec.snapshot)
        if spec.is_noisy:
            self.noise_model = NoiseModel.from_backend(self.backend)
            self.noise_errors = read_noise(self.noise_model)
            self.relaxation = NoiseModel(basis_gates=self.noise_model.basis_gates)
            self.relaxation._custom_noise_passes = self.noise_model._custom_noise_passes
        self.drift: DriftingNoise | None = DriftingNoise(self.backend.target, spec) if spec.drift else None
        """None: it does not drift."""

    def set_age(self, epoch: int, age_ns: int) -> None:
        """The next runs are of calibration epoch `epoch`, which lasts `age_ns` by now."""
        if self.drift is not None:
            self.drift.set_age(epoch, age_ns)

    def noise_now(self, noise: dict[str, Any]) -> dict[str, Any]:
        """`noise`, in Aer's form and as calibrated, as it has drifted by now."""
        return noise if self.drift is None else self.drift.apply(noise)

    def joined_noise_now(self, noise: dict[str, Any]) -> dict[str, Any]:
        """The same for the density matrix method, which reads it faster so."""
        # each error is kept with what was made of it, so that its id stays its own
        joined = [
            self._joined.get_or_make(id(error), partial(_join, error))
            for error in self.noise_now(noise).get("errors", ())
        ]
        return {"errors": [made for _, made in joined]} if joined else {}

    def gate_names(self) -> list[str]:
        """The gates of a device that has a basis, by Qiskit's names; empty: it has none."""
        if self.backend is None:
            return []
        target = self.backend.target
        return [name for name in self.backend.operation_names if isinstance(target.operation_from_name(name), Gate)]

    def fit(self, circuit: Any, level: int, *, strict: bool, method: str = "") -> Any:
        """`circuit` as the device executes it: in its basis and on its qubits. With `strict` it must be so already.

        A device without a basis has that of the simulation `method`; without one, of its own method.

        Raises `ProgramError`.
        """
        method = method or self.spec.method
        if strict:
            self._check_isa(circuit, method)
            return circuit
        circuit = _spell_out_states(circuit, all_of_them=method == "matrix_product_state")
        if self.backend is None and (level <= 1 or method in _CLIFFORD_METHODS) and self._executes(circuit, method):
            return circuit
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # advice for whoever calls Qiskit, and that is not the job's author
                if method not in _CLIFFORD_METHODS:
                    return self._pass_manager(level, method).run(circuit)
                # What optimises further makes gates of a Clifford circuit that are not, and cancel each other.
                return _round_angles(self._pass_manager(min(level, 1), method).run(circuit))
        except Exception as error:
            raise ProgramError(f"the circuit cannot be transpiled for the device: {error}") from error

    def load_pass_manager(self) -> None:
        """Make and run the pass manager of the default level: the first one that a process makes takes most of a
        second."""
        circuit = QuantumCircuit(2)
        circuit.iswap(0, 1)
        self._pass_manager(self.spec.transpile_level, self.spec.method).run(circuit)

    def find_gates(self, method: str) -> frozenset[str]:
        """The gates that Aer executes as they are by `method`. Asked once a method: Aer takes milliseconds to say."""
        if method not in self._gates_of:
            self._gates_of[method] = _AER_GATES & set(self._simulator_of(method).operation_names)
        return self._gates_of[method]

    def find_control_flow(self, method: str) -> frozenset[str]:
        """The same of control flow."""
        if method not in self._control_flow_of:
            self._control_flow_of[method] = _CONTROL_FLOW & set(self._simulator_of(method).operation_names)
        return self._control_flow_of[method]

    def _simulator_of(self, method: str) -> Any:
        if method == self.spec.method:
            return self.simulator
        return AerSimulator(**(_simulator_options(self.spec) | {"method": method}))

    def _executes(self, circuit: Any, method: str) -> bool:
        """Whether Aer without a coupling map takes every instruction as it is."""
        supported = self.find_gates(method) | _AER_INSTRUCTIONS
        return all(name in supported for name in circuit.count_ops())

    def _check_isa(self, circuit: Any, method: str) -> None:
        if self.backend is None:
            known = self.find_gates(method) | self.find_control_flow(method) | _AER_INSTRUCTIONS
            unknown = sorted(_find_names(circuit) - known)
            if unknown:
                raise ProgramError(
                    f"strict_isa: the device does not execute {', '.join(unknown)}: transpile the circuit for it first"
                )
            return
        target = self.backend.target
        for instruction in circuit.data:
            operation = instruction.operation
            if operation.name in _FREE:
                continue
            if isinstance(operation, ControlFlowOp):
                self._check_control_flow(operation)
                for block in operation.blocks:
                    self._check_isa_of_block(block, [circuit.find_bit(bit).index for bit in instruction.qubits])
                continue
            qubits = tuple(circuit.find_bit(bit).index for bit in instruction.qubits)
            self._check_supported(target, operation.name, qubits)

    def _check_isa_of_block(self, block: Any, places: list[int]) -> None:
        for instruction in block.data:
            operation = instruction.operation
            if operation.name in _FREE:
                continue
            qubits = [places[block.find_bit(bit).index] for bit in instruction.qubits]
            if isinstance(operation, ControlFlowOp):
                self._check_control_flow(operation)
                for inner in operation.blocks:
                    self._check_isa_of_block(inner, qubits)
            else:
                self._check_supported(self.backend.target, operation.name, tuple(qubits))

    def _check_control_flow(self, operation: ControlFlowOp) -> None:
        if operation.name not in self.backend.target:
            raise ProgramError(f"strict_isa: the device does not execute {operation.name}: it has no such control flow")

    def _check_supported(self, target: Any, name: str, qubits: tuple[int, ...]) -> None:
        if not target.instruction_supported(name, qubits):
            raise ProgramError(
                f"strict_isa: the device does not execute {name} on qubits {list(qubits)}: "
                "transpile the circuit for it first"
            )

    def _pass_manager(self, level: int, method: str) -> Any:
        """Made once: making one costs more than running it."""
        key = (level, method if self.backend is None else "")
        if key not in self._pass_managers:
            self._pass_managers[key] = generate_preset_pass_manager(
                optimization_level=level,
                backend=self.backend if self.backend is not None else self._simulator_of(method),
                seed_transpiler=self.spec.seed,
            )
        return self._pass_managers[key]

    def describe(self, name: str) -> Device:
        """What the device publishes of itself; scheduling's part is not set."""
        spec = self.spec
        device = describe_spec(name, spec)
        if self.backend is None:
            method = self.spec.method
            names = self.find_gates(method) | self.find_control_flow(method) | _AER_INSTRUCTIONS - _FREE
            device.basis_gates.extend(sorted(names))
            return device
        device.basis_gates.extend(self.backend.operation_names)
        pairs = self.backend.coupling_map.get_edges() if self.backend.coupling_map else ()
        device.coupling_map.extend(Coupling(first=first, second=second) for first, second in sorted(pairs))
        device.properties.CopyFrom(self._properties())
        return device

    def _properties(self) -> DeviceProperties:
        """The modelled properties, those that the noise is made of."""
        target = self.backend.target
        properties = DeviceProperties(dt_s=target.dt)
        for qubit in range(target.num_qubits):
            known: Any = target.qubit_properties[qubit]
            measure = target["measure"][qubit,]
            properties.qubits.append(
                QubitProperties(
                    qubit=qubit,
                    t1_s=known.t1,
                    t2_s=known.t2,
                    frequency_hz=known.frequency,
                    readout_error=measure.error,
                    prob_meas1_prep0=measure.error,
                    prob_meas0_prep1=measure.error,
                    readout_duration_s=measure.duration,
                )
            )
        for gate in target.operation_names:
            if gate == "measure":
                continue
            by_qubits: dict[Any, Any] = target[gate] or {}
            for qubits, known in by_qubits.items():
                if qubits is not None and known is not None:
                    properties.gates.append(
                        GateProperties(gate=gate, qubits=qubits, error=known.error, duration_s=known.duration)
                    )
        return properties


def _find_names(circuit: Any) -> set[str]:
    """The names of all instructions of a circuit, also of those inside control flow."""
    names = set(circuit.count_ops())
    for instruction in circuit.data:
        if isinstance(instruction.operation, ControlFlowOp):
            for block in instruction.operation.blocks:
                names |= _find_names(block)
    return names


def _join(error: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    return error, join_terms(error)


def _simulator_options(spec: DeviceSpec) -> dict[str, Any]:
    """What Aer is told once. Where the memory is limited, Aer says itself how much a circuit would have needed."""
    options = {
        "method": spec.method,
        "precision": spec.precision,
        "max_parallel_threads": spec.threads,
        "max_memory_mb": max(1, spec.memory_bytes // 2**20),
    }
    if spec.accelerator == "gpu":
        options |= {
            "device": "GPU",
            "batched_shots_gpu": spec.batched_shots,
            "cuStateVec_enable": spec.custatevec,
        }
    return options


def _round_angles(circuit: Any) -> Any:
    """`circuit` with angles that are multiples of pi/2 but for rounding made so: Aer's Clifford methods take nothing
    else, and the transpiler adds angles up."""
    anew = circuit.copy_empty_like()
    for instruction in circuit.data:
        if instruction.name in _ROTATIONS and isinstance(angle := instruction.params[0], float):
            quarter = round(angle / (math.pi / 2))
            if abs(angle - quarter * math.pi / 2) < ANGLE_ERROR_MAX:
                gate = instruction.operation.to_mutable()
                gate.params = [quarter % 4 * math.pi / 2]
                instruction = instruction.replace(operation=gate)
        anew.append(instruction)
    return anew


def _spell_out_states(circuit: Any, *, all_of_them: bool) -> Any:
    """`circuit` with the gates that bring qubits into a state in the place of `initialize`, or itself if it has none.

    Aer's own is wrong for two or more qubits by the matrix product state method (qiskit-aer 0.18), and knows no names
    of states inside control flow. All others are left to it, as they take it one step.
    """
    anew = circuit.copy_empty_like()
    changed = False
    for instruction in circuit.data:
        operation = instruction.operation
        if isinstance(operation, ControlFlowOp):
            blocks = [_spell_out_states(block, all_of_them=all_of_them) for block in operation.blocks]
            if any(block is not before for block, before in zip(blocks, operation.blocks, strict=True)):
                instruction = instruction.replace(operation=operation.replace_blocks(blocks))
                changed = True
        elif operation.name == "initialize" and (all_of_them or isinstance(operation.params[0], str)):
            for step in operation.definition.data:
                qubits = [instruction.qubits[operation.definition.find_bit(bit).index] for bit in step.qubits]
                anew.append(step.operation, qubits)
            anew.global_phase += operation.definition.global_phase
            changed = True
            continue
        anew.append(instruction)
    return anew if changed else circuit


def _load_snapshot(name: str) -> Any:
    """The published backend. Its package takes a second to import, and nobody else needs it."""
    from qiskit_ibm_runtime import fake_provider

    backend = getattr(fake_provider, name)()
    for constraint in ("granularity", "min_length", "pulse_alignment", "acquire_alignment"):
        # a simulation has none, they are not published, and Qiskit refuses delays that are not multiples of them
        setattr(backend.target, constraint, 1)
    return backend


def _coupling_map(spec: DeviceSpec) -> Any:
    """None: all pairs."""
    if spec.coupling == "full":
        return None
    if spec.coupling == "line":
        return CouplingMap.from_line(spec.num_qubits)
    if spec.coupling == "ring":
        return CouplingMap.from_ring(spec.num_qubits)
    pairs = _FALCON if isinstance(spec.coupling, str) else spec.coupling
    both_ways = {(int(a), int(b)) for a, b in pairs} | {(int(b), int(a)) for a, b in pairs}
    coupling = CouplingMap(sorted(both_ways))
    for qubit in range(spec.num_qubits):
        if qubit not in coupling.physical_qubits:
            coupling.add_physical_qubit(qubit)
    return coupling


def is_measured_at_the_end(circuit: Any) -> bool:
    """Whether taking the final measurements away would take any."""
    counts = circuit.count_ops()
    if "measure" not in counts:
        return False
    bare: QuantumCircuit = circuit.remove_final_measurements(inplace=False)
    return bool(bare.count_ops().get("measure", 0) < counts["measure"])

"""A device as Qiskit's `BackendV2`: what it can do, how good it is, how busy it is."""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, Self

from qiskit import QuantumCircuit
from qiskit.circuit import Delay, Instruction, Measure, Parameter, Reset
from qiskit.circuit.controlflow import (
    BreakLoopOp,
    ContinueLoopOp,
    ForLoopOp,
    IfElseOp,
    SwitchCaseOp,
    WhileLoopOp,
)
from qiskit.circuit.library import DiagonalGate, Initialize, MCPhaseGate, MCXGate, UnitaryGate
from qiskit.circuit.library.standard_gates import get_standard_gate_name_mapping
from qiskit.providers import BackendV2, Options, QubitProperties
from qiskit.transpiler import InstructionProperties, Target

from cadenza._errors import NotFoundError, OptionError, WrongTypeError, refuse_elsewhere
from cadenza._times import read_seconds, read_time
from cadenza.v1 import device_pb2

if TYPE_CHECKING:
    from cadenza._circuit_job import CircuitJob
    from cadenza._service import CadenzaService

Qubits = tuple[int, ...]

_ANY_WIDTH: Final[dict[str, type[Instruction]]] = {
    "if_else": IfElseOp,
    "while_loop": WhileLoopOp,
    "for_loop": ForLoopOp,
    "switch_case": SwitchCaseOp,
    "break_loop": BreakLoopOp,
    "continue_loop": ContinueLoopOp,
    "unitary": UnitaryGate,
    "initialize": Initialize,
    "diagonal": DiagonalGate,
    "mcx": MCXGate,
    "mcphase": MCPhaseGate,
}
"""What acts on any number of qubits stands in a `Target` as a class."""

_QUBIT_FIELDS: Final = {
    "T1": "t1_s",
    "T2": "t2_s",
    "frequency": "frequency_hz",
    "readout_error": "readout_error",
    "prob_meas0_prep1": "prob_meas0_prep1",
    "prob_meas1_prep0": "prob_meas1_prep0",
    "readout_length": "readout_duration_s",
}
_GATE_FIELDS: Final = {"gate_error": "error", "gate_length": "duration_s"}
"""What qiskit_ibm_runtime calls the contract's fields."""


@dataclass(frozen=True)
class BackendStatus:
    """How a device is now, by the names of qiskit_ibm_runtime."""

    backend_name: str
    backend_version: str
    operational: bool
    """False only while it cannot run jobs; they are accepted and wait."""
    pending_jobs: int
    """Queued jobs of everybody, and the running one."""
    status_msg: str
    """`active`, or why not."""
    state: str
    """`starting`, `free`, `running`, `held` (it waits for its active session's next job) or `offline`."""

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """From what `to_dict` gives."""
        return cls(**data)

    def to_dict(self) -> dict[str, Any]:
        """As a dictionary."""
        return asdict(self)


@dataclass(frozen=True)
class BackendProperties:
    """What was measured or modelled in one calibration epoch. Seconds, hertz, probabilities; None: not known."""

    backend_name: str
    epoch: int
    last_update_date: datetime | None
    """When it was measured, in local time; None: from the configuration."""
    qubits: Mapping[int, device_pb2.QubitProperties]
    gates: Mapping[tuple[str, Qubits], device_pb2.GateProperties]

    def t1(self, qubit: int) -> float | None:
        """Relaxation time in seconds."""
        return self._qubit(qubit, "t1_s")

    def t2(self, qubit: int) -> float | None:
        """Dephasing time in seconds."""
        return self._qubit(qubit, "t2_s")

    def frequency(self, qubit: int) -> float | None:
        """Frequency in hertz."""
        return self._qubit(qubit, "frequency_hz")

    def readout_error(self, qubit: int) -> float | None:
        """Probability that a measurement errs."""
        return self._qubit(qubit, "readout_error")

    def readout_length(self, qubit: int) -> float | None:
        """How long a measurement takes, in seconds."""
        return self._qubit(qubit, "readout_duration_s")

    def gate_error(self, gate: str, qubits: int | Iterable[int]) -> float | None:
        """Average gate infidelity."""
        return self._gate(gate, qubits, "error")

    def gate_length(self, gate: str, qubits: int | Iterable[int]) -> float | None:
        """How long the gate takes, in seconds."""
        return self._gate(gate, qubits, "duration_s")

    def is_qubit_operational(self, qubit: int) -> bool:
        """Whether the device has the qubit: all that it has work."""
        return qubit in self.qubits

    def is_gate_operational(self, gate: str, qubits: int | Iterable[int] | None = None) -> bool:
        """Whether the device has the gate on these qubits, or anywhere: all that it has work."""
        if qubits is None:
            return any(name == gate for name, _ in self.gates)
        on = (qubits,) if isinstance(qubits, int) else tuple(qubits)
        return (gate, on) in self.gates or (gate, ()) in self.gates

    def faulty_qubits(self) -> list[int]:
        """None: all that a device here has work."""
        return []

    def faulty_gates(self) -> list[Any]:
        """None: all that a device here has work."""
        return []

    def qubit_property(self, qubit: int, name: str | None = None) -> Any:
        """A property, such as `T1` or `readout_error`, and when it was measured; without `name` a dictionary of all
        that are known. Raises `NotFoundError`."""
        return _pick(self._dated(self.qubits.get(qubit), _QUBIT_FIELDS), name, f"qubit {qubit}")

    def gate_property(self, gate: str, qubits: int | Iterable[int] | None = None, name: str | None = None) -> Any:
        """`gate_error` or `gate_length`, and when it was measured; without `name` a dictionary of both; without
        `qubits` a dictionary of these for all places of the gate. Raises `NotFoundError`."""
        if qubits is None:
            if name is not None:
                raise _unknown_property(f"{name} of {gate} without qubits")
            places = {on: self._dated(known, _GATE_FIELDS) for (each, on), known in self.gates.items() if each == gate}
            return _pick(places, None, f"the gate {gate}")
        on = (qubits,) if isinstance(qubits, int) else tuple(qubits)
        known = self.gates.get((gate, on), self.gates.get((gate, ())))
        return _pick(self._dated(known, _GATE_FIELDS), name, f"{gate} on qubits {list(on)}")

    def _dated(self, message: Any, fields: Mapping[str, str]) -> dict[str, tuple[float, datetime | None]]:
        values = {name: _optional(message, field) for name, field in fields.items()}
        return {name: (value, self.last_update_date) for name, value in values.items() if value is not None}

    def _qubit(self, qubit: int, field: str) -> float | None:
        return _optional(self.qubits.get(qubit), field)

    def _gate(self, gate: str, qubits: int | Iterable[int], field: str) -> float | None:
        on = (qubits,) if isinstance(qubits, int) else tuple(qubits)
        return _optional(self.gates.get((gate, on), self.gates.get((gate, ()))), field)


class CadenzaBackend(BackendV2):  # type: ignore[misc]
    """A device of a server. `CadenzaService.backend` and `.backends` make them.

    Jobs go through `SamplerV2` and `EstimatorV2`. What the handle says of the device is as of when it was made, or of
    the last `refresh`; `status` asks.
    """

    def __init__(self, service: "CadenzaService", device: device_pb2.Device) -> None:
        super().__init__(
            provider=service, name=device.name, description=device.description, backend_version=str(device.epoch)
        )
        self._device = device
        self._target: Target | None = None

    def __repr__(self) -> str:
        return f"<CadenzaBackend({self.name!r})>"

    def __deepcopy__(self, _memo: object) -> "CadenzaBackend":
        return copy.copy(self)

    @property
    def service(self) -> "CadenzaService":
        """The service that it belongs to."""
        service: CadenzaService = self.provider
        return service

    @property
    def num_qubits(self) -> int:
        """How many qubits it has; for a simulator, how many a circuit may have at most."""
        return self._device.num_qubits

    @property
    def target(self) -> Target:
        """What transpilers want to know: gates, coupling, errors and durations."""
        if self._target is None:
            self._target = make_target(self._full())
        return self._target

    @property
    def max_circuits(self) -> int | None:
        """How many PUBs a job may have; None: any number."""
        return self.service.limits.pubs_per_job_max or None

    @property
    def simulator(self) -> bool:
        """Whether it is a simulator."""
        return self._device.simulator

    @property
    def basis_gates(self) -> list[str]:
        """Names of the instructions that it executes as they are."""
        return list(self._device.basis_gates)

    @property
    def methods(self) -> list[str]:
        """Simulation methods that `options.simulator.method` may name."""
        return list(self._device.methods)

    @property
    def epoch(self) -> int:
        """The calibration epoch, from 0."""
        return self._device.epoch

    def configuration(self) -> SimpleNamespace:
        """What does not change, by the names that older programs read: `n_qubits`, `basis_gates`, `coupling_map`...

        They are attributes of the backend itself, too.
        """
        device = self._device
        pairs = [[pair.first, pair.second] for pair in device.coupling_map]
        return SimpleNamespace(
            backend_name=device.name,
            backend_version=self.backend_version,
            n_qubits=device.num_qubits,
            num_qubits=device.num_qubits,
            basis_gates=list(device.basis_gates),
            coupling_map=pairs or None,
            supported_instructions=list(device.basis_gates),
            dt=self._cycle(),
            dynamic_circuits="if_else" in device.basis_gates,
            local=False,
            memory=True,
            conditional="if_else" in device.basis_gates,
            open_pulse=False,
            simulator=device.simulator,
            max_shots=self.service.limits.shots_per_pub_max or None,
            max_experiments=self.max_circuits,
            description=device.description,
            kind=device.kind,
            accelerator=device.accelerator,
        )

    def status(self) -> BackendStatus:
        """How it is now."""
        device = self.service.client.get_device(self.name)
        state = device_pb2.DeviceState.Name(device.state).removeprefix("DEVICE_STATE_").lower()
        operational = device.state != device_pb2.DEVICE_STATE_OFFLINE
        return BackendStatus(
            backend_name=device.name,
            backend_version=str(device.epoch),
            operational=operational,
            pending_jobs=pending_jobs(device),
            status_msg="active" if operational else device.detail or "offline",
            state=state,
        )

    def properties(self, refresh: bool = False, datetime: None = None) -> BackendProperties | None:
        """Its measured or modelled qualities; None for an ideal simulator. `refresh`: ask again. The server keeps the
        latest only, so `datetime` must be None."""
        refuse_elsewhere(datetime=datetime)
        if refresh:
            self.refresh()
        device = self._full()
        properties = device.properties
        if not properties.qubits and not properties.gates:
            return None
        return BackendProperties(
            backend_name=device.name,
            epoch=properties.epoch,
            last_update_date=read_time(properties.measure_time) if properties.HasField("measure_time") else None,
            qubits={qubit.qubit: qubit for qubit in properties.qubits},
            gates={(gate.gate, tuple(gate.qubits)): gate for gate in properties.gates},
        )

    def estimate_error(self) -> dict[str, float] | None:
        """How far the scheduler's estimates were from the lengths of its latest runs, asked for now; None: none has
        ended yet.

        `run_count`: how many runs; `factor_p50`, `factor_p90`: the larger of the two divided by the smaller, in half of
        the runs and in nine of ten at most so much; `seconds_p50`, `seconds_p90`: the same of the difference.
        """
        device = self.service.client.get_device(self.name)
        if not device.HasField("estimate_error"):
            return None
        error = device.estimate_error
        return {
            "run_count": error.run_count,
            "factor_p50": error.factor_p50,
            "factor_p90": error.factor_p90,
            "seconds_p50": read_seconds(error.difference_p50),
            "seconds_p90": read_seconds(error.difference_p90),
        }

    def check_faulty(self, circuit: QuantumCircuit) -> None:
        """Does nothing: no qubit and no gate of a device here is faulty."""

    def refresh(self) -> None:
        """Ask the server for what the device is now: a calibration changes errors and the target."""
        self._device = self.service.client.get_device(self.name)
        self.backend_version = str(self._device.epoch)
        self._target = None

    def run(
        self,
        run_input: QuantumCircuit | Iterable[QuantumCircuit],
        *,
        shots: int | None = None,
        memory: bool = False,
        seed_simulator: int | None = None,
        meas_level: int | None = None,
        **options: Any,
    ) -> "CircuitJob":
        """Run circuits without parameters as one Sampler job, for programs that know no primitives; inside a `with`
        block of a session, in that session.

        `memory`: the result also has each shot. `meas_level`: 2 or None. `options`: those of `SamplerOptions`.
        Raises `OptionError`, `InvalidRequestError` or what `SamplerV2.run` raises.
        """
        from cadenza._circuit_job import CircuitJob, check_clbits
        from cadenza._primitives import SamplerV2

        circuits = [run_input] if isinstance(run_input, QuantumCircuit) else list(run_input)
        if meas_level not in (None, 2):
            raise OptionError(
                f"option 'meas_level': {meas_level} does not exist here: measurements are classified (2)",
                code="INVALID_ARGUMENT",
                reason="INVALID_FIELD",
                field="meas_level",
            )
        for circuit in circuits:
            if not isinstance(circuit, QuantumCircuit):
                raise WrongTypeError(f"run_input: {type(circuit).__name__} is no circuit", code="INVALID_ARGUMENT")
            check_clbits(circuit)
        sampler = SamplerV2(mode=self, options=options)
        if seed_simulator is not None:
            sampler.options.simulator.seed_simulator = seed_simulator
        return CircuitJob(sampler.run(circuits, shots=shots), circuits, memory)

    def __getattr__(self, name: str) -> Any:
        """What the configuration says: `backend.max_shots`, `backend.n_qubits` and so on."""
        if not name.startswith("_"):
            found = getattr(self.configuration(), name, None)
            if found is not None:
                return found
        raise AttributeError(f"a backend has no {name!r}")

    @classmethod
    def _default_options(cls) -> Options:
        return Options()

    def _cycle(self) -> float | None:
        """`dt`, the seconds of one cycle of the device, without its whole target; None: it has none."""
        return _optional(self._full().properties, "dt_s")

    def _full(self) -> device_pb2.Device:
        """The device with its properties, which lists leave out."""
        if not self._device.HasField("properties"):
            self._device = self.service.client.get_device(self.name)
        return self._device


def _pick(known: Mapping[Any, Any], name: str | None, owner: str) -> Any:
    """One of the properties, or all of them. Raises `NotFoundError`."""
    if not known or (name is not None and name not in known):
        raise _unknown_property(f"{name or 'a property'} of {owner}")
    return known if name is None else known[name]


def _unknown_property(what: str) -> NotFoundError:
    return NotFoundError(f"the device's properties do not say {what}", code="NOT_FOUND")


def pending_jobs(device: device_pb2.Device) -> int:
    """Queued jobs of everybody, and the running one."""
    counts = device.queue_counts
    return counts.calibration + counts.session + counts.fair_share + bool(device.running_job_id)


@cache
def _gates() -> dict[str, Instruction]:
    return {
        **get_standard_gate_name_mapping(),
        "measure": Measure(),
        "reset": Reset(),
        "delay": Delay(Parameter("t")),
    }


def make_target(device: device_pb2.Device) -> Target:
    """Qiskit's `Target`. Without a coupling map and gate properties every gate acts on any qubits, without error.

    Instructions that this Qiskit has no name for are left out: a transpiler cannot use them.
    """
    qubits = {qubit.qubit: qubit for qubit in device.properties.qubits}
    known = device.properties
    target = Target(
        description=device.name,
        num_qubits=device.num_qubits,
        dt=known.dt_s if known.HasField("dt_s") else None,
        qubit_properties=[_qubit_properties(qubits.get(index)) for index in range(device.num_qubits)]
        if qubits
        else None,
    )
    pairs = [(pair.first, pair.second) for pair in device.coupling_map]
    measured: dict[str, dict[Qubits, InstructionProperties]] = {}
    for gate in known.gates:
        if gate.qubits:
            measured.setdefault(gate.gate, {})[tuple(gate.qubits)] = InstructionProperties(
                error=_optional(gate, "error"), duration=_optional(gate, "duration_s")
            )
    if qubits:
        measured["measure"] = {
            (index,): InstructionProperties(
                error=_optional(qubit, "readout_error"), duration=_optional(qubit, "readout_duration_s")
            )
            for index, qubit in qubits.items()
        }
    for name in dict.fromkeys([*device.basis_gates, "measure"]):
        if name in _ANY_WIDTH:
            target.add_instruction(_ANY_WIDTH[name], name=name)
        elif name in _gates():
            gate_on = _places(_gates()[name], device.num_qubits, pairs, measured.get(name))
            if gate_on is None or gate_on:
                target.add_instruction(_gates()[name], gate_on, name=name)
    return target


def _places(
    gate: Instruction, num_qubits: int, pairs: list[tuple[int, int]], measured: Mapping[Qubits, Any] | None
) -> dict[Qubits, Any] | None:
    """Where a gate acts, with its properties; None: anywhere; empty: nowhere."""
    if measured:
        return dict(measured)
    if not pairs:
        return None
    match gate.num_qubits:
        case 1:
            return {(qubit,): None for qubit in range(num_qubits)}
        case 2:
            return dict.fromkeys(pairs)
        case _:
            return {}


def _qubit_properties(qubit: device_pb2.QubitProperties | None) -> QubitProperties:
    return QubitProperties(
        t1=_optional(qubit, "t1_s"), t2=_optional(qubit, "t2_s"), frequency=_optional(qubit, "frequency_hz")
    )


def _optional(message: Any, field: str) -> float | None:
    return getattr(message, field) if message is not None and message.HasField(field) else None

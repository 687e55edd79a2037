"""`backend.run`, for programs that do not use the primitives: a Sampler job shown as Qiskit's `Result`."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final, NoReturn

import numpy as np
from qiskit import QuantumCircuit
from qiskit.primitives import PrimitiveResult, SamplerPubResult
from qiskit.providers import JobStatus, JobV1
from qiskit.result import Result
from qiskit.result.models import ExperimentResult, ExperimentResultData

from cadenza._errors import InvalidRequestError, PreconditionError
from cadenza._job import Job

_STATUSES: Final = {
    "INITIALIZING": JobStatus.INITIALIZING,
    "QUEUED": JobStatus.QUEUED,
    "RUNNING": JobStatus.RUNNING,
    "CANCELLED": JobStatus.CANCELLED,
    "DONE": JobStatus.DONE,
    "ERROR": JobStatus.ERROR,
}


class CircuitJob(JobV1):  # type: ignore[misc]
    """What `CadenzaBackend.run` returns: Qiskit's `JobV1` over a `Job`, which is `primitive_job`."""

    def __init__(self, job: Job, circuits: Sequence[QuantumCircuit], memory: bool) -> None:
        super().__init__(job.backend(), job.job_id())
        self.primitive_job = job
        """The Sampler's job, for what Qiskit's has no name for."""
        self._circuits = list(circuits)
        self._memory = memory

    def submit(self) -> NoReturn:
        """It was submitted when it was made: raises `InvalidRequestError`."""
        raise InvalidRequestError("the job was submitted by backend.run()", code="INVALID_ARGUMENT")

    def status(self) -> JobStatus:
        """Qiskit's enumeration; QUEUED until the device takes it."""
        return _STATUSES[self.primitive_job.status()]

    def cancel(self) -> bool:
        """Cancel it; False if it has ended."""
        try:
            self.primitive_job.cancel()
        except PreconditionError:
            return False
        return True

    def result(self, timeout: float | None = None) -> Result:
        """Counts of each circuit, and the memory if it was asked for. Raises as `Job.result`."""
        result: PrimitiveResult = self.primitive_job.result(timeout)
        return Result(
            backend_name=self.backend().name,
            backend_version=self.backend().backend_version,
            job_id=self.job_id(),
            success=True,
            results=[
                make_experiment(circuit, pub, self._memory) for circuit, pub in zip(self._circuits, result, strict=True)
            ],
            metadata=dict(result.metadata),
        )


def check_clbits(circuit: QuantumCircuit) -> None:
    """Raises `InvalidRequestError` for a bit in no register: the Sampler gives registers."""
    loose = sum(1 for bit in circuit.clbits if not circuit.find_bit(bit).registers)
    if loose:
        raise InvalidRequestError(
            f"circuit {circuit.name!r} has {loose} classical bits in no register: add a ClassicalRegister",
            code="INVALID_ARGUMENT",
            reason="INVALID_CIRCUIT",
            field="run_input",
        )


def make_experiment(circuit: QuantumCircuit, pub: SamplerPubResult, memory: bool) -> ExperimentResult:
    """One circuit's part of a `Result`: all classical bits of a shot as one number, bit 0 the lowest."""
    shots = next((pub.data[register.name].num_shots for register in circuit.cregs if register.size), 0)
    bits = np.zeros((shots, max(circuit.num_clbits, 1)), dtype=bool)
    for register in circuit.cregs:
        if register.size:
            places = [circuit.find_bit(bit).index for bit in register]
            bits[:, places] = pub.data[register.name].to_bool_array("little")
    packed = np.packbits(bits, axis=-1, bitorder="little")
    values = [hex(int.from_bytes(row, "little")) for row in map(np.ndarray.tobytes, packed)]
    header: dict[str, Any] = {
        "name": circuit.name,
        "n_qubits": circuit.num_qubits,
        "memory_slots": circuit.num_clbits,
        "creg_sizes": [[register.name, register.size] for register in circuit.cregs],
        "clbit_labels": [[register.name, index] for register in circuit.cregs for index in range(register.size)],
        "global_phase": float(circuit.global_phase) if not circuit.parameters else 0.0,
        "metadata": circuit.metadata or {},
    }
    data = ExperimentResultData(counts=dict(Counter(values)), **({"memory": values} if memory else {}))
    return ExperimentResult(shots=shots, success=True, data=data, status="DONE", header=header)

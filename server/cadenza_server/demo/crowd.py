"""Users who always have circuits queued, each as a program of its own would: submit, wait, submit the next."""

import threading
from collections import deque
from collections.abc import Sequence
from typing import Final

from cadenza import CadenzaError, CadenzaService, Job, SamplerV2
from qiskit.circuit import QuantumCircuit
from qiskit.circuit.library import quantum_volume

QUEUED_JOBS: Final = 3
"""How many jobs each keeps on the server, so that one always waits while another runs."""

QUBITS: Final = 16
SHOTS: Final = 1000


def quantum_volume_circuits(count: int, seed: int) -> list[QuantumCircuit]:
    """Square random circuits, as quantum volume measures a device with; some tenths of a second each."""
    circuits = []
    for i in range(count):
        circuit = quantum_volume(QUBITS, QUBITS, seed=seed + i)
        circuit.measure_all()
        circuits.append(circuit)
    return circuits


class Crowd:
    """Threads that keep `users` busy on a device between `start` and `stop`."""

    def __init__(self, target: str, device: str, users: Sequence[str]) -> None:
        self._target = target
        self._device = device
        self._stopping = threading.Event()
        self._failure: Exception | None = None
        self._finished = 0
        self._changed = threading.Condition()
        self._threads = [threading.Thread(target=self._work, args=(u, i), name=u) for i, u in enumerate(users)]

    def start(self) -> None:
        """Begin to submit."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Cancel what is left and wait until nobody submits any more."""
        self._stopping.set()
        with self._changed:
            self._changed.notify_all()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def wait_for_jobs(self, more: int, timeout_s: float = 60.0) -> None:
        """Wait until `more` further jobs have ended. Raises what stopped a member of the crowd, or `TimeoutError`."""
        with self._changed:
            goal = self._finished + more
            if not self._changed.wait_for(
                lambda: self._finished >= goal or self._failure is not None or self._stopping.is_set(), timeout_s
            ):
                raise TimeoutError(f"the other users' jobs did not end within {timeout_s} s")
            if self._failure is not None:
                raise self._failure

    def _work(self, user: str, index: int) -> None:
        jobs: deque[Job] = deque()
        try:
            with CadenzaService(self._target, user=user, token="", tls=False) as service:
                sampler = SamplerV2(mode=service.backend(self._device))
                circuits = deque(quantum_volume_circuits(4, seed=100 * index))
                while not self._stopping.is_set():
                    while len(jobs) < QUEUED_JOBS:
                        jobs.append(sampler.run([circuits[0]], shots=SHOTS))
                        circuits.rotate()
                    jobs[0].result()
                    jobs.popleft()
                    with self._changed:
                        self._finished += 1
                        self._changed.notify_all()
                for job in reversed(jobs):
                    if not job.in_final_state():
                        cancel_quietly(job)
        except Exception as error:
            with self._changed:
                self._failure = error
                self._changed.notify_all()


def cancel_quietly(job: Job) -> None:
    """Cancel a job that may just have ended."""
    try:
        job.cancel()
    except CadenzaError as error:
        if error.reason != "JOB_FINAL":
            raise

"""Real servers on free ports, and clients made of the generated stubs alone."""

import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from cadenza.v1 import (
    device_service_pb2_grpc,
    job_pb2,
    job_service_pb2,
    job_service_pb2_grpc,
    reservation_service_pb2_grpc,
    server_service_pb2_grpc,
    session_service_pb2_grpc,
    share_service_pb2_grpc,
)
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from tests.running_server import RunningServer, command, running

CALL_SECONDS_MAX = 30.0
FINAL = (job_pb2.JOB_STATE_SUCCEEDED, job_pb2.JOB_STATE_FAILED, job_pb2.JOB_STATE_CANCELLED)

CONFIG = """
[server]
operators = ["rani"]
[devices.line]
kind = "generic"
num_qubits = 5
coupling = "line"
[devices.sim]
kind = "aer"
num_qubits = 20
[devices.spare]
kind = "aer"
num_qubits = 4
"""
"""Three devices; `sim` is for jobs that run, `spare` for tests that need one to themselves."""


@dataclass
class Refused:
    """A call that was refused."""

    code: grpc.StatusCode
    message: str
    reason: str
    metadata: dict[str, str] = field(default_factory=dict)
    details: list[Any] = field(default_factory=list)


@contextmanager
def refusal() -> Iterator[Callable[[], Refused]]:
    """The refusal of the one call inside, to be asked for after the block."""
    found: list[Refused] = []
    with pytest.raises(grpc.RpcError) as caught:
        yield lambda: found[0]
    error: Any = caught.value
    trailing = dict(tuple(error.trailing_metadata() or ()))
    status = Status.FromString(trailing.get("grpc-status-details-bin", b""))
    info = ErrorInfo()
    for detail in status.details:
        if detail.Unpack(info):
            assert info.domain == "cadenza"
    found.append(Refused(error.code(), error.details(), info.reason, dict(info.metadata), list(status.details)))


class Client:
    """Calls by name with a caller's metadata: `client.jobs("GetJob", request)`."""

    def __init__(self, address: str, metadata: tuple[tuple[str, str], ...]) -> None:
        self.metadata = metadata
        self.channel = grpc.insecure_channel(
            address, options=(("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))
        )
        self.server = self._calls(server_service_pb2_grpc.ServerServiceStub)
        self.sessions = self._calls(session_service_pb2_grpc.SessionServiceStub)
        self.jobs = self._calls(job_service_pb2_grpc.JobServiceStub)
        self.devices = self._calls(device_service_pb2_grpc.DeviceServiceStub)
        self.reservations = self._calls(reservation_service_pb2_grpc.ReservationServiceStub)
        self.shares = self._calls(share_service_pb2_grpc.ShareServiceStub)

    def _calls(self, make_stub: Callable[[grpc.Channel], Any]) -> Callable[[str, Any], Any]:
        stub = make_stub(self.channel)
        return lambda name, request: getattr(stub, name)(request, metadata=self.metadata, timeout=CALL_SECONDS_MAX)

    def submit(self, spec: job_pb2.JobSpec, request_id: str = "") -> job_pb2.Job:
        request = job_service_pb2.SubmitJobRequest(job=spec, request_id=request_id)
        job: job_pb2.Job = self.jobs("SubmitJob", request).job
        return job

    def wait(self, job_id: str) -> job_pb2.Job:
        """The job in its final state, by its watch."""
        last = None
        for answer in self.jobs("WatchJob", job_service_pb2.WatchJobRequest(job_id=job_id)):
            change = answer.event.WhichOneof("change")
            if change in ("job_snapshot", "job_ended"):
                last = getattr(answer.event, change).job
        assert last is not None
        assert last.state in FINAL, last
        job: job_pb2.Job = last
        return job

    def wait_until(self, job_id: str, state: int) -> None:
        """Until the job has been seen in `state`."""
        for answer in self.jobs("WatchJob", job_service_pb2.WatchJobRequest(job_id=job_id)):
            event = answer.event
            if event.WhichOneof("change") == "job_snapshot" and event.job_snapshot.job.state == state:
                return
            if event.WhichOneof("change") == "job_started" and state == job_pb2.JOB_STATE_RUNNING:
                return
        raise AssertionError(f"{job_id} never came to {state}")

    def job_ids(self) -> list[str]:
        return [job.job_id for job in self.jobs("ListJobs", job_service_pb2.ListJobsRequest(page_size=1000)).jobs]

    def close(self) -> None:
        self.channel.close()


Connect = Callable[..., Client]


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """One server for all tests that only add to it. Names are trusted; `rani` is an operator."""
    with running(tmp_path_factory.mktemp("server"), CONFIG) as started:
        yield started
        assert started.process.poll() is None, started.output


@pytest.fixture
def connect(server: RunningServer) -> Iterator[Connect]:
    """`connect("lab/ann")`: a client of the shared server; `connect(address=..., token=...)` of another one."""
    clients: list[Client] = []

    def make(user: str | None = None, *, address: str | None = None, token: str | None = None) -> Client:
        metadata = []
        if user is not None:
            metadata.append(("cadenza-user", user))
        if token is not None:
            metadata.append(("authorization", f"Bearer {token}"))
        clients.append(Client(address or server.address, tuple(metadata)))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def ghz(qubits: int = 2) -> bytes:
    """A GHZ circuit that measures all its qubits, as QPY."""
    from qiskit import QuantumCircuit, qpy

    circuit = QuantumCircuit(qubits)
    circuit.h(0)
    for qubit in range(1, qubits):
        circuit.cx(qubit - 1, qubit)
    circuit.measure_all()
    buffer = io.BytesIO()
    qpy.dump(circuit, buffer)
    return buffer.getvalue()


SLOW = 'OPENQASM 3.0;\ninclude "stdgates.inc";\nqubit[{0}] q;\nbit[{0}] c;\n'


def slow(qubits: int = 20, layers: int = 40) -> str:
    """A circuit that keeps a simulator busy for seconds: a dense state, and gates that cannot be merged away."""
    lines = [SLOW.format(qubits)]
    for layer in range(layers):
        lines += [f"rx(0.{layer + 1}{qubit}) q[{qubit}];" for qubit in range(qubits)]
        lines += [f"cx q[{qubit}], q[{qubit + 1}];" for qubit in range(qubits - 1)]
    return "\n".join([*lines, "c = measure q;"])


def sampler_job(
    *, device: str = "", session: str = "", shots: int = 100, circuit: Any = None, **fields: Any
) -> job_pb2.JobSpec:
    """A sampler job; `circuit` is QPY bytes, OpenQASM 3 text or a `Circuit`."""
    spec = job_pb2.JobSpec(device=device, session_id=session, **fields)
    pub = spec.program.sampler.pubs.add(shots=shots)
    if circuit is None:
        circuit = ghz()
    if isinstance(circuit, bytes):
        pub.circuit.qpy = circuit
    elif isinstance(circuit, str):
        pub.circuit.openqasm3 = circuit
    else:
        pub.circuit.CopyFrom(circuit)
    return spec


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
    """Ask again until it is so; what is waited for has no stream to watch."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.02)


@dataclass(frozen=True)
class Kit:
    """What test modules use of this file; they cannot import it."""

    ghz: Callable[..., bytes] = ghz
    slow: Callable[..., str] = slow
    sampler_job: Callable[..., job_pb2.JobSpec] = sampler_job
    refusal: Callable[[], Any] = refusal
    running: Callable[..., Any] = running
    command: Callable[..., list[str]] = command
    wait_for: Callable[..., None] = wait_for


@pytest.fixture(scope="session")
def kit() -> Kit:
    return Kit()

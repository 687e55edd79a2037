"""A real server that is killed under load: `python -m tests.crash.kills --kills 200`; a few in the tests.

Callers submit, cancel and read over gRPC with request_ids, and repeat each call until it is answered, while kill -9
meets the server's whole process group, or the process that writes its store alone, at random moments. In the end every
acknowledged job is accounted for, and `cadenza check` looks at the store.
"""

import argparse
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc
from cadenza.v1 import circuit_pb2, job_pb2, job_service_pb2, job_service_pb2_grpc, program_pb2
from cadenza_server.store.check import check
from cadenza_server.store.store import FILE_NAME

from tests.simulation.seeds import seed_of

FINAL: Final = (job_pb2.JOB_STATE_SUCCEEDED, job_pb2.JOB_STATE_FAILED, job_pb2.JOB_STATE_CANCELLED)
START_SECONDS_MAX: Final = 60.0
DRAIN_SECONDS_MAX: Final = 120.0
CALLERS: Final = 4
QUEUED_MAX: Final = 40
PLUGINS: Final = Path(__file__).parents[1] / "plugins"
CONFIG: Final = """
[devices.sim]
kind = "noop"
num_qubits = 2
options = { seconds = 0.02 }
"""
BELL: Final = 'OPENQASM 2.0;\ninclude "qelib1.inc";\nqreg q[2];\ncreg c[2];\nh q[0];\ncx q[0],q[1];\nmeasure q -> c;\n'


@dataclass(slots=True)
class Ledger:
    """What was acknowledged: numbers by job, cancelled jobs, results as they were first read."""

    jobs: dict[str, int] = field(default_factory=dict)
    cancelled: set[str] = field(default_factory=set)
    results: dict[str, bytes] = field(default_factory=dict)
    retries: int = 0
    wrong: list[str] = field(default_factory=list)


class _Caller(threading.Thread):
    """Calls until it is told to stop; each call has one request_id, however often it is sent."""

    def __init__(self, number: int, address: str, ledger: Ledger, seed: int, stopped: threading.Event) -> None:
        super().__init__(daemon=True)
        self._user = f"lab/user{number}"
        self._address = address
        self._ledger = ledger
        self._source = random.Random(seed)
        self._stopped = stopped
        self._count = 0

    def run(self) -> None:
        options = (("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200))
        with grpc.insecure_channel(self._address, options=options) as channel:
            stub = job_service_pb2_grpc.JobServiceStub(channel)  # type: ignore[no-untyped-call, unused-ignore]
            try:
                while not self._stopped.is_set():
                    self._act(stub)
            except Exception as error:
                self._ledger.wrong.append(f"{self._user}: {error!r}")

    def _act(self, stub: Any) -> None:
        ledger, source = self._ledger, self._source
        self._count += 1
        request_id = f"{self._user}-{self._count}"
        mine = [job for job in list(ledger.jobs) if job.startswith(self._user.replace("/", "-"))]
        dice = source.random()
        if dice < 0.6 and len(ledger.jobs) - len(ledger.results) - len(ledger.cancelled) < QUEUED_MAX:
            name = f"{self._user.replace('/', '-')}-{self._count}"
            circuit = circuit_pb2.Circuit(openqasm2=BELL)
            sampler = program_pb2.SamplerJob(pubs=[program_pb2.SamplerPub(circuit=circuit, shots=10)])
            spec = job_pb2.JobSpec(job_id=name, device="sim", program=program_pb2.Program(sampler=sampler))
            answer = self._call(stub.SubmitJob, job_service_pb2.SubmitJobRequest(job=spec, request_id=request_id))
            if answer is not None:
                ledger.jobs[answer.job.job_id] = answer.job.seq
        elif dice < 0.63 and mine:
            name = source.choice(mine[-5:])
            request = job_service_pb2.CancelJobRequest(job_id=name, request_id=request_id)
            if self._call(stub.CancelJob, request) is not None:
                ledger.cancelled.add(name)
        elif mine:
            name = source.choice(mine[-20:])
            answer = self._call(stub.GetJobResult, job_service_pb2.GetJobResultRequest(job_id=name))
            if answer is not None:
                found = answer.SerializeToString(deterministic=True)
                if ledger.results.setdefault(name, found) != found:
                    ledger.wrong.append(f"{name} has another result than before")
        else:
            time.sleep(0.02)

    def _call(self, method: Callable[..., Any], request: Any) -> Any:
        """The answer; None: it was refused, or everything is over."""
        while True:
            try:
                return method(request, metadata=(("cadenza-user", self._user),), timeout=5)
            except grpc.RpcError as error:
                code = error.code()
                if code in (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.NOT_FOUND) and "Submit" not in str(
                    request.DESCRIPTOR.name
                ):
                    return None
                if code not in (
                    grpc.StatusCode.UNAVAILABLE,
                    grpc.StatusCode.DEADLINE_EXCEEDED,
                    grpc.StatusCode.CANCELLED,
                ):
                    self._ledger.wrong.append(f"{request.DESCRIPTOR.name}: {code} {error.details()}")
                    return None
                self._ledger.retries += 1
                if self._stopped.is_set():
                    return None
                time.sleep(self._source.uniform(0.02, 0.1))


class _Server:
    def __init__(self, folder: Path, port: int) -> None:
        self._folder = folder
        self._port = port
        (folder / "cadenza.toml").write_text(CONFIG)
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "cadenza_server", "serve", "--listen", f"127.0.0.1:{self._port}"]
        command += ["--data-dir", str(self._folder / "data"), "--config", str(self._folder / "cadenza.toml")]
        with (self._folder / "server.log").open("a") as log:
            self.process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": f"{PLUGINS}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
            )
        assert self.process.stdout is not None
        assert self.process.stdout.readline().startswith("listening"), (self._folder / "server.log").read_text()[-3000:]

    def kill(self) -> None:
        """The whole group: the server, the process that writes, the workers."""
        assert self.process is not None
        assert self.process.stdout is not None
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()

    def kill_writer(self) -> bool:
        """Only the process that writes."""
        assert self.process is not None
        writer = find_writer(self.process.pid)
        if writer is not None:
            with suppress(ProcessLookupError):
                os.kill(writer, signal.SIGKILL)
                return True
        return False


def find_writer(server: int) -> int | None:
    """The process that writes the store of a server; None if there is none just now."""
    threads = Path(f"/proc/{server}/task").glob("*/children")
    for child in " ".join(each.read_text() for each in threads).split():
        with suppress(OSError):
            if b"commit_process.py" in Path(f"/proc/{child}/cmdline").read_bytes():
                return int(child)
    return None


def run(folder: Path, kills: int, seed: int) -> str:
    """Kill a server so often; a line about it. Raises `AssertionError` if anything is not accounted for."""
    source = random.Random(seed)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server, ledger, stopped = _Server(folder, port), Ledger(), threading.Event()
    callers = [_Caller(n, f"127.0.0.1:{port}", ledger, source.randrange(2**32), stopped) for n in range(CALLERS)]
    server.start()
    writers = 0
    try:
        for caller in callers:
            caller.start()
        for kill in range(kills):
            time.sleep(source.uniform(0.1, 1.5))
            if kill % 3 == 1:
                writers += server.kill_writer()
            else:
                server.kill()
                server.start()
        time.sleep(1)
        stopped.set()
        for caller in callers:
            caller.join(30)
        _account(f"127.0.0.1:{port}", ledger)
    finally:
        stopped.set()
        server.kill()
    assert not ledger.wrong, ledger.wrong[:5]
    report = check(folder / "data" / FILE_NAME)
    assert report.is_sound, report.findings[:5]
    return (
        f"{kills} kills ({writers} of the writing process alone), {len(ledger.jobs)} jobs acknowledged and accounted "
        f"for, {len(ledger.cancelled)} cancelled, {len(ledger.results)} results read, {ledger.retries} calls repeated"
    )


def _account(address: str, ledger: Ledger) -> None:
    assert ledger.jobs, "nobody was answered"
    end = time.monotonic() + DRAIN_SECONDS_MAX
    with grpc.insecure_channel(address) as channel:
        stub: Any = job_service_pb2_grpc.JobServiceStub(channel)  # type: ignore[no-untyped-call, unused-ignore]
        for name, seq in ledger.jobs.items():
            metadata = (("cadenza-user", "/".join(name.split("-")[:2])),)
            while True:
                request = job_service_pb2.GetJobRequest(job_id=name)
                job = stub.GetJob(request, metadata=metadata, timeout=10, wait_for_ready=True).job
                if job.state in FINAL:
                    break
                assert time.monotonic() < end, f"{name} does not end"
                time.sleep(0.02)
            assert job.seq == seq, f"{name} was number {seq}, and is {job.seq}"
            if name in ledger.cancelled:
                assert job.state == job_pb2.JOB_STATE_CANCELLED, f"{name} was cancelled, and is {job.state}"
            else:
                assert job.state == job_pb2.JOB_STATE_SUCCEEDED, f"{name} is {job.state}: {job.detail}"
                wanted = job_service_pb2.GetJobResultRequest(job_id=name)
                result = stub.GetJobResult(wanted, metadata=metadata, timeout=10).SerializeToString(deterministic=True)
                assert ledger.results.get(name, result) == result, f"{name} has another result than before"


def main() -> None:
    """By hand."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=seed_of(0))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(f"seed {arguments.seed}: {run(Path(folder), arguments.kills, arguments.seed)}")


if __name__ == "__main__":
    main()

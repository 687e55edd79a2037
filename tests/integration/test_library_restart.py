"""A server that is killed and comes back while a program waits for its results: the program does not notice."""

import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cadenza import CadenzaService, Client, Retry, SamplerV2, Session
from qiskit import QuantumCircuit

PATIENCE_S = 90.0

CONFIG = """
[devices.sim]
kind = "aer"
num_qubits = 4
"""


class Restartable:
    """A server on a port and with a data directory that outlive its process."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.target = f"127.0.0.1:{probe.getsockname()[1]}"
        self._folder = folder
        (folder / "cadenza.toml").write_text(CONFIG)
        self.process = self._start()

    def _start(self) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "cadenza_server", "serve", "--listen", self.target]
        command += ["--data-dir", str(self._folder / "data"), "--config", str(self._folder / "cadenza.toml")]
        with (self._folder / "log").open("a") as log:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], PATIENCE_S)[0]
        assert "listening" in process.stdout.readline(), (self._folder / "log").read_text()
        return process

    def stop(self, number: int) -> None:
        os.kill(self.process.pid, number)
        self.process.wait(PATIENCE_S)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def restart(self, number: int) -> None:
        self.stop(number)
        self.process = self._start()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Restartable]:
    made = Restartable(tmp_path)
    yield made
    if made.process.poll() is None:
        made.stop(signal.SIGTERM)


def ghz() -> QuantumCircuit:
    circuit = QuantumCircuit(2)
    circuit.h(0)
    circuit.cx(0, 1)
    circuit.measure_all()
    return circuit


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_restart_in_the_middle_of_result_is_not_noticed(server: Restartable, number: int) -> None:
    client = Client(server.target, user="ada", retry=Retry(attempts=60, longest_s=0.5))
    with CadenzaService(client=client) as service:
        backend, circuit = service.backend("sim"), ghz()
        with Session(backend) as holder:
            # While this session holds the device, the job outside of it waits.
            SamplerV2(mode=holder).run([circuit]).result(PATIENCE_S)
            other = Session(backend)
            waiting = SamplerV2(mode=other).run([circuit], shots=100)
            found: list[int] = []
            waiter = threading.Thread(target=lambda: found.append(waiting.result(PATIENCE_S)[0].data.meas.num_shots))
            waiter.start()
            server.restart(number)
            assert waiter.is_alive()
            # The circuit is named by its digest: the session's circuits have outlived the process.
            again = SamplerV2(mode=holder).run([circuit], shots=50)
            assert again.result(PATIENCE_S)[0].data.meas.num_shots == 50
            payload = client.get_job_payload(again.job_id())
            assert payload.sampler.pubs[0].circuit.WhichOneof("source") == "digest"
        waiter.join(PATIENCE_S)
        assert found == [100]
        other.close()

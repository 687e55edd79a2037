"""Sends programs whose circuits and tensors are nearly right to a worker, and says how their runs ended.

By hand, against a worker of its own, with 1,000,000 inputs:

    python -m tests.fuzz.worker --inputs 1000000 --seed 1

Each program passes the server's check first, as it does in a server: what that refuses reaches no worker. It ends
with an error if the worker died or grew. A run that takes longer than a limit is stopped with its worker, as a device
stops it, and counted; so is one for which the worker may not have the memory that it asks for, and ends (what is
written in Rust aborts then). CI sends some hundreds (test_worker.py).
"""

import argparse
import io
import random
import resource
import socket
import struct
import subprocess
import sys
import tempfile
import uuid
from collections import Counter
from typing import Any, Final

from cadenza.v1 import program_pb2, tensor_pb2
from cadenza_server.api.programs import DeviceFacts, ProgramChecker
from cadenza_server.config import Limits
from cadenza_server.execution.protocol import Frame, FrameSocket, Kind, encode_integer
from cadenza_server.execution.spec import METHODS, DeviceSpec
from cadenza_server.model.errors import Refusal
from google.protobuf.message import DecodeError

from tests.fuzz.mutations import mutate
from tests.fuzz.server import memory

NUM_QUBITS: Final = 4
SHOTS: Final = 3
LIMIT_SECONDS: Final = 5.0
WARM_UP_INPUTS: Final = 3_000
GROWTH_BYTES_MAX: Final = 200 * 2**20
OPENQASM3: Final = (
    'OPENQASM 3.0;\ninclude "stdgates.inc";\nqubit[2] q;\nbit[2] c;\nh q[0];\ncx q[0], q[1];\nc = measure q;\n',
    'OPENQASM 3.0;\ninclude "stdgates.inc";\ninput angle a;\nqubit[1] q;\nbit[1] c;\nrx(a) q[0];\n'
    "c[0] = measure q[0];\n",
    'OPENQASM 3;\ninclude "stdgates.inc";\ngate mine(t) a, b { rz(t/2) a; cx a, b; }\nqubit[3] q;\nbit[3] c;\n'
    "mine(pi/4) q[0], q[2];\nreset q[1];\nbarrier q;\nc = measure q;\nif (c[0] == 1) { x q[1]; }\n"
    "c[1] = measure q[1];\n",
    'OPENQASM 3.0;\ninclude "stdgates.inc";\nqubit[2] q;\nbit[2] c;\nfor int i in [0:3] { U(0.1, 0.2, 0.3) q[0]; }\n'
    "ctrl @ x q[0], q[1];\ninv @ s q[0];\nc = measure q;\n",
)
OPENQASM2: Final = (
    'OPENQASM 2.0;\ninclude "qelib1.inc";\nqreg q[2];\ncreg c[2];\nh q[0];\ncx q[0],q[1];\nmeasure q -> c;\n',
    'OPENQASM 2.0;\ninclude "qelib1.inc";\ngate g(a) x,y { u3(a,-a,pi/2) x; cz x,y; }\nqreg q[3];\ncreg c[3];\n'
    "g(0.3) q[0],q[2];\nmeasure q[0] -> c[0];\nif(c==1) x q[1];\nmeasure q -> c;\n",
)


def make_seeds() -> list[program_pb2.Program]:
    """Valid programs: each source of circuits, parameters, control flow, and both primitives."""
    circuits: list[tuple[str, Any, int]] = [("openqasm2", text, 0) for text in OPENQASM2]
    circuits += [("openqasm3", text, int("input" in text)) for text in OPENQASM3]
    circuits += [("qpy", data, parameters) for data, parameters in _make_qpy()]
    made = []
    for source, content, parameters in circuits:
        sampler, estimator = program_pb2.Program(), program_pb2.Program()
        pub: Any = sampler.sampler.pubs.add(shots=SHOTS)
        setattr(pub.circuit, source, content)
        each: Any = estimator.estimator.pubs.add()
        setattr(each.circuit, source, content)
        observable = each.observables.observables.add()
        observable.terms.add(pauli="ZZ"[: 1 + (parameters == 0)], coefficient=0.5)
        for one in (pub, each):
            if parameters:
                values = [0.1] * (2 * parameters)
                one.parameter_values.CopyFrom(
                    tensor_pb2.Tensor(
                        dtype=tensor_pb2.DTYPE_FLOAT64,
                        shape=[2, parameters],
                        data=struct.pack(f"<{len(values)}d", *values),
                    )
                )
        made += [sampler, estimator]
    return made


def _make_qpy() -> list[tuple[bytes, int]]:
    """Circuits as QPY, and how many parameters each has."""
    from qiskit import QuantumCircuit, qpy
    from qiskit.circuit import Parameter
    from qiskit.circuit.library import UnitaryGate

    # names and identifiers of their own, so that a seed makes the same inputs in each process
    bell = QuantumCircuit(2, name="bell")
    bell.h(0)
    bell.cx(0, 1)
    bell.measure_all()
    angle = QuantumCircuit(1, name="angle")
    angle.rx(2 * Parameter("a", uuid=uuid.UUID(int=1)) + 1, 0)
    angle.measure_all()
    flow = QuantumCircuit(3, 3, name="flow")
    flow.h(0)
    flow.measure(0, 0)
    with flow.if_test((0, 1)):
        flow.x(1)
    with flow.for_loop(range(2)):
        flow.append(UnitaryGate([[0, 1], [1, 0]]), [2])
    flow.measure(range(3), range(3))
    made = []
    for circuit in (bell, angle, flow):
        buffer = io.BytesIO()
        qpy.dump(circuit, buffer)
        made.append((buffer.getvalue(), len(circuit.parameters)))
    return made


class Worker:
    """A worker process of an Aer device, started anew when it has died."""

    def __init__(self) -> None:
        self._spec = DeviceSpec(kind="aer", num_qubits=NUM_QUBITS, memory_bytes_max=2 * 2**30)
        self.process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self.start()

    def start(self) -> None:
        """A new one, that is warm."""
        ours, theirs = socket.socketpair()
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the worker)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "cadenza_server.execution.worker", str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdout=subprocess.DEVNULL,
                stderr=self._complaints,
            )
        self._socket = ours
        self._frames = FrameSocket(ours)
        self._frames.send(Kind.SETUP, b"sim", self._spec.to_json().encode())
        ours.settimeout(120)
        ready = self._receive()
        assert ready is not None, "the worker did not start"
        assert ready.kind == Kind.READY

    def run(self, program: bytes, attempt: int) -> str:
        """How the run ended: an outcome, with the name of an error that nobody foresaw; or STOPPED (after the limit),
        OUT_OF_MEMORY, DIED."""
        assert self._socket is not None
        self._socket.settimeout(LIMIT_SECONDS)
        limit = encode_integer(int(LIMIT_SECONDS * 1e9))
        try:
            self._frames.send(Kind.RUN, *map(encode_integer, (attempt, attempt, 0, 0)), limit, b"", program)
            done = self._receive()
        except TimeoutError:
            self.stop()
            self.start()
            return "STOPPED"
        if done is None:
            assert self.process is not None
            code = self.process.wait(10)
            self._complaints.seek(0)
            said = self._complaints.read().decode(errors="replace")
            self.stop()
            self.start()
            if "memory allocation of" in said:
                return "OUT_OF_MEMORY"
            print(f"exit {code}: {said[-500:]}", file=sys.stderr)
            return "DIED"
        assert done.kind == Kind.DONE
        assert int.from_bytes(done.parts[0], "little") == attempt
        outcome, detail = done.parts[1].decode(), done.parts[2].decode()
        if done.parts[-1]:  # it ends, since it has too little memory left
            self.stop()
            self.start()
        unforeseen = detail.startswith("the program failed: ")
        return f"{outcome} {detail.split(':')[1].strip()}" if unforeseen else outcome

    def _receive(self) -> Frame | None:
        try:
            return self._frames.receive()
        except ConnectionError:
            return None

    def stop(self) -> None:
        """End it."""
        assert self.process is not None
        assert self._socket is not None
        self.process.kill()
        self.process.wait()
        self._socket.close()
        self._complaints.close()

    @property
    def memory(self) -> int:
        """Bytes that it has."""
        assert self.process is not None
        return memory(self.process.pid)


def mutate_program(program: program_pb2.Program, rng: random.Random, seeds: list[program_pb2.Program]) -> bytes:
    """The bytes of a program with something wrong: mostly in a circuit, else in a tensor or anywhere."""
    changed = program_pb2.Program()
    changed.CopyFrom(program)
    (pub,) = getattr(changed, changed.WhichOneof("kind")).pubs  # type: ignore[arg-type]
    source = pub.circuit.WhichOneof("source")
    dice = rng.random()
    if dice < 0.75:
        content = getattr(pub.circuit, source)
        others = [each for seed in seeds for each in [_content(seed, source)] if each]
        if isinstance(content, bytes):
            pub.circuit.qpy = mutate(content, rng, others)
        else:
            text = mutate(content.encode(), rng, others).decode(errors="replace")
            setattr(pub.circuit, source, text)
    elif dice < 0.85 and pub.HasField("parameter_values"):
        values = pub.parameter_values
        if rng.random() < 0.5:
            values.data = rng.randbytes(len(values.data))  # numbers of every size, and none
        else:
            values.data = mutate(values.data, rng, [bytes(8)])
            values.shape[:] = [rng.choice((0, 1, 2, 7)) for _ in range(rng.randrange(3))]
    else:
        return mutate(changed.SerializeToString(), rng, [seed.SerializeToString() for seed in seeds[:3]])
    return changed.SerializeToString()


def _content(program: program_pb2.Program, source: str) -> bytes:
    (pub,) = getattr(program, program.WhichOneof("kind")).pubs  # type: ignore[arg-type]
    found = getattr(pub.circuit, source) if pub.circuit.WhichOneof("source") == source else b""
    return found if isinstance(found, bytes) else str(found).encode()


def fuzz(worker: Worker, inputs: int, seed: int) -> Counter[str]:
    """Run so many programs; how many runs ended how (REFUSED: by the server's check). What a worker died of is
    printed."""
    rng = random.Random(seed)
    seeds = make_seeds()
    checker = ProgramChecker(Limits())
    facts = DeviceFacts(
        name="sim",
        num_qubits=NUM_QUBITS,
        methods=METHODS,
        noisy=False,
        default_shots=SHOTS,
        calibration_duration=0,
    )
    told: Counter[str] = Counter()
    for number in range(inputs):
        data = mutate_program(rng.choice(seeds), rng, seeds)
        try:
            content = checker.check(program_pb2.Program.FromString(data), facts, owner="ann", in_session=False)
        except (DecodeError, Refusal):
            told["REFUSED"] += 1
            continue
        ended = worker.run(content.program, number)
        told[ended] += 1
        if ended in ("DIED", "STOPPED"):
            print(ended, data.hex(), file=sys.stderr, flush=True)
    return told


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    worker = Worker()
    try:
        told = fuzz(worker, min(asked.inputs, WARM_UP_INPUTS), asked.seed - 1)
        before, process = worker.memory, worker.process
        for begin in range(0, asked.inputs, 50_000):
            told += fuzz(worker, min(50_000, asked.inputs - begin), asked.seed + begin)
            print(dict(told), f"{worker.memory / 2**20:.0f} MiB", flush=True)
        grown = worker.memory - before if worker.process is process else 0
    finally:
        worker.stop()
    print(f"grown by {grown / 2**20:.0f} MiB from {before / 2**20:.0f} MiB")
    if told["DIED"] or grown > GROWTH_BYTES_MAX:
        sys.exit("the worker did not stand it")


if __name__ == "__main__":
    main()

"""Sends requests that are nearly right to a server, and says how it answered.

By hand, against a server of its own that is stopped at the end, with 1,000,000 inputs:

    python -m tests.fuzz.server --inputs 1000000 --seed 1

It ends with an error if an answer was a bug (INTERNAL, UNKNOWN, CANCELLED), if a call did not end within its time, or
if the server died or grew. CI sends some thousands (test_server.py).
"""

import argparse
import asyncio
import io
import random
import re
import select
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import grpc
from cadenza.v1 import job_service_pb2

from tests.fuzz.mutations import METHODS, make_seeds, mutate

CALLS_AT_A_TIME: Final = 32
CALL_SECONDS_MAX: Final = 20.0
BUGS: Final = frozenset({"INTERNAL", "UNKNOWN", "CANCELLED", "DEADLINE_EXCEEDED"})
GROWTH_BYTES_MAX: Final = 300 * 2**20
CONFIG: Final = '[server]\noperators = ["rani"]\n[devices.sim]\nkind = "aer"\nnum_qubits = 4\nlimit = "2s"\n'


def make_qpy() -> bytes:
    """A circuit of two qubits."""
    from qiskit import QuantumCircuit, qpy

    circuit = QuantumCircuit(2, name="bell")
    circuit.h(0)
    circuit.measure_all()
    buffer = io.BytesIO()
    qpy.dump(circuit, buffer)
    return buffer.getvalue()


async def fuzz(address: str, inputs: int, seed: int, qpy: bytes) -> Counter[str]:
    """Send so many inputs; how many answers there were by code. Bugs are counted with the method, and what was sent
    printed in hexadecimal."""
    rng = random.Random(seed)
    seeds = make_seeds(qpy)
    others = [data for _, data in seeds]
    told: Counter[str] = Counter()
    left = iter(range(inputs))
    async with grpc.aio.insecure_channel(address) as channel:

        async def send() -> None:
            for _ in left:
                path, data = rng.choice(seeds)
                sent = mutate(data, rng, others)
                caller = (("cadenza-user", rng.choice(("rani", "lab/ann"))),)
                code = await call(channel, path, sent, caller)
                told[code] += 1
                if code in BUGS:
                    told[f"{code} {path}"] += 1
                    print(f"{code} {path} {sent.hex()}", file=sys.stderr)

        await asyncio.gather(*(send() for _ in range(CALLS_AT_A_TIME)))
    return told


async def call(channel: Any, path: str, data: bytes, caller: tuple[tuple[str, str], ...]) -> str:
    """The code that one call ends with. A stream that goes on is left after its first message."""
    method: Any = METHODS[path]
    try:
        if method.client_streaming:
            talk = channel.stream_stream(path)(iter([data]), metadata=caller, timeout=CALL_SECONDS_MAX)
            async for _ in talk:
                pass
        elif method.server_streaming:
            watch = channel.unary_stream(path)(data, metadata=caller, timeout=CALL_SECONDS_MAX)
            async for _ in watch:
                watch.cancel()
                break
        else:
            await channel.unary_unary(path)(data, metadata=caller, timeout=CALL_SECONDS_MAX)
    except grpc.aio.AioRpcError as error:
        return str(error.code().name)
    return "OK"


def memory(process: int) -> int:
    """Bytes that a process has."""
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{process}/status").read_text())
    assert found
    return int(found[1]) * 1024


def check_alive(address: str, qpy: bytes) -> None:
    """A job of somebody who sends nothing wrong is accepted and can be cancelled, or has ended."""
    from cadenza.v1 import job_service_pb2_grpc

    with grpc.insecure_channel(address) as channel:
        stub = job_service_pb2_grpc.JobServiceStub(channel)
        request = job_service_pb2.SubmitJobRequest()
        request.job.device = "sim"
        request.job.program.sampler.pubs.add(shots=10).circuit.qpy = qpy
        caller = (("cadenza-user", "good/eve"),)
        job = stub.SubmitJob(request, metadata=caller, timeout=30).job.job_id
        watch = stub.WatchJob(job_service_pb2.WatchJobRequest(job_id=job), metadata=caller, timeout=30)
        changes = []
        try:
            changes += [answer.event.WhichOneof("change") for answer in watch]
        except grpc.RpcError as error:
            # Thousands of calibrations and sessions that an operator asked for may be before it.
            if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                raise
            stub.CancelJob(job_service_pb2.CancelJobRequest(job_id=job), metadata=caller, timeout=30)
            watch = stub.WatchJob(job_service_pb2.WatchJobRequest(job_id=job), metadata=caller, timeout=30)
            changes += [answer.event.WhichOneof("change") for answer in watch]
        assert changes[-1] in ("job_ended", "job_snapshot"), changes


@contextmanager
def serving(folder: Path) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """A server of its own, and its process."""
    config = folder / "cadenza.toml"
    config.write_text(CONFIG)
    command = [sys.executable, "-m", "cadenza_server", "serve", "--listen", "127.0.0.1:0"]
    command += ["--data-dir", str(folder / "data"), "--config", str(config), "--log-level", "error"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            select.select([process.stdout], [], [], 60)
            yield process.stdout.readline().split()[-1], process
        finally:
            process.kill()


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    qpy = make_qpy()
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as (address, process):
        asyncio.run(fuzz(address, min(asked.inputs, 5_000), asked.seed - 1, qpy))
        before = memory(process.pid)
        told = asyncio.run(fuzz(address, asked.inputs, asked.seed, qpy))
        check_alive(address, qpy)
        grown = memory(process.pid) - before
        process.terminate()
        code = process.wait(60)
    print(dict(sorted(told.items())), f"grown by {grown / 2**20:.0f} MiB", f"exit {code}")
    if code or BUGS & told.keys() or grown > GROWTH_BYTES_MAX:
        sys.exit("the server did not stand it")


if __name__ == "__main__":
    main()

"""Measures iterative programs: `python tests/benchmarks/vqe/run.py [--quick] [--write]`; about two minutes.

A loop of 100 Estimator calls, each with values that depend on the answer before (4 qubits, `efficient_su2` with 24
parameters, 8 observables): by our EstimatorV2 in a session over loopback against qiskit_aer's EstimatorV2 in this
process, and with the noise of `FakeManilaV2` against qiskit_ibm_runtime's local mode. With it what the session's memory
of circuits saves, what a run costs in the worker beside Aer, and how fast a 100 MB result arrives. What is compared
runs alternately; figures are medians. `--write` puts them under this benchmark's heading in RESULTS.md.
"""

import argparse
import asyncio
import io
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import qiskit
import qiskit_aer
from cadenza import CadenzaService, EstimatorV2, Session
from cadenza.arrays import tensor_from_array
from cadenza.v1 import event_pb2, job_pb2, job_service_pb2, job_service_pb2_grpc
from cadenza.v1.circuit_pb2 import Circuit
from cadenza.v1.program_pb2 import Program
from cadenza_server.execution import aer
from cadenza_server.execution.circuits import circuit_digest
from cadenza_server.execution.executor import AerExecutor
from cadenza_server.execution.spec import DeviceSpec
from numpy.typing import NDArray
from qiskit import QuantumCircuit, qpy
from qiskit.circuit.library import efficient_su2
from qiskit.quantum_info import SparsePauliOp
from qiskit.transpiler import generate_preset_pass_manager
from qiskit_aer.primitives import EstimatorV2 as AerEstimator
from qiskit_ibm_runtime import EstimatorV2 as LocalEstimator
from qiskit_ibm_runtime.fake_provider import FakeManilaV2

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[2]))
from tests.benchmarks.results import write_section  # noqa: E402  (the tree is no package of the environment)

HEADING = "## Iterative programs: VQE in a session"
ITERATIONS = 100
NOISY_ITERATIONS = 20
LABELS = ("ZIII", "IZII", "IIZI", "IIIZ", "XXII", "IXXI", "IIXX", "YYYY")
PRECISION = 1 / 64
"""Asked of both on the noisy device: 4,096 shots."""
RESULT_BYTES = 100_000_000

Estimate = Callable[[NDArray[np.float64]], NDArray[np.float64]]


@contextmanager
def serving(folder: Path) -> Iterator[dict[str, str]]:
    """Cadenza as `cadenza serve` runs it, with a bare stream of bytes as one more service."""
    process = subprocess.Popen(
        [sys.executable, str(HERE / "with_stream.py"), str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield json.loads(process.stdout.readline())
    finally:
        process.stdin.close()
        process.wait(30)


def ansatz() -> QuantumCircuit:
    circuit = efficient_su2(4, reps=2)
    assert circuit.num_parameters == 24
    return circuit


def optimise(estimate: Estimate, iterations: int) -> list[float]:
    """Minimise the sum of the observables by a random walk that keeps what is better; ms of each iteration."""
    random = np.random.default_rng(1)
    best, at, times = float("inf"), random.uniform(-3, 3, 24), []
    for _ in range(iterations):
        begin = time.perf_counter()
        tried = at + random.normal(0, 0.2, 24)
        energy = float(estimate(tried).sum())
        if energy < best:
            best, at = energy, tried
        times.append((time.perf_counter() - begin) * 1e3)
    return times


def estimating(estimator: Any, circuit: QuantumCircuit, observables: Any) -> Estimate:
    def estimate(values: NDArray[np.float64]) -> NDArray[np.float64]:
        evs: NDArray[np.float64] = estimator.run([(circuit, observables, values)]).result()[0].data.evs
        return evs

    return estimate


class Counted:
    """Bytes of the submissions that a service's client sends."""

    def __init__(self, service: CadenzaService) -> None:
        self.bytes = 0
        self.calls = 0
        self._submit = service.client.submit_job_spec_for_end
        service.client.submit_job_spec_for_end = self  # type: ignore[method-assign]

    def __call__(self, spec: job_pb2.JobSpec) -> job_pb2.Job | event_pb2.JobEnded:
        self.bytes += spec.ByteSize()
        self.calls += 1
        return self._submit(spec)


class Forgetful(Session):
    """A session whose client sends the circuit each time."""

    @property
    def _known(self) -> frozenset[bytes]:
        return frozenset()

    @_known.setter
    def _known(self, _: frozenset[bytes]) -> None:
        pass


def measure_loops(address: str, rounds: int) -> dict[str, list[float]]:
    """ms of each iteration in each way, the ways alternating; and bytes an iteration."""
    found: dict[str, list[float]] = defaultdict(list)
    service = CadenzaService(address, user="bench")
    counted = Counted(service)
    circuit, observables = ansatz(), [SparsePauliOp(label) for label in LABELS]
    in_process = estimating(AerEstimator(), circuit, observables)
    manila = FakeManilaV2()
    fitted = generate_preset_pass_manager(1, manila, seed_transpiler=1).run(circuit)
    there = [observable.apply_layout(fitted.layout) for observable in observables]
    local = estimating(LocalEstimator(mode=manila, options={"default_precision": PRECISION}), fitted, there)
    for round_number in range(rounds + 1):
        ways: dict[str, list[float]] = {}
        for name, kind in (("ours", Session), ("ours without the cache", Forgetful)):
            counted.bytes = counted.calls = 0
            with kind(service.backend("aer")) as session:
                ways[name] = optimise(estimating(EstimatorV2(mode=session), circuit, observables), ITERATIONS)
            ways[f"bytes of {name}"] = [counted.bytes / counted.calls]
        ways["aer in-process"] = optimise(in_process, ITERATIONS)
        with Session(service.backend("manila")) as session:
            noisy = EstimatorV2(mode=session, options={"default_precision": PRECISION})
            ways["ours, noisy"] = optimise(estimating(noisy, circuit, observables), NOISY_ITERATIONS)
        ways["local mode"] = optimise(local, NOISY_ITERATIONS if round_number else 2)
        if round_number:  # the first one warms everything up
            for name, times in ways.items():
                found[name] += times
                if not name.startswith("bytes"):
                    found[f"loops of {name}"].append(sum(times))
    return found


def measure_overhead(count: int) -> dict[str, list[float]]:
    """ms of a run in the worker, from the program's bytes to the result's, and of Aer's own share of it."""
    executor = AerExecutor("aer", DeviceSpec(), itertools.count(1).__next__)
    executor.warm_up()
    spent: list[float] = []
    run = aer._run

    def timed(*arguments: Any) -> Any:
        begin = time.perf_counter()
        try:
            return run(*arguments)
        finally:
            spent.append((time.perf_counter() - begin) * 1e3)

    stream = io.BytesIO()
    qpy.dump(ansatz(), stream)
    circuit = Circuit(qpy=stream.getvalue())
    digest = circuit_digest(circuit)
    random = np.random.default_rng(2)
    program = Program()
    pub = program.estimator.pubs.add()
    pub.circuit.digest = digest
    pub.observables.shape.append(len(LABELS))
    for label in LABELS:
        pub.observables.observables.add().terms.add(pauli=label, coefficient=1.0)
    found: dict[str, list[float]] = {"whole": [], "aer": []}
    aer._run = timed  # type: ignore[assignment]
    try:
        for number in range(count + 50):
            pub.parameter_values.CopyFrom(tensor_from_array(random.uniform(-3, 3, 24)))
            data = program.SerializeToString()
            spent.clear()
            begin = time.perf_counter()
            executor.execute(Program.FromString(data), {digest: circuit}, epoch=0, attempt=1).result.SerializeToString()
            whole = (time.perf_counter() - begin) * 1e3
            if number >= 50:
                found["whole"].append(whole)
                found["aer"].append(sum(spent))
    finally:
        aer._run = run
    return found


async def measure_arrival(address: str, rounds: int) -> dict[str, list[float]]:
    """Bytes a second of a result of 100 MB, and of a bare stream of as many bytes from the same server."""
    found: dict[str, list[float]] = defaultdict(list)
    user = (("cadenza-user", "bench"),)
    options = (("grpc.max_receive_message_length", -1),)
    async with grpc.aio.insecure_channel(address, options) as channel:
        jobs = job_service_pb2_grpc.JobServiceStub(channel)
        spec = job_pb2.JobSpec(device="aer")
        # 1,000 classical bits a shot, two of them measured: what is large is the result, not the simulation
        pub = spec.program.sampler.pubs.add(shots=RESULT_BYTES // 125)
        pub.circuit.openqasm3 = (
            'OPENQASM 3.0;\ninclude "stdgates.inc";\nqubit[2] q;\nbit[1000] c;\nh q[0];\ncx q[0], q[1];\n'
            "c[0] = measure q[0];\nc[999] = measure q[1];\n"
        )
        job = (await jobs.SubmitJob(job_service_pb2.SubmitJobRequest(job=spec), metadata=user)).job
        async for message in jobs.WatchJob(job_service_pb2.WatchJobRequest(job_id=job.job_id), metadata=user):
            last = message.event.job_ended.job
        assert last.state == job_pb2.JOB_STATE_SUCCEEDED, last
        request = job_service_pb2.StreamJobResultRequest(job_id=job.job_id)
        bare: Any = channel.unary_stream("/bench.Stream/Stream")
        for _ in range(rounds):
            size, begin = 0, time.perf_counter()
            async for piece in jobs.StreamJobResult(request, metadata=user):
                size += len(piece.data)
            found["result"].append(size / (time.perf_counter() - begin))
            assert size >= RESULT_BYTES
            size, begin = 0, time.perf_counter()
            async for data in bare(str(RESULT_BYTES).encode(), metadata=user):
                size += len(data)
            found["bare"].append(size / (time.perf_counter() - begin))
            assert size == RESULT_BYTES
    return found


def report(rounds: int, count: int) -> str:
    with tempfile.TemporaryDirectory() as name, serving(Path(name) / "data") as addresses:
        loops = measure_loops(addresses["cadenza"], rounds)
        arrival = asyncio.run(measure_arrival(addresses["cadenza"], 2 * rounds + 1))
    overhead = measure_overhead(count)
    median = {name: statistics.median(values) for name, values in loops.items()}
    beside = statistics.median(whole - own for whole, own in zip(overhead["whole"], overhead["aer"], strict=True))
    rates = {name: statistics.median(values) for name, values in arrival.items()}
    share = statistics.median(a / b for a, b in zip(arrival["result"], arrival["bare"], strict=True))
    lines = [
        f"Command: `python tests/benchmarks/vqe/run.py --write`. Measured "
        f"{time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC on {os.cpu_count()} cores ({platform.machine()}), "
        f"Python {platform.python_version()}, Qiskit {qiskit.__version__}, Aer {qiskit_aer.__version__}.",
        "",
        "| what | figure | asked |",
        "|---|---|---|",
        f"| loop of {ITERATIONS} calls, our EstimatorV2 in a session | {median['loops of ours']:.0f} ms "
        f"({median['ours']:.2f} ms a call, p50) | less than the next |",
        f"| the same by qiskit_aer's EstimatorV2 in-process | {median['loops of aer in-process']:.0f} ms "
        f"({median['aer in-process']:.2f} ms a call, p50) | |",
        f"| ours without the session's cache | {median['ours without the cache']:.2f} ms a call, p50 | |",
        f"| bytes of a submission with / without the cache | {median['bytes of ours']:.0f} / "
        f"{median['bytes of ours without the cache']:.0f} | |",
        f"| noise of FakeManilaV2, precision 1/64, ours | {median['ours, noisy']:.2f} ms a call, p50 | |",
        f"| the same in qiskit_ibm_runtime's local mode | {median['local mode']:.0f} ms a call, p50 | |",
        f"| how many times faster | {median['local mode'] / median['ours, noisy']:.0f} | at least 20 |",
        f"| a run in the worker, cached parametrised circuit, p50 | {statistics.median(overhead['whole']):.2f} ms | |",
        f"| of that beside Aer | {beside:.2f} ms | at most 0.3 ms |",
        f"| a result of 100 MB arrives at | {rates['result'] / 1e6:.0f} MB/s | |",
        f"| of a bare grpc.aio stream from the same server ({rates['bare'] / 1e6:.0f} MB/s) | {share:.2f} | "
        "at least 0.5 |",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round, for a first look")
    parser.add_argument("--write", action="store_true", help="put the figures into RESULTS.md")
    options = parser.parse_args()
    text = report(1, 300) if options.quick else report(5, 2_000)
    print(text)
    if options.write:
        write_section(HEADING, text)


if __name__ == "__main__":
    main()

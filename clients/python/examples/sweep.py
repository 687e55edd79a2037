"""An iterative program: opens a session, sends a circuit with a parameter once, then only values of the parameter with
the circuit's digest, follows each job, reads expectation values and counts, and closes the session.

    python clients/python/examples/sweep.py [--asyncio] [TARGET] [DEVICE]
"""

import asyncio
import hashlib
import math
import sys
from collections import Counter

from cadenza import AsyncClient, CadenzaError, Client, JobFailedError
from cadenza.arrays import array_from_tensor, bit_array_from_message, tensor_from_array
from cadenza.v1 import circuit_pb2, event_pb2, job_pb2, program_pb2, result_pb2

CIRCUIT = """OPENQASM 3.0;
include "stdgates.inc";
input angle theta;
qubit[2] q;
ry(theta) q[0];
cx q[0], q[1];
"""
MEASUREMENT = "bit[2] c;\nc = measure q;\n"
THETAS = [step * math.pi / 4 for step in range(5)]


def estimate(theta: float, first: bool) -> program_pb2.Program:
    """A program that asks for the energy at `theta`. The session has the circuit after the `first` job."""
    digest = hashlib.sha256(CIRCUIT.encode()).digest()
    circuit = circuit_pb2.Circuit(openqasm3=CIRCUIT) if first else circuit_pb2.Circuit(digest=digest)
    terms = [program_pb2.PauliTerm(pauli=pauli, coefficient=0.5) for pauli in ("IZ", "XX")]
    observables = program_pb2.ObservablesArray(observables=[program_pb2.Observable(terms=terms)])
    pub = program_pb2.EstimatorPub(
        circuit=circuit, parameter_values=tensor_from_array([theta]), observables=observables
    )
    return program_pb2.Program(estimator=program_pb2.EstimatorJob(pubs=[pub]))


def sample(theta: float, shots: int) -> program_pb2.Program:
    """A program that counts what is measured at `theta`."""
    pub = program_pb2.SamplerPub(
        circuit=circuit_pb2.Circuit(openqasm3=CIRCUIT + MEASUREMENT),
        parameter_values=tensor_from_array([theta]),
        shots=shots,
    )
    return program_pb2.Program(sampler=program_pb2.SamplerJob(pubs=[pub]))


def read_energy(result: result_pb2.JobResult) -> float:
    """The expectation value."""
    evs = next(field for field in result.pubs[0].fields if field.name == "evs")
    return float(array_from_tensor(evs.tensor))


def read_counts(result: result_pb2.JobResult) -> dict[str, int]:
    """How often each bit string was measured."""
    bits = next(field for field in result.pubs[0].fields if field.name == "c")
    samples, num_bits = bit_array_from_message(bits.bits)
    shots = samples.reshape(-1, samples.shape[-1])
    return dict(Counter(format(int.from_bytes(shot.tobytes(), "big"), f"0{num_bits}b") for shot in shots))


def read_end(event: event_pb2.Event) -> result_pb2.JobResult | None:
    """The result that rides along with the end of a job; None of other events. Raises `JobFailedError`."""
    if not (event.HasField("job_snapshot") or event.HasField("job_ended")):
        return None
    told = event.job_ended if event.HasField("job_ended") else event.job_snapshot
    job = told.job
    if job.state in (job_pb2.JOB_STATE_FAILED, job_pb2.JOB_STATE_CANCELLED):
        reason = job_pb2.JobReason.Name(job.reason).removeprefix("JOB_REASON_")
        raise JobFailedError(f"job {job.job_id}: {job.detail}", job_id=job.job_id, reason=reason, detail=job.detail)
    return told.result if told.HasField("result") else None


def run(client: Client, session_id: str, program: program_pb2.Program) -> result_pb2.JobResult:
    """Submit a job to the session and wait for its result."""
    job_id = client.submit_job(program, session_id=session_id).job_id
    with client.watch_job(job_id, include_results=True, timeout_s=60) as events:
        for event in events:
            if (result := read_end(event)) is not None:
                return result
    return client.get_job_result(job_id)  # too large to ride along


def sweep(target: str, device: str) -> None:
    """The program, one call after the other."""
    with Client(target) as client:
        session_id = client.create_session(device).session_id
        print("session", session_id)
        try:
            for step, theta in enumerate(THETAS):
                energy = read_energy(run(client, session_id, estimate(theta, first=step == 0)))
                print(f"theta {theta:.3f}  energy {energy:+.6f}")
            print("counts at pi/2", read_counts(run(client, session_id, sample(math.pi / 2, 1000))))
        finally:
            client.close_session(session_id)


async def run_async(client: AsyncClient, session_id: str, program: program_pb2.Program) -> result_pb2.JobResult:
    """Submit a job to the session and await its result."""
    job_id = (await client.submit_job(program, session_id=session_id)).job_id
    async with asyncio.timeout(60):
        async for event in client.watch_job(job_id, include_results=True):
            if (result := read_end(event)) is not None:
                return result
    return await client.get_job_result(job_id)  # too large to ride along


async def sweep_async(target: str, device: str) -> None:
    """The same program under asyncio: the first job brings the circuit, the others run beside each other."""
    async with AsyncClient(target) as client:
        session_id = (await client.create_session(device)).session_id
        print("session", session_id)
        try:
            first = await run_async(client, session_id, estimate(THETAS[0], first=True))
            others = [run_async(client, session_id, estimate(theta, first=False)) for theta in THETAS[1:]]
            for theta, result in zip(THETAS, [first, *await asyncio.gather(*others)], strict=True):
                print(f"theta {theta:.3f}  energy {read_energy(result):+.6f}")
            counted = await run_async(client, session_id, sample(math.pi / 2, 1000))
            print("counts at pi/2", read_counts(counted))
        finally:
            await client.close_session(session_id)


def main() -> int:
    """Run the command line; the exit code."""
    with_asyncio = "--asyncio" in sys.argv
    words = [word for word in sys.argv[1:] if word != "--asyncio"]
    target, device = (*words, *("127.0.0.1:50051", "aer")[len(words) :])
    try:
        if with_asyncio:
            asyncio.run(sweep_async(target, device))
        else:
            sweep(target, device)
    except CadenzaError as error:
        if error.reason == "UNKNOWN_DEVICE":
            print(f"there is no device {device}; `cadenza devices` lists them", file=sys.stderr)
        elif error.reason and not isinstance(error, JobFailedError):
            print(f"refused, {error.reason} {error.metadata}: {error.message}", file=sys.stderr)
        else:
            print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

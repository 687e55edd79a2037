"""Requests that are nearly right: valid ones of every RPC, and what a seeded random makes of their bytes."""

import random
from collections.abc import Sequence
from typing import Any, Final

from cadenza.v1 import (
    circuit_pb2,
    device_service_pb2,
    job_pb2,
    job_service_pb2,
    program_pb2,
    reservation_service_pb2,
    server_service_pb2,
    session_service_pb2,
    share_service_pb2,
    tensor_pb2,
)
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

FILES: Final = (
    device_service_pb2,
    job_service_pb2,
    reservation_service_pb2,
    server_service_pb2,
    session_service_pb2,
    share_service_pb2,
)
METHODS: Final = {
    f"/{service.full_name}/{method.name}": method
    for file in FILES
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
QASM: Final = (
    'OPENQASM 3.0;\ninclude "stdgates.inc";\nqubit[2] q;\nbit[2] c;\nh q[0];\ncx q[0], q[1];\nc = measure q;\n'
)


def _jobs(qpy: bytes) -> list[job_pb2.JobSpec]:
    """A job of each kind and each source of circuits, with parameter values and observables."""
    made = []
    for circuit in (
        circuit_pb2.Circuit(qpy=qpy),
        circuit_pb2.Circuit(openqasm3=QASM),
        circuit_pb2.Circuit(openqasm2='OPENQASM 2.0;\ninclude "qelib1.inc";\nqreg q[1];\ncreg c[1];\nmeasure q->c;\n'),
        circuit_pb2.Circuit(digest=bytes(32)),
    ):
        sampler = job_pb2.JobSpec(device="sim", tags=["fuzz"], priority=1)
        pub = sampler.program.sampler.pubs.add(shots=3, circuit=circuit)
        tensor = tensor_pb2.Tensor(dtype=tensor_pb2.DTYPE_FLOAT64, shape=[2, 1], data=bytes(16))
        _first(pub, tensor)
        made.append(sampler)
        estimator = job_pb2.JobSpec(device="sim")
        each = estimator.program.estimator.pubs.add(circuit=circuit)
        each.observables.shape.append(1)
        _fill(each.observables)
        made.append(estimator)
    made.append(job_pb2.JobSpec(device="sim", program=program_pb2.Program(calibration=program_pb2.CalibrationJob())))
    return made


def _first(message: Any, tensor: tensor_pb2.Tensor) -> None:
    """Put a tensor wherever the message has a place for one."""
    for field in message.DESCRIPTOR.fields:
        if field.message_type is not None and field.message_type.full_name == tensor.DESCRIPTOR.full_name:
            value = getattr(message, field.name)
            if isinstance(value, Message):
                value.CopyFrom(tensor)
            else:
                value.add().CopyFrom(tensor)


def _fill(message: Any) -> None:
    """Give every text of a message, however deep, something that looks like a Pauli string."""
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.message_type is not None and not isinstance(value, Message):
            _fill(value.add())
        elif isinstance(value, str):
            setattr(message, field.name, "ZZ")


def make_seeds(qpy: bytes) -> list[tuple[str, bytes]]:
    """Method and bytes of valid requests: at least one for each RPC, more for those that take programs."""
    seeds = []
    for path, method in METHODS.items():
        kind: Any = GetMessageClass(method.input_type)
        plain = kind()
        for field in method.input_type.fields:
            if field.name in ("job_id", "session_id", "reservation_id", "page_token", "request_id"):
                setattr(plain, field.name, "fuzz")
            elif field.name in ("device", "name"):
                setattr(plain, field.name, "sim")
            elif field.name in ("path", "holder", "user", "parent"):
                setattr(plain, field.name, "lab/fuzz")
        seeds.append((path, plain.SerializeToString()))
        for spec in _jobs(qpy):
            request = kind()
            if "job" in method.input_type.fields_by_name:
                request.job.CopyFrom(spec)
            elif "jobs" in method.input_type.fields_by_name:
                request.jobs.extend([spec, spec])
            else:
                break
            seeds.append((path, request.SerializeToString()))
    return seeds


def mutate(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """`data` with one to four things wrong."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(changed) + 1)
        match rng.randrange(8):
            case 0:
                for _ in range(rng.randint(1, 8)):
                    if changed:
                        changed[rng.randrange(len(changed))] = rng.randrange(256)
            case 1:
                if at < len(changed):
                    changed[at] ^= 1 << rng.randrange(8)
            case 2:
                del changed[at:]
            case 3:
                del changed[at : at + rng.randint(1, 16)]
            case 4:
                changed[at:at] = rng.randbytes(rng.randint(1, 32))
            case 5:
                changed[at:at] = changed[at : at + rng.randint(1, 64)] * rng.randint(1, 20)
            case 6:
                other = rng.choice(others)
                changed[at:] = other[rng.randrange(len(other) + 1) :]
            case 7:
                # Numbers at the edges: lengths, shapes and counts among them.
                changed[at : at + 1] = rng.choice((b"\xff" * 9 + b"\x01", b"\x00", b"\x7f", b"\x80\x80\x80\x80\x08"))
    return bytes(changed)

"""The Sampler: the bits of each classical register, for each set of values and each shot.

Same results as qiskit_aer's SamplerV2 with the same seed, as long as the job has one PUB.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from cadenza.arrays import bit_array_to_message
from cadenza.v1.program_pb2 import SamplerPub
from cadenza.v1.result_pb2 import DataField, PubResult
from numpy.typing import NDArray

from cadenza_server.execution.aer import PreparedCircuit, execute, prepare
from cadenza_server.execution.errors import ProgramError
from cadenza_server.execution.programs import Bench, prepare_once, read_values


@dataclass(frozen=True, slots=True)
class _Register:
    name: str
    clbits: NDArray[np.intp]
    """Where its bits are in the circuit's memory, bit 0 first."""
    whole: bool
    """It is the memory, bit for bit."""


@dataclass(frozen=True, slots=True)
class _Prepared:
    circuit: PreparedCircuit
    parameters: tuple[Any, ...]
    registers: tuple[_Register, ...]
    num_clbits: int


def run_sampler_pub(bench: Bench, index: int, pub: SamplerPub, default_shots: int) -> tuple[PubResult, str]:
    """Run PUB number `index` of a job; returns its result and the method that was used. Raises `ProgramError`."""
    shots = pub.shots if pub.HasField("shots") else default_shots
    if shots < 1:
        raise ProgramError(f"shots is {shots}: it must be at least 1")
    watch = bench.watch
    watch.lap()
    key, circuit = bench.workshop.loader.load(pub.circuit, bench.circuits)
    watch.parse_ns += watch.lap()
    prepared: _Prepared = prepare_once(bench, ("sampler", key), lambda: _prepare(bench, circuit))
    watch.transpile_ns += watch.lap()
    shape, values = read_values(pub, prepared.parameters)
    watch.parse_ns += watch.lap()
    method = bench.method
    memories: list[list[str]] = []
    outcomes: dict[str, None] = {}
    if len(values):
        execution = execute(
            bench.model,
            prepared.circuit,
            values,
            shots=shots,
            seed=bench.seed_of(index),
            method=bench.method,
            memory=True,
        )
        method = execution.method
        memories = [data.get("memory") or ["0x0"] * shots for data in execution.data]
        # Aer has counted already; looking through the shots for what is different takes as long as reading them
        for data in execution.data:
            outcomes.update(dict.fromkeys(data.get("counts") or ("0x0",)))
    watch.execute_ns += watch.lap()
    result = PubResult(shape=shape)
    result.metadata["shots"] = shots
    rows, places = _unpack(outcomes, memories, prepared.num_clbits)
    for register in prepared.registers:
        packed = _take(rows, register)
        samples = packed[places].reshape(*shape, shots, packed.shape[-1])
        result.fields.append(DataField(name=register.name, bits=bit_array_to_message(samples, len(register.clbits))))
    return result, method


def _prepare(bench: Bench, circuit: Any) -> _Prepared:
    if not circuit.cregs or not _measures(circuit):
        raise ProgramError(
            "the circuit measures nothing into a classical register: add measurements, as measure_all() does (and in "
            "OpenQASM 3 declare bit[1] c, not bit c)"
        )
    parameters = tuple(circuit.parameters)
    fitted = bench.model.fit(circuit, bench.level, strict=bench.strict)
    registers = []
    for register in fitted.cregs:
        clbits = np.array([fitted.find_bit(bit).index for bit in register], np.intp)
        whole = len(clbits) == fitted.num_clbits and bool((clbits == np.arange(len(clbits))).all())
        registers.append(_Register(register.name, clbits, whole))
    return _Prepared(
        circuit=prepare(bench.model, fitted, parameters, noisy=bench.noisy),
        parameters=parameters,
        registers=tuple(registers),
        num_clbits=fitted.num_clbits,
    )


def _measures(circuit: Any) -> bool:
    """Whether a measurement is in it or in what it branches to."""
    for instruction in circuit.data:
        operation = instruction.operation
        if operation.name == "measure" or any(_measures(block) for block in getattr(operation, "blocks", ())):
            return True
        if instruction.clbits and not hasattr(operation, "blocks"):
            return True  # a composite instruction that writes bits
    return False


def _unpack(
    outcomes: Iterable[str], memories: Sequence[Sequence[str]], num_clbits: int
) -> tuple[NDArray[np.uint8], NDArray[np.intp]]:
    """(the different outcomes as big-endian rows of bytes, which of them each shot of each set was)."""
    size = max(1, (num_clbits + 7) // 8)
    mask = (1 << num_clbits) - 1
    places = {outcome: place for place, outcome in enumerate(outcomes)}
    data = b"".join((int(outcome, 16) & mask).to_bytes(size, "big") for outcome in places)
    rows = np.frombuffer(data, np.uint8).reshape(-1, size)
    shots = chain.from_iterable(memories)
    return rows, np.fromiter(map(places.__getitem__, shots), np.intp, sum(map(len, memories)))


def _take(rows: NDArray[np.uint8], register: _Register) -> NDArray[np.uint8]:
    """The register's bits of each outcome, packed as Qiskit's `BitArray` has them."""
    if register.whole:
        return rows
    bits = np.unpackbits(rows, axis=-1, bitorder="big")[:, ::-1][:, register.clbits]
    padding = -len(register.clbits) % 8
    return np.packbits(np.pad(bits[:, ::-1], ((0, 0), (padding, 0))), axis=-1, bitorder="big")

"""The Sampler: the bits of each classical register, for each set of values and each shot.

Circuits without noise whose measurements all come last are sampled from their outcomes' probabilities (see
`distribution`), which makes shots nearly free. All others are sampled by Aer, shot by shot; their results are those of
qiskit_aer's SamplerV2 with the same seed, as long as the job has one PUB. Either way a seed gives the same bits again
on the same version of the server, and the sets of values and the PUBs of a job are drawn independently.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Final

import numpy as np
from cadenza.arrays import bit_array_to_message
from cadenza.v1.program_pb2 import SamplerPub
from cadenza.v1.result_pb2 import DataField, PubResult
from numpy.typing import NDArray

from cadenza_server.execution.aer import PreparedCircuit, execute, prepare
from cadenza_server.execution.distribution import (
    LABEL,
    FinalMeasurements,
    OutcomePacker,
    draw_outcomes,
    find_final_measurements,
    save_probabilities,
)
from cadenza_server.execution.errors import ProgramError
from cadenza_server.execution.programs import Bench, prepare_once, read_values


@dataclass(frozen=True, slots=True)
class _Register:
    name: str
    clbits: NDArray[np.intp]
    """Where its bits are in the circuit's memory, bit 0 first."""
    whole: bool
    """It is the memory, bit for bit."""


@dataclass(slots=True)
class _Prepared:
    fitted: Any
    parameters: tuple[Any, ...]
    registers: tuple[_Register, ...]
    measurements: FinalMeasurements | None
    """None: each shot has to be executed."""
    packers: list[OutcomePacker] = field(default_factory=list)
    """One a register, if there are `measurements`."""
    shots: PreparedCircuit | None = None
    """The circuit as it is, once it has been needed."""
    probabilities: PreparedCircuit | None = None
    """With its outcomes' probabilities saved instead of measured, once that has been needed."""


SETS_PROBABILITIES_MAX: Final = 1 << 22
"""So many probabilities (32 MiB) are asked of Aer at a time."""


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
    result = PubResult(shape=shape)
    result.metadata["shots"] = shots
    seed = bench.seed_of(index)
    measurements = prepared.measurements
    chosen = measurements.choose_method(bench.method, shots * len(values)) if measurements is not None else None
    if measurements is not None and chosen is not None:
        samples, method = _draw(bench, prepared, measurements, values, shots, seed, chosen)
    else:
        samples, method = _shoot(bench, prepared, values, shots, seed)
    for register, rows in zip(prepared.registers, samples, strict=True):
        bits = bit_array_to_message(rows.reshape(*shape, shots, rows.shape[-1]), len(register.clbits))
        result.fields.append(DataField(name=register.name, bits=bits))
    watch.execute_ns += watch.lap()
    return result, method


def _draw(
    bench: Bench,
    prepared: _Prepared,
    measurements: FinalMeasurements,
    values: NDArray[np.float64],
    shots: int,
    seed: int,
    method: str,
) -> tuple[list[NDArray[np.uint8]], str]:
    """The packed bits of each register, a row a shot, drawn from the probabilities; and the method that was used."""
    watch = bench.watch
    if prepared.probabilities is None:
        circuit = save_probabilities(prepared.fitted, measurements)
        prepared.probabilities = prepare(bench.model, circuit, prepared.parameters, noisy=False)
        watch.transpile_ns += watch.lap()
    samples = [np.empty((len(values) * shots, packer.size), np.uint8) for packer in prepared.packers]
    tables = [packer.table(len(values) * shots) for packer in prepared.packers]
    random = np.random.default_rng(seed)
    # sets of values that no angle depends on have the same probabilities
    sets = values if prepared.probabilities.slots else values[:1]
    at_a_time = max(1, SETS_PROBABILITIES_MAX >> len(measurements.qubits))
    done = 0
    for begin in range(0, len(sets), at_a_time):
        some = sets[begin : begin + at_a_time]
        execution = execute(bench.model, prepared.probabilities, some, shots=1, seed=seed, method=method, memory=False)
        method = execution.method
        repeated = len(values) if len(sets) < len(values) else 1
        for data in execution.data * repeated:
            for outcomes in draw_outcomes(data[LABEL], shots, random):
                for packer, table, rows in zip(prepared.packers, tables, samples, strict=True):
                    rows[done : done + len(outcomes)] = packer.pack(outcomes, table)
                done += len(outcomes)
    return samples, method


def _shoot(
    bench: Bench, prepared: _Prepared, values: NDArray[np.float64], shots: int, seed: int
) -> tuple[list[NDArray[np.uint8]], str]:
    """The same, with each shot drawn by Aer."""
    watch = bench.watch
    if prepared.shots is None:
        prepared.shots = prepare(bench.model, prepared.fitted, prepared.parameters, noisy=bench.noisy)
        watch.transpile_ns += watch.lap()
    method = bench.method
    memories: list[list[str]] = []
    outcomes: dict[str, None] = {}
    if len(values):
        execution = execute(bench.model, prepared.shots, values, shots=shots, seed=seed, method=method, memory=True)
        method = execution.method
        memories = [data.get("memory") or ["0x0"] * shots for data in execution.data]
        # Aer has counted already; looking through the shots for what is different takes as long as reading them
        for data in execution.data:
            outcomes.update(dict.fromkeys(data.get("counts") or ("0x0",)))
    rows, places = _unpack(outcomes, memories, prepared.fitted.num_clbits)
    return [_take(rows, register)[places] for register in prepared.registers], method


def _prepare(bench: Bench, circuit: Any) -> _Prepared:
    if not circuit.cregs or not _measures(circuit):
        raise ProgramError(
            "the circuit measures nothing into a classical register: add measurements, as measure_all() does (and in "
            "OpenQASM 3 declare bit[1] c, not bit c)"
        )
    fitted = bench.model.fit(circuit, bench.level, strict=bench.strict, method=bench.method)
    registers = []
    for register in fitted.cregs:
        clbits = np.array([fitted.find_bit(bit).index for bit in register], np.intp)
        whole = len(clbits) == fitted.num_clbits and bool((clbits == np.arange(len(clbits))).all())
        registers.append(_Register(register.name, clbits, whole))
    measurements = None if bench.noisy else find_final_measurements(fitted)
    prepared = _Prepared(
        fitted=fitted,
        parameters=tuple(circuit.parameters),
        registers=tuple(registers),
        measurements=measurements,
    )
    if measurements is not None:
        prepared.packers = [OutcomePacker(measurements, register.clbits.tolist()) for register in registers]
    return prepared


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

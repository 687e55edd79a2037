"""What sampler and estimator share: a job's options in force, and the values of a PUB's parameters."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Any

import numpy as np
from cadenza.arrays import array_from_tensor
from cadenza.v1.circuit_pb2 import Circuit
from cadenza.v1.program_pb2 import EstimatorPub, ExecutionOptions, SamplerPub
from numpy.typing import NDArray

from cadenza_server.execution.aer import derive_seed
from cadenza_server.execution.cache import LatestUsed
from cadenza_server.execution.circuits import CircuitLoader, circuit_digest
from cadenza_server.execution.errors import ProgramError
from cadenza_server.execution.models import DeviceModel
from cadenza_server.execution.spec import METHODS


class Stopwatch:
    """Nanoseconds spent parsing (and binding), transpiling and executing."""

    def __init__(self) -> None:
        self.parse_ns = 0
        self.transpile_ns = 0
        self.execute_ns = 0
        self._since = perf_counter_ns()

    def lap(self) -> int:
        """The time since the last lap."""
        now = perf_counter_ns()
        since, self._since = self._since, now
        return now - since


class Workshop:
    """What lives as long as the worker: the device's model, and circuits that are ready to run."""

    def __init__(self, model: DeviceModel, draw_seed: Callable[[], int]) -> None:
        self.model = model
        self.draw_seed = draw_seed
        cached_max = model.spec.circuits_cached_max
        self.loader = CircuitLoader(cached_max=cached_max, num_qubits_max=model.spec.num_qubits)
        self.prepared: LatestUsed[Hashable, Any] = LatestUsed(cached_max)


@dataclass(frozen=True, slots=True)
class Bench:
    """What one job is executed with."""

    workshop: Workshop
    method: str
    level: int
    strict: bool
    noisy: bool
    seed: int
    circuits: Mapping[bytes, Circuit]
    """By digest: those that the device's owner sent along, and those of the job's own PUBs."""
    watch: Stopwatch

    @property
    def model(self) -> DeviceModel:
        """The device's."""
        return self.workshop.model

    def variant(self) -> tuple[int, bool, bool, str]:
        """What, beside its content, decides how a circuit is prepared."""
        return self.level, self.strict, self.noisy, self.method

    def seed_of(self, index: int) -> int:
        """The seed of the PUB number `index`."""
        return derive_seed(self.seed, index)


def set_up_bench(
    workshop: Workshop,
    options: ExecutionOptions,
    pubs: Sequence[SamplerPub] | Sequence[EstimatorPub],
    known: Mapping[bytes, Circuit],
) -> Bench:
    """Check a job's options against the device and fill in its defaults. Raises `ProgramError`."""
    model, spec = workshop.model, workshop.model.spec
    if options.method and options.method not in METHODS:
        raise ProgramError(f"the method {options.method!r} is unknown: use one of {', '.join(METHODS)}")
    level = options.transpile_level if options.HasField("transpile_level") else spec.transpile_level
    if not 0 <= level <= 3:
        raise ProgramError(f"the transpile level is {level}: it goes from 0 to 3")
    noisy = model.noise_model is not None
    if options.HasField("noise"):
        if options.noise and not noisy:
            raise ProgramError("the device has no noise: leave out the option noise, or use a noisy device")
        noisy = options.noise
    circuits = dict(known)
    if any(pub.circuit.WhichOneof("source") == "digest" for pub in pubs):
        for pub in pubs:
            if pub.circuit.WhichOneof("source") != "digest":
                circuits[circuit_digest(pub.circuit)] = pub.circuit
    return Bench(
        workshop=workshop,
        method=options.method or spec.method,
        level=level,
        strict=options.strict_isa,
        noisy=noisy,
        # Aer keeps the seed that it once drew for a converted circuit, so one is drawn here for each job
        seed=options.seed if options.HasField("seed") else workshop.draw_seed(),
        circuits=circuits,
        watch=Stopwatch(),
    )


def read_values(pub: SamplerPub | EstimatorPub, parameters: Sequence[Any]) -> tuple[tuple[int, ...], NDArray[Any]]:
    """(the shape of the sets of values, the values as rows of float64 with a column a parameter).

    The columns have the order of `parameters`, whatever order the PUB names. Raises `ProgramError`.
    """
    count = len(parameters)
    if not pub.HasField("parameter_values"):
        if count:
            raise ProgramError(f"the circuit has {_describe(parameters)} and the PUB no values: give parameter_values")
        return (), np.empty((1, 0))
    try:
        values = array_from_tensor(pub.parameter_values)
    except ValueError as error:
        raise ProgramError(f"parameter_values: {error}") from error
    if values.dtype.kind not in "fi":
        raise ProgramError(f"parameter_values are {values.dtype}: send real numbers (float64, float32, int64 or int32)")
    if values.ndim == 0 or values.shape[-1] != count:
        raise ProgramError(
            f"parameter_values has shape {values.shape} and the circuit {_describe(parameters)}: "
            f"the last axis must be {count} long"
        )
    rows = np.asarray(values.reshape(-1, count) if count else np.empty((_size(values.shape[:-1]), 0)), np.float64)
    if not np.isfinite(rows).all():
        raise ProgramError("parameter_values holds NaN or infinity: send finite numbers")
    order = list(pub.parameter_names)
    if order and order != [parameter.name for parameter in parameters]:
        names = {parameter.name: index for index, parameter in enumerate(parameters)}
        if len(order) != count or set(names) != set(order):
            raise ProgramError(
                f"parameter_names are {', '.join(order)}; the circuit has {_describe(parameters)}: name each once"
            )
        columns = np.empty(count, np.intp)
        for column, name in enumerate(order):
            columns[names[name]] = column
        rows = rows[:, columns]
    return values.shape[:-1], rows


def prepare_once(bench: Bench, key: Hashable, make: Any) -> Any:
    """What the worker has prepared under `key` in this job's variant, or what `make` makes now."""
    return bench.workshop.prepared.get_or_make((key, bench.variant()), make)


def _describe(parameters: Sequence[Any]) -> str:
    if not parameters:
        return "no parameters"
    names = ", ".join(parameter.name for parameter in parameters[:8])
    more = ", ..." if len(parameters) > 8 else ""
    return f"{len(parameters)} parameter{'s' if len(parameters) > 1 else ''} ({names}{more})"


def _size(shape: Sequence[int]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size

"""Options of the primitives, by the names of qiskit_ibm_runtime where the thing exists here. Nothing is ignored:
an option that does not exist is an error that names the closest one.
"""

import dataclasses
import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

from cadenza._errors import OptionError
from cadenza._times import Length, parse_length
from cadenza.v1.program_pb2 import ExecutionOptions

_ELSEWHERE: Final = frozenset(
    {
        "dynamical_decoupling",
        "execution",
        "experimental",
        "resilience",
        "resilience_level",
        "twirling",
        "log_level",
        "private",
        "image",
        "noise_model",
        "coupling_map",
        "basis_gates",
    }
)
"""Options that programs for qiskit_ibm_runtime set and that mean nothing here."""

_ABSENT: Final = "exists in qiskit_ibm_runtime, but has no meaning on these devices: leave it out"


class _MissingOptionError(OptionError, AttributeError):
    """An `OptionError` that `hasattr` takes for no."""


class _Options:
    """Checks names and values whenever one is set, so that a wrong one is found where it is written."""

    _checks: ClassVar[Mapping[str, Callable[[Any], str | None]]] = {}
    _nested: ClassVar[Mapping[str, type["_Options"]]] = {}

    def __setattr__(self, name: str, value: object) -> None:
        names = self._names()
        if name not in names:
            raise _wrong(name, _explain_unknown(name, names))
        nested = self._nested.get(name)
        if nested is not None and isinstance(value, Mapping):
            value = nested.make(value)
        elif nested is not None and not isinstance(value, nested):
            raise _wrong(name, f"give a dictionary of {', '.join(nested._names())}")
        check = self._checks.get(name)
        if check is not None and value is not None and (problem := check(value)) is not None:
            raise _wrong(name, f"{value!r} is wrong: {problem}")
        object.__setattr__(self, name, value)

    if not TYPE_CHECKING:  # a type checker shall go on to find names that do not exist

        def __getattr__(self, name: str) -> Any:
            """Called for what is not there: `options.twirling.enable = True` is told what setting `twirling` is."""
            if name in _ELSEWHERE:
                raise _MissingOptionError(
                    f"option {name!r}: {_ABSENT}", code="INVALID_ARGUMENT", reason="INVALID_FIELD", field=name
                )
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)

    @classmethod
    def _names(cls) -> tuple[str, ...]:
        return tuple(f.name for f in dataclasses.fields(cls))  # type: ignore[arg-type]

    @classmethod
    def make(cls, given: Self | Mapping[str, Any] | None) -> Self:
        """Options from a dictionary (nested ones, too), or a copy. Raises `OptionError`."""
        made = cls()
        if isinstance(given, cls):
            given = {name: getattr(given, name) for name in cls._names()}
        elif given is not None and not isinstance(given, Mapping):
            raise OptionError(f"options must be a dictionary or {cls.__name__}, not {type(given).__name__}")
        made.update(**(given or {}))
        return made

    def update(self, **changes: Any) -> None:
        """Change some options; a nested dictionary changes what it names and leaves the rest."""
        for name, value in changes.items():
            if name in self._nested and isinstance(value, _Options):
                value = {inner: getattr(value, inner) for inner in value._names()}
            if name in self._nested and isinstance(value, Mapping):
                getattr(self, name).update(**value)
            else:
                setattr(self, name, value)


def _wrong(name: str, sentence: str) -> OptionError:
    return OptionError(f"option {name!r}: {sentence}", code="INVALID_ARGUMENT", reason="INVALID_FIELD", field=name)


def _explain_unknown(name: str, names: Sequence[str]) -> str:
    if name in _ELSEWHERE:
        return _ABSENT
    close = [known for known in names if name and name in known] or difflib.get_close_matches(name, names, n=3)
    meant = f"; did you mean {' or '.join(map(repr, close))}?" if close else "."
    return f"there is no such option{meant} There are {', '.join(names)}"


def _check_int(least: int, most: int | None = None) -> Callable[[Any], str | None]:
    def check(value: Any) -> str | None:
        if isinstance(value, bool) or not hasattr(value, "__index__"):
            return "it must be a whole number"
        if value < least or (most is not None and value > most):
            return f"it must be at least {least}" + ("" if most is None else f" and at most {most}")
        return None

    return check


def _check_precision(value: Any) -> str | None:
    try:
        good = not isinstance(value, bool) and math.isfinite(value) and value >= 0
    except TypeError:
        good = False
    return None if good else "it must be a number, at least 0 (0: exact)"


def _check_bool(value: Any) -> str | None:
    return None if isinstance(value, bool) else "it must be True or False"


def _check_text(value: Any) -> str | None:
    return None if isinstance(value, str) else "it must be text"


def _check_length(value: Any) -> str | None:
    return None if parse_length(value, "max_execution_time") > 0 else "it must be longer than 0"


def _check_tags(value: Any) -> str | None:
    good = isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(tag, str) for tag in value)
    return None if good else "it must be a list of texts"


_check_seed: Final = _check_int(0, 2**64 - 1)


@dataclass
class EnvironmentOptions(_Options):
    """Around the job. `job_tags`: labels to find it by."""

    job_tags: Sequence[str] | None = None

    _checks: ClassVar = {"job_tags": _check_tags}


@dataclass
class SimulatorOptions(_Options):
    """How a simulator runs the job.

    `seed_simulator`: same seed, same results on the same device, calibration epoch and version of the server (they need
    not be those of Aer's own primitives). `method`: one of the device's `methods`. `noise`: False runs without the
    device's noise, True demands it, None: as the device is.
    """

    seed_simulator: int | None = None
    method: str | None = None
    noise: bool | None = None

    _checks: ClassVar = {"seed_simulator": _check_seed, "method": _check_text, "noise": _check_bool}


@dataclass
class SamplerOptions(_Options):
    """Options of `SamplerV2`. None: the device's default.

    `max_execution_time`: device seconds (or `2h 30m`) after which the job is stopped. `transpile_level`: how much the
    worker optimises, 0 to 3. `strict_isa`: refuse circuits that do not fit the device instead of transpiling them.
    `priority`: -100 to 100, orders your own jobs only. `estimate_hint`: your guess of the device time.
    """

    default_shots: int | None = None
    max_execution_time: Length | None = None
    transpile_level: int | None = None
    strict_isa: bool = False
    priority: int = 0
    estimate_hint: Length | None = None
    environment: EnvironmentOptions = field(default_factory=EnvironmentOptions)
    simulator: SimulatorOptions = field(default_factory=SimulatorOptions)

    _checks: ClassVar = {
        "default_shots": _check_int(1),
        "max_execution_time": _check_length,
        "transpile_level": _check_int(0, 3),
        "strict_isa": _check_bool,
        "priority": _check_int(-100, 100),
        "estimate_hint": _check_length,
    }
    _nested: ClassVar = {"environment": EnvironmentOptions, "simulator": SimulatorOptions}

    def make_execution(self) -> ExecutionOptions:
        """The contract's form."""
        return _make_execution(self, self.simulator.seed_simulator)


@dataclass
class EstimatorOptions(_Options):
    """Options of `EstimatorV2`. As `SamplerOptions`, and

    `default_precision`: the standard error aimed at; 0 asks for exact values. With a precision above 0 a value is the
    exact one plus normal noise of that size, as Aer's own Estimator gives it, so it can lie outside of what can be
    measured (`<ZZ>` of 1.01). `default_shots`: if it is set and
    `default_precision` is not, the precision is 1 / sqrt(default_shots). `seed_estimator`: as
    `simulator.seed_simulator`, and goes before it.
    """

    default_precision: float | None = None
    default_shots: int | None = None
    seed_estimator: int | None = None
    max_execution_time: Length | None = None
    transpile_level: int | None = None
    strict_isa: bool = False
    priority: int = 0
    estimate_hint: Length | None = None
    environment: EnvironmentOptions = field(default_factory=EnvironmentOptions)
    simulator: SimulatorOptions = field(default_factory=SimulatorOptions)

    _checks: ClassVar = {
        **SamplerOptions._checks,
        "default_precision": _check_precision,
        "seed_estimator": _check_seed,
    }
    _nested: ClassVar = SamplerOptions._nested

    def make_execution(self) -> ExecutionOptions:
        """The contract's form."""
        seed = self.seed_estimator if self.seed_estimator is not None else self.simulator.seed_simulator
        return _make_execution(self, seed)

    def precision(self) -> float | None:
        """The standard error aimed at by PUBs that name none; None: the device's default."""
        if self.default_precision is None and self.default_shots is not None:
            return 1 / math.sqrt(self.default_shots)
        return self.default_precision


def _make_execution(options: SamplerOptions | EstimatorOptions, seed: int | None) -> ExecutionOptions:
    return ExecutionOptions(
        seed=seed,
        method=options.simulator.method or "",
        transpile_level=options.transpile_level,
        strict_isa=options.strict_isa,
        noise=options.simulator.noise,
    )

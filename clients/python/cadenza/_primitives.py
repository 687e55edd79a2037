"""The primitives: `SamplerV2` and `EstimatorV2` over a device, a session or a batch."""

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from qiskit import QuantumCircuit
from qiskit.exceptions import QiskitError
from qiskit.primitives import BaseEstimatorV2, BaseSamplerV2
from qiskit.primitives.containers import EstimatorPubLike, SamplerPubLike
from qiskit.primitives.containers.estimator_pub import EstimatorPub
from qiskit.primitives.containers.sampler_pub import SamplerPub

from cadenza._backend import CadenzaBackend
from cadenza._codec import CircuitWriter, ObservablesMemory, encode_estimator, encode_sampler
from cadenza._errors import CadenzaError, InvalidRequestError, map_argument_error
from cadenza._job import Job
from cadenza._options import EstimatorOptions, SamplerOptions
from cadenza._requests import job_spec
from cadenza._session import Session, current_session
from cadenza.v1.program_pb2 import Program

logger: Final = logging.getLogger("cadenza")

_UNWRITABLE: Final = (TypeError, ValueError, ArithmeticError, AttributeError, LookupError, QiskitError)
"""What Qiskit raises about PUBs that are none, and circuits that cannot be written."""


def _resolve_mode(mode: object) -> tuple[Session | None, CadenzaBackend]:
    """The session (None: jobs on their own) and the device that `mode` means, as in qiskit_ibm_runtime."""
    current = current_session()
    if isinstance(mode, Session):
        return mode, mode._backend
    if mode is None and current is not None:
        return current, current._backend
    if not isinstance(mode, CadenzaBackend):
        raise InvalidRequestError(
            "a backend or session must be given as mode, or the primitive be made inside `with Session(...)`"
            if mode is None
            else f"mode must be a backend of a CadenzaService, a Session, a Batch or None, not {type(mode).__name__}",
            code="INVALID_ARGUMENT",
            field="mode",
        )
    if current is None:
        return None, mode
    if (mode.name, mode.service) != (current._backend.name, current.service):
        raise InvalidRequestError(
            f"the backend {mode.name} is not the one of the surrounding session ({current.backend()}): leave mode "
            "empty to use the session's, or make the primitive outside of the session",
            code="INVALID_ARGUMENT",
            field="mode",
        )
    logger.warning("mode is a backend, but a session surrounds it: the jobs run inside session %s", current.session_id)
    return current, mode


class _Primitive:
    """What both primitives have: a mode, a device and a way to submit."""

    def __init__(self, mode: object) -> None:
        self._mode, self._backend = _resolve_mode(mode)

    @property
    def mode(self) -> Session | None:
        """The session or batch that the jobs run in; None if each is on its own."""
        return self._mode

    def backend(self) -> CadenzaBackend:
        """The device that the jobs run on."""
        return self._backend

    def _submit(
        self,
        pubs: list[Any],
        encode: Callable[[CircuitWriter], Program],
        options: SamplerOptions | EstimatorOptions,
    ) -> Job:
        arguments: dict[str, Any] = {
            "priority": options.priority,
            "tags": options.environment.job_tags or (),
            "max_execution_time": options.max_execution_time,
            "estimate_hint": options.estimate_hint,
        }

        def write(writer: CircuitWriter) -> Program:
            try:
                return encode(writer)
            except CadenzaError:
                raise
            except _UNWRITABLE as error:
                raise map_argument_error(error, "pubs") from error

        if self._mode is not None:
            job = self._mode._submit(write, **arguments)
        else:
            service = self._backend.service
            program = write(CircuitWriter(frozenset(), service.qpy_version, self._backend._cycle))
            spec = job_spec(program, device=self._backend.name, **arguments)
            job = Job.unfollowed(service, service.client.submit_job_spec_for_end(spec))
        job.circuit_metadata = [dict(pub.circuit.metadata or {}) for pub in pubs]
        return job


class SamplerV2(_Primitive, BaseSamplerV2):  # type: ignore[misc]
    """Samples the classical registers of circuits.

    `mode`: a backend, a `Session` or a `Batch`; None inside the `with` block of one. `options`: a `SamplerOptions` or
    a dictionary; `sampler.options` is read at each run.
    """

    version = 2

    def __init__(
        self,
        mode: CadenzaBackend | Session | None = None,
        options: SamplerOptions | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(mode)
        self._options = SamplerOptions.make(options)

    @property
    def options(self) -> SamplerOptions:
        """The options, to read and to set."""
        return self._options

    def run(self, pubs: Iterable[SamplerPubLike], *, shots: int | None = None) -> Job:
        """Submit one job. `shots`: of the PUBs that name none; None: `options.default_shots`, else the device's.

        The result is a `PrimitiveResult` of `SamplerPubResult`s. Raises `InvalidRequestError` (a `ValueError`, and
        a `TypeError` where Qiskit raises one) for PUBs that are none, `CadenzaError` for what the server refuses.
        """
        coerced = _coerce_all(pubs, lambda pub: SamplerPub.coerce(pub, shots))
        _check_some(coerced)
        for index, pub in enumerate(coerced):
            if not pub.circuit.cregs:
                raise InvalidRequestError(
                    f"the circuit of PUB {index} has no classical register, so there is nothing to sample: "
                    "add measurements, for example with circuit.measure_all()",
                    code="INVALID_ARGUMENT",
                    reason="INVALID_CIRCUIT",
                    field=f"pubs[{index}].circuit",
                )
        options = self._options
        return self._submit(
            coerced,
            lambda writer: encode_sampler(coerced, writer, options.make_execution(), options.default_shots),
            options,
        )


class EstimatorV2(_Primitive, BaseEstimatorV2):  # type: ignore[misc]
    """Estimates expectation values of observables.

    `mode`: a backend, a `Session` or a `Batch`; None inside the `with` block of one. `options`: an `EstimatorOptions`
    or a dictionary; `estimator.options` is read at each run.
    """

    version = 2

    def __init__(
        self,
        mode: CadenzaBackend | Session | None = None,
        options: EstimatorOptions | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(mode)
        self._options = EstimatorOptions.make(options)
        self._memory = ObservablesMemory()

    @property
    def options(self) -> EstimatorOptions:
        """The options, to read and to set."""
        return self._options

    def run(self, pubs: Iterable[EstimatorPubLike], *, precision: float | None = None) -> Job:
        """Submit one job. `precision`: standard error aimed at by the PUBs that name none; 0 asks for exact values.

        None: `options.default_precision`, else the device's. The job's result is a `PrimitiveResult` of `PubResult`s
        with `data.evs` and `data.stds`. Raises `InvalidRequestError` (a `ValueError`, and a `TypeError` where Qiskit
        raises one) for PUBs that are none, `CadenzaError` for what the server refuses.
        """
        coerced = _coerce_all(pubs, lambda pub: self._coerce(pub, precision))
        _check_some(coerced)
        options, memory = self._options, self._memory
        return self._submit(
            coerced,
            lambda writer: encode_estimator(coerced, writer, options.make_execution(), options.precision(), memory),
            options,
        )

    def _coerce(self, pub: EstimatorPubLike, precision: float | None) -> EstimatorPub:
        if isinstance(pub, tuple) and len(pub) > 1 and (known := self._memory.recall(pub[1])) is not None:
            pub = (pub[0], known, *pub[2:])
        return EstimatorPub.coerce(pub, precision)


Sampler = SamplerV2
Estimator = EstimatorV2


def _coerce_all(pubs: Iterable[Any], coerce: Callable[[Any], Any]) -> list[Any]:
    if isinstance(pubs, QuantumCircuit):
        raise InvalidRequestError(
            "pubs is one circuit: give a list of PUBs, such as [circuit]", code="INVALID_ARGUMENT", field="pubs"
        )
    coerced: list[Any] = []
    try:
        for pub in pubs:
            coerced.append(coerce(pub))  # noqa: PERF401  (its length says which one is wrong)
    except _UNWRITABLE as error:
        raise map_argument_error(error, f"pubs[{len(coerced)}]") from error
    return coerced


def _check_some(pubs: list[Any]) -> None:
    if not pubs:
        raise InvalidRequestError(
            "there is no PUB to run: give at least one", code="INVALID_ARGUMENT", reason="INVALID_FIELD", field="pubs"
        )

"""The Python library of Cadenza, a self-hosted gRPC scheduling server for quantum jobs.

Programs that use Qiskit begin with `CadenzaService`, programs that do not with `Client` or `AsyncClient`. Importing
this package loads neither Qiskit nor gRPC: each name is loaded when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cadenza._aio_client import AsyncClient as AsyncClient
    from cadenza._backend import BackendProperties as BackendProperties
    from cadenza._backend import BackendStatus as BackendStatus
    from cadenza._backend import CadenzaBackend as CadenzaBackend
    from cadenza._client import Client as Client
    from cadenza._errors import AlreadyExistsError as AlreadyExistsError
    from cadenza._errors import CadenzaError as CadenzaError
    from cadenza._errors import CadenzaTimeoutError as CadenzaTimeoutError
    from cadenza._errors import ExhaustedError as ExhaustedError
    from cadenza._errors import InternalError as InternalError
    from cadenza._errors import InvalidRequestError as InvalidRequestError
    from cadenza._errors import JobCancelledError as JobCancelledError
    from cadenza._errors import JobError as JobError
    from cadenza._errors import JobFailedError as JobFailedError
    from cadenza._errors import NotFoundError as NotFoundError
    from cadenza._errors import NotReadyError as NotReadyError
    from cadenza._errors import OptionError as OptionError
    from cadenza._errors import OutOfRangeError as OutOfRangeError
    from cadenza._errors import PermissionDeniedError as PermissionDeniedError
    from cadenza._errors import PreconditionError as PreconditionError
    from cadenza._errors import ServerStartError as ServerStartError
    from cadenza._errors import UnauthenticatedError as UnauthenticatedError
    from cadenza._errors import UnavailableError as UnavailableError
    from cadenza._job import Job as Job
    from cadenza._job import JobUpdate as JobUpdate
    from cadenza._options import EnvironmentOptions as EnvironmentOptions
    from cadenza._options import EstimatorOptions as EstimatorOptions
    from cadenza._options import SamplerOptions as SamplerOptions
    from cadenza._options import SimulatorOptions as SimulatorOptions
    from cadenza._primitives import Estimator as Estimator
    from cadenza._primitives import EstimatorV2 as EstimatorV2
    from cadenza._primitives import Sampler as Sampler
    from cadenza._primitives import SamplerV2 as SamplerV2
    from cadenza._requests import job_spec as job_spec
    from cadenza._requests import make_circuit as make_circuit
    from cadenza._requests import sampler_program as sampler_program
    from cadenza._reservation import Reservation as Reservation
    from cadenza._service import CadenzaService as CadenzaService
    from cadenza._session import Batch as Batch
    from cadenza._session import Session as Session
    from cadenza._transport import Retry as Retry
    from cadenza._transport import Tls as Tls
    from cadenza._transport import Watch as Watch

_HOMES = {
    "_aio_client": ("AsyncClient",),
    "_backend": ("BackendProperties", "BackendStatus", "CadenzaBackend"),
    "_client": ("Client",),
    "_errors": (
        "AlreadyExistsError",
        "CadenzaError",
        "CadenzaTimeoutError",
        "ExhaustedError",
        "InternalError",
        "InvalidRequestError",
        "JobCancelledError",
        "JobError",
        "JobFailedError",
        "NotFoundError",
        "NotReadyError",
        "OptionError",
        "OutOfRangeError",
        "PermissionDeniedError",
        "PreconditionError",
        "ServerStartError",
        "UnauthenticatedError",
        "UnavailableError",
    ),
    "_job": ("Job", "JobUpdate"),
    "_options": ("EnvironmentOptions", "EstimatorOptions", "SamplerOptions", "SimulatorOptions"),
    "_primitives": ("Estimator", "EstimatorV2", "Sampler", "SamplerV2"),
    "_requests": ("job_spec", "make_circuit", "sampler_program"),
    "_reservation": ("Reservation",),
    "_service": ("CadenzaService",),
    "_session": ("Batch", "Session"),
    "_transport": ("Retry", "Tls", "Watch"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [  # noqa: RUF022  (by use, not by letter)
    # Qiskit programs
    "CadenzaService",
    "CadenzaBackend",
    "BackendStatus",
    "BackendProperties",
    "Session",
    "Batch",
    "SamplerV2",
    "EstimatorV2",
    "Sampler",
    "Estimator",
    "SamplerOptions",
    "EstimatorOptions",
    "EnvironmentOptions",
    "SimulatorOptions",
    "Job",
    "JobUpdate",
    "Reservation",
    # any program
    "Client",
    "AsyncClient",
    "Watch",
    "Retry",
    "Tls",
    "job_spec",
    "make_circuit",
    "sampler_program",
    # what can go wrong
    "CadenzaError",
    "InvalidRequestError",
    "OptionError",
    "UnauthenticatedError",
    "PermissionDeniedError",
    "NotFoundError",
    "AlreadyExistsError",
    "PreconditionError",
    "NotReadyError",
    "OutOfRangeError",
    "ExhaustedError",
    "UnavailableError",
    "InternalError",
    "CadenzaTimeoutError",
    "JobError",
    "JobFailedError",
    "JobCancelledError",
    "ServerStartError",
]


def __getattr__(name: str) -> object:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

"""What a device is given to run, and what it reports."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from cadenza_server.model.words import RunOutcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """One run of a job. All bytes are opaque to the server."""

    job: str
    attempt: int
    program: bytes
    """The serialised `cadenza.v1.Program`."""
    circuits: Mapping[bytes, bytes] = field(default_factory=dict)
    """SHA-256 -> serialised `cadenza.v1.Circuit`, of the circuits that the program names by digest."""
    limit_ns: int
    """The run is stopped then, and reported as RAN_TOO_LONG."""
    min_duration_ns: int = 0
    """A run that succeeds earlier keeps the device until then (9). A run whose limit comes first reaches its limit."""
    epoch: int = 0
    """The calibration epoch of the device, for the result."""
    session_first_epoch: int | None = None
    """The epoch in which the first run of the job's session started, for the result. None: it has no session."""
    age_ns: int = 0
    """How long the epoch lasts: what drifts has drifted so long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """How a run ended. There is one for each run that was neither stopped nor put back."""

    device: str
    job: str
    attempt: int
    outcome: RunOutcome
    """SUCCEEDED, EXECUTION_ERROR, RAN_TOO_LONG or WORKER_LOST."""
    detail: str = ""
    """A sentence for people about everything but a success."""
    result: bytes | None = None
    """The serialised `cadenza.v1.JobResult` of a success."""
    properties: bytes | None = None
    """The serialised `cadenza.v1.DeviceProperties` that a calibration measured."""

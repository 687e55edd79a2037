"""What people are shown of the scheduler as it is now, and what callers hand in beside a command."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from cadenza_server.model.settings import DeviceSettings
from cadenza_server.model.value import value
from cadenza_server.model.words import JobClass
from cadenza_server.scheduling.views import DeviceView as DeviceNow
from cadenza_server.scheduling.views import NodeView
from cadenza_server.store.views import ProgramKind


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestKey:
    """Makes a mutating call safe to repeat: `digest` is a hash of the call's content (and of its method)."""

    caller: str
    request_id: str
    digest: bytes


@value
class JobContent:
    """What a submitted job executes; the scheduler never sees it. All bytes are opaque to the engine."""

    program: bytes
    """The serialised `cadenza.v1.Program`."""
    program_kind: ProgramKind
    tags: tuple[str, ...] = ()
    estimate_hint_ns: int | None = None
    min_duration_ns: int = 0
    """A calibration that is done earlier keeps the device until then; 0: as soon as it is done."""
    new_circuits: Mapping[bytes, bytes] = field(default_factory=dict)
    """SHA-256 -> serialised `cadenza.v1.Circuit`, of every circuit that the program brings itself."""
    digests: frozenset[bytes] = frozenset()
    """SHA-256 of every circuit that the program only names."""
    workload: bytes | None = None
    """What the predictor knows the job by (`predictor.make_workload`); None: nothing, as of a calibration."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimateError:
    """How far the estimates of a device's latest runs were from their lengths; see `predictor.measure_error`."""

    run_count: int
    factor_p50: float
    factor_p90: float
    difference_p50_ns: int
    difference_p90_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceView:
    """A device as it is now. `ready`: its worker can take a run up."""

    device: str
    settings: DeviceSettings
    profile: str
    ready: bool
    epoch: int
    calibrate_time: int | None
    """When the latest successful calibration ended."""
    next_calibration_time: int | None
    running_job: str | None
    running_user: str | None
    running_class: JobClass | None
    running_since: int | None
    active_session: str | None
    active_user: str | None
    active_session_idle_due: int | None
    """When it lets go of the device if no job of it comes; None: its idle clock does not run."""
    active_session_expires_at: int | None
    held: bool
    """Nothing runs, and the active session keeps it so."""
    reservation: str | None
    """The one whose window is now."""
    queued_calibration: int
    queued_session: int
    queued_fair_share: int
    properties: bytes | None
    """What the latest calibration measured, serialised `cadenza.v1.DeviceProperties`; None: as configured."""
    estimate_error: EstimateError | None
    """None: no run has ended yet that counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageView:
    """A node of the share tree; usages are decayed to now, in device seconds."""

    path: str
    is_user: bool | None
    """None: not known yet."""
    shares: float
    settled_s: float
    in_flight_s: float
    normalised_s: float
    charged_s: float
    """Ever charged, not decayed."""
    queued: int
    running: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """The engine in numbers, now."""

    now: int
    devices: tuple[DeviceNow, ...]
    accounts: tuple[NodeView, ...]
    queued: int
    sessions: int
    """That are not CLOSED."""
    watches: int
    result_bytes: int | None
    """Of the results that are kept; None: not counted yet."""

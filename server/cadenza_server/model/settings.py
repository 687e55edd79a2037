"""Settings of a device, and the two profiles that give their defaults (semantics 5.7)."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from cadenza_server.model.words import CalibrationRule, FirstJob, OnExpiry, Pending

SECOND: Final = 1_000_000_000
"""Nanoseconds. All times inside are integers of them."""

HALF_LIFE_DEFAULT: Final = 7 * 24 * 3600 * SECOND
"""Of usage (6)."""

SHARES_MIN: Final = 1e-9
SHARES_MAX: Final = 1e9
"""Of a node. The law asks for no more than a number above 0; within these, usage over shares is a finite one, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSettings:
    """What the law lets a device decide for itself. Lengths are nanoseconds."""

    interactive_ttl_dedicated: int
    interactive_ttl_batch: int
    max_time: int
    unused_ttl: int
    on_close: Pending
    on_expiry: OnExpiry
    session_cache_ttl: int
    first_job: FirstJob
    calibration: CalibrationRule
    limit: int
    max_attempts: int
    default_estimate: int
    calibration_interval: int | None
    calibration_duration: int

    def __post_init__(self) -> None:
        """Raise `ValueError` if a value is out of range (2: lengths are positive, two TTLs may be 0)."""
        for name in ("max_time", "unused_ttl", "limit", "default_estimate", "calibration_duration"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive")
        for name in ("interactive_ttl_dedicated", "interactive_ttl_batch", "session_cache_ttl"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative")
        if self.calibration_interval is not None and self.calibration_interval <= 0:
            raise ValueError("calibration_interval must be positive; leave it out for no automatic calibration")
        if self.max_attempts < 1:
            raise ValueError("max_attempts must be at least 1")


RUNTIME_2023: Final = DeviceSettings(
    interactive_ttl_dedicated=300 * SECOND,
    interactive_ttl_batch=1 * SECOND,
    max_time=28_800 * SECOND,
    unused_ttl=1_800 * SECOND,
    on_close=Pending.FAIL_QUEUED,
    on_expiry=OnExpiry.FAIR_SHARE,
    session_cache_ttl=3_600 * SECOND,
    first_job=FirstJob.REQUIRED,
    calibration=CalibrationRule.BEFORE_SESSIONS,
    limit=10_800 * SECOND,
    max_attempts=3,
    default_estimate=1 * SECOND,
    calibration_interval=None,
    calibration_duration=60 * SECOND,
)

RUNTIME_2024: Final = DeviceSettings(
    interactive_ttl_dedicated=60 * SECOND,
    interactive_ttl_batch=1 * SECOND,
    max_time=28_800 * SECOND,
    unused_ttl=1_800 * SECOND,
    on_close=Pending.DRAIN,
    on_expiry=OnExpiry.FAIL,
    session_cache_ttl=3_600 * SECOND,
    first_job=FirstJob.INDEPENDENT,
    calibration=CalibrationRule.OUTSIDE_DEDICATED,
    limit=10_800 * SECOND,
    max_attempts=3,
    default_estimate=1 * SECOND,
    calibration_interval=None,
    calibration_duration=60 * SECOND,
)

PROFILES: Final[Mapping[str, DeviceSettings]] = MappingProxyType(
    {"runtime-2023": RUNTIME_2023, "runtime-2024": RUNTIME_2024}
)
PROFILE_DEFAULT: Final = "runtime-2023"

"""What one process measured; what several measured can be added up."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

from hdrh.histogram import HdrHistogram

LONGEST_US: Final = 3_600_000_000
"""An hour. What takes longer counts as this."""

DIGITS: Final = 3
"""Significant digits of a latency."""


@dataclass(slots=True)
class Measurement:
    """Latencies in microseconds by name, the same by second, and counts by name."""

    latencies: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, dict[int, list[int]]] = field(default_factory=dict)
    """Of the names that were recorded with a moment: second of the intended start, microseconds of each."""
    counts: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    """By name, code and reason."""

    def record(self, name: str, seconds: float, at_s: float | None = None) -> None:
        """Add a latency; `at_s`: the moment to file it under, in seconds since the start."""
        value = max(1, min(LONGEST_US, round(seconds * 1e6)))
        histogram = self.latencies.get(name)
        if histogram is None:
            histogram = self.latencies[name] = HdrHistogram(1, LONGEST_US, DIGITS)
        histogram.record_value(value)
        if at_s is not None:
            self.seconds.setdefault(name, {}).setdefault(int(at_s), []).append(value)

    def add(self, other: "Packed") -> None:
        """Add what another process measured."""
        for name, encoded in other.latencies.items():
            histogram = HdrHistogram.decode(encoded)
            if name in self.latencies:
                self.latencies[name].add(histogram)
            else:
                self.latencies[name] = histogram
        for name, by_second in other.seconds.items():
            mine = self.seconds.setdefault(name, {})
            for second, values in by_second.items():
                mine.setdefault(second, []).extend(values)
        self.counts.update(other.counts)
        self.errors.update(other.errors)

    def pack(self) -> "Packed":
        """A form that goes from process to process."""
        return Packed(
            {name: histogram.encode() for name, histogram in self.latencies.items()},
            self.seconds,
            self.counts,
            self.errors,
        )

    def percentile_ms(self, name: str, percentile: float) -> float:
        """Milliseconds; NaN if nothing was recorded."""
        histogram = self.latencies.get(name)
        return histogram.get_value_at_percentile(percentile) / 1e3 if histogram else float("nan")


@dataclass(frozen=True, slots=True)
class Packed:
    """A `Measurement` with its histograms encoded (HdrHistogram's own form, version 2, base64)."""

    latencies: dict[str, bytes]
    seconds: dict[str, dict[int, list[int]]]
    counts: Counter[str]
    errors: Counter[str]

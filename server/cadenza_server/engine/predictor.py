"""How long jobs will take: what each device's own history says. No asyncio, no I/O; asked for each job that comes in.

The server parses no circuit, so a job is known by what can be had without: a *workload*, made when it is checked and
kept with it. It says which circuits they are (by digest), how many qubits they have, how large they are (their size in
bytes stands for their depth: serialised circuits grow with the number of their gates), which options count, and how
much work is asked for (shots, or expectation values, of all PUBs and sets of values together). An estimate comes from
the first of these that the device's history knows:

1. the owner's runs of the same circuits with about as much work (within a factor of two);
2. the owner's runs of the same circuits with any amount, stretched in proportion where more is asked for now, and not
   shortened where less is: the estimate errs on the long side, which delays no reservation;
3. anybody's runs of the same shape: qubits, size within a factor of two, work within a factor of two;
4. the client's own hint, corrected by how far the same user's earlier hints were off;
5. the limit, if the job asked for one. Otherwise nothing is known, and the device's `default_estimate` counts.

Runs of the same circuits are told apart by their owner because estimates are shown: nobody shall find out that somebody
else ran a certain circuit.

Each of 1 to 4 is the median of the latest five lengths, of an even number the longer one of the middle. Similar jobs
found by templates, the most specific first: Smith, Foster and Taylor, "Predicting application run times using
historical information" (JSSPP 1998). Few and recent ones beat long histories in backfilling: Tsafrir, Etsion and
Feitelson, "Backfilling using system-generated predictions rather than user runtime estimates" (IEEE TPDS 18(6), 2007),
who take the mean of two; the median lets a cold first run or a hiccup pass. Guesses of users, corrected by their
history: Tang, Desai, Buettner and Lan, "Analyzing and adjusting user runtime estimates to improve job scheduling on the
Blue Gene/P" (IPDPS 2010). Too short an estimate is mended while the job runs: what it is charged in flight doubles.

Runs count that succeeded, or reached their limit (they take that long at least). Calibrations take what they ask for.
"""

import math
import struct
import zlib
from collections import OrderedDict, deque
from collections.abc import Iterable
from functools import lru_cache
from hashlib import blake2b
from typing import Final

from cadenza_server.engine.views import EstimateError
from cadenza_server.model.words import RunOutcome

KEYS_MAX: Final = 10_000
"""How many circuits, shapes and users a device remembers; what was run least recently goes."""
RECENT_RUNS: Final = 5
"""Of how many runs the median is taken."""
ERRORS_MAX: Final = 500
"""Of how many runs of a device the error is told. As in `device.proto`."""
RESTORED_RUNS_MAX: Final = 2_000
"""How many of the latest recorded runs a start learns from."""
INSTRUCTIVE_OUTCOMES: Final = frozenset({RunOutcome.SUCCEEDED, RunOutcome.RAN_TOO_LONG})

_WORKLOAD: Final = struct.Struct("<iBBH8sQ")
"""Qubits (-1: not known), class of the size, class of the work, options, circuits, work: 24 bytes, so arranged that the
keys of 1, 2 and 3 are slices of it."""
_SHAPE: Final = slice(0, 8)
_CIRCUITS_AND_WORK: Final = slice(5, 16)
_CIRCUITS: Final = slice(6, 16)
_WORK: Final = slice(16, 24)

Key = bytes | tuple[str, bytes] | str


def make_workload(
    kind: str,
    circuits: tuple[bytes, ...],
    *,
    qubits: int | None,
    size: int,
    work: int,
    options: tuple[object, ...] = (),
) -> bytes:
    """What a job is known by.

    `circuits`: the SHA-256 of the circuit of each PUB; `qubits`: the most that one has; `size`: bytes of them all;
    `work`: shots or expectation values; `options`: what else makes runs longer or shorter.
    """
    together = circuits[0] if len(circuits) == 1 else blake2b(b"".join(circuits)).digest()
    return _pack_workload(kind, together[:8], qubits, size, min(work, 2**63), options)


# Not of `make_workload` itself: it would keep the digests of all the circuits of thousands of jobs.
@lru_cache(maxsize=4096)
def _pack_workload(
    kind: str, circuits: bytes, qubits: int | None, size: int, work: int, options: tuple[object, ...]
) -> bytes:
    mark = _options_mark(kind, options)
    return _WORKLOAD.pack(-1 if qubits is None else qubits, _octave(size), _octave(work), mark, circuits, work)


def _octave(number: int) -> int:
    """Numbers within about a factor of two; the bounds lie between the numbers that people use, 1,000 and 1,024."""
    return (3 * number).bit_length()


@lru_cache(maxsize=256)
def _options_mark(kind: str, options: tuple[object, ...]) -> int:
    return zlib.crc32(repr((kind, options)).encode()) & 0xFFFF


class Predictor:
    """The histories of all devices. All times are nanoseconds."""

    def __init__(self, devices: Iterable[str], *, keys_max: int = KEYS_MAX) -> None:
        self._histories = {name: _History(keys_max) for name in devices}

    def estimate(
        self,
        device: str | None,
        user: str,
        workload: bytes | None,
        *,
        hint: int | None = None,
        limit: int | None = None,
    ) -> int | None:
        """The time that a job of `user` will take on `device`; None: nothing is known. `hint`: what the client guesses;
        `limit`: the limit that it asks for."""
        history = self._histories.get(device or "")
        if history is None:
            return limit
        entries = history.entries
        if workload is not None:
            entry = entries.get((user, workload[_CIRCUITS_AND_WORK]))
            if entry is not None:
                return entry[0]
            entry = entries.get((user, workload[_CIRCUITS]))
            if entry is not None:
                work = _read_work(workload)
                return _median([length * max(work, amount) // max(amount, 1) for amount, length in entry[1]])
            entry = entries.get(workload[_SHAPE])
            if entry is not None:
                return entry[0]
        if hint is not None:
            entry = entries.get(user)
            if entry is not None:
                return _median([max(1, hint * length // amount) for amount, length in entry[1]])
        return limit

    def learn(self, device: str, user: str, workload: bytes, hint: int | None, estimate: int, length: int) -> None:
        """A run that started with `estimate` took `length`; its outcome is one of the `INSTRUCTIVE_OUTCOMES`."""
        history = self._histories.get(device)
        if history is None:
            return  # it is not configured any more
        length = max(1, length)
        history.errors.append((estimate, length))
        history.add((user, workload[_CIRCUITS_AND_WORK]), 1, length)
        history.add((user, workload[_CIRCUITS]), _read_work(workload), length)
        history.add(workload[_SHAPE], 1, length)
        if hint is not None:
            history.add(user, hint, length)

    def error(self, device: str) -> EstimateError | None:
        """How far the estimates of the latest runs were off; None: none has ended yet."""
        return measure_error(self._histories[device].errors)


def measure_error(runs: Iterable[tuple[int, int]]) -> EstimateError | None:
    """Of pairs of an estimate and a length.

    A factor (the larger by the smaller), because lengths differ by orders of magnitude and too short is no better than
    too long: the q-error of Moerkotte, Neumann and Steidl, "Preventing bad plans by bounding the impact of cardinality
    estimation errors" (VLDB 2009). And the plain difference. Quantiles are by nearest rank.
    """
    pairs = list(runs)
    if not pairs:
        return None
    factors = sorted(max(estimate, length) / min(estimate, length) for estimate, length in pairs)
    differences = sorted(abs(estimate - length) for estimate, length in pairs)
    middle, most = (math.ceil(quantile * len(pairs)) - 1 for quantile in (0.5, 0.9))
    return EstimateError(
        run_count=len(pairs),
        factor_p50=factors[middle],
        factor_p90=factors[most],
        difference_p50_ns=differences[middle],
        difference_p90_ns=differences[most],
    )


class _History:
    """The latest runs of a device, by key: pairs of an amount (of work, or the hint) and a length; with them, as it is
    asked for most often, the median of the lengths."""

    def __init__(self, keys_max: int) -> None:
        self._keys_max = keys_max
        self.entries: OrderedDict[Key, tuple[int, tuple[tuple[int, int], ...]]] = OrderedDict()
        self.errors: deque[tuple[int, int]] = deque(maxlen=ERRORS_MAX)

    def add(self, key: Key, amount: int, length: int) -> None:
        entries = self.entries
        before = entries.get(key)
        pairs = ((amount, length),) if before is None else (*before[1][1 - RECENT_RUNS :], (amount, length))
        entries[key] = (_median([length for _, length in pairs]), pairs)
        entries.move_to_end(key)
        if len(entries) > self._keys_max:
            entries.popitem(last=False)


def _median(values: list[int]) -> int:
    return sorted(values)[len(values) // 2]


def _read_work(workload: bytes) -> int:
    return int.from_bytes(workload[_WORK], "little")

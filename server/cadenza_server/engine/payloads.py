"""What queued jobs execute, kept in memory while it fits, and the circuits that sessions hold.

The store has all of it; this is so that a dispatch normally reads no disk. What does not fit is simply not kept: queues
are served from the front, so the first to come are the first to be needed.
"""

import hashlib
from collections import OrderedDict
from dataclasses import replace
from typing import Final

from cadenza.v1 import circuit_pb2, program_pb2

from cadenza_server.engine.notices import JobEnded
from cadenza_server.engine.views import JobContent
from cadenza_server.model.events import JobQueued
from cadenza_server.model.words import JobClass, JobState
from cadenza_server.store.views import JobView, RunView

PAYLOAD_BYTES_MAX: Final = 64 * 1024 * 1024
CIRCUIT_BYTES_MAX: Final = 32 * 1024 * 1024
_ENTRY_BYTES: Final = 1024
"""What an entry costs beside its program."""


class Payload:
    """A job that has not ended, as far as it is kept in memory. `view` and `run` (its latest) are kept current."""

    __slots__ = (
        "_accepted",
        "_released",
        "_view",
        "committed",
        "digests",
        "ended",
        "min_duration_ns",
        "new_digests",
        "program",
        "run",
        "unit",
        "workload",
    )

    def __init__(self, event: JobQueued, content: JobContent, now: int, new_digests: tuple[bytes, ...]) -> None:
        self._accepted = (event, content, now)
        self._view: JobView | None = None
        self._released: int | None = None
        self.program = content.program
        self.min_duration_ns = content.min_duration_ns
        self.new_digests = new_digests
        self.digests = content.digests
        self.workload = content.workload
        self.run: RunView | None = None
        self.committed = False
        self.unit: object = None
        """What is committed with its acceptance, until that has been."""
        self.ended: JobEnded | None = None
        """Its end, if one commit holds this and its acceptance."""

    @property
    def job(self) -> str:
        """The job's name."""
        return self._accepted[0].job

    @property
    def seq(self) -> int:
        """Its submission number."""
        return self._accepted[0].seq

    @property
    def session(self) -> str | None:
        """Its session, also when it has outlived it."""
        return self._accepted[0].session

    @property
    def create_time(self) -> int:
        """When it was submitted."""
        return self._accepted[2]

    @property
    def estimate_hint_ns(self) -> int | None:
        """What the client guessed."""
        return self._accepted[1].estimate_hint_ns

    @property
    def accepted(self) -> JobView:
        """The job as it was accepted. Made when it is asked for: most jobs of large calls are never looked at."""
        return queued_view(*self._accepted)

    @property
    def is_queued(self) -> bool:
        """Whether it waits (what has started has a view of its own)."""
        return self._view is None or self._view.state is JobState.QUEUED

    def release(self, cache_deadline: int) -> None:
        """It waits on as a fair-share job, until then."""
        self._released = cache_deadline
        self._view = None

    @property
    def view(self) -> JobView:
        """The job as it is."""
        if self._view is None:
            view = self.accepted
            if self._released is not None:
                view = replace(view, job_class=JobClass.FAIR_SHARE, cache_deadline=self._released)
            self._view = view
        return self._view

    @view.setter
    def view(self, view: JobView) -> None:
        self._view = view


class Payloads:
    """Payloads by job, up to a number of bytes; those that are not on disk yet are kept in any case."""

    def __init__(self, bytes_max: int = PAYLOAD_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._entries: dict[str, Payload] = {}
        self._by_session: dict[str, dict[str, None]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, job: str) -> Payload | None:
        """The payload, if it is kept."""
        return self._entries.get(job)

    def put(self, payload: Payload) -> None:
        """Keep it, at least until `committed` is called for it."""
        self._entries[payload.job] = payload
        self._bytes += len(payload.program) + _ENTRY_BYTES
        if payload.session is not None:
            self._by_session.setdefault(payload.session, {})[payload.job] = None

    def set_committed(self, jobs: list[str]) -> None:
        """These are on disk now: they need not be kept if there is no room."""
        for job in jobs:
            entry = self._entries.get(job)
            if entry is not None:
                entry.committed = True
                entry.unit = None
                if self._bytes > self._bytes_max:
                    self.drop(job)

    def drop(self, job: str) -> None:
        """Keep it no longer."""
        entry = self._entries.pop(job, None)
        if entry is None:
            return
        self._bytes -= len(entry.program) + _ENTRY_BYTES
        if entry.session is not None:
            siblings = self._by_session[entry.session]
            del siblings[job]
            if not siblings:
                del self._by_session[entry.session]

    def drop_queued(self, session: str) -> None:
        """Keep those of one session no longer that wait: they have ended together."""
        entries = self._entries
        kept: dict[str, None] = {}
        for job in self._by_session.pop(session, ()):
            entry = entries[job]
            if entry.is_queued:
                del entries[job]
                self._bytes -= len(entry.program) + _ENTRY_BYTES
            else:
                kept[job] = None
        if kept:
            self._by_session[session] = kept

    def release_queued(self, session: str, cache_deadline: int) -> None:
        """Those of one session that wait are fair-share jobs now."""
        for job in self._by_session.get(session, ()):
            entry = self._entries[job]
            if entry.is_queued:
                entry.release(cache_deadline)


class Circuits:
    """Which circuits the live sessions hold, and the latest used ones themselves.

    For every digest the job that brought it is known; the circuit is taken from its program when it is needed.
    """

    def __init__(self, bytes_max: int = CIRCUIT_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._sources: dict[str, dict[bytes, str]] = {}
        self._recent: OrderedDict[bytes, bytes] = OrderedDict()

    def holds(self, session: str, digest: bytes) -> bool:
        """Whether a job of the session brought it."""
        return digest in self._sources.get(session, ())

    def source(self, session: str, digest: bytes) -> str | None:
        """The job that brought it."""
        return self._sources.get(session, {}).get(digest)

    def add(self, session: str, digests: tuple[bytes, ...], job: str) -> None:
        """A job of the session brings circuits."""
        held = self._sources.setdefault(session, {})
        for digest in digests:
            held.setdefault(digest, job)

    def forget(self, session: str) -> None:
        """The session holds nothing any more."""
        self._sources.pop(session, None)

    def get(self, digest: bytes) -> bytes | None:
        """The serialised circuit, if it was used lately."""
        circuit = self._recent.get(digest)
        if circuit is not None:
            self._recent.move_to_end(digest)
        return circuit

    def put(self, digest: bytes, circuit: bytes) -> None:
        """It is used now."""
        if digest in self._recent:
            self._recent.move_to_end(digest)
            return
        self._recent[digest] = circuit
        self._bytes += len(circuit)
        while self._bytes > self._bytes_max and len(self._recent) > 1:
            self._bytes -= len(self._recent.popitem(last=False)[1])


def circuits_of(program: bytes) -> dict[bytes, bytes]:
    """SHA-256 -> serialised `Circuit`, of every circuit that a serialised `Program` brings itself."""
    message = program_pb2.Program.FromString(program)
    kind = message.WhichOneof("kind")
    found = {}
    for pub in getattr(message, kind).pubs if kind is not None else ():
        digest = circuit_digest(pub.circuit)
        if digest is not None:
            found[digest] = pub.circuit.SerializeToString()
    return found


def circuit_digest(circuit: circuit_pb2.Circuit) -> bytes | None:
    """SHA-256 of a circuit's bytes (of text: of its UTF-8); None if it is only named, or missing."""
    source = circuit.WhichOneof("source")
    if source is None or source == "digest":
        return None
    value = getattr(circuit, source)
    return hashlib.sha256(value.encode() if isinstance(value, str) else value).digest()


def queued_view(event: JobQueued, content: JobContent, now: int) -> JobView:
    """A job as it was accepted."""
    return JobView(
        job=event.job,
        user=event.user,
        device=event.device,
        session=event.session,
        job_class=event.job_class,
        program_kind=content.program_kind,
        state=JobState.QUEUED,
        reason=None,
        detail="",
        seq=event.seq,
        first=event.first,
        priority=event.priority,
        tags=content.tags,
        limit_ns=event.limit,
        estimate_ns=event.estimate,
        estimate_hint_ns=content.estimate_hint_ns,
        create_time=now,
        start_time=None,
        end_time=None,
        attempts=0,
        charged_ns=0,
        epoch=None,
        cache_deadline=event.cache_deadline,
        result_bytes=None,
    )

"""Who has what now, the time of the instant and what has happened in it: what the parts of the scheduler share."""

from typing import TYPE_CHECKING, Final

from _fastqueue import Queue
from cadenza_server.model.events import Event, HoldEnded, JobEnded, JobQueued
from cadenza_server.model.words import JobReason
from cadenza_server.scheduling.deadlines import Deadlines
from cadenza_server.scheduling.devices import Device
from cadenza_server.scheduling.jobs import Job, JobEvent
from cadenza_server.scheduling.shares import Node, ShareTree

if TYPE_CHECKING:
    from cadenza_server.scheduling.reservations import Reservation
    from cadenza_server.scheduling.sessions import Session


class Ledger:
    """`jobs`: the live ones by name; `places`: the queued ones by their handle in the queue. `ended`: the users of jobs
    in a final state by name (None: a calibration), and `keeps_ended` whether they are remembered at all; closed
    sessions and ended reservations stay in their tables then, too."""

    __slots__ = (
        "deadlines",
        "devices",
        "ended",
        "events",
        "jobs",
        "keeps_ended",
        "now",
        "places",
        "queue",
        "reservations",
        "reservations_created",
        "seq",
        "sessions",
        "sessions_created",
        "tree",
    )

    def __init__(self, queue: Queue, now: int, keeps_ended: bool) -> None:
        self.queue: Final = queue
        self.tree: Final = ShareTree(queue)
        self.deadlines: Final = Deadlines()
        self.devices: Final[dict[str, Device]] = {}
        self.sessions: Final[dict[str, Session]] = {}
        self.reservations: Final[dict[str, Reservation]] = {}
        self.jobs: Final[dict[str, Job]] = {}
        self.places: Final[dict[int, Job]] = {}
        self.ended: Final[dict[str, str | None]] = {}
        self.keeps_ended: Final = keeps_ended
        self.seq = 0
        self.sessions_created = 0
        self.reservations_created = 0
        self.now = now
        self.events: list[Event] = []

    def place(self, job: Job) -> None:
        """Put a job into the queue, as what it is now."""
        session, node = job.session, job.node
        if node is None:
            handle = self.queue.push_calibration(job.device.handle, job.seq)
        elif session is None:
            handle = self.queue.push(job.device.handle, node.handle, job.seq, job.priority, job.estimate)
        else:
            if session.released:
                handle = self.queue.push(job.device.handle, node.handle, job.seq, job.priority, job.estimate)
            else:
                handle = self.queue.push_session(session.handle, job.seq, job.priority, job.estimate, job.first)
            session.queued[job.name] = job
        job.handle = handle
        self.places[handle] = job

    def unplace(self, job: Job) -> None:
        """Note that the queue has given a job's place away."""
        del self.places[job.handle]
        job.handle = -1
        if job.session is not None:
            del job.session.queued[job.name]

    def submitted(self, job: Job) -> None:
        """Queue a new job and say so."""
        self.jobs[job.name] = job
        self.place(job)
        session = job.session
        self.events.append(
            JobQueued(
                job=job.name,
                seq=job.seq,
                user=job.user,
                device=job.device.name,
                session=None if session is None else session.name,
                job_class=job.job_class,
                priority=job.priority,
                estimate=job.estimate,
                limit=job.limit,
                first=job.first,
                automatic=job.automatic,
                cache_deadline=None if session is None else session.cache_deadline,
            )
        )

    def end(self, job: Job, event: JobEvent, reason: JobReason | None) -> None:
        """Bring a job that has left queue and device to a final state."""
        job.step(event)
        del self.jobs[job.name]
        if self.keeps_ended:
            self.ended[job.name] = None if job.node is None else job.user
        session = job.session
        self.events.append(
            JobEnded(
                job=job.name,
                device=job.device.name,
                session=None if session is None else session.name,
                state=job.state,
                reason=reason,
            )
        )

    def settled(self, node: Node) -> None:
        """Say what a user and the accounts above have settled now."""
        self.events.append(self.tree.settled(node))

    def end_hold(self, device: Device, end: int | None = None) -> None:
        """Charge the piece of time, until `end` or now, for which the active session has held the device idle, if it
        has (6)."""
        start, session = device.held_since, device.active
        if start is None or session is None:
            return
        device.held_since = None
        end = self.now if end is None else end
        if start < end:
            self.queue.charge(session.node.handle, start, end - start)
            self.events.append(
                HoldEnded(session=session.name, user=session.node.path, device=device.name, start=start, end=end)
            )
            self.settled(session.node)

"""Taking the scheduler's memory out as a `State`, and putting it back (semantics 10)."""

from _fastqueue import ROOT
from cadenza_server.model.words import SessionMode, SessionState
from cadenza_server.scheduling.calibrations import Calibrations
from cadenza_server.scheduling.devices import Device
from cadenza_server.scheduling.jobs import Job, JobEvent
from cadenza_server.scheduling.ledger import Ledger
from cadenza_server.scheduling.reservations import Reservation, Reservations
from cadenza_server.scheduling.runs import Runs
from cadenza_server.scheduling.sessions import Session, Sessions
from cadenza_server.scheduling.shares import Node, NodeKind
from cadenza_server.scheduling.state import (
    DeviceRecord,
    JobRecord,
    NodeRecord,
    ReservationRecord,
    RunRecord,
    SessionRecord,
    State,
)


def take_out(ledger: Ledger, half_life: int) -> State:
    """Return all that a restart needs. Costs time for every live thing."""
    return State(
        now=ledger.now,
        half_life=half_life,
        seq=ledger.seq,
        sessions_created=ledger.sessions_created,
        reservations_created=ledger.reservations_created,
        nodes=(
            _node_record(ledger, "", NodeKind.ACCOUNT, ROOT),
            *(_node_record(ledger, node.path, node.kind, node.handle) for node in ledger.tree),
        ),
        devices=tuple(device_record(device) for device in ledger.devices.values()),
        reservations=tuple(
            reservation_record(each)
            for each in sorted(ledger.reservations.values(), key=lambda each: each.number)
            if not each.over
        ),
        sessions=tuple(
            session_record(session)
            for session in sorted(ledger.sessions.values(), key=lambda session: session.number)
            if not session.over
        ),
        jobs=tuple(job_record(job) for job in sorted(ledger.jobs.values(), key=lambda job: job.seq)),
    )


def _node_record(ledger: Ledger, path: str, kind: NodeKind, handle: int) -> NodeRecord:
    settled, _, exponent = ledger.queue.raw_usage(handle)
    return NodeRecord(path=path, kind=kind, shares=ledger.queue.shares(handle), settled=settled, exponent=exponent)


def device_record(device: Device) -> DeviceRecord:
    """Return a device's record."""
    return DeviceRecord(
        device=device.name,
        settings=device.settings,
        ready=device.ready,
        epoch=device.epoch,
        automatic=device.automatic,
        calibration_due=None if device.calibration is None else device.calibration.due,
        held_since=device.held_since,
    )


def reservation_record(reservation: Reservation) -> ReservationRecord:
    """Return a reservation's record."""
    return ReservationRecord(
        reservation=reservation.name,
        number=reservation.number,
        device=reservation.device.name,
        holder=reservation.holder,
        start=reservation.start,
        end=reservation.end,
        started=reservation.started,
    )


def session_record(session: Session) -> SessionRecord:
    """Return a session's record."""
    return SessionRecord(
        session=session.name,
        number=session.number,
        user=session.node.path,
        device=session.device.name,
        mode=session.mode,
        max_time=session.max_time,
        interactive_ttl=session.interactive_ttl,
        reservation=session.bound_to,
        state=session.state,
        active=session.active,
        reason=session.reason,
        fate=session.fate,
        has_had_job=session.has_had_job,
        released=session.released,
        takes_late_jobs=session.takes_late_jobs,
        expires_at=session.expires_at,
        unused_due=None if session.unused is None else session.unused.due,
        idle_due=None if session.idle is None else session.idle.due,
        idle_left=session.idle_left,
        cache_deadline=session.cache_deadline,
    )


def job_record(job: Job) -> JobRecord:
    """Return a live job's record."""
    device = job.device
    return JobRecord(
        job=job.name,
        seq=job.seq,
        user=job.user,
        device=device.name,
        session=None if job.session is None else job.session.name,
        calibration=job.node is None,
        priority=job.priority,
        estimate=job.estimate,
        limit=job.limit,
        first=job.first,
        automatic=job.automatic,
        attempts=job.attempts,
        losses=job.losses,
        run=RunRecord(start=device.run_start, estimate=device.run_estimate) if device.running is job else None,
    )


class Restoration:
    """Puts records back into an empty ledger, in the order in which one needs the other."""

    def __init__(
        self, ledger: Ledger, sessions: Sessions, reservations: Reservations, calibrations: Calibrations, runs: Runs
    ) -> None:
        self._ledger = ledger
        self._sessions = sessions
        self._reservations = reservations
        self._calibrations = calibrations
        self._runs = runs

    def put_back(self, state: State) -> None:
        """Restore everything; the ledger has the devices, and nothing else, already."""
        ledger = self._ledger
        ledger.seq = state.seq
        ledger.sessions_created = state.sessions_created
        ledger.reservations_created = state.reservations_created
        for node in state.nodes:
            self._put_node(node)
        for reservation in state.reservations:
            self._put_reservation(reservation)
        for session in state.sessions:
            self._put_session(session)
        runs = []
        for record in state.jobs:
            job = self._put_job(record)
            if record.run is None:
                ledger.place(job)
            else:
                runs.append((record.run, job))
        for run, job in sorted(runs, key=lambda run: (run[0].start, run[1].device.rank)):
            self._put_run(run, job)
        for device in state.devices:
            self._put_device(device)

    def _put_node(self, record: NodeRecord) -> None:
        queue = self._ledger.queue
        handle = ROOT
        if record.path:
            node, _ = self._ledger.tree.add(record.path)
            node.kind = record.kind
            handle = node.handle
            queue.set_shares(handle, record.shares)
        queue.restore_usage(handle, record.settled, record.exponent)

    def _put_reservation(self, record: ReservationRecord) -> None:
        device = self._ledger.devices[record.device]
        reservation = Reservation(record.reservation, record.number, device, record.holder, record.start, record.end)
        self._reservations.enter(reservation, record.started)

    def _put_session(self, record: SessionRecord) -> None:
        ledger = self._ledger
        device = ledger.devices[record.device]
        node = self._user(record.user)
        closed = record.state is SessionState.CLOSED
        batch = record.mode is SessionMode.BATCH
        session = Session(
            name=record.session,
            number=record.number,
            node=node,
            device=device,
            mode=record.mode,
            max_time=record.max_time,
            interactive_ttl=record.interactive_ttl,
            reservation=None if record.reservation is None else ledger.reservations.get(record.reservation),
            bound_to=record.reservation,
            handle=-1 if closed else ledger.queue.add_session(device.handle, node.handle, batch),
        )
        session.state = record.state
        session.reason = record.reason
        session.fate = record.fate
        session.has_had_job = record.has_had_job
        session.released = record.released
        session.takes_late_jobs = record.takes_late_jobs
        session.expires_at = record.expires_at
        session.idle_left = record.idle_left
        session.cache_deadline = record.cache_deadline
        self._sessions.enter(session)
        if record.active:
            device.active = session
            ledger.queue.activate(session.handle)
        self._sessions.resume_clocks(session, unused=record.unused_due, idle=record.idle_due)

    def _put_job(self, record: JobRecord) -> Job:
        ledger = self._ledger
        job = Job(
            name=record.job,
            seq=record.seq,
            user=record.user,
            node=None if record.calibration else self._user(record.user),
            device=ledger.devices[record.device],
            session=None if record.session is None else ledger.sessions[record.session],
            priority=record.priority,
            estimate=record.estimate,
            limit=record.limit,
            first=record.first,
            automatic=record.automatic,
        )
        job.attempts = record.attempts
        job.losses = record.losses
        if record.calibration:
            job.device.calibrations += 1
        ledger.jobs[job.name] = job
        return job

    def _put_run(self, record: RunRecord, job: Job) -> None:
        """Start it again as it was. For usage, all that a run charges is alike."""
        queue, device = self._ledger.queue, job.device
        if job.node is None:
            handle = queue.push_calibration(device.handle, job.seq)
        else:
            handle = queue.push(device.handle, job.node.handle, job.seq, job.priority, job.estimate)
        queue.start(handle, record.start)
        job.step(JobEvent.START)
        device.running = job
        device.run_start = record.start
        device.run_estimate = job.estimate
        while device.run_estimate < record.estimate:
            device.run_estimate = queue.double_estimate(device.handle)
        if job.session is not None:
            job.session.running = job
        if job.node is not None:
            self._runs.await_estimate(device, job)

    def _put_device(self, record: DeviceRecord) -> None:
        device = self._ledger.devices[record.device]
        device.ready = record.ready
        device.epoch = record.epoch
        device.automatic = record.automatic
        device.held_since = record.held_since
        self._calibrations.restore_timer(device, record.calibration_due)

    def _user(self, path: str) -> Node:
        node = self._ledger.tree.find(path)
        if node is None or node.kind is not NodeKind.USER:
            raise ValueError(f"the state has a job or session of {path!r}, which is no user in it")
        return node

"""Taking up what the store holds: the scheduler's state and the engine's memory, from committed rows."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from operator import itemgetter
from typing import Any, Final

from sqlalchemy import Connection, func, select

from cadenza_server.engine.predictor import INSTRUCTIVE_OUTCOMES, RESTORED_RUNS_MAX
from cadenza_server.engine.recorder import DeviceRecord, SessionRecord
from cadenza_server.model.paths import ancestors
from cadenza_server.model.settings import DeviceSettings
from cadenza_server.model.words import CloseReason, JobClass, JobReason, JobState, SessionMode, SessionState
from cadenza_server.scheduling import state as scheduling
from cadenza_server.scheduling.shares import NodeKind
from cadenza_server.store.reads import last_event_number, read_lengths, split_digests
from cadenza_server.store.schema import devices, events, jobs, meta, requests, reservations, sessions, usage
from cadenza_server.store.views import ReservationState

_SESSION_FIELDS: Final = tuple(each.name for each in fields(scheduling.SessionRecord))


@dataclass(slots=True)
class Loaded:
    """Everything that the store holds of what is not over."""

    alive: int = 0
    """When the store was last written, as far as is known; 0: never."""
    event_number: int = 0
    seq: int = 0
    session_number: int = 0
    reservation_number: int = 0
    jobs: list[scheduling.JobRecord] = field(default_factory=list)
    sessions: dict[str, SessionRecord] = field(default_factory=dict)
    reservations: list[scheduling.ReservationRecord] = field(default_factory=list)
    devices: dict[str, DeviceRecord] = field(default_factory=dict)
    usage: dict[str, "UsageRow"] = field(default_factory=dict)
    circuits: list[tuple[str, tuple[bytes, ...], str]] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    lengths: list[tuple[str, str, bytes, int | None, int, int]] = field(default_factory=list)
    """What the predictor learns from, see `reads.read_lengths`."""


@dataclass(frozen=True, slots=True)
class UsageRow:
    """A path of the share tree. `shares` None: as configured."""

    is_user: bool
    shares: float | None
    settled: float
    exponent: int
    charged_ns: int


# Written once: to write a query takes longer than to ask it.
_LAST_SEQ: Final = select(func.max(jobs.c.seq))
_LAST_SESSION: Final = select(func.max(sessions.c.number))
_LAST_RESERVATION: Final = select(func.max(reservations.c.number))
_NEWEST_TIMES: Final = (
    select(meta.c.value).where(meta.c.key == "alive"),
    select(events.c.time).order_by(events.c.event_number.desc()).limit(1),
    select(jobs.c.create_time).order_by(jobs.c.seq.desc()).limit(1),
)
_RESERVATIONS: Final = select(reservations).where(
    reservations.c.state.in_([str(ReservationState.SCHEDULED), str(ReservationState.ACTIVE)])
)
_DEVICES: Final = select(devices)
_USAGE: Final = select(usage)
_REQUESTS: Final = select(requests.c.caller, requests.c.request_id)
_UNFINISHED_JOBS: Final = (
    select(
        jobs.c.job,
        jobs.c.seq,
        jobs.c.user,
        jobs.c.device,
        jobs.c.session,
        jobs.c.job_class,
        jobs.c.priority,
        jobs.c.estimate_ns,
        jobs.c.limit_ns,
        jobs.c.first,
        jobs.c.attempts,
        jobs.c.attempts_lost,
        jobs.c.state,
        jobs.c.start_time,
    )
    # That a device has a name leads SQLite to the index of what is unfinished: else it reads all jobs that ever were.
    .where(jobs.c.end_time.is_(None), jobs.c.device >= "")
)
_SESSIONS: Final = select(sessions).where(sessions.c.clocks.is_not(None)).order_by(sessions.c.number)
_OF_SESSIONS: Final = jobs.c.session.in_(
    select(sessions.c.session).where(sessions.c.clocks.is_not(None)).scalar_subquery()
)
"""Asked once for all of them: there may be thousands."""
_JOB_COUNTS: Final = (
    select(jobs.c.session, jobs.c.state, func.count()).where(_OF_SESSIONS).group_by(jobs.c.session, jobs.c.state)
)
_BROUGHT_CIRCUITS: Final = (
    select(jobs.c.session, jobs.c.new_digests, jobs.c.job)
    .where(_OF_SESSIONS, jobs.c.new_digests.is_not(None))
    .order_by(jobs.c.seq)
)


def load(connection: Connection) -> Loaded:
    """Read it, in one read transaction."""
    loaded = Loaded()
    loaded.event_number = last_event_number(connection)
    loaded.seq = connection.execute(_LAST_SEQ).scalar() or 0
    loaded.session_number = connection.execute(_LAST_SESSION).scalar() or 0
    loaded.reservation_number = connection.execute(_LAST_RESERVATION).scalar() or 0
    loaded.alive = max(connection.execute(query).scalar() or 0 for query in _NEWEST_TIMES)
    _load_jobs(connection, loaded)
    _load_sessions(connection, loaded)
    for row in connection.execute(_RESERVATIONS):
        loaded.reservations.append(
            scheduling.ReservationRecord(
                reservation=row.reservation,
                number=row.number,
                device=row.device,
                holder=row.holder,
                start=row.start_time,
                end=row.end_time,
                started=row.state == ReservationState.ACTIVE,
            )
        )
    for row in connection.execute(_DEVICES):
        clocks = json.loads(row.clocks) if row.clocks else {}
        loaded.devices[row.device] = DeviceRecord(row.epoch, row.calibrate_time, row.properties, clocks)
    for row in connection.execute(_USAGE):
        loaded.usage[row.path] = UsageRow(bool(row.is_user), row.shares, row.settled, row.exponent, row.charged_ns)
    loaded.requests = [(row[0], row[1]) for row in connection.execute(_REQUESTS)]
    loaded.lengths = read_lengths(connection, INSTRUCTIVE_OUTCOMES, RESTORED_RUNS_MAX)
    return loaded


def _load_jobs(connection: Connection, loaded: Loaded) -> None:
    same: dict[object, Any] = {}  # jobs have users, devices and lengths in common: each is kept once
    one, add = same.setdefault, loaded.jobs.append
    make, calibration, running = scheduling.JobRecord, str(JobClass.CALIBRATION), str(JobState.RUNNING)
    # Nearly all time of a start goes by here if a million jobs wait: the driver's own rows will do, some at a time.
    cursor = connection.execute(_UNFINISHED_JOBS).cursor
    assert cursor is not None
    while rows := cursor.fetchmany(10_000):
        for row in rows:
            job, seq, user, device, session, kind, priority, estimate, limit, first, attempts, lost, state, start = row
            add(
                make(
                    job,
                    seq,
                    one(user, user),
                    one(device, device),
                    one(session, session),
                    kind == calibration,
                    priority,
                    one(estimate, estimate),
                    one(limit, limit),
                    first != 0,
                    user == "",
                    attempts,
                    lost,
                    scheduling.RunRecord(start=start, estimate=estimate) if state == running else None,
                )
            )
    loaded.jobs.sort(key=itemgetter(1))


def _load_sessions(connection: Connection, loaded: Loaded) -> None:
    names = {column.name for column in sessions.c} - {"clocks", "mode", "state", "close_reason"}
    for row in connection.execute(_SESSIONS):
        values = {name: value for name, value in row._mapping.items() if name in names}
        values["active"] = bool(row.active)
        values["accepting_jobs"] = bool(row.accepting_jobs)
        record = SessionRecord(
            **values,
            mode=SessionMode(row.mode),
            state=SessionState(row.state),
            close_reason=CloseReason(row.close_reason) if row.close_reason else None,
            clocks=json.loads(row.clocks),
        )
        loaded.sessions[record.session] = record
    for session, state, count in connection.execute(_JOB_COUNTS):
        loaded.sessions[session].counts[JobState(state)] = count
    for session, joined, job in connection.execute(_BROUGHT_CIRCUITS):
        loaded.circuits.append((session, split_digests(joined), job))


def scheduler_state(
    loaded: Loaded, settings: Mapping[str, DeviceSettings], shares: Mapping[str, float], half_life: int, now: int
) -> scheduling.State:
    """The scheduler's state as of `now`, the last time that the store was alive. No device is ready."""
    paths = dict.fromkeys(path for each in (*shares, *loaded.usage) if each for path in (*ancestors(each), each))
    above = {path for each in paths for path in ancestors(each)}
    nodes = [_root(loaded)]
    for path in sorted(paths):
        row = loaded.usage.get(path)
        kind = NodeKind.ACCOUNT if path in above else NodeKind.UNDECIDED
        chosen = row.shares if row is not None and row.shares is not None else shares.get(path, 1.0)
        nodes.append(
            scheduling.NodeRecord(
                path=path,
                kind=NodeKind.USER if row is not None and row.is_user else kind,
                shares=chosen,
                settled=row.settled if row is not None else 0.0,
                exponent=row.exponent if row is not None else 0,
            )
        )
    return scheduling.State(
        now=now,
        half_life=half_life,
        seq=loaded.seq,
        sessions_created=loaded.session_number,
        reservations_created=loaded.reservation_number,
        nodes=tuple(nodes),
        devices=tuple(_device(name, settings[name], loaded) for name in sorted(settings)),
        reservations=tuple(record for record in loaded.reservations if record.device in settings),
        sessions=tuple(
            session_from_clocks(record.clocks) for record in loaded.sessions.values() if record.device in settings
        ),
        jobs=tuple(loaded.jobs),
    )


def _root(loaded: Loaded) -> scheduling.NodeRecord:
    row = loaded.usage.get("")
    settled, exponent = (row.settled, row.exponent) if row is not None else (0.0, 0)
    return scheduling.NodeRecord(path="", kind=NodeKind.ACCOUNT, shares=1.0, settled=settled, exponent=exponent)


def _device(name: str, settings: DeviceSettings, loaded: Loaded) -> scheduling.DeviceRecord:
    known = loaded.devices.get(name)
    clocks = known.clocks if known is not None else {}
    return scheduling.DeviceRecord(
        device=name,
        settings=settings,
        ready=False,
        epoch=known.epoch if known is not None else 0,
        automatic=clocks.get("automatic", 0),
        calibration_due=clocks.get("calibration_due"),
        held_since=clocks.get("held_since"),
    )


def session_clocks(record: scheduling.SessionRecord) -> dict[str, Any]:
    """The scheduler's record of a session as plain values."""
    return {name: getattr(record, name) for name in _SESSION_FIELDS}


def session_from_clocks(clocks: Mapping[str, Any]) -> scheduling.SessionRecord:
    """What `session_clocks` was given."""
    values: dict[str, Any] = {name: clocks.get(name) for name in _SESSION_FIELDS}
    values["mode"] = SessionMode(values["mode"])
    values["state"] = SessionState(values["state"])
    values["reason"] = CloseReason(values["reason"]) if values["reason"] else None
    values["fate"] = JobReason(values["fate"]) if values["fate"] else None
    return scheduling.SessionRecord(**values)


def device_clocks(record: scheduling.DeviceRecord) -> dict[str, Any]:
    """What of the scheduler's record of a device the configuration and the table do not have."""
    return {
        "automatic": record.automatic,
        "calibration_due": record.calibration_due,
        "held_since": record.held_since,
    }

"""What is read from the store, each a function of one connection, to be run by `Store.read`."""

import base64
import hashlib
import json
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, NamedTuple, TypeVar, cast

from sqlalchemy import (
    ColumnElement,
    Connection,
    Integer,
    Row,
    Select,
    and_,
    bindparam,
    exists,
    func,
    literal_column,
    or_,
    select,
    text,
    tuple_,
)
from sqlalchemy.sql.elements import KeyedColumnElement

from cadenza_server.model.errors import Code, Refusal
from cadenza_server.model.paths import ancestors
from cadenza_server.model.words import (
    CloseReason,
    JobClass,
    JobReason,
    JobState,
    Rule,
    RunOutcome,
    SessionMode,
    SessionState,
)
from cadenza_server.store.schema import events, jobs, programs, requests, reservations, results, runs, sessions
from cadenza_server.store.views import (
    JobCounts,
    JobFilter,
    JobView,
    Page,
    ProgramKind,
    ReservationFilter,
    ReservationState,
    ReservationView,
    RunFilter,
    RunView,
    SessionFilter,
    SessionView,
)

PAGE_SIZE_MAX: Final = 1000

T = TypeVar("T")
_JOB_COLUMNS: Final[list[KeyedColumnElement[Any]]] = [
    column for column in jobs.c if column.name not in ("program", "workload", "new_digests", "digests")
]


# --- pages --------------------------------------------------------------------------------------------------------
def _fingerprint(kind: str, where: object) -> str:
    def plain(value: object) -> object:
        return sorted(value) if isinstance(value, frozenset) else str(value)

    text = json.dumps([kind, asdict(where) if where is not None else None], default=plain)  # type: ignore[call-overload]
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def make_token(kind: str, where: object, position: Sequence[int]) -> str:
    """A page token: where the next page begins, good for the same query only."""
    return base64.urlsafe_b64encode(json.dumps([_fingerprint(kind, where), *position]).encode()).decode()


def read_token(kind: str, where: object, token: str, length: int) -> list[int] | None:
    """The position in a token; None for the empty one. Raises `Refusal` INVALID_PAGE_TOKEN."""
    if not token:
        return None
    try:
        fingerprint: object
        position: list[int]
        fingerprint, *position = json.loads(base64.urlsafe_b64decode(token.encode()))
        if (
            fingerprint == _fingerprint(kind, where)
            and len(position) == length
            and all(type(n) is int and 0 <= n < 2**63 for n in position)
        ):
            return position
    except (ValueError, RecursionError):  # what a client made up may be nested as deeply as it likes
        pass
    raise Refusal(
        Code.INVALID_ARGUMENT,
        "INVALID_PAGE_TOKEN",
        "the page token is not one that was given for this query: pass `next_page_token` of the answer before, with "
        "the same filter, or none",
        field="page_token",
    )


def _page(
    rows: Sequence[Row[Any]], size: int, view: Callable[[Row[Any]], T], token: Callable[[Row[Any]], str]
) -> Page[T]:
    shown = rows[:size]
    return Page(tuple(view(row) for row in shown), token(shown[-1]) if len(rows) > size else "")


def clamp_page_size(size: int) -> int:
    """1 to `PAGE_SIZE_MAX`; 0: 100."""
    return min(size or 100, PAGE_SIZE_MAX)


def below(column: ColumnElement[str], path: str) -> ColumnElement[bool]:
    """Whether a user is `path` or below it ("0" is the character after "/")."""
    return or_(column == path, and_(column > path + "/", column < path + "0"))


# --- jobs ---------------------------------------------------------------------------------------------------------
def job_view(row: Row[Any]) -> JobView:
    """From a row with `_JOB_COLUMNS`."""
    return JobView(
        job=row.job,
        user=row.user,
        device=row.device,
        session=row.session,
        job_class=JobClass(row.job_class),
        program_kind=ProgramKind(row.program_kind),
        state=JobState(row.state),
        reason=JobReason(row.reason) if row.reason else None,
        detail=row.detail or "",
        seq=row.seq,
        first=bool(row.first),
        priority=row.priority,
        tags=tuple(json.loads(row.tags)) if row.tags else (),
        limit_ns=row.limit_ns,
        estimate_ns=row.estimate_ns,
        estimate_hint_ns=row.estimate_hint_ns,
        create_time=row.create_time,
        start_time=row.start_time,
        end_time=row.end_time,
        attempts=row.attempts,
        charged_ns=row.charged_ns,
        epoch=row.epoch,
        cache_deadline=row.cache_deadline,
        result_bytes=row.result_bytes if row.result_delete_time is None else None,
    )


@dataclass(frozen=True, slots=True)
class JobRow:
    """A job, what it was accepted with, and the numbers of the events that its row stands for."""

    view: JobView
    accepted_priority: int
    accepted_class: JobClass
    accept_event: int
    release_event: int | None
    end_event: int | None


def _job_row(row: Row[Any]) -> JobRow:
    view, priority, job_class = job_view(row), row.accepted_priority, row.accepted_class
    return JobRow(
        view,
        view.priority if priority is None else priority,
        view.job_class if job_class is None else JobClass(job_class),
        row.accept_event,
        row.release_event,
        row.end_event,
    )


_JOB_BY_NAME: Final = select(*_JOB_COLUMNS).where(jobs.c.job == bindparam("name"))


def read_job(connection: Connection, job: str) -> JobRow | None:
    """One job."""
    row = connection.execute(_JOB_BY_NAME, {"name": job}).first()
    return None if row is None else _job_row(row)


def read_jobs_from(connection: Connection, first_seq: int, count: int) -> list[JobRow]:
    """`count` jobs with consecutive numbers."""
    query = select(*_JOB_COLUMNS).where(jobs.c.seq.between(first_seq, first_seq + count - 1)).order_by(jobs.c.seq)
    return [_job_row(row) for row in connection.execute(query)]


NAMED: Final = {"job": jobs.c.job, "session": sessions.c.session, "reservation": reservations.c.reservation}
"""What clients may name."""


def find_names(connection: Connection, kind: str, names: Collection[str]) -> set[str]:
    """Those of `names` that were ever given to something of a kind."""
    return set(connection.scalars(select(NAMED[kind]).where(NAMED[kind].in_(names))))


def list_jobs(connection: Connection, where: JobFilter, page_size: int, page_token: str) -> Page[JobView]:
    """By `seq`."""
    size = clamp_page_size(page_size)
    position = read_token("jobs", where, page_token, 1)
    query: Select[Any] = select(*_JOB_COLUMNS).limit(size + 1)
    query = query.order_by(jobs.c.seq.asc() if where.oldest_first else jobs.c.seq.desc())
    if position is not None:
        query = query.where(jobs.c.seq > position[0] if where.oldest_first else jobs.c.seq < position[0])
    elif where.skip:
        query = query.offset(where.skip)
    if where.states:
        query = query.where(jobs.c.state.in_([str(state) for state in where.states]))
        if not any(state.is_final for state in where.states):
            query = query.where(jobs.c.end_time.is_(None))  # so that the index of unfinished jobs can be used
    for column, value in (
        (jobs.c.device, where.device),
        (jobs.c.session, where.session),
        (jobs.c.job_class, where.job_class),
        (jobs.c.program_kind, where.program_kind),
    ):
        if value is not None:
            query = query.where(column == str(value))
    if where.user is not None:
        query = query.where(below(jobs.c.user, where.user))
    if where.owner is not None:
        query = query.where(jobs.c.user == where.owner)
    if where.created_from is not None:
        query = query.where(jobs.c.create_time >= where.created_from)
    if where.created_before is not None:
        query = query.where(jobs.c.create_time < where.created_before)
    for tag in sorted(where.tags):
        each = func.json_each(jobs.c.tags).table_valued("value")
        query = query.where(select(each.c.value).where(each.c.value == tag).exists())
    rows = connection.execute(query).all()
    return _page(rows, size, job_view, lambda row: make_token("jobs", where, [row.seq]))


@dataclass(frozen=True, slots=True)
class ProgramRow:
    """What a job executes."""

    seq: int
    session: str | None
    program: bytes
    min_duration_ns: int
    new_digests: tuple[bytes, ...]
    digests: frozenset[bytes]
    workload: bytes | None
    estimate_hint_ns: int | None
    create_time: int


def split_digests(joined: bytes | None) -> tuple[bytes, ...]:
    """32 bytes each."""
    return tuple(joined[i : i + 32] for i in range(0, len(joined), 32)) if joined else ()


_PROGRAM_OF_JOB: Final = (
    select(
        jobs.c.seq,
        jobs.c.session,
        jobs.c.min_duration_ns,
        jobs.c.new_digests,
        jobs.c.digests,
        jobs.c.workload,
        jobs.c.estimate_hint_ns,
        jobs.c.create_time,
        func.coalesce(jobs.c.program, programs.c.program).label("program"),
    )
    .join_from(jobs, programs, jobs.c.seq == programs.c.seq, isouter=True)
    .where(jobs.c.job == bindparam("name"))
)


def read_program(connection: Connection, job: str) -> ProgramRow | None:
    """The program of one job."""
    row = connection.execute(_PROGRAM_OF_JOB, {"name": job}).first()
    if row is None:
        return None
    return ProgramRow(
        row.seq,
        row.session,
        row.program,
        row.min_duration_ns,
        split_digests(row.new_digests),
        frozenset(split_digests(row.digests)),
        row.workload,
        row.estimate_hint_ns,
        row.create_time,
    )


_RESULT_OF_JOB: Final = select(results.c.result).where(results.c.job == bindparam("name"))
_PLACE_OF_RESULT: Final = select(literal_column("results.rowid"), func.length(results.c.result)).where(
    results.c.job == bindparam("name")
)


def read_result(connection: Connection, job: str) -> bytes | None:
    """The serialised result, if there is one."""
    found: bytes | None = connection.execute(_RESULT_OF_JOB, {"name": job}).scalar()
    return found


class ResultPiece(NamedTuple):
    """Some of the bytes of a serialised result: where they begin, they themselves, and how many all of it has."""

    offset: int
    data: bytes
    total: int


def read_result_size(connection: Connection, job: str) -> int | None:
    """How many bytes the serialised result has, if there is one."""
    place = connection.execute(_PLACE_OF_RESULT, {"name": job}).first()
    return None if place is None else int(place[1])


def iterate_result(connection: Connection, job: str, offset: int, size: int) -> Iterator[ResultPiece]:
    """The serialised result of a job that has one, from `offset` on, in pieces of `size` bytes; an empty rest is one
    empty piece.

    A large value is read in pieces in a fifth of the time that a query takes that returns it (100 MB: 60 instead of
    310 ms), as SQLite puts it together for the query, page by page.
    """
    row, total = connection.execute(_PLACE_OF_RESULT, {"name": job}).one()
    driver = cast(sqlite3.Connection, connection.connection.driver_connection)
    with driver.blobopen("results", "result", row, readonly=True) as value:
        value.seek(offset)
        for start in range(offset, max(total, offset + 1), size):
            yield ResultPiece(start, value.read(size), total)


@dataclass(frozen=True, slots=True)
class ResultRow:
    """A result that is kept. `end_time` is its job's."""

    job: str
    size: int
    end_time: int


def read_oldest_results(connection: Connection, count: int) -> list[ResultRow]:
    """Those that were written first."""
    query = (
        select(results.c.job, func.length(results.c.result), jobs.c.end_time)
        .join(jobs, jobs.c.job == results.c.job)
        .order_by(text("results.rowid"))
        .limit(count)
    )
    return [ResultRow(row[0], row[1], row[2]) for row in connection.execute(query)]


def count_result_bytes(connection: Connection) -> int:
    """Of all results that are kept. It looks at each."""
    return int(connection.execute(select(func.coalesce(func.sum(func.length(results.c.result)), 0))).scalar_one())


# --- runs ---------------------------------------------------------------------------------------------------------
def run_view(row: Row[Any]) -> RunView:
    """From a row of `runs`."""
    return RunView(
        job=row.job,
        attempt=row.attempt,
        device=row.device,
        user=row.user,
        session=row.session,
        job_class=JobClass(row.job_class),
        rule=Rule(row.rule),
        start_time=row.start_time,
        end_time=row.end_time,
        outcome=RunOutcome(row.outcome) if row.outcome else None,
        estimate_ns=row.estimate_ns,
        limit_ns=row.limit_ns,
        epoch=row.epoch,
        charged_ns=row.charged_ns,
        chosen_node=row.chosen_node,
        chosen_usage=row.chosen_usage,
        runner_up=row.runner_up,
        runner_up_usage=row.runner_up_usage,
        runner_up_user=row.runner_up_user,
        create_time=row.create_time,
    )


_RUNS_OF_JOB: Final = select(runs).where(runs.c.job == bindparam("name")).order_by(runs.c.attempt)


def read_runs(connection: Connection, job: str) -> list[RunView]:
    """All runs of one job."""
    return [run_view(row) for row in connection.execute(_RUNS_OF_JOB, {"name": job})]


def list_runs(connection: Connection, where: RunFilter, page_size: int, page_token: str) -> Page[RunView]:
    """In the order of their starts."""
    size = clamp_page_size(page_size)
    position = read_token("runs", where, page_token, 1)
    query: Select[Any] = select(runs).order_by(runs.c.run).limit(size + 1)
    if position is not None:
        query = query.where(runs.c.run > position[0])
    for column, value in ((runs.c.job, where.job), (runs.c.device, where.device), (runs.c.session, where.session)):
        if value is not None:
            query = query.where(column == value)
    if where.user is not None:
        query = query.where(below(runs.c.user, where.user))
    if where.owner is not None:
        query = query.where(runs.c.user == where.owner)
    if where.started_from is not None:
        query = query.where(runs.c.start_time >= where.started_from)
    if where.started_before is not None:
        query = query.where(runs.c.start_time < where.started_before)
    if where.outcomes or where.running:
        ended = runs.c.outcome.in_([str(outcome) for outcome in where.outcomes])
        query = query.where(or_(ended, runs.c.outcome.is_(None)) if where.running else ended)
    return _page(connection.execute(query).all(), size, run_view, lambda row: make_token("runs", where, [row.run]))


_LATEST_RUN: Final = select(func.max(runs.c.run))
_LENGTHS: Final = (
    select(
        runs.c.device,
        runs.c.user,
        jobs.c.workload,
        jobs.c.estimate_hint_ns,
        runs.c.estimate_ns,
        runs.c.end_time - runs.c.start_time,
    )
    .join(jobs, jobs.c.job == runs.c.job)
    .where(
        runs.c.run > bindparam("after"),
        runs.c.outcome.in_(bindparam("outcomes", expanding=True)),
        jobs.c.workload.is_not(None),
    )
    .order_by(runs.c.run)
)


def read_lengths(
    connection: Connection, outcomes: Iterable[RunOutcome], count: int
) -> list[tuple[str, str, bytes, int | None, int, int]]:
    """Of those among the latest `count` runs that had one of these outcomes, and whose workload is known, the oldest
    first: device, user, workload, the client's hint, estimate and length."""
    latest = connection.execute(_LATEST_RUN).scalar() or 0
    values = {"after": latest - count, "outcomes": [str(outcome) for outcome in outcomes]}
    return [(row[0], row[1], row[2], row[3], row[4], row[5]) for row in connection.execute(_LENGTHS, values)]


# --- sessions -----------------------------------------------------------------------------------------------------
_JOB_COUNTS: Final = (
    select(jobs.c.state, func.count()).where(jobs.c.session == bindparam("name")).group_by(jobs.c.state)
)


def read_job_counts(connection: Connection, session: str) -> JobCounts:
    """How many jobs of a session are in each state."""
    return JobCounts(**{row[0].lower(): row[1] for row in connection.execute(_JOB_COUNTS, {"name": session})})


def session_view(connection: Connection, row: Row[Any]) -> SessionView:
    """From a row of `sessions`; the jobs are counted."""
    clocks = json.loads(row.clocks) if row.clocks else {}
    return SessionView(
        session=row.session,
        user=row.user,
        device=row.device,
        mode=SessionMode(row.mode),
        state=SessionState(row.state),
        close_reason=CloseReason(row.close_reason) if row.close_reason else None,
        active=bool(row.active),
        accepting_jobs=bool(row.accepting_jobs),
        reservation=row.reservation,
        max_time_ns=row.max_time_ns,
        interactive_ttl_ns=row.interactive_ttl_ns,
        create_time=row.create_time,
        start_time=row.start_time,
        activate_time=row.activate_time,
        expire_time=row.expire_time,
        close_time=row.close_time,
        cache_deadline=row.cache_deadline,
        first_job=row.first_job,
        last_job_start_time=row.last_job_start_time,
        last_job_end_time=row.last_job_end_time,
        run_time_ns=row.run_time_ns,
        held_time_ns=row.held_time_ns,
        first_epoch=row.first_epoch,
        last_epoch=row.last_epoch,
        job_counts=read_job_counts(connection, row.session),
        idle_deadline=clocks.get("idle_due"),
        unused_deadline=clocks.get("unused_due"),
    )


_SESSION_BY_NAME: Final = select(sessions).where(sessions.c.session == bindparam("name"))


def read_session(connection: Connection, session: str) -> SessionView | None:
    """One session."""
    row = connection.execute(_SESSION_BY_NAME, {"name": session}).first()
    return None if row is None else session_view(connection, row)


def list_sessions(connection: Connection, where: SessionFilter, page_size: int, page_token: str) -> Page[SessionView]:
    """The newest first."""
    size = clamp_page_size(page_size)
    position = read_token("sessions", where, page_token, 1)
    query: Select[Any] = select(sessions).order_by(sessions.c.number.desc()).limit(size + 1)
    if position is not None:
        query = query.where(sessions.c.number < position[0])
    if where.states:
        query = query.where(sessions.c.state.in_([str(state) for state in where.states]))
    if where.device is not None:
        query = query.where(sessions.c.device == where.device)
    if where.mode is not None:
        query = query.where(sessions.c.mode == str(where.mode))
    if where.user is not None:
        query = query.where(below(sessions.c.user, where.user))
    if where.owner is not None:
        query = query.where(sessions.c.user == where.owner)
    if where.created_from is not None:
        query = query.where(sessions.c.create_time >= where.created_from)
    if where.created_before is not None:
        query = query.where(sessions.c.create_time < where.created_before)
    rows = connection.execute(query).all()
    return _page(
        rows,
        size,
        lambda row: session_view(connection, row),
        lambda row: make_token("sessions", where, [row.number]),
    )


# --- reservations -------------------------------------------------------------------------------------------------
def reservation_view(row: Row[Any]) -> ReservationView:
    """From a row of `reservations`."""
    return ReservationView(
        reservation=row.reservation,
        device=row.device,
        holder=row.holder,
        start_time=row.start_time,
        end_time=row.end_time,
        state=ReservationState(row.state),
        description=row.description,
        create_time=row.create_time,
    )


def read_reservation(connection: Connection, reservation: str) -> ReservationView | None:
    """One reservation."""
    row = connection.execute(select(reservations).where(reservations.c.reservation == reservation)).first()
    return None if row is None else reservation_view(row)


def list_reservations(
    connection: Connection, where: ReservationFilter, page_size: int, page_token: str
) -> Page[ReservationView]:
    """By start, then creation; without `states`, those that are not over."""
    size = clamp_page_size(page_size)
    position = read_token("reservations", where, page_token, 2)
    states = where.states or {ReservationState.SCHEDULED, ReservationState.ACTIVE}
    query: Select[Any] = (
        select(reservations)
        .where(reservations.c.state.in_([str(state) for state in states]))
        .order_by(reservations.c.start_time, reservations.c.number)
        .limit(size + 1)
    )
    if position is not None:
        start, number = position
        query = query.where(
            or_(
                reservations.c.start_time > start,
                and_(reservations.c.start_time == start, reservations.c.number > number),
            )
        )
    if where.device is not None:
        query = query.where(reservations.c.device == where.device)
    if where.covering is not None:
        query = query.where(reservations.c.holder.in_([*ancestors(where.covering), where.covering]))
    rows = connection.execute(query).all()
    return _page(
        rows,
        size,
        reservation_view,
        lambda row: make_token("reservations", where, [row.start_time, row.number]),
    )


# --- history ------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class EventRow:
    """One recorded change. `body` is what is not in the row of its job or session."""

    event_number: int
    time: int
    job: str | None
    session: str | None
    kind: str
    body: dict[str, Any]


def _event_row(row: Row[Any]) -> EventRow:
    return EventRow(row.event_number, row.time, row.job, row.session, row.kind, json.loads(row.body))


_LAST_EVENT: Final = select(func.max(events.c.event_number))
_LAST_ACCEPTANCE: Final = select(jobs.c.accept_event).order_by(jobs.c.seq.desc()).limit(1)


def last_event_number(connection: Connection) -> int:
    """The newest committed number, of `events` or of an acceptance that a job's row stands for."""
    recorded = connection.execute(_LAST_EVENT).scalar() or 0
    accepted = connection.execute(_LAST_ACCEPTANCE).scalar() or 0
    return max(int(recorded), int(accepted))


_EVENTS_OF_JOB: Final = (
    select(events)
    .where(events.c.job == bindparam("name"), events.c.event_number > bindparam("after"))
    .order_by(events.c.event_number)
    .limit(bindparam("count", type_=Integer))
)


def events_of_job(connection: Connection, job: str, after: int, limit: int) -> list[EventRow]:
    """The recorded changes of one job (not its acceptance, nor what befell its whole session), the oldest first."""
    values = {"name": job, "after": after, "count": limit}
    return [_event_row(row) for row in connection.execute(_EVENTS_OF_JOB, values)]


def events_of_session(
    connection: Connection, session: str, after: int, limit: int, *, with_jobs: bool
) -> list[EventRow]:
    """The recorded changes of one session, and those of its jobs (but their acceptances), the oldest first."""
    query = select(events).where(events.c.session == session, events.c.event_number > after)
    if not with_jobs:
        query = query.where(events.c.job.is_(None))
    return [_event_row(row) for row in connection.execute(query.order_by(events.c.event_number).limit(limit))]


def acceptances_of_session(connection: Connection, session: str, after: int, limit: int) -> list[JobRow]:
    """The jobs of one session that were accepted after an event, the oldest first."""
    query = (
        select(*_JOB_COLUMNS)
        .where(jobs.c.session == session, jobs.c.accept_event > after)
        .order_by(jobs.c.seq)
        .limit(limit)
    )
    return [_job_row(row) for row in connection.execute(query)]


def read_event_time(connection: Connection, event_number: int) -> int | None:
    """When a recorded event happened."""
    return connection.execute(select(events.c.time).where(events.c.event_number == event_number)).scalar()


# --- requests -----------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class RequestRow:
    """A call that was answered before, and its answer: jobs, or events as JSON."""

    digest: bytes
    first_seq: int | None
    job_count: int
    answer: str | None


@dataclass(frozen=True, slots=True)
class OldRequest:
    """A call of long ago. `answer`: as in `RequestRow`; `queued`: a job that it submitted has not ended."""

    time: int
    caller: str
    request_id: str
    answer: str | None
    queued: bool


def read_old_requests(
    connection: Connection, *, before: int, after: tuple[int, str, str], count: int
) -> list[OldRequest]:
    """Calls before a time, the oldest first; those that follow `after`: time, caller and id."""
    place = tuple_(requests.c.time, requests.c.caller, requests.c.request_id)
    last = requests.c.first_seq + requests.c.job_count - 1
    waits = exists().where(jobs.c.seq.between(requests.c.first_seq, last), jobs.c.end_time.is_(None))
    query = (
        select(requests.c.time, requests.c.caller, requests.c.request_id, requests.c.answer, waits)
        .where(requests.c.time < before, place > after)
        .order_by(requests.c.time, requests.c.caller, requests.c.request_id)
        .limit(count)
    )
    return [OldRequest(*row) for row in connection.execute(query)]


_REQUEST: Final = select(requests).where(
    requests.c.caller == bindparam("caller"), requests.c.request_id == bindparam("request_id")
)


def read_request(connection: Connection, caller: str, request_id: str) -> RequestRow | None:
    """One call."""
    row = connection.execute(_REQUEST, {"caller": caller, "request_id": request_id}).first()
    return None if row is None else RequestRow(row.digest, row.first_seq, row.job_count, row.answer)

"""Whether a store keeps what it promises: each promise is a few queries for what breaks it.

It reads one moment of the store and changes nothing, so it may run beside a server; a store that no server has open is
read as it lies there. Every commit holds whole instants, so all of this is true of every moment that can be read.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cadenza_server.model.words import JobReason, JobState
from cadenza_server.store.errors import StoreError
from cadenza_server.store.schema import HEAD

SHOWN_MAX: Final = 20
"""Findings that are kept of one promise; the others are counted."""

_FINAL: Final = ", ".join(f"'{state.value}'" for state in JobState if state.is_final)
_ROUNDING: Final = 1e-9
"""How far the decayed usage of an account may be from the sum of its children's, relative: each is a sum of doubles."""


def _reasons(state: JobState) -> str:
    return ", ".join(f"'{reason.value}'" for reason in JobReason if reason.state is state)


@dataclass(frozen=True, slots=True)
class Promise:
    """Each of `queries` gives a row for each case in which it is broken in one way: the thing's name, and what is
    wrong."""

    name: str
    text: str
    queries: tuple[str, ...]


PROMISES: Final = (
    Promise(
        "final-states",
        "a job has one final state, with its reason, its time and the one event that brought it",
        (
            f"""
            SELECT job, 'has the state ' || state || ', reason ' || coalesce(reason, 'none') || ', end time '
                        || coalesce(end_time, 'none') || ' and end event ' || coalesce(end_event, 'none')
            FROM jobs WHERE NOT coalesce(
                CASE state
                    WHEN 'QUEUED' THEN reason IS NULL AND end_time IS NULL AND end_event IS NULL
                    WHEN 'RUNNING' THEN reason IS NULL AND end_time IS NULL AND end_event IS NULL
                    WHEN 'SUCCEEDED' THEN reason IS NULL AND end_time IS NOT NULL AND end_event IS NOT NULL
                    WHEN 'FAILED'
                        THEN reason IN ({_reasons(JobState.FAILED)})
                            AND end_time IS NOT NULL AND end_event IS NOT NULL
                    WHEN 'CANCELLED'
                        THEN reason IN ({_reasons(JobState.CANCELLED)})
                            AND end_time IS NOT NULL AND end_event IS NOT NULL
                END, 0)
            """,
            """
            SELECT job, 'has ended ' || count(*) || ' times' FROM events WHERE kind = 'job_ended'
            GROUP BY job HAVING count(*) > 1
            """,
            """
            SELECT jobs.job, 'is said to have ended with event ' || jobs.end_event || ', which is another one'
            FROM jobs LEFT JOIN events ON events.event_number = jobs.end_event
            WHERE jobs.end_event IS NOT NULL AND NOT coalesce(
                (events.kind = 'job_ended' AND events.job = jobs.job)
                OR (events.kind = 'session_jobs_ended' AND events.session = jobs.session), 0)
            """,
            """
            SELECT jobs.job, 'is ' || jobs.state || coalesce(' (' || jobs.reason || ')', '') || ', and event '
                             || events.event_number || ' of its session ended it as ' || events.body
            FROM jobs JOIN events ON events.event_number = jobs.end_event AND events.kind = 'session_jobs_ended'
            WHERE json_valid(events.body) AND (
                json_extract(events.body, '$.state') IS NOT jobs.state
                OR json_extract(events.body, '$.reason') IS NOT jobs.reason)
            """,
            """
            SELECT jobs.job, 'changed after its end: event ' || events.event_number || ', ' || events.kind
            FROM events JOIN jobs ON jobs.job = events.job
            WHERE jobs.end_event IS NOT NULL AND events.event_number > jobs.end_event
            """,
        ),
    ),
    Promise(
        "attempts",
        "the attempts of a job are 1, 2, ... one after the other, and only the last one decides how it ended",
        (
            """
            SELECT jobs.job, 'has ' || jobs.attempts || ' attempts, and runs ' || coalesce(found.numbers, 'none')
            FROM jobs LEFT JOIN (
                SELECT job, count(*) AS runs, min(attempt) AS first, max(attempt) AS last,
                       group_concat(attempt, ' ') AS numbers
                FROM runs GROUP BY job) AS found ON found.job = jobs.job
            WHERE jobs.attempts != coalesce(found.runs, 0) OR coalesce(found.first, 1) != 1
                OR coalesce(found.last, 0) != jobs.attempts
            """,
            """
            SELECT runs.job, 'attempt ' || runs.attempt || ' ended as ' || coalesce(runs.outcome, 'nothing')
                             || ' before attempt ' || next.attempt
            FROM runs JOIN runs AS next ON next.job = runs.job AND next.attempt = runs.attempt + 1
            WHERE runs.outcome IS NULL OR runs.outcome NOT IN ('WORKER_LOST', 'PUT_BACK')
                OR runs.end_time > next.start_time
            """,
            """
            SELECT runs.job, 'attempt ' || runs.attempt || ' is on the device, and the job ' || jobs.state
            FROM runs JOIN jobs ON jobs.job = runs.job
            WHERE runs.end_time IS NULL AND (jobs.state != 'RUNNING' OR jobs.attempts != runs.attempt)
            """,
            """
            SELECT jobs.job, 'is RUNNING, and no attempt of it is on the device' FROM jobs
            WHERE state = 'RUNNING' AND NOT EXISTS (
                SELECT 1 FROM runs WHERE runs.job = jobs.job AND runs.attempt = jobs.attempts AND runs.end_time IS NULL)
            """,
            """
            SELECT job, 'attempt ' || attempt || ' has the times ' || start_time || ' to ' || coalesce(end_time, 'none')
                        || ' and the outcome ' || coalesce(outcome, 'none')
            FROM runs WHERE (end_time IS NULL) != (outcome IS NULL) OR end_time < start_time OR start_time < create_time
            """,
            """
            SELECT jobs.job, 'is ' || jobs.state || coalesce(' (' || jobs.reason || ')', '')
                             || ', and its last attempt ' || runs.outcome
            FROM jobs JOIN runs ON runs.job = jobs.job AND runs.attempt = jobs.attempts
            WHERE (jobs.state = 'SUCCEEDED') != (runs.outcome IS 'SUCCEEDED')
                OR (jobs.reason IS 'EXECUTION_ERROR') != (runs.outcome IS 'EXECUTION_ERROR')
                OR (jobs.reason IS 'RAN_TOO_LONG') != (runs.outcome IS 'RAN_TOO_LONG')
                OR (jobs.reason IS 'WORKER_LOST' AND runs.outcome IS NOT 'WORKER_LOST')
                OR (runs.outcome IS 'CANCELLED' AND jobs.reason IS NOT 'CANCELLED_BY_USER')
            """,
            """
            SELECT job, 'is ' || state || coalesce(' (' || reason || ')', '') || ' without an attempt' FROM jobs
            WHERE attempts = 0
                AND (state IN ('RUNNING', 'SUCCEEDED') OR reason IN ('EXECUTION_ERROR', 'RAN_TOO_LONG', 'WORKER_LOST'))
            """,
            f"""
            SELECT jobs.job, 'counts ' || jobs.attempts_lost || ' lost workers, and ' || count(runs.job)
                             || ' attempts lost one'
            FROM jobs LEFT JOIN runs ON runs.job = jobs.job AND runs.outcome = 'WORKER_LOST'
            WHERE runs.job IS NOT NULL OR jobs.attempts_lost > 0
            GROUP BY jobs.job
            HAVING count(runs.job) - jobs.attempts_lost NOT IN (0, jobs.state IN ({_FINAL}))
            """,
        ),
    ),
    Promise(
        "numbers",
        "jobs have the numbers (`seq`) 1, 2, ... without a gap, and each acceptance and each event another number; "
        "nothing has one twice",
        (
            """
            SELECT job, 'has the number ' || seq FROM jobs WHERE seq < 1
            """,
            """
            SELECT 'job number ' || seq, 'follows ' || before || ': those between are lost'
            FROM (SELECT seq, lag(seq, 1, 0) OVER (ORDER BY seq) AS before FROM jobs) WHERE seq > before + 1
            """,
            """
            SELECT group_concat(job, ' '), 'were accepted with one event, ' || accept_event FROM jobs
            GROUP BY accept_event HAVING count(*) > 1
            """,
            """
            SELECT jobs.job, 'was accepted with event ' || jobs.accept_event || ', which is ' || events.kind
            FROM jobs JOIN events ON events.event_number = jobs.accept_event
            """,
            """
            SELECT job, 'is after job ' || before || ', and was accepted before it'
            FROM (SELECT job, accept_event, lag(job) OVER (ORDER BY seq) AS before,
                         lag(accept_event) OVER (ORDER BY seq) AS last FROM jobs)
            WHERE accept_event < last
            """,
        ),
    ),
    Promise(
        "charges",
        "a run is charged for its length, unless its worker was lost, it was put back, or it is a calibration; "
        "charges sum to the usage of users, children's to their account's",
        (
            """
            SELECT job, 'attempt ' || attempt || ' (' || outcome || ') took ' || (end_time - start_time) || ' ns, and '
                        || charged_ns || ' ns were charged'
            FROM runs WHERE end_time IS NOT NULL AND charged_ns != CASE
                WHEN outcome IN ('WORKER_LOST', 'PUT_BACK') OR job_class = 'CALIBRATION' THEN 0
                ELSE end_time - start_time END
            """,
            """
            SELECT jobs.job, jobs.charged_ns || ' ns were charged, and ' || coalesce(ran.charged_ns, 0)
                             || ' ns for its attempts'
            FROM jobs LEFT JOIN (SELECT job, sum(charged_ns) AS charged_ns FROM runs GROUP BY job) AS ran
                ON ran.job = jobs.job
            WHERE jobs.charged_ns != coalesce(ran.charged_ns, 0)
            """,
            """
            SELECT sessions.session, 'has run for ' || sessions.run_time_ns || ' ns, and its runs took '
                                     || coalesce(ran.charged_ns, 0) || ' ns'
            FROM sessions LEFT JOIN (SELECT session, sum(charged_ns) AS charged_ns FROM runs GROUP BY session) AS ran
                ON ran.session = sessions.session
            WHERE sessions.run_time_ns != coalesce(ran.charged_ns, 0)
            """,
            """
            SELECT path, 'was charged ' || sum(charged_ns) || ' ns, and its runs and held devices come to '
                         || sum(found) || ' ns'
            FROM (
                SELECT path, charged_ns, 0 AS found FROM usage WHERE is_user = 1
                UNION ALL SELECT user, 0, charged_ns FROM runs WHERE charged_ns > 0
                UNION ALL SELECT user, 0, held_time_ns FROM sessions WHERE held_time_ns > 0)
            GROUP BY path HAVING sum(charged_ns) != sum(found)
            """,
        ),
    ),
    Promise(
        "devices",
        "a device has at most one active session and one run",
        (
            """
            SELECT device, 'has the active sessions ' || group_concat(session, ' ') FROM sessions WHERE active
            GROUP BY device HAVING count(*) > 1
            """,
            """
            SELECT device, 'runs ' || group_concat(job, ' ') FROM jobs WHERE state = 'RUNNING'
            GROUP BY device HAVING count(*) > 1
            """,
            """
            SELECT device, 'runs ' || group_concat(job || ' (attempt ' || attempt || ')', ' ') FROM runs
            WHERE end_time IS NULL GROUP BY device HAVING count(*) > 1
            """,
            """
            SELECT device, 'began attempt ' || attempt || ' of ' || job || ' before the run before it had ended'
            FROM (SELECT device, job, attempt, start_time, max(end_time) OVER (
                      PARTITION BY device ORDER BY run ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS last
                  FROM runs)
            WHERE start_time < last
            """,
        ),
    ),
    Promise(
        "results",
        "a job has a result if and only if it succeeded (calibrations need none), until it is deleted",
        (
            """
            SELECT job, 'is ' || state || ' and has '
                        || coalesce('a result of ' || result_bytes || ' bytes', 'no result')
            FROM jobs WHERE (result_bytes IS NOT NULL AND state != 'SUCCEEDED')
                OR (result_bytes IS NULL AND state = 'SUCCEEDED' AND job_class != 'CALIBRATION')
            """,
            """
            SELECT results.job, 'has a result of ' || length(results.result) || ' bytes, and should have '
                                || coalesce(jobs.result_bytes || ' bytes', 'none')
            FROM results JOIN jobs ON jobs.job = results.job WHERE jobs.result_bytes IS NOT length(results.result)
            """,
            """
            SELECT jobs.job, 'succeeded, and its result is not there' FROM jobs
            WHERE result_bytes IS NOT NULL AND result_delete_time IS NULL AND NOT EXISTS (
                SELECT 1 FROM results WHERE results.job = jobs.job)
            """,
        ),
    ),
    Promise(
        "sessions",
        "a session that is over is CLOSED, with a time and a reason, holds no device, and nothing of it waits or runs",
        (
            """
            SELECT session, 'is ' || state || ', closed at ' || coalesce(close_time, 'no time') || ' for '
                            || coalesce(close_reason, 'no reason')
                            || CASE WHEN active THEN ', and has its device' ELSE '' END
            FROM sessions WHERE (state = 'CLOSED') != (close_time IS NOT NULL)
                OR (state = 'CLOSED' AND (close_reason IS NULL OR active OR accepting_jobs))
                OR (state = 'ACTIVE' AND NOT active) OR (state IN ('OPEN', 'INACTIVE') AND active)
                OR (clocks IS NULL AND state != 'CLOSED')
            """,
            """
            SELECT jobs.job, 'is ' || jobs.state || ', and its session ' || sessions.session || ' is over'
            FROM jobs JOIN sessions ON sessions.session = jobs.session
            WHERE jobs.end_time IS NULL AND sessions.clocks IS NULL
            """,
        ),
    ),
    Promise(
        "references",
        "what an event, a run, a result, a program, a job, a session or an answer names is there",
        (
            """
            SELECT 'event ' || event_number, 'is of job ' || job || ', which is not there' FROM events
            WHERE job IS NOT NULL AND NOT EXISTS (SELECT 1 FROM jobs WHERE jobs.job = events.job)
            """,
            """
            SELECT 'event ' || event_number, 'is of session ' || session || ', which is not there' FROM events
            WHERE session IS NOT NULL AND NOT EXISTS (SELECT 1 FROM sessions WHERE sessions.session = events.session)
            """,
            """
            SELECT 'event ' || event_number, 'is of nothing' FROM events WHERE job IS NULL AND session IS NULL
            """,
            """
            SELECT 'event ' || event_number, 'cannot be read' FROM events WHERE NOT json_valid(body)
            """,
            """
            SELECT job, 'attempt ' || attempt || ' is of a job that is not there' FROM runs
            WHERE NOT EXISTS (SELECT 1 FROM jobs WHERE jobs.job = runs.job)
            """,
            """
            SELECT job, 'has a result and is not there' FROM results
            WHERE NOT EXISTS (SELECT 1 FROM jobs WHERE jobs.job = results.job)
            """,
            """
            SELECT 'job number ' || seq, 'has a program and is not there' FROM programs
            WHERE NOT EXISTS (SELECT 1 FROM jobs WHERE jobs.seq = programs.seq)
            """,
            """
            SELECT job, 'is ' || state || ' and has no program' FROM jobs
            WHERE program IS NULL AND end_time IS NULL
                AND NOT EXISTS (SELECT 1 FROM programs WHERE programs.seq = jobs.seq)
            """,
            """
            SELECT job, 'is of session ' || session || ', which is not there' FROM jobs
            WHERE session IS NOT NULL AND NOT EXISTS (SELECT 1 FROM sessions WHERE sessions.session = jobs.session)
            """,
            """
            SELECT session, 'is bound to reservation ' || reservation || ', which is not there' FROM sessions
            WHERE reservation IS NOT NULL
                AND NOT EXISTS (SELECT 1 FROM reservations WHERE reservations.reservation = sessions.reservation)
            """,
            """
            SELECT 'request ' || request_id || ' of ' || caller, 'was answered with jobs that are not there'
            FROM requests WHERE first_seq IS NOT NULL AND job_count
                != (SELECT count(*) FROM jobs WHERE seq BETWEEN first_seq AND first_seq + job_count - 1)
            """,
        ),
    ),
    Promise(
        "reservations",
        "windows on one device do not overlap",
        (
            """
            SELECT device, 'is reserved twice: ' || before || ' and ' || reservation
            FROM (SELECT device, reservation, start_time, lag(reservation) OVER windows AS before,
                         lag(end_time) OVER windows AS last
                  FROM reservations WHERE state != 'DELETED' AND start_time < end_time
                  WINDOW windows AS (PARTITION BY device ORDER BY start_time, end_time))
            WHERE start_time < last
            """,
        ),
    ),
)
"""Beside these, the file itself is checked (`file`), and that accounts have what their children have (`charges`)."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A case in which a promise is broken. `subject`: the job, session, device or path that it is about."""

    promise: str
    subject: str
    text: str


@dataclass(slots=True)
class Report:
    """What a check found. Of each promise at most `SHOWN_MAX` findings are kept, and all are counted."""

    path: Path
    version: str
    counts: dict[str, int] = field(default_factory=dict)
    """How many rows of each kind were looked at."""
    findings: list[Finding] = field(default_factory=list)
    broken: dict[str, int] = field(default_factory=dict)
    """How many findings there are in all, by promise."""
    unchecked: dict[str, str] = field(default_factory=dict)
    """Which promises could not be looked at, and SQLite's error: a page is damaged, say, or memory is short."""

    @property
    def is_sound(self) -> bool:
        """Whether every promise was looked at, and is kept."""
        return not self.broken and not self.unchecked

    def add(self, promise: str, rows: Sequence[tuple[str, str]]) -> None:
        """Note the cases in which a promise is broken."""
        if rows:
            self.broken[promise] = self.broken.get(promise, 0) + len(rows)
            self.findings += [Finding(promise, str(subject), str(text)) for subject, text in rows[:SHOWN_MAX]]


def check(path: Path) -> Report:
    """Check the store at `path`. Raises `StoreError` if there is none, if it is no store, or if it is another
    server's (of another version)."""
    if not path.exists():
        raise StoreError(f"there is no store at {path}: give the --data-dir of a server")
    while True:
        had_log = has_log(path)
        report = _check(path)
        if had_log or not has_log(path):
            return report
        # A server has begun to write it in the meantime.


def _check(path: Path) -> Report:
    version = _read_version(path)
    if version is None:
        damaged = Report(path, "unknown")
        damaged.add("file", [(path.name, "is damaged: not even the version of its schema can be read")])
        return damaged
    if version != HEAD:
        what = "a newer" if version > HEAD else "an older"
        raise StoreError(f"{path} has schema {version}, of {what} server, and this is for {HEAD}: check it with that")
    report = Report(path, version)
    try:
        with closing(open_reader(path)) as connection:
            connection.execute("BEGIN")
            check_connection(connection, report)
    except sqlite3.DatabaseError as error:
        report.add("file", [(path.name, f"cannot be read: {error}")])
    return report


def _read_version(path: Path) -> str | None:
    """None: the file is SQLite's, and so damaged that it cannot be told."""
    try:
        with closing(open_reader(path)) as connection:
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.Error as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_CORRUPT:
            return None
        raise StoreError(f"{path} cannot be read as a store of Cadenza ({error}): restore it from a backup") from error
    if row is None:
        raise StoreError(f"{path} is empty: no server has made a store of it yet")
    return str(row[0])


def has_log(path: Path) -> bool:
    """Whether a part of the store is in the log beside it: a server writes it, or one has died."""
    log = path.with_name(path.name + "-wal")
    return log.exists() and log.stat().st_size > 0


def open_reader(path: Path) -> sqlite3.Connection:
    """Open the store at `path` without changing anything, folder and log included: SQLite makes a log for readers, too,
    unless it is told that nobody writes."""
    alone = "" if has_log(path) else "&immutable=1"
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro{alone}", uri=True, isolation_level=None)


def check_connection(connection: sqlite3.Connection, report: Report) -> None:
    """Check what a connection sees, in the transaction that it is in."""
    try:
        damage = [str(row[0]) for row in connection.execute("PRAGMA integrity_check(100)")]
    except sqlite3.DatabaseError as error:
        damage = [str(error)]
    report.add("file", [(report.path.name, line) for line in damage if line != "ok"])
    for table in ("jobs", "runs", "results", "sessions", "reservations", "events", "requests"):
        try:
            ((report.counts[table],),) = connection.execute(f"SELECT count(*) FROM {table}")
        except sqlite3.DatabaseError as error:
            report.add("file", [(report.path.name, f"its {table} cannot be read: {error}")])
    for promise in PROMISES:
        try:
            report.add(promise.name, list(_find_broken(connection, promise)))
        except sqlite3.DatabaseError as error:
            report.unchecked[promise.name] = str(error)


def _find_broken(connection: sqlite3.Connection, promise: Promise) -> Iterator[tuple[str, str]]:
    for query in promise.queries:
        yield from connection.execute(query)
    if promise.name == "charges":
        yield from _compare_accounts(connection)


def _compare_accounts(connection: sqlite3.Connection) -> Iterator[tuple[str, str]]:
    """Accounts (the root is "") that do not have what their children have."""
    rows = connection.execute("SELECT path, settled, exponent, charged_ns FROM usage").fetchall()
    charged: dict[str, int] = {}
    settled: dict[str, float] = {}
    exponents = [exponent for _, _, exponent, _ in rows]
    least = min(exponents, default=0)
    usage = {path: value * 2.0 ** min(exponent - least, 1000) for path, value, exponent, _ in rows}
    for path, _, _, length in rows:
        if path:
            above = path.rpartition("/")[0]
            charged[above] = charged.get(above, 0) + length
            settled[above] = settled.get(above, 0.0) + usage[path]
    for path, _, _, length in rows:
        if path not in charged:
            continue
        name = path or "everybody"
        if charged[path] != length:
            yield name, f"was charged {length} ns, and its children {charged[path]} ns"
        if abs(usage[path] - settled[path]) > _ROUNDING * max(usage[path], settled[path]):
            yield name, f"has a usage of {usage[path]:.17g}, and its children {settled[path]:.17g}"

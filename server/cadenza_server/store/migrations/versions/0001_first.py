"""The first schema: jobs, runs, sessions, reservations, usage, devices, history, requests."""

from typing import Final

from alembic import op

revision = "0001"
down_revision = None

_STATEMENTS: Final = (
    """
    CREATE TABLE devices (
        device TEXT NOT NULL,
        epoch INTEGER NOT NULL,
        calibrate_time INTEGER,
        properties BLOB,
        clocks TEXT,
        PRIMARY KEY (device)
    )
    """,
    """
    CREATE TABLE events (
        event_number INTEGER NOT NULL,
        time INTEGER NOT NULL,
        job TEXT,
        session TEXT,
        kind TEXT NOT NULL,
        body TEXT NOT NULL,
        PRIMARY KEY (event_number)
    )
    """,
    """
    CREATE INDEX events_by_job ON events (job) WHERE job IS NOT NULL
    """,
    """
    CREATE INDEX events_by_session ON events (session) WHERE session IS NOT NULL
    """,
    """
    CREATE TABLE jobs (
        seq INTEGER NOT NULL,
        job TEXT NOT NULL,
        user TEXT NOT NULL,
        device TEXT NOT NULL,
        session TEXT,
        job_class TEXT NOT NULL,
        program_kind TEXT NOT NULL,
        state TEXT NOT NULL,
        reason TEXT,
        detail TEXT,
        priority INTEGER NOT NULL,
        first INTEGER NOT NULL,
        estimate_ns INTEGER NOT NULL,
        estimate_hint_ns INTEGER,
        limit_ns INTEGER NOT NULL,
        min_duration_ns INTEGER NOT NULL,
        tags TEXT,
        create_time INTEGER NOT NULL,
        start_time INTEGER,
        end_time INTEGER,
        attempts INTEGER NOT NULL,
        attempts_lost INTEGER NOT NULL,
        charged_ns INTEGER NOT NULL,
        epoch INTEGER,
        cache_deadline INTEGER,
        accept_event INTEGER NOT NULL,
        release_event INTEGER,
        end_event INTEGER,
        result_bytes INTEGER,
        new_digests BLOB,
        digests BLOB,
        program BLOB,
        PRIMARY KEY (seq)
    )
    """,
    """
    CREATE UNIQUE INDEX jobs_by_name ON jobs (job)
    """,
    """
    CREATE INDEX jobs_by_session ON jobs (session, state) WHERE session IS NOT NULL
    """,
    """
    CREATE INDEX jobs_by_user ON jobs (user)
    """,
    """
    CREATE INDEX jobs_unfinished ON jobs (device) WHERE end_time IS NULL
    """,
    """
    CREATE TABLE meta (
        "key" TEXT NOT NULL,
        value INTEGER NOT NULL,
        PRIMARY KEY ("key")
    )
    """,
    """
    CREATE TABLE programs (
        seq INTEGER NOT NULL,
        program BLOB NOT NULL,
        PRIMARY KEY (seq)
    )
    """,
    """
    CREATE TABLE requests (
        caller TEXT NOT NULL,
        request_id TEXT NOT NULL,
        digest BLOB NOT NULL,
        time INTEGER NOT NULL,
        first_seq INTEGER,
        job_count INTEGER NOT NULL,
        answer TEXT,
        PRIMARY KEY (caller, request_id)
    )
     WITHOUT ROWID
    """,
    """
    CREATE TABLE reservations (
        number INTEGER NOT NULL,
        reservation TEXT NOT NULL,
        device TEXT NOT NULL,
        holder TEXT NOT NULL,
        start_time INTEGER NOT NULL,
        end_time INTEGER NOT NULL,
        state TEXT NOT NULL,
        description TEXT NOT NULL,
        create_time INTEGER NOT NULL,
        PRIMARY KEY (number)
    )
    """,
    """
    CREATE UNIQUE INDEX reservations_by_name ON reservations (reservation)
    """,
    """
    CREATE INDEX reservations_by_start ON reservations (start_time)
    """,
    """
    CREATE TABLE results (
        job TEXT NOT NULL,
        result BLOB NOT NULL
    )
    """,
    """
    CREATE UNIQUE INDEX results_by_job ON results (job)
    """,
    """
    CREATE TABLE runs (
        run INTEGER NOT NULL,
        job TEXT NOT NULL,
        attempt INTEGER NOT NULL,
        device TEXT NOT NULL,
        user TEXT NOT NULL,
        session TEXT,
        job_class TEXT NOT NULL,
        rule TEXT NOT NULL,
        create_time INTEGER NOT NULL,
        start_time INTEGER NOT NULL,
        end_time INTEGER,
        outcome TEXT,
        estimate_ns INTEGER NOT NULL,
        limit_ns INTEGER NOT NULL,
        epoch INTEGER NOT NULL,
        charged_ns INTEGER NOT NULL,
        chosen_node TEXT,
        chosen_usage FLOAT,
        runner_up TEXT,
        runner_up_usage FLOAT,
        runner_up_user TEXT,
        PRIMARY KEY (run)
    )
    """,
    """
    CREATE UNIQUE INDEX runs_by_job ON runs (job, attempt)
    """,
    """
    CREATE INDEX runs_by_session ON runs (session) WHERE session IS NOT NULL
    """,
    """
    CREATE TABLE sessions (
        number INTEGER NOT NULL,
        session TEXT NOT NULL,
        user TEXT NOT NULL,
        device TEXT NOT NULL,
        mode TEXT NOT NULL,
        state TEXT NOT NULL,
        close_reason TEXT,
        active INTEGER NOT NULL,
        accepting_jobs INTEGER NOT NULL,
        reservation TEXT,
        max_time_ns INTEGER NOT NULL,
        interactive_ttl_ns INTEGER NOT NULL,
        create_time INTEGER NOT NULL,
        start_time INTEGER,
        activate_time INTEGER,
        expire_time INTEGER,
        close_time INTEGER,
        cache_deadline INTEGER,
        first_job TEXT,
        last_job_start_time INTEGER,
        last_job_end_time INTEGER,
        run_time_ns INTEGER NOT NULL,
        held_time_ns INTEGER NOT NULL,
        first_epoch INTEGER,
        last_epoch INTEGER,
        clocks TEXT,
        PRIMARY KEY (number)
    )
    """,
    """
    CREATE UNIQUE INDEX sessions_by_name ON sessions (session)
    """,
    """
    CREATE INDEX sessions_by_user ON sessions (user)
    """,
    """
    CREATE INDEX sessions_live ON sessions (device) WHERE clocks IS NOT NULL
    """,
    """
    CREATE TABLE usage (
        path TEXT NOT NULL,
        is_user INTEGER NOT NULL,
        shares FLOAT,
        settled FLOAT NOT NULL,
        exponent INTEGER NOT NULL,
        charged_ns INTEGER NOT NULL,
        PRIMARY KEY (path)
    )
    """,
)


def upgrade() -> None:
    """Make the tables of an empty store."""
    for statement in _STATEMENTS:
        op.execute(statement)

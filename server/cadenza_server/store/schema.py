"""The tables. Columns carry the law's words; times are nanoseconds since the epoch, lengths end in `_ns`.

A submitted job is one row: its acceptance, the first entry of its history, is implied by it (`accept_event`). Programs
of up to `INLINE_PROGRAM_BYTES_MAX` bytes stand in that row, behind what is read of many jobs; larger ones in a table of
their own, so that a change of state does not write them again. A change of this file needs a migration (a test compares
the two).
"""

from typing import Final

from sqlalchemy import Column, Float, Index, Integer, LargeBinary, MetaData, Table, Text, text

HEAD: Final = "0006"
"""The newest migration, the version that this code reads and writes."""
INLINE_PROGRAM_BYTES_MAX: Final = 4096

metadata = MetaData()

jobs: Final = Table(
    "jobs",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("job", Text, nullable=False),
    Column("user", Text, nullable=False),
    Column("device", Text, nullable=False),
    Column("session", Text),
    Column("job_class", Text, nullable=False),
    Column("program_kind", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("reason", Text),
    Column("detail", Text),
    Column("priority", Integer, nullable=False),
    Column("first", Integer, nullable=False),
    Column("estimate_ns", Integer, nullable=False),
    Column("estimate_hint_ns", Integer),
    Column("limit_ns", Integer, nullable=False),
    Column("min_duration_ns", Integer, nullable=False),
    Column("tags", Text),  # a JSON list, or NULL
    Column("create_time", Integer, nullable=False),
    Column("start_time", Integer),
    Column("end_time", Integer),
    Column("attempts", Integer, nullable=False),
    Column("attempts_lost", Integer, nullable=False),
    Column("charged_ns", Integer, nullable=False),
    Column("epoch", Integer),
    Column("cache_deadline", Integer),
    Column("accept_event", Integer, nullable=False),
    Column("release_event", Integer),
    Column("end_event", Integer),
    Column("result_bytes", Integer),
    Column("new_digests", LargeBinary),  # 32 bytes each
    Column("digests", LargeBinary),
    Column("program", LargeBinary),  # NULL: it is in `programs`
    Column("workload", LargeBinary),  # what the predictor knows the job by; NULL: nothing
    Column("accepted_priority", Integer),  # NULL: `priority`, which was never changed
    Column("result_delete_time", Integer),  # NULL: its result, if it had one, is kept
    Column("accepted_class", Text),  # NULL: `job_class`
    Index("jobs_by_name", "job", unique=True),
    Index("jobs_by_user", "user"),
    Index("jobs_by_session", "session", "state", sqlite_where=text("session IS NOT NULL")),
    Index("jobs_unfinished", "device", sqlite_where=text("end_time IS NULL")),
)

programs: Final = Table(
    "programs",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("program", LargeBinary, nullable=False),
)

results: Final = Table(
    "results",
    metadata,
    Column("job", Text, nullable=False),
    Column("result", LargeBinary, nullable=False),
    Index("results_by_job", "job", unique=True),
)

runs: Final = Table(
    "runs",
    metadata,
    Column("run", Integer, primary_key=True),  # in the order of starts
    Column("job", Text, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("device", Text, nullable=False),
    Column("user", Text, nullable=False),
    Column("session", Text),
    Column("job_class", Text, nullable=False),
    Column("rule", Text, nullable=False),
    Column("create_time", Integer, nullable=False),  # of the job
    Column("start_time", Integer, nullable=False),
    Column("end_time", Integer),
    Column("outcome", Text),
    Column("estimate_ns", Integer, nullable=False),
    Column("limit_ns", Integer, nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("charged_ns", Integer, nullable=False),
    Column("chosen_node", Text),
    Column("chosen_usage", Float),
    Column("runner_up", Text),
    Column("runner_up_usage", Float),
    Column("runner_up_user", Text),
    Index("runs_by_job", "job", "attempt", unique=True),
    Index("runs_by_session", "session", sqlite_where=text("session IS NOT NULL")),
)

sessions: Final = Table(
    "sessions",
    metadata,
    Column("number", Integer, primary_key=True),  # in the order of creation
    Column("session", Text, nullable=False),
    Column("user", Text, nullable=False),
    Column("device", Text, nullable=False),
    Column("mode", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("close_reason", Text),
    Column("active", Integer, nullable=False),
    Column("accepting_jobs", Integer, nullable=False),
    Column("reservation", Text),
    Column("max_time_ns", Integer, nullable=False),
    Column("interactive_ttl_ns", Integer, nullable=False),
    Column("create_time", Integer, nullable=False),
    Column("start_time", Integer),
    Column("activate_time", Integer),
    Column("expire_time", Integer),
    Column("close_time", Integer),
    Column("cache_deadline", Integer),
    Column("first_job", Text),
    Column("last_job_start_time", Integer),
    Column("last_job_end_time", Integer),
    Column("run_time_ns", Integer, nullable=False),
    Column("held_time_ns", Integer, nullable=False),
    Column("first_epoch", Integer),
    Column("last_epoch", Integer),
    Column("clocks", Text),  # what the scheduler needs beside the above to go on, as JSON; NULL: nothing any more
    Index("sessions_by_name", "session", unique=True),
    Index("sessions_by_user", "user"),
    Index("sessions_live", "device", sqlite_where=text("clocks IS NOT NULL")),
)

reservations: Final = Table(
    "reservations",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("reservation", Text, nullable=False),
    Column("device", Text, nullable=False),
    Column("holder", Text, nullable=False),
    Column("start_time", Integer, nullable=False),
    Column("end_time", Integer, nullable=False),
    Column("state", Text, nullable=False),
    Column("description", Text, nullable=False),
    Column("create_time", Integer, nullable=False),
    Index("reservations_by_name", "reservation", unique=True),
    Index("reservations_by_start", "start_time"),
)

usage: Final = Table(
    "usage",
    metadata,
    Column("path", Text, primary_key=True),  # "" is the root
    Column("is_user", Integer, nullable=False),  # 1: jobs or sessions of this very path were accepted
    Column("shares", Float),  # NULL: as configured
    Column("settled", Float, nullable=False),  # the value is settled * 2**exponent
    Column("exponent", Integer, nullable=False),
    Column("charged_ns", Integer, nullable=False),
)

devices: Final = Table(
    "devices",
    metadata,
    Column("device", Text, primary_key=True),
    Column("epoch", Integer, nullable=False),
    Column("calibrate_time", Integer),  # end of the last successful calibration
    Column("properties", LargeBinary),
    Column("clocks", Text),  # what the scheduler needs beside the above to go on, as JSON
)

events: Final = Table(
    "events",
    metadata,
    Column("event_number", Integer, primary_key=True),
    Column("time", Integer, nullable=False),
    Column("job", Text),
    Column("session", Text),
    Column("kind", Text, nullable=False),
    Column("body", Text, nullable=False),  # JSON
    Index("events_by_job", "job", sqlite_where=text("job IS NOT NULL")),
    Index("events_by_session", "session", sqlite_where=text("session IS NOT NULL")),
)

requests: Final = Table(
    "requests",
    metadata,
    Column("caller", Text, primary_key=True),
    Column("request_id", Text, primary_key=True),
    Column("digest", LargeBinary, nullable=False),
    Column("time", Integer, nullable=False),
    Column("first_seq", Integer),  # of the jobs that it submitted
    Column("job_count", Integer, nullable=False),
    Column("answer", Text),  # of other commands: their events, as JSON
    Index("requests_by_time", "time"),
    sqlite_with_rowid=False,
)

meta: Final = Table(
    "meta",
    metadata,
    Column("key", Text, primary_key=True),
    Column("value", Integer, nullable=False),
)

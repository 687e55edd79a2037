"""What one commit writes, collected row by row; the statements that write it."""

from typing import Final

from cadenza_server.store.commit_process import Row

INSERT_JOB: Final = (
    "INSERT INTO jobs (seq, job, user, device, session, job_class, program_kind, state, priority, first, estimate_ns, "
    "estimate_hint_ns, limit_ns, min_duration_ns, tags, create_time, attempts, attempts_lost, charged_ns, "
    "cache_deadline, accept_event, new_digests, digests, program, workload) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, 'QUEUED', ?, ?, ?, ?, ?, ?, ?, ?, 0, 0, 0, ?, ?, ?, ?, ?, ?)"
)
INSERT_PROGRAM: Final = "INSERT INTO programs (seq, program) VALUES (?, ?)"
INSERT_EVENT: Final = "INSERT INTO events (event_number, time, job, session, kind, body) VALUES (?, ?, ?, ?, ?, ?)"
INSERT_RESULT: Final = "INSERT INTO results (job, result) VALUES (?, ?)"
DELETE_RESULT: Final = "DELETE FROM results WHERE job = ?"
MARK_RESULT_DELETED: Final = "UPDATE jobs SET result_delete_time = ? WHERE job = ?"
INSERT_REQUEST: Final = (
    "INSERT INTO requests (caller, request_id, digest, time, first_seq, job_count, answer) VALUES (?, ?, ?, ?, ?, ?, ?)"
)
DELETE_REQUEST: Final = "DELETE FROM requests WHERE caller = ? AND request_id = ?"
INSERT_RUN: Final = (
    "INSERT INTO runs (job, attempt, device, user, session, job_class, rule, create_time, start_time, estimate_ns, "
    "limit_ns, epoch, charged_ns, chosen_node, chosen_usage, runner_up, runner_up_usage, runner_up_user) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, (SELECT create_time FROM jobs WHERE job = ?), ?, ?, ?, ?, 0, ?, ?, ?, ?, ?)"
)
FINISH_RUN: Final = "UPDATE runs SET end_time = ?, outcome = ?, charged_ns = ? WHERE job = ? AND attempt = ?"
START_JOB: Final = "UPDATE jobs SET state = 'RUNNING', start_time = ?, attempts = ?, epoch = ? WHERE job = ?"
END_JOB: Final = (
    "UPDATE jobs SET state = ?, reason = ?, detail = ?, end_time = ?, charged_ns = charged_ns + ?, end_event = ?, "
    "result_bytes = ? WHERE job = ?"
)
REQUEUE_JOB: Final = (
    "UPDATE jobs SET state = 'QUEUED', accepted_class = coalesce(accepted_class, job_class), job_class = ?, "
    "attempts_lost = ?, charged_ns = charged_ns + ?, "
    "cache_deadline = coalesce(cache_deadline, ?) WHERE job = ?"
)
SET_PRIORITY: Final = (
    "UPDATE jobs SET accepted_priority = coalesce(accepted_priority, priority), priority = ? WHERE job = ?"
)
END_SESSION_JOBS: Final = (
    "UPDATE jobs SET state = ?, reason = ?, end_time = ?, end_event = ? WHERE session = ? AND state = 'QUEUED'"
)
RELEASE_SESSION_JOBS: Final = (
    "UPDATE jobs SET accepted_class = coalesce(accepted_class, job_class), job_class = 'FAIR_SHARE', "
    "cache_deadline = ?, release_event = ? WHERE session = ? AND state = 'QUEUED'"
)
INSERT_SESSION: Final = (
    "INSERT INTO sessions (number, session, user, device, mode, state, active, accepting_jobs, reservation, "
    "max_time_ns, interactive_ttl_ns, create_time, run_time_ns, held_time_ns) "
    "VALUES (?, ?, ?, ?, ?, 'OPEN', 0, 1, ?, ?, ?, ?, 0, 0)"
)
UPDATE_SESSION: Final = (
    "UPDATE sessions SET state = ?, close_reason = ?, active = ?, accepting_jobs = ?, start_time = ?, "
    "activate_time = ?, expire_time = ?, close_time = ?, cache_deadline = ?, first_job = ?, last_job_start_time = ?, "
    "last_job_end_time = ?, run_time_ns = ?, held_time_ns = ?, first_epoch = ?, last_epoch = ?, clocks = ? "
    "WHERE number = ?"
)
INSERT_RESERVATION: Final = (
    "INSERT INTO reservations (number, reservation, device, holder, start_time, end_time, state, description, "
    "create_time) VALUES (?, ?, ?, ?, ?, ?, 'SCHEDULED', ?, ?)"
)
START_RESERVATION: Final = "UPDATE reservations SET state = 'ACTIVE' WHERE reservation = ?"
END_RESERVATION: Final = (
    "UPDATE reservations SET end_time = min(end_time, ?), state = CASE state WHEN 'SCHEDULED' THEN 'DELETED' "
    "ELSE 'ENDED' END WHERE reservation = ?"
)
PUT_USAGE: Final = (
    "INSERT INTO usage (path, is_user, settled, exponent, charged_ns) VALUES (?, 0, ?, ?, ?) "
    "ON CONFLICT (path) DO UPDATE SET settled = excluded.settled, exponent = excluded.exponent, "
    "charged_ns = excluded.charged_ns"
)
PUT_SHARES: Final = (
    "INSERT INTO usage (path, is_user, shares, settled, exponent, charged_ns) VALUES (?, 0, ?, 0, 0, 0) "
    "ON CONFLICT (path) DO UPDATE SET shares = excluded.shares"
)
PUT_USER: Final = (
    "INSERT INTO usage (path, is_user, settled, exponent, charged_ns) VALUES (?, 1, 0, 0, 0) "
    "ON CONFLICT (path) DO UPDATE SET is_user = 1"
)
PUT_DEVICE: Final = (
    "INSERT INTO devices (device, epoch, calibrate_time, properties, clocks) VALUES (?, ?, ?, ?, ?) "
    "ON CONFLICT (device) DO UPDATE SET epoch = excluded.epoch, calibrate_time = excluded.calibrate_time, "
    "properties = excluded.properties, clocks = excluded.clocks"
)
PUT_META: Final = "INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value"


class Batch:
    """Statements in order. Neighbours that are the same statement are kept together, as they are written together;
    inserts that nothing else in a batch refers to (`append`) wait until its end, so that they are neighbours, too."""

    def __init__(self) -> None:
        self._ordered: list[tuple[str, list[Row]]] = []
        self._appended: dict[str, list[Row]] = {}

    def add(self, statement: str, row: Row) -> None:
        """One execution of `statement`, after all that were added before."""
        if self._ordered and self._ordered[-1][0] is statement:
            self._ordered[-1][1].append(row)
        else:
            self._ordered.append((statement, [row]))

    def append(self, statement: str, row: Row) -> None:
        """One insert into a table that is only inserted into, at any place of this batch."""
        self._appended.setdefault(statement, []).append(row)

    def __bool__(self) -> bool:
        return bool(self._ordered or self._appended)

    def groups(self) -> list[tuple[str, list[Row]]]:
        """All of it, in the order to execute: statements, each with the rows to execute it with."""
        return [*self._ordered, *self._appended.items()]

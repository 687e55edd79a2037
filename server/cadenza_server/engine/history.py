"""Notices made from the store: histories, backlogs of resumed watches, and changes too old for memory."""

from dataclasses import replace
from typing import Final

from sqlalchemy import Connection

from cadenza_server.engine.notices import (
    Change,
    JobAccepted,
    JobEnded,
    JobPriorityChanged,
    JobReleased,
    JobRequeued,
    JobStarted,
    Notice,
    SessionChanged,
    SessionJobsEnded,
    SessionJobsReleased,
)
from cadenza_server.engine.recorder import INLINE_RESULT_BYTES_MAX, accepted_view, session_at
from cadenza_server.model.words import JobReason, JobState, SessionState
from cadenza_server.store import reads
from cadenza_server.store.reads import EventRow, JobRow
from cadenza_server.store.views import RunView, SessionView

CHUNK: Final = 500
"""Changes that a backlog reads at a time."""


def job_history(connection: Connection, row: JobRow, after: int, limit: int) -> list[Notice]:
    """What happened to one job after an event, the oldest first, `limit` at most."""
    view = row.view
    runs = {run.attempt: run for run in reads.read_runs(connection, view.job)}
    notices = []
    if row.accept_event > after:
        notices.append(
            Notice(
                row.accept_event,
                view.create_time,
                JobAccepted(job=accepted_view(view, row.accepted_priority, row.accepted_class)),
            )
        )
    recorded = reads.events_of_job(connection, view.job, after, limit)
    notices += [Notice(event.event_number, event.time, _job_change(event, row, runs)) for event in recorded]
    known = {event.event_number for event in recorded}
    if row.release_event is not None and row.release_event > after and view.cache_deadline is not None:
        time = reads.read_event_time(connection, row.release_event)
        released = JobReleased(job=view.job, cache_deadline=view.cache_deadline)
        notices.append(Notice(row.release_event, time or 0, released))
    if row.end_event is not None and row.end_event > after and row.end_event not in known and len(recorded) < limit:
        ended = JobEnded(job=view, run=_last(runs), result=None)
        notices.append(Notice(row.end_event, view.end_time or 0, ended))
    notices.sort(key=lambda notice: notice.event_number)
    return notices[:limit]


def session_history(
    connection: Connection, view: SessionView, after: int, limit: int, *, with_jobs: bool
) -> list[Notice]:
    """What happened to one session (and its jobs) after an event, the oldest first, `limit` at most."""
    recorded = reads.events_of_session(connection, view.session, after, limit, with_jobs=with_jobs)
    notices = []
    rows: dict[str, JobRow | None] = {}
    runs: dict[str, dict[int, RunView]] = {}
    for event in recorded:
        if event.job is None:
            notices.append(Notice(event.event_number, event.time, _session_change(event, view)))
            continue
        if event.job not in rows:
            rows[event.job] = reads.read_job(connection, event.job)
            runs[event.job] = {run.attempt: run for run in reads.read_runs(connection, event.job)}
        row = rows[event.job]
        if row is not None:
            notices.append(Notice(event.event_number, event.time, _job_change(event, row, runs[event.job])))
    if with_jobs:
        for row in reads.acceptances_of_session(connection, view.session, after, limit):
            accepted = JobAccepted(job=accepted_view(row.view, row.accepted_priority, row.accepted_class))
            notices.append(Notice(row.accept_event, row.view.create_time, accepted))
        notices.sort(key=lambda notice: notice.event_number)
    return notices[:limit]


def change_of_job(connection: Connection, job: str, event_number: int, *, with_result: bool) -> Notice | None:
    """One change of one job; None if that event was not about it."""
    row = reads.read_job(connection, job)
    if row is None:
        return None
    found = job_history(connection, row, event_number - 1, 1)
    if not found or found[0].event_number != event_number:
        return None
    return add_result(connection, found[0]) if with_result else found[0]


def add_result(connection: Connection, notice: Notice) -> Notice:
    """The notice with the result of the job that it shows in its final state, if that is small."""
    change = notice.change
    if not isinstance(change, JobEnded) or (change.job.result_bytes or INLINE_RESULT_BYTES_MAX + 1) > (
        INLINE_RESULT_BYTES_MAX
    ):
        return notice
    return replace(notice, change=replace(change, result=reads.read_result(connection, change.job.job)))


def _last(runs: dict[int, RunView]) -> RunView | None:
    return runs[max(runs)] if runs else None


def _job_change(event: EventRow, row: JobRow, runs: dict[int, RunView]) -> Change:
    view, body = row.view, event.body
    match event.kind:
        case "job_started":
            run = runs[body["attempt"]]
            return JobStarted(run=replace(run, end_time=None, outcome=None, charged_ns=0))
        case "job_requeued":
            return JobRequeued(run=runs[body["attempt"]])
        case "job_priority_changed":
            return JobPriorityChanged(job=view.job, priority=body["priority"])
        case "job_ended":
            return JobEnded(job=view, run=_last(runs), result=None)
        case _:
            raise ValueError(f"event {event.event_number} has the unknown kind {event.kind}")


def _session_change(event: EventRow, view: SessionView) -> Change:
    body = event.body
    match event.kind:
        case "session_changed":
            previous = SessionState(body["previous"]) if body["previous"] is not None else None
            return SessionChanged(session=session_at(view, body), previous=previous)
        case "session_jobs_ended":
            return SessionJobsEnded(
                session=view.session,
                state=JobState(body["state"]),
                reason=JobReason(body["reason"]),
                count=body["count"],
            )
        case "session_jobs_released":
            return SessionJobsReleased(session=view.session, cache_deadline=body["cache_deadline"], count=body["count"])
        case _:
            raise ValueError(f"event {event.event_number} has the unknown kind {event.kind}")

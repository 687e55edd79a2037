"""Follows the jobs of one session over one watch stream: a job's end, with its result, is pushed to whoever waits.

An iteration of an iterative program so costs one call and one streamed message; and one of short jobs, whose ends come
with the answers to their submissions, does without the watch. Nothing here knows Qiskit.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from cadenza._client import Client
from cadenza._errors import CadenzaError
from cadenza._transport import Watch
from cadenza.v1.event_pb2 import Event, JobEnded
from cadenza.v1.job_pb2 import (
    JOB_CLASS_FAIR_SHARE,
    JOB_STATE_CANCELLED,
    JOB_STATE_FAILED,
    JOB_STATE_QUEUED,
    JOB_STATE_RUNNING,
    JOB_STATE_SUCCEEDED,
    Job,
)
from cadenza.v1.result_pb2 import JobResult

ENDED_AT_ONCE_MAX: Final = 8
"""After so many jobs in a row whose ends came with their answers, the watch is given up."""

FINAL: Final = frozenset({JOB_STATE_SUCCEEDED, JOB_STATE_FAILED, JOB_STATE_CANCELLED})


class FollowedJob:
    """What is known of one job. Written by the follower, read by anybody.

    `job` is replaced, never changed. `settled` is set when the job is final, or when nobody follows it any more.
    """

    __slots__ = ("claimed", "job", "result", "settled")

    def __init__(self, job: Job, *, claimed: bool) -> None:
        self.job = job
        self.result: JobResult | None = None
        self.claimed = claimed
        self.settled = threading.Event()

    @classmethod
    def make(cls, found: Job | JobEnded) -> "FollowedJob":
        """Of a job that was just submitted."""
        if isinstance(found, Job):
            return cls(found, claimed=True)
        followed = cls(found.job, claimed=True)
        followed.result = found.result if found.HasField("result") else None
        followed.settled.set()
        return followed

    @property
    def is_final(self) -> bool:
        """Whether the job has come to its final state."""
        return self.job.state in FINAL

    def update(self, job: Job, result: JobResult | None = None) -> None:
        """Take note of the job as it is now; a final state stays."""
        if self.is_final:
            return
        self.result = result
        self.job = job
        if job.state in FINAL:
            self.settled.set()


class SessionFollower:
    """One watch of one session, read on a thread of its own while there are jobs to follow.

    The thread ends with the stream, when the server says that nothing more can come, or when the connection is lost
    for longer than is tried again; jobs that are not final then are left to whoever waits for them.
    """

    def __init__(self, client: Client, session_id: str) -> None:
        self._client = client
        self._session_id = session_id
        self._lock = threading.Lock()
        self._jobs: dict[str, FollowedJob] = {}
        self._submitting = 0
        self._watch: Watch | None = None
        self._following = threading.Event()
        self._failure: CadenzaError | None = None
        self._ended_at_once = 0
        """So many of the latest jobs."""

    @contextmanager
    def submitting(self) -> Iterator[None]:
        """Around a submit: from here on, what comes about a job not known yet is kept until `claim` asks for it."""
        with self._lock:
            self._submitting += 1
        try:
            if self._ended_at_once < ENDED_AT_ONCE_MAX:
                self._start()
                self._following.wait()
                if self._failure is not None:
                    raise self._failure
            yield
        finally:
            with self._lock:
                self._submitting -= 1
                if not self._submitting:
                    self._jobs = {job_id: followed for job_id, followed in self._jobs.items() if followed.claimed}

    def claim(self, found: Job | JobEnded) -> FollowedJob:
        """Follow a job that was just submitted; its end may have come already."""
        if isinstance(found, JobEnded):
            self._note_end(found.job.job_id)
            return FollowedJob.make(found)
        with self._lock:
            given_up = self._ended_at_once >= ENDED_AT_ONCE_MAX
            self._ended_at_once = 0
            followed = self._jobs.get(found.job_id)
            if followed is None:
                followed = self._jobs[found.job_id] = FollowedJob.make(found)
            followed.claimed = True
            if self._watch is None and not given_up:
                followed.settled.set()
            if followed.settled.is_set():
                del self._jobs[found.job_id]
                return followed
        if given_up:
            self._start()
        return followed

    def close(self) -> None:
        """Stop following."""
        watch = self._watch
        if watch is not None:
            watch.close()

    def _note_end(self, job_id: str) -> None:
        """A job's end came with the answer to its submission: a watch that tells nothing but this is given up."""
        with self._lock:
            self._jobs.pop(job_id, None)
            self._ended_at_once += 1
            watch = self._watch
            if watch is None or self._ended_at_once < ENDED_AT_ONCE_MAX or self._submitting > 1:
                return
            if any(followed.claimed for followed in self._jobs.values()):
                return  # a later one gives it up
            self._watch = None
        watch.close()

    def _start(self) -> None:
        with self._lock:
            if self._watch is None:
                self._following.clear()
                self._failure = None
                self._watch = self._client.watch_session(self._session_id, include_results=True, skip_superseded=True)
                name = f"cadenza-{self._session_id}"
                threading.Thread(target=self._follow, args=(self._watch,), name=name, daemon=True).start()

    def _follow(self, watch: Watch) -> None:
        failure: CadenzaError | None = None
        try:
            for event in watch:
                self._take(event)
                if not self._following.is_set():
                    self._following.set()
        except CadenzaError as error:
            failure = error
        finally:
            left = []
            with self._lock:
                if self._watch is watch:
                    self._watch = None
                    left = [followed for followed in self._jobs.values() if followed.claimed]
                    self._jobs.clear()
                    if not self._following.is_set():
                        self._failure = failure
                        self._following.set()
            for followed in left:
                followed.settled.set()

    def _take(self, event: Event) -> None:
        kind = event.WhichOneof("change")
        if kind == "job_ended":
            ended = event.job_ended
            self._update(ended.job, ended.result if ended.HasField("result") else None)
        elif kind == "job_accepted":
            self._update(event.job_accepted.job)
        elif kind == "job_started":
            run = event.job_started.run
            change = Job(state=JOB_STATE_RUNNING, start_time=run.start_time, attempts=run.attempt, epoch=run.epoch)
            self._change(run.job_id, change)
        elif kind == "job_requeued":
            self._change(event.job_requeued.run.job_id, Job(state=JOB_STATE_QUEUED))
        elif kind == "job_priority_changed":
            self._change(event.job_priority_changed.job_id, Job(priority=event.job_priority_changed.priority))
        elif kind == "session_jobs_ended":
            ends = event.session_jobs_ended
            self._change_queued(Job(state=ends.state, reason=ends.reason, detail=ends.detail, end_time=event.time))
        elif kind == "session_jobs_released":
            until = event.session_jobs_released.cache_expire_time
            self._change_queued(Job(job_class=JOB_CLASS_FAIR_SHARE, cache_expire_time=until))
        elif kind == "session_snapshot":
            self._refresh()

    def _update(self, job: Job, result: JobResult | None = None) -> None:
        with self._lock:
            followed = self._jobs.get(job.job_id)
            if followed is None:
                if self._submitting:
                    followed = self._jobs[job.job_id] = FollowedJob(Job(job_id=job.job_id), claimed=False)
                else:
                    return
            elif job.state in FINAL and followed.claimed:
                del self._jobs[job.job_id]
            followed.update(job, result)

    def _change(self, job_id: str, change: Job) -> None:
        with self._lock:
            followed = self._jobs.get(job_id)
        if followed is not None:
            merged = Job()
            merged.CopyFrom(followed.job)
            merged.MergeFrom(change)
            self._update(merged)

    def _change_queued(self, change: Job) -> None:
        with self._lock:
            queued = [job_id for job_id, followed in self._jobs.items() if followed.job.state == JOB_STATE_QUEUED]
        for job_id in queued:
            self._change(job_id, change)

    def _refresh(self) -> None:
        """The watch began, or began anew: what came before is not told, so ask."""
        with self._lock:
            known = list(self._jobs)
        for job_id in known:
            self._update(self._client.get_job(job_id))

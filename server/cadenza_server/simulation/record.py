"""Makes the outcome of a scenario from the scheduler's events."""

from collections import defaultdict
from typing import Final

from cadenza_server.model.events import (
    HoldEnded,
    JobEnded,
    JobQueued,
    JobRequeued,
    ReservationCreated,
    ReservationEnded,
    ReservationStarted,
    RunFinished,
    RunStarted,
    SessionChanged,
    SessionCreated,
    SessionJobsEnded,
)
from cadenza_server.model.words import JobClass, JobState, RunOutcome, SessionState
from cadenza_server.simulation.listening import Handlers
from cadenza_server.simulation.outcome import Ran, SessionStep, SimulationOutcome, WindowStep

RUN_OUTCOMES: Final = {
    RunOutcome.SUCCEEDED: "SUCCEEDED",
    RunOutcome.EXECUTION_ERROR: "FAILED",
    RunOutcome.RAN_TOO_LONG: "CANCELLED",
    RunOutcome.CANCELLED: "CANCELLED",
    RunOutcome.WORKER_LOST: "WORKER_LOST",
}


class Record:
    """Takes everything down: `outcome` grows by every job, run and change of a session."""

    def __init__(self) -> None:
        self.outcome: Final = SimulationOutcome()
        self._runs: Final[dict[str, Ran]] = {}
        self._queued: Final[defaultdict[str, dict[str, None]]] = defaultdict(dict)
        self._holders: Final[dict[str, str]] = {}

    def handlers(self) -> Handlers:
        """What it does with events."""
        return {
            JobQueued: self._job_queued,
            JobRequeued: self._job_queued,
            RunStarted: self._run_started,
            RunFinished: self._run_finished,
            JobEnded: self._job_ended,
            SessionJobsEnded: self._session_jobs_ended,
            HoldEnded: self._hold_ended,
            SessionCreated: self._session_created,
            SessionChanged: self._session_changed,
            ReservationCreated: self._reservation_created,
            ReservationStarted: self._reservation_started,
            ReservationEnded: self._reservation_ended,
        }

    def _job_queued(self, event: JobQueued | JobRequeued, _: int) -> None:
        self.outcome.jobs[event.job] = (JobState.QUEUED, None)
        if event.session is not None:
            self._queued[event.session][event.job] = None

    def _run_started(self, event: RunStarted, now: int) -> None:
        self.outcome.jobs[event.job] = (JobState.RUNNING, None)
        if event.session is not None:
            del self._queued[event.session][event.job]
        user = None if event.job_class is JobClass.CALIBRATION else event.user
        run = self._runs[event.device] = Ran(event.job, user, event.device, now, event.epoch)
        self.outcome.runs.append(run)

    def _run_finished(self, event: RunFinished, now: int) -> None:
        run = self._runs[event.device]
        run.end = now
        run.outcome = RUN_OUTCOMES[event.outcome]
        if event.charged:
            self._charge(event.user, event.charged)

    def _job_ended(self, event: JobEnded, _: int) -> None:
        self.outcome.jobs[event.job] = (event.state, event.reason)
        if event.session is not None:
            self._queued[event.session].pop(event.job, None)

    def _session_jobs_ended(self, event: SessionJobsEnded, _: int) -> None:
        for job in self._queued.pop(event.session):
            self.outcome.jobs[job] = (event.state, event.reason)

    def _hold_ended(self, event: HoldEnded, _: int) -> None:
        self._charge(event.user, event.end - event.start)

    def _session_created(self, event: SessionCreated, now: int) -> None:
        self.outcome.sessions[event.session] = [SessionStep(now, SessionState.OPEN)]

    def _session_changed(self, event: SessionChanged, now: int) -> None:
        steps = self.outcome.sessions[event.session]
        if event.state is not steps[-1].state:
            steps.append(SessionStep(now, event.state, event.reason))

    def _reservation_created(self, event: ReservationCreated, _: int) -> None:
        self._holders[event.reservation] = event.holder

    def _reservation_started(self, event: ReservationStarted, now: int) -> None:
        holder = self._holders[event.reservation]
        self.outcome.windows.append(WindowStep(now, event.device, holder, opened=True))

    def _reservation_ended(self, event: ReservationEnded, now: int) -> None:
        # no scenario deletes a reservation, so its window had opened
        holder = self._holders.pop(event.reservation)
        self.outcome.windows.append(WindowStep(now, event.device, holder, opened=False))

    def _charge(self, user: str, length: int) -> None:
        self.outcome.charged[user] = self.outcome.charged.get(user, 0) + length

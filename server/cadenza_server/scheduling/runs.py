"""A run on a device, from its start to its end, and what a job does that comes back from one (semantics 3, 4, 6)."""

from typing import TYPE_CHECKING, Final

from cadenza_server.model.events import EstimateDoubled, JobRequeued, RunFinished, RunnerUp, RunStarted
from cadenza_server.model.words import JobReason, Rule, RunOutcome
from cadenza_server.scheduling.deadlines import DeadlineKind
from cadenza_server.scheduling.devices import Device
from cadenza_server.scheduling.jobs import RUN_ENDS, Job, JobEvent, ending

if TYPE_CHECKING:
    from cadenza_server.scheduling.calibrations import Calibrations
    from cadenza_server.scheduling.ledger import Ledger
    from cadenza_server.scheduling.sessions import Sessions


class Runs:
    """What is done with runs."""

    __slots__ = ("_calibrations", "_ledger", "_sessions")

    def __init__(self, ledger: "Ledger", sessions: "Sessions", calibrations: "Calibrations") -> None:
        self._ledger: Final = ledger
        self._sessions: Final = sessions
        self._calibrations: Final = calibrations

    def start(self, device: Device, job: Job) -> None:
        """Run a job that the queue has picked for the free device."""
        ledger = self._ledger
        now = ledger.now
        session = job.session
        runner_up = None
        if job.node is None:
            rule = Rule.CALIBRATION
        elif device.active is not None:
            rule = Rule.ACTIVE_SESSION
        else:
            rule = Rule.FAIR_SHARE
            runner_up = self._runner_up(job)
        ledger.end_hold(device)
        ledger.queue.start(job.handle, now)
        ledger.unplace(job)
        job.step(JobEvent.START)
        job.attempts += 1
        device.running = job
        device.run_start = now
        device.run_estimate = job.estimate
        if session is not None:
            session.running = job
            if rule is Rule.FAIR_SHARE and not session.released:
                self._sessions.activate(session)
        if job.node is None:
            self._sessions.calibration_started(device)
        else:
            self.await_estimate(device, job)
        ledger.events.append(
            RunStarted(
                job=job.name,
                attempt=job.attempts,
                device=device.name,
                user=job.user,
                session=None if session is None else session.name,
                job_class=job.job_class,
                rule=rule,
                estimate=job.estimate,
                limit=job.limit,
                epoch=device.epoch,
                runner_up=runner_up,
            )
        )

    def outlast(self, device: Device) -> None:
        """The run of the device has outlasted its estimate: the estimate doubles."""
        job = device.running
        if job is None:
            raise AssertionError(f"{device.name} runs nothing that could outlast its estimate")
        device.run_estimate = self._ledger.queue.double_estimate(device.handle)
        self._ledger.events.append(EstimateDoubled(job=job.name, device=device.name, estimate=device.run_estimate))
        self.await_estimate(device, job)

    def end(self, device: Device, job: Job, outcome: RunOutcome) -> None:
        """End the run of `job`, which the device runs now."""
        ledger = self._ledger
        node = job.node
        session = job.session
        lost = outcome is RunOutcome.WORKER_LOST or outcome is RunOutcome.PUT_BACK
        charged = 0
        if lost:
            ledger.queue.lose(device.handle)
        else:
            ledger.queue.finish(device.handle, ledger.now)
            if node is not None:
                charged = ledger.now - device.run_start
        device.running = None
        if device.outlasting is not None:
            ledger.deadlines.cancel(device.outlasting)
            device.outlasting = None
        ledger.events.append(
            RunFinished(
                job=job.name,
                attempt=job.attempts,
                device=device.name,
                user=job.user,
                session=None if session is None else session.name,
                start=device.run_start,
                end=ledger.now,
                outcome=outcome,
                charged=charged,
            )
        )
        if charged and node is not None:
            ledger.settled(node)
        if session is not None:
            session.running = None
        if lost:
            is_final = self._come_back(job, outcome)
        else:
            event, reason = RUN_ENDS[outcome]
            ledger.end(job, event, reason)
            is_final = True
        if node is None:
            if outcome is RunOutcome.SUCCEEDED:
                self._calibrations.succeeded(device)
            if is_final:
                self._calibrations.ended(device)
            self._sessions.calibration_ended(device)
        elif session is not None and is_final:
            self._sessions.job_left(session, job.first and outcome is RunOutcome.CANCELLED)

    def await_estimate(self, device: Device, job: Job) -> None:
        """Wait for the run of `job` to outlast its estimate, as it is now with all doublings."""
        due = device.run_start + device.run_estimate
        device.outlasting = self._ledger.deadlines.add(DeadlineKind.ESTIMATE, due, (job.seq, 0), device)

    def _come_back(self, job: Job, outcome: RunOutcome) -> bool:
        """Put a job whose run was lost back to its place, or end it; return whether it has ended."""
        ledger = self._ledger
        session = job.session
        if outcome is RunOutcome.WORKER_LOST:
            job.losses += 1
            if job.losses >= job.device.settings.max_attempts:
                ledger.end(job, JobEvent.FAIL, JobReason.WORKER_LOST)
                return True
        if session is not None and session.fate is not None:
            ledger.end(job, ending(session.fate), session.fate)
            return True
        job.step(JobEvent.COME_BACK)
        ledger.place(job)
        ledger.events.append(
            JobRequeued(
                job=job.name,
                device=job.device.name,
                session=None if session is None else session.name,
                job_class=job.job_class,
                attempts_lost=job.losses,
            )
        )
        return False

    def _runner_up(self, job: Job) -> RunnerUp | None:
        """Say what a fair-share pick is chosen over."""
        ledger = self._ledger
        found = ledger.queue.runner_up(job.handle, ledger.now)
        if found is None:
            return None
        node, passed, user = found
        tree = ledger.tree
        return RunnerUp(
            node=tree.path(node),
            usage_per_share=tree.usage_per_share(node, ledger.now),
            passed=tree.path(passed),
            passed_usage_per_share=tree.usage_per_share(passed, ledger.now),
            user=tree.path(user),
        )

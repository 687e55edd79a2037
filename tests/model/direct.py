"""The environment of the model's scenarios, played against the scheduler itself: commands in, events out.

Like the simulator, but independent of it, and it knows the commands that no scenario file can hold (`set_priority`,
`set_shares`, `delete_reservation`) and shows the settled usage of every node, so that these are compared, too.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ldexp
from typing import Any, Final

from cadenza_server.model import events as happened
from cadenza_server.model.commands import (
    Caller,
    CancelJob,
    CancelSession,
    CloseSession,
    Command,
    CreateReservation,
    CreateSession,
    DeleteReservation,
    Resumed,
    RunEnded,
    SetPriority,
    SetShares,
    SubmitJob,
)
from cadenza_server.model.errors import Refusal
from cadenza_server.model.settings import PROFILES, DeviceSettings
from cadenza_server.model.words import (
    CalibrationRule,
    FirstJob,
    JobClass,
    OnExpiry,
    Pending,
    RunOutcome,
    SessionMode,
    SessionState,
)
from cadenza_server.scheduling import Scheduler

from tests.model.law import NOT_LENGTHS, to_ns, to_seconds

OPERATOR: Final = Caller("operator", operator=True)
WORDS: Final = {"on_close": Pending, "on_expiry": OnExpiry, "first_job": FirstJob, "calibration": CalibrationRule}
JOB_STATES: Final = {
    RunOutcome.SUCCEEDED: "SUCCEEDED",
    RunOutcome.EXECUTION_ERROR: "FAILED",
    RunOutcome.RAN_TOO_LONG: "CANCELLED",
    RunOutcome.CANCELLED: "CANCELLED",
    RunOutcome.WORKER_LOST: "WORKER_LOST",
    RunOutcome.PUT_BACK: "PUT_BACK",
}


@dataclass
class Running:
    """What a device runs, and how that will end."""

    job: str
    attempt: int
    ends_at: int
    outcome: RunOutcome
    record: dict[str, Any]


class Environment:
    """One scenario, played from its start to its end."""

    def __init__(self, scenario: Mapping[str, Any]) -> None:
        default = scenario.get("profile", "runtime-2023")
        self.devices = {name: settings(given or {}, default) for name, given in scenario["devices"].items()}
        self.scheduler = Scheduler(
            self.devices,
            shares={path: float(w) for path, w in (scenario.get("shares") or {}).items()},
            half_life=to_ns(scenario.get("half_life", 604800)),
            remember_final=True,
        )
        self.events = [(to_ns(event["at"]), event) for event in scenario["events"]]
        self.until = None if scenario.get("until") is None else to_ns(scenario["until"])
        self.submitted: dict[str, Mapping[str, Any]] = {}
        """Of accepted jobs, what the scenario says about them."""
        self.running: dict[str, Running] = {}
        self.session_of: dict[str, str | None] = {}
        self.runs: list[dict[str, Any]] = []
        self.jobs: dict[str, dict[str, Any]] = {}
        self.sessions: dict[str, list[dict[str, Any]]] = {}
        self.charged: Counter[str] = Counter()
        self.rejected: list[dict[str, Any]] = []
        self.usage: dict[str, float] = {}

    def play(self) -> dict[str, Any]:
        """The outcome in the model's format."""
        while True:
            instants = [run.ends_at for run in self.running.values()]
            instants += [at for at, _ in self.events[:1]]
            deadline = self.scheduler.next_deadline()
            instants += [] if deadline is None else [deadline]
            now = min(instants, default=None)
            for at, event in self.events:
                if "resume" in event and now is not None and to_ns(event["down_from"]) < now < at:
                    now = at  # the server is down
            if now is None or (self.until is not None and now > self.until):
                break
            self.step(now)
        return {
            "runs": self.runs,
            "jobs": self.jobs,
            "sessions": self.sessions,
            "charged": {user: round(to_seconds(ns), 6) for user, ns in self.charged.items() if ns},
            "rejected": self.rejected,
            "usage": {path: settled for path, settled in self.usage.items() if settled and path},
        }

    def step(self, now: int) -> None:
        commands: list[Command] = []
        if self.events and self.events[0][0] == now and "resume" in self.events[0][1]:
            event = self.events.pop(0)[1]
            if event["restore"]:
                self.scheduler = Scheduler.restore(self.scheduler.state(), remember_final=True)
            for running in self.running.values():
                running.ends_at = -1  # it was interrupted: no end is ever reported
            commands.append(Resumed(down_from=to_ns(event["down_from"])))
        for device, run in list(self.running.items()):
            if run.ends_at == now:
                commands.append(RunEnded(device=device, job=run.job, attempt=run.attempt, outcome=run.outcome))
        asked: list[tuple[str, Mapping[str, Any]]] = []
        ends = len(commands)
        while self.events and self.events[0][0] == now:
            event = self.events.pop(0)[1]
            name, command = self.command(event)
            asked.append((name, event))
            commands.append(command)
        outcome = self.scheduler.apply(commands, now)
        for answer in outcome.answers[:ends]:
            assert not isinstance(answer, Refusal), answer
        for (name, event), answer in zip(asked, outcome.answers[ends:], strict=True):
            if isinstance(answer, Refusal):
                self.rejected.append({"at": to_seconds(now), "event": name, "code": str(answer.code)})
            elif "submit" in event:
                self.submitted[name] = event
        for happening in outcome.events:
            self.record(happening, now)

    def command(self, event: Mapping[str, Any]) -> tuple[str, Command]:
        asker = Caller(event["user"]) if "user" in event else OPERATOR
        device = event.get("device")
        if device is None and "session" not in event and len(self.devices) == 1:
            device = next(iter(self.devices))
        match event:
            case {"submit": name}:
                if event.get("class") == "CALIBRATION":
                    job_class = JobClass.CALIBRATION
                else:
                    job_class = JobClass.SESSION if "session" in event else JobClass.FAIR_SHARE
                # The run's length is the environment's: of nonsense about it the scheduler knows nothing, so say it so.
                nonsense = event["run"] <= 0
                command: Command = SubmitJob(
                    job=name,
                    caller=asker,
                    job_class=job_class,
                    device=device,
                    session=event.get("session"),
                    priority=event.get("priority", 0),
                    estimate=length(event, "estimate"),
                    limit=0 if nonsense else length(event, "limit"),
                )
            case {"cancel": name}:
                command = CancelJob(job=name, caller=asker)
            case {"create_session": name}:
                command = CreateSession(
                    session=name,
                    caller=asker,
                    device=device or "",
                    mode=SessionMode(event.get("mode", "DEDICATED")),
                    max_time=length(event, "max_time"),
                    interactive_ttl=length(event, "interactive_ttl"),
                    reservation=event.get("reservation"),
                )
            case {"close_session": name}:
                pending = Pending(event["pending"]) if "pending" in event else None
                command = CloseSession(session=name, caller=asker, pending=pending)
            case {"cancel_session": name}:
                command = CancelSession(session=name, caller=asker)
            case {"reserve": name}:
                command = CreateReservation(
                    reservation=name,
                    caller=OPERATOR,
                    device=device or "",
                    holder=event["holder"],
                    start=to_ns(event["start"]),
                    end=to_ns(event["end"]),
                )
            case {"set_priority": name}:
                command = SetPriority(job=name, caller=asker, priority=event["priority"])
            case {"set_shares": name}:
                command = SetShares(path=name, caller=OPERATOR, shares=float(event["shares"]))
            case {"delete_reservation": name}:
                command = DeleteReservation(reservation=name, caller=OPERATOR)
            case _:
                raise ValueError(f"unknown command: {event}")
        return name, command

    def record(self, event: happened.Event, now: int) -> None:
        match event:
            case happened.JobQueued(job=job, session=session):
                self.jobs[job] = {"state": "QUEUED", "reason": None}
                self.session_of[job] = session
            case happened.RunStarted():
                self.start(event, now)
            case happened.RunFinished(device=device, outcome=outcome, user=user, charged=charged):
                run = self.running.pop(device)
                run.record |= {"end": to_seconds(now), "outcome": JOB_STATES[outcome]}
                self.charged[user] += charged
            case happened.JobEnded(job=job, state=state, reason=reason):
                self.jobs[job] = {"state": str(state), "reason": None if reason is None else str(reason)}
            case happened.JobRequeued(job=job):
                self.jobs[job] = {"state": "QUEUED", "reason": None}
            case happened.SessionJobsEnded(session=session, state=state, reason=reason, count=count):
                queued = [
                    job for job, of in self.session_of.items() if of == session and self.jobs[job]["state"] == "QUEUED"
                ]
                assert len(queued) == count, (event, queued)
                for job in queued:
                    self.jobs[job] = {"state": str(state), "reason": str(reason)}
            case happened.SessionCreated(session=session):
                self.sessions[session] = [{"at": to_seconds(now), "state": "OPEN"}]
            case happened.SessionChanged(session=session, state=state, reason=reason):
                change = {"at": to_seconds(now), "state": str(state)}
                if state == SessionState.CLOSED:
                    change["reason"] = str(reason)
                if change["state"] != self.sessions[session][-1]["state"]:
                    self.sessions[session].append(change)
            case happened.HoldEnded(user=user, start=start, end=end):
                self.charged[user] += end - start
            case happened.UsageSettled(nodes=nodes):
                for path, settled, exponent in nodes:
                    self.usage[path] = ldexp(settled, exponent)
            case _:
                pass

    def start(self, event: happened.RunStarted, now: int) -> None:
        """The environment decides how the run will end: at its length, its limit, or the loss of its worker."""
        wanted = self.submitted.get(event.job, {})
        if event.job.startswith("calibration-"):
            length = self.devices[event.device].calibration_duration
        else:
            length = to_ns(wanted["run"])
        outcome = RunOutcome.EXECUTION_ERROR if wanted.get("fails") else RunOutcome.SUCCEEDED
        if length > event.limit:
            length, outcome = event.limit, RunOutcome.RAN_TOO_LONG
        losses = [to_ns(after) for after in wanted.get("worker_lost", [])]
        if event.attempt <= len(losses) and losses[event.attempt - 1] <= length:
            length, outcome = losses[event.attempt - 1], RunOutcome.WORKER_LOST
        record = {"job": event.job, "device": event.device, "start": to_seconds(now), "end": None}
        record |= {"outcome": "RUNNING", "epoch": event.epoch}
        self.runs.append(record)
        self.running[event.device] = Running(event.job, event.attempt, now + length, outcome, record)
        self.jobs[event.job] = {"state": "RUNNING", "reason": None}


def length(event: Mapping[str, Any], key: str) -> int | None:
    return to_ns(event[key]) if key in event else None


def settings(given: Mapping[str, Any], default: str) -> DeviceSettings:
    """A scenario's settings of a device, over its profile."""
    given = dict(given)
    base = PROFILES[given.pop("profile", default)]
    values: dict[str, Any] = {}
    for key, value in given.items():
        if key in WORDS:
            values[key] = WORDS[key](value)
        else:
            values[key] = value if key in NOT_LENGTHS or value is None else to_ns(value)
    return replace(base, **values)


def drive(scenario: Mapping[str, Any]) -> dict[str, Any]:
    """Play a scenario through the scheduler by its commands and events; see the module."""
    return Environment(scenario).play()

"""The law of the scheduler (semantics.md), executed by brute force: the reference model.

`play(scenario)` takes a scenario as its YAML says it and returns the outcome in the format of the scenarios' README,
with two keys more: `usage` (settled usage of every node, the very doubles) and `counts` (how often each rule applied).

It shares no code with the scheduler and is not meant to be fast: at each step it looks at everything there is. It keeps
what the law itself names (states, clocks, charges) and nothing that could be found by looking. Numbers in brackets are
sections of semantics.md. Times are integer nanoseconds; the words are plain strings.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from math import exp2, expm1, ldexp, log
from typing import Any, Final, TypeVar

Thing = TypeVar("Thing")

SECOND: Final = 1_000_000_000

PROFILES: Final[Mapping[str, Mapping[str, Any]]] = {  # 5.7
    "runtime-2023": {
        "interactive_ttl_dedicated": 300,
        "interactive_ttl_batch": 1,
        "max_time": 28800,
        "unused_ttl": 1800,
        "on_close": "FAIL_QUEUED",
        "on_expiry": "FAIR_SHARE",
        "session_cache_ttl": 3600,
        "first_job": "REQUIRED",
        "calibration": "BEFORE_SESSIONS",
        "limit": 10800,
        "max_attempts": 3,
        "default_estimate": 1,
        "calibration_interval": None,
        "calibration_duration": 60,
    },
    "runtime-2024": {
        "interactive_ttl_dedicated": 60,
        "interactive_ttl_batch": 1,
        "max_time": 28800,
        "unused_ttl": 1800,
        "on_close": "DRAIN",
        "on_expiry": "FAIL",
        "session_cache_ttl": 3600,
        "first_job": "INDEPENDENT",
        "calibration": "OUTSIDE_DEDICATED",
        "limit": 10800,
        "max_attempts": 3,
        "default_estimate": 1,
        "calibration_interval": None,
        "calibration_duration": 60,
    },
}

NOT_LENGTHS: Final = ("on_close", "on_expiry", "first_job", "calibration", "max_attempts")
STRENGTH: Final = {"DRAIN": 1, "FAIL_QUEUED": 2, "CANCEL": 3}  # 5.4
CANCELLED_REASONS: Final = ("CANCELLED_BY_USER", "SESSION_CANCELLED", "RAN_TOO_LONG")  # 4; all others are FAILED

# The kinds of deadlines in the order in which those of one instant fire (2).
OUTLASTED, EXPIRY, IDLE, UNUSED, CACHE, WINDOW_END, WINDOW_START, CALIBRATION_DUE = range(8)


def to_ns(seconds: float) -> int:
    """Seconds with at most three decimals, exactly."""
    return round(seconds * 1000) * (SECOND // 1000)


def to_seconds(time: int) -> float:
    return time / SECOND


class Refused(Exception):  # noqa: N818
    """A command is refused: it carries the code."""


@dataclass(eq=False)
class Node:
    """An account or a user in the share tree (6)."""

    shares: float = 1.0
    settled: float = 0.0
    in_flight: float = 0.0


@dataclass(eq=False)
class Device:
    name: str
    settings: dict[str, Any]
    active: "Session | None" = None
    run: "Run | None" = None
    held_since: int | None = None
    """Since when rule 2 holds it for the active session, if it is DEDICATED (6)."""
    epoch: int = 0
    automatic: int = 0
    last_calibration: int = 0
    """When its last calibration job came to a final state; at first the start of time (9)."""


@dataclass(eq=False)
class Reservation:
    name: str
    number: int
    device: Device
    holder: str
    start: int
    end: int
    state: str = "AHEAD"
    """AHEAD, OPEN or OVER."""


@dataclass(eq=False)
class Session:
    name: str
    number: int
    user: str
    device: Device
    mode: str
    max_time: int
    interactive_ttl: int
    reservation: Reservation | None
    state: str = "OPEN"
    reason: str | None = None
    strength: int = 0
    """Of the strongest close or cancel so far (5.4)."""
    close_reason: str | None = None
    """What a DRAINING session will close with."""
    first_job: "Job | None" = None
    expires_at: int | None = None
    """None until it has started, that is first became active (5.2)."""
    cache_deadline: int | None = None
    fate: str | None = None
    """What became of the jobs that were queued when they first were swept away: a job reason, or FAIR_SHARE (4)."""
    unused_since: int | None = None
    idle_left: int | None = None
    """What is left of the idle clock; None: its condition is not met."""
    idle_from: int | None = None
    """Since when it runs; None: it pauses."""


@dataclass(eq=False)
class Job:
    name: str
    seq: int
    user: str
    device: Device
    job_class: str
    session: Session | None
    priority: int
    estimate: int
    limit: int
    run: int
    fails: bool
    worker_lost: list[int]
    state: str = "QUEUED"
    reason: str | None = None
    attempts: int = 0
    lost: int = 0
    cache_deadline: int | None = None

    @property
    def is_first(self) -> bool:
        return self.session is not None and self.session.first_job is self


@dataclass(eq=False)
class Run:
    job: Job
    start: int
    ends_at: int
    """When it will end if nothing stops it; this is the environment's, not the scheduler's to know."""
    outcome: str
    """How it will end then: SUCCEEDED, EXECUTION_ERROR, RAN_TOO_LONG or WORKER_LOST."""
    estimate: int
    """As it is charged in flight: doubled each time that it is outlasted (6)."""
    charge: float
    record: dict[str, Any]


@dataclass(order=True)
class Deadline:
    due: int
    kind: int
    order: tuple[int | str, ...]
    fire: Callable[[], None] = field(compare=False)


class Law:
    """One scenario, played from its start to its end."""

    def __init__(self, scenario: Mapping[str, Any]) -> None:
        self.now = 0
        self.half_life = to_ns(scenario.get("half_life", 604800))
        self.nodes: dict[str, Node] = {}
        self.accounts: set[str] = set()
        self.users: set[str] = set()
        for path, shares in (scenario.get("shares") or {}).items():
            self.node(path).shares = float(shares)
            self.accounts.update(accounts_above(path))
        self.devices: dict[str, Device] = {}
        for name, given in sorted(scenario["devices"].items()):
            given = dict(given or {})
            profile = given.pop("profile", scenario.get("profile", "runtime-2023"))
            settings = {**PROFILES[profile], **given}
            for key, value in settings.items():
                if key not in NOT_LENGTHS and value is not None:
                    settings[key] = to_ns(value)
            self.devices[name] = Device(name, settings)
        self.jobs: dict[str, Job] = {}
        self.sessions: dict[str, Session] = {}
        self.reservations: dict[str, Reservation] = {}
        self.seq = 0
        self.created = 0
        self.events = [(to_ns(event["at"]), event) for event in scenario["events"]]
        self.until = None if scenario.get("until") is None else to_ns(scenario["until"])
        self.runs: list[dict[str, Any]] = []
        self.changes: dict[str, list[dict[str, Any]]] = {}
        self.charged: Counter[str] = Counter()
        self.rejected: list[dict[str, Any]] = []
        self.refused: list[Mapping[str, Any]] = []
        self.counts: Counter[str] = Counter()

    # --- one instant (2) ---------------------------------------------------------------------------------------------

    def play(self) -> dict[str, Any]:
        while (now := self.next_instant()) is not None and (self.until is None or now <= self.until):
            assert now > self.now or now == 0, "something that was due was left undone"
            self.now = now
            self.handle_instant()
        return self.outcome()

    def play_before(self, instant: int) -> None:
        """Handle all that comes earlier than `instant`: for a generator that looks at the state as it writes."""
        while (now := self.next_instant()) is not None and now < instant:
            self.now = now
            self.handle_instant()

    def next_instant(self) -> int | None:
        instants = [at for at, _ in self.events[:1]]
        instants += [device.run.ends_at for device in self.devices.values() if device.run]
        instants += [deadline.due for deadline in self.deadlines()]
        instant = min(instants, default=None)
        for at, event in self.events:
            if "resume" in event and instant is not None and to_ns(event["down_from"]) < instant < at:
                instant = at  # nobody is there to handle it
        return instant

    def handle_instant(self) -> None:
        things: list[str] = []
        if self.events and self.events[0][0] == self.now and "resume" in self.events[0][1]:  # before any other (10)
            self.resume(self.events.pop(0)[1])
            self.look_at_clocks()
        for device in self.devices.values():  # they are in the order of their names
            if device.run and device.run.ends_at == self.now:
                self.end_run(device, device.run.outcome)
                self.look_at_clocks()
                things = ["ends"]
        if self.fire_deadlines():
            things.append("deadlines")
        commanded = bool(self.events) and self.events[0][0] == self.now
        while self.events and self.events[0][0] == self.now:
            self.handle_command(self.events.pop(0)[1])
            self.look_at_clocks()
            if self.fire_deadlines():
                self.note("2: a command made a deadline that was already due")
        for device in self.devices.values():
            if device.run is None:
                self.dispatch(device)
        things += ["commands"] if commanded else []
        if len(things) > 1:
            self.note("2: " + ", ".join(things) + " at one instant")

    def fire_deadlines(self) -> int:
        """After each deadline, the first of those due now is next. How many fired."""
        fired = 0
        while due := [deadline for deadline in self.deadlines() if deadline.due <= self.now]:
            min(due).fire()
            self.look_at_clocks()
            fired += 1
        if fired > 1:
            self.note("2: several deadlines at one instant")
        return fired

    def deadlines(self) -> list[Deadline]:
        """Every timer that is set now, whenever it is due."""
        found: list[Deadline] = []
        for device in self.devices.values():
            if device.run and device.run.job.job_class != "CALIBRATION":
                due = device.run.start + device.run.estimate
                found.append(Deadline(due, OUTLASTED, (device.run.job.seq,), partial(self.outlast, device)))
            interval = device.settings["calibration_interval"]
            if interval is not None and not self.calibrations(device, "QUEUED", "RUNNING"):
                due = device.last_calibration + interval
                found.append(Deadline(due, CALIBRATION_DUE, (device.name,), partial(self.calibrate, device)))
        for session in self.sessions.values():
            order = (session.number,)
            if session.state != "CLOSED" and session.expires_at is not None:
                found.append(Deadline(session.expires_at, EXPIRY, order, partial(self.expire, session)))
            if session.idle_left is not None and session.idle_from is not None:
                due = session.idle_from + session.idle_left
                found.append(Deadline(due, IDLE, order, partial(self.idle_out, session)))
            if session.unused_since is not None:
                since = session.unused_since
                if session.reservation is not None:  # not before the window starts (5.2)
                    since = max(since, session.reservation.start)
                due = since + session.device.settings["unused_ttl"]
                found.append(Deadline(due, UNUSED, order, partial(self.close, session, "UNUSED")))
        for job in self.jobs.values():
            if job.state == "QUEUED" and job.cache_deadline is not None:
                fail = partial(self.finish, job, "SESSION_CACHE_EXPIRED")
                found += [Deadline(job.cache_deadline, CACHE, (job.seq,), fail)]
        for reservation in self.reservations.values():
            by_start = (reservation.start, reservation.number)
            if reservation.state != "OVER":
                found.append(
                    Deadline(reservation.end, WINDOW_END, by_start, partial(self.end_reservation, reservation))
                )
            if reservation.state == "AHEAD":
                found.append(
                    Deadline(reservation.start, WINDOW_START, by_start, partial(self.start_window, reservation))
                )
        return found

    def look_at_clocks(self) -> None:
        """Start, stop, pause and resume the unused and idle clocks as their conditions are now (5.2)."""
        for session in self.sessions.values():
            queued, running = self.queued(session), self.running(session)
            if session.state == "OPEN" and not queued:
                if session.unused_since is None:
                    session.unused_since = self.now
            else:
                session.unused_since = None
            if session.state == "ACTIVE" and not queued and not running:
                calibrating = (run := session.device.run) is not None and run.job.job_class == "CALIBRATION"
                if session.idle_left is None:
                    session.idle_left = session.interactive_ttl
                    session.idle_from = None if calibrating else self.now
                    self.note("5.2: idle clock starts" + (" at the end of a calibration" if calibrating else ""))
                elif calibrating and session.idle_from is not None:
                    session.idle_left -= self.now - session.idle_from
                    session.idle_from = None
                    self.note("5.2: idle clock pauses")
                elif not calibrating and session.idle_from is None:
                    session.idle_from = self.now
            else:
                session.idle_left = session.idle_from = None

    # --- what can be found by looking --------------------------------------------------------------------------------

    def queued(self, session: Session) -> list[Job]:
        """Those that are queued as jobs of the session: after an expiry they are the session's no more (5.5)."""
        return [job for job in self.session_jobs(session) if job.state == "QUEUED"]

    def running(self, session: Session) -> list[Job]:
        return [job for job in self.session_jobs(session) if job.state == "RUNNING"]

    def session_jobs(self, session: Session) -> list[Job]:
        return [job for job in self.jobs.values() if job.session is session and job.job_class == "SESSION"]

    def calibrations(self, device: Device, *states: str) -> list[Job]:
        jobs = [job for job in self.jobs.values() if job.device is device and job.job_class == "CALIBRATION"]
        return [job for job in jobs if job.state in states]

    def open_window(self, device: Device) -> Reservation | None:
        inside = [r for r in self.reservations.values() if r.device is device and r.state == "OPEN"]
        assert len(inside) <= 1
        return inside[0] if inside else None

    def next_window(self, device: Device) -> Reservation | None:
        """The earliest that starts later than now (8)."""
        ahead = [r for r in self.reservations.values() if r.device is device and r.state == "AHEAD"]
        return min((r for r in ahead if r.start > self.now), key=lambda r: r.start, default=None)

    def may_start(self, job: Job) -> bool:
        """Whether the next window lets the job start now (8)."""
        window = self.next_window(job.device)
        return window is None or covers(window.holder, job.user) or self.now + job.estimate <= window.start

    def fits(self, job: Job) -> bool:
        """Of a batch's job (5.3)."""
        session = job.session
        assert session is not None
        if session.expires_at is None:  # it has not started
            return True
        end = self.now + job.estimate
        return end <= session.expires_at and (session.reservation is None or end <= session.reservation.end)

    def in_session_order(self, session: Session) -> list[Job]:
        """5.3: the first job is always first."""
        if session.mode == "BATCH":
            return sorted(self.queued(session), key=lambda j: (not j.is_first, j.estimate, -j.priority, j.seq))
        return sorted(self.queued(session), key=lambda j: (not j.is_first, -j.priority, j.seq))

    # --- dispatch (3) ------------------------------------------------------------------------------------------------

    def dispatch(self, device: Device) -> None:
        job = self.calibration_to_run(device)
        if job is not None:
            self.start_run(job)
            return
        if device.active is not None:
            job = self.job_of_active_session(device, device.active)
            self.look_at_clocks()
            if self.fire_deadlines():  # before the next rule (2)
                self.note("2: a dispatch made a deadline that was already due")
            if job is not None:
                self.start_run(job)
            if device.active is not None:
                return
        job = self.fair_share_job(device)
        if job is None:
            return
        if job.job_class == "SESSION":
            assert job.session is not None
            self.activate(job.session)
        self.start_run(job)

    def calibration_to_run(self, device: Device) -> Job | None:
        """Rule 1, and when calibration is allowed (9)."""
        oldest = min(self.calibrations(device, "QUEUED"), key=lambda j: j.seq, default=None)
        if oldest is None:
            return None
        dedicated = device.active is not None and device.active.mode == "DEDICATED"
        if device.settings["calibration"] == "OUTSIDE_DEDICATED" and dedicated:
            self.note("9: calibration waits for a dedicated session")
            return None
        self.note("3.1: calibration" + (" while a session is active" if device.active else ""))
        return oldest

    def job_of_active_session(self, device: Device, session: Session) -> Job | None:
        """Rule 2. Afterwards the session is not active any more if the device goes on with rule 3."""
        jobs = self.in_session_order(session)
        if session.mode == "DEDICATED":
            if jobs and self.may_start(jobs[0]):
                self.note("3.2: next job of a dedicated session")
                return jobs[0]
            if device.held_since is None:
                device.held_since = self.now
                self.note("3.2: dedicated session holds" + (", held before a window" if jobs else ""))
            return None
        fitting = [job for job in jobs if self.fits(job)]
        starting = [job for job in fitting if self.may_start(job)]
        if starting:
            self.note("3.2: next job of a batch" + (", not its first in order" if starting[0] is not jobs[0] else ""))
            return starting[0]
        if fitting:
            self.note(f"8: {session.state} batch yields before a window")
            self.deactivate(session)
        elif jobs:
            self.note(f"5.3: {session.state} batch of which none fits expires at dispatch")
            self.expire(session)
        else:
            self.note("3.2: batch waits")
        return None

    def fair_share_job(self, device: Device) -> Job | None:
        """Rule 3."""
        standing = self.candidates(device)
        if not standing:
            return None
        job = self.pick("", standing)
        older = [other for other in standing if other.seq < job.seq]
        self.note(f"3.3: {job.job_class} job" + (", an older one waits" if older else ""))
        if self.next_window(device) is not None:
            self.note("8: a pick before a window" + (" inside another" if self.open_window(device) else ""))
        if any(other.user == job.user and other.seq > job.seq and other.priority < job.priority for other in older):
            self.note("4: priority decides")
        return job

    def candidates(self, device: Device) -> list[Job]:
        """Every job that stands in rule 3; for a session the one that would run."""
        queued = [job for job in self.jobs.values() if job.device is device and job.state == "QUEUED"]
        standing = [job for job in queued if job.job_class == "FAIR_SHARE"]
        for session in self.sessions.values():
            if session.device is not device or session is device.active:
                continue
            if session.state not in ("OPEN", "INACTIVE", "DRAINING"):
                continue
            if session.reservation is not None and session.reservation.state != "OPEN":
                continue
            jobs = self.in_session_order(session)
            if session.mode == "BATCH":
                fitting = [job for job in jobs if self.fits(job)]
                if jobs and not fitting:
                    self.note("5.3: batch with no job that fits is no candidate")
                jobs = [job for job in fitting if self.may_start(job)]
            standing += jobs[:1]
        window = self.open_window(device)
        if window is not None:
            if any(not covers(window.holder, job.user) for job in standing):
                self.note("8: a foreign job waits inside a window")
            standing = [job for job in standing if covers(window.holder, job.user)]
        may = [job for job in standing if self.may_start(job)]
        if may and any(
            self.place(other) < self.place(job)
            for job in may
            for other in standing
            if other not in may and other.user == job.user
        ):
            self.note("8: a user's later candidate stands for the user")
        if len(may) < len(standing):
            self.note("8: a candidate does not fit before a window" + ("; another does" if may else ""))
        return may

    @staticmethod
    def place(job: Job) -> tuple[int, int]:
        """In the queue of a user on a device (4)."""
        return (-job.priority, job.seq)

    def pick(self, path: str, standing: list[Job]) -> Job:
        """The pick of a node of which `standing` are all candidates (6). The root's path is empty."""
        if all(job.user == path for job in standing):
            return min(standing, key=self.place)
        children: dict[str, list[Job]] = {}
        for job in standing:
            children.setdefault(child_towards(path, job.user), []).append(job)
        picks = {child: self.pick(child, jobs) for child, jobs in children.items()}
        usage = {child: self.usage_per_share(child) for child in children}
        if len(picks) > 1:
            self.note("6: siblings compared" + (", equal" if len(set(usage.values())) < len(usage) else ""))
        best = min(picks, key=lambda child: (usage[child], picks[child].seq))
        return picks[best]

    # --- fair share (6) ----------------------------------------------------------------------------------------------

    def node(self, path: str) -> Node:
        return self.nodes.setdefault(path, Node())

    def usage_per_share(self, path: str) -> float:
        node = self.node(path)
        return (node.settled + node.in_flight) / node.shares

    def cost(self, start: int, duration: int) -> float:
        n, r = divmod(start, self.half_life)
        k = (self.half_life / SECOND) / log(2)
        return ldexp((k * exp2(r / self.half_life)) * expm1((duration / SECOND) / k), n)

    def settle(self, user: str, start: int, duration: int) -> None:
        cost = self.cost(start, duration)
        for path in [*accounts_above(user), user]:
            self.node(path).settled += cost
        self.charged[user] += duration

    def charge_in_flight(self, user: str, amount: float) -> None:
        for path in [*accounts_above(user), user]:
            self.node(path).in_flight += amount
        self.clear_in_flight()

    def clear_in_flight(self) -> None:
        """A node with nothing in flight has an in-flight charge of exactly 0."""
        flying = {d.run.job.user for d in self.devices.values() if d.run and d.run.job.job_class != "CALIBRATION"}
        for path, node in self.nodes.items():
            if not any(covers(path, user) for user in flying):
                node.in_flight = 0.0

    def outlast(self, device: Device) -> None:
        """The run goes on at its estimate: it doubles."""
        run = device.run
        assert run is not None
        run.estimate *= 2
        charge = self.cost(run.start, run.estimate)
        self.charge_in_flight(run.job.user, charge - run.charge)
        run.charge = charge
        self.note("6: estimate doubles")

    def end_hold(self, device: Device, end: int | None = None) -> None:
        """A piece of held time ends: a run starts, the session lets go of the device, or (`end`) the server went."""
        if device.held_since is not None:
            assert device.active is not None
            held = (self.now if end is None else end) - device.held_since
            if held > 0:
                self.settle(device.active.user, device.held_since, held)
            device.held_since = None
            self.note("6: hold charged")

    # --- runs (4) ----------------------------------------------------------------------------------------------------

    def start_run(self, job: Job) -> None:
        device = job.device
        self.end_hold(device)
        job.state = "RUNNING"
        job.attempts += 1
        # The environment decides now how the run will end: at its length, its limit, or the loss of its worker.
        length, outcome = job.run, "EXECUTION_ERROR" if job.fails else "SUCCEEDED"
        if length > job.limit:
            length, outcome = job.limit, "RAN_TOO_LONG"
        if job.attempts <= len(job.worker_lost) and job.worker_lost[job.attempts - 1] <= length:
            length, outcome = job.worker_lost[job.attempts - 1], "WORKER_LOST"
        record = {"job": job.name, "device": device.name, "start": to_seconds(self.now), "end": None}
        record |= {"outcome": "RUNNING", "epoch": device.epoch}
        self.runs.append(record)
        charge = self.cost(self.now, job.estimate)
        device.run = Run(job, self.now, self.now + length, outcome, job.estimate, charge, record)
        if job.job_class != "CALIBRATION":
            self.charge_in_flight(job.user, charge)
        self.look_at_clocks()

    def end_run(self, device: Device, outcome: str) -> None:
        """The run on the device ends now. `outcome` may be CANCELLED, too."""
        run = device.run
        assert run is not None
        job = run.job
        device.run = None
        if job.job_class != "CALIBRATION":
            self.charge_in_flight(job.user, -run.charge)
            if outcome not in ("WORKER_LOST", "PUT_BACK"):
                self.settle(job.user, run.start, self.now - run.start)
        if outcome == "PUT_BACK":
            self.return_to_queue(job)
        elif outcome == "WORKER_LOST":
            job.lost += 1
            if job.lost == device.settings["max_attempts"]:
                self.finish(job, "WORKER_LOST")
            else:
                self.return_to_queue(job)
        else:
            reasons = {"SUCCEEDED": None, "CANCELLED": "CANCELLED_BY_USER"}
            self.finish(job, reasons.get(outcome, outcome))
        run.record["end"] = to_seconds(self.now)
        run.record["outcome"] = outcome if outcome in ("WORKER_LOST", "PUT_BACK") else job.state
        if job.session is not None and outcome != "CANCELLED":  # a cancel looks at it itself, after the first-job rule
            self.close_if_done(job.session)

    def return_to_queue(self, job: Job) -> None:
        """A lost worker's job goes back to its place; after the end of its session it meets what it would have met."""
        self.note("4: job comes back")
        job.state = "QUEUED"
        if job.job_class == "SESSION":
            assert job.session is not None
            if job.session.fate is not None:
                self.note(f"4: job comes back, meets {job.session.fate}")
                self.meet_fate(job, job.session.fate)
        elif job.cache_deadline is not None:
            self.note("4: left-over job comes back")
        if job.state == "QUEUED" and job.cache_deadline is not None and job.cache_deadline <= self.now:
            self.note("4: job comes back after its cache deadline")
            self.finish(job, "SESSION_CACHE_EXPIRED")

    def finish(self, job: Job, reason: str | None) -> None:
        """A job comes to a final state, from the queue or from a run."""
        assert job.state in ("QUEUED", "RUNNING")
        was = job.state
        job.reason = reason
        job.state = "SUCCEEDED" if reason is None else "CANCELLED" if reason in CANCELLED_REASONS else "FAILED"
        self.note(f"4: {was} {job.job_class} job ends {job.state} {reason}")
        if job.job_class == "CALIBRATION":
            job.device.last_calibration = self.now
            if job.state == "SUCCEEDED":
                job.device.epoch += 1

    def calibrate(self, device: Device) -> None:
        """The device submits a calibration job by itself (9)."""
        device.automatic += 1
        self.note("9: automatic calibration")
        settings = device.settings
        self.queue(
            Job(
                name=f"calibration-{device.name}-{device.automatic}",
                seq=0,
                user="",
                device=device,
                job_class="CALIBRATION",
                session=None,
                priority=0,
                estimate=min(settings["default_estimate"], settings["limit"]),
                limit=settings["limit"],
                run=settings["calibration_duration"],
                fails=False,
                worker_lost=[],
            )
        )

    def queue(self, job: Job) -> None:
        self.seq += 1
        job.seq = self.seq
        self.jobs[job.name] = job
        if job.session is not None and job.session.first_job is None:
            job.session.first_job = job

    # --- life of a session (5) ---------------------------------------------------------------------------------------

    def change(self, session: Session, state: str, reason: str | None = None) -> None:
        entry: dict[str, Any] = {"at": to_seconds(self.now), "state": state}
        if state == "CLOSED":
            entry["reason"] = session.reason = reason
        self.changes.setdefault(session.name, []).append(entry)
        self.note(f"5.1: {session.state} {session.mode} -> {state}" + (f" {reason}" if reason else ""))
        session.state = state

    def activate(self, session: Session) -> None:
        """Fair share picked one of its jobs."""
        session.device.active = session
        if session.expires_at is None:
            session.expires_at = self.now + session.max_time
        if session.state == "DRAINING":
            self.note("5.1: DRAINING session becomes active")
        else:
            self.change(session, "ACTIVE")

    def let_go(self, session: Session) -> None:
        """It is not the active session of its device any more."""
        if session.device.active is session:
            self.end_hold(session.device)
            session.device.active = None

    def deactivate(self, session: Session) -> None:
        """It lets go of the device and lives on; a DRAINING one stays DRAINING."""
        self.let_go(session)
        if session.state == "ACTIVE":
            self.change(session, "INACTIVE")

    def idle_out(self, session: Session) -> None:
        self.note("5.2: idle timeout")
        self.deactivate(session)

    def close(self, session: Session, reason: str) -> None:
        self.let_go(session)
        self.change(session, "CLOSED", reason)

    def close_if_done(self, session: Session) -> None:
        """DRAINING ends with the last queued or running job."""
        if session.state == "DRAINING" and not self.queued(session) and not self.running(session):
            assert session.close_reason is not None
            self.close(session, session.close_reason)

    def sweep(self, session: Session, fate: str) -> None:
        """All that is queued meets its fate; what runs now does so if it comes back (4)."""
        if session.fate is None:
            session.fate = fate
        for job in self.queued(session):
            self.meet_fate(job, fate)

    def meet_fate(self, job: Job, fate: str) -> None:
        assert job.session is not None
        if fate == "FAIR_SHARE":
            job.job_class = "FAIR_SHARE"
            job.cache_deadline = job.session.cache_deadline
            self.note("5.5: a left-over job becomes a fair-share job")
        else:
            self.finish(job, fate)

    def expire(self, session: Session) -> None:
        """5.5, at the expiry or when an active batch fits nothing."""
        assert session.expires_at is not None
        expiry = min(session.expires_at, self.now)  # after a restart it can be overdue
        self.close(session, "EXPIRED")
        if session.device.settings["on_expiry"] == "FAIR_SHARE":
            session.cache_deadline = expiry + session.device.settings["session_cache_ttl"]
            self.sweep(session, "FAIR_SHARE")
        else:
            self.sweep(session, "SESSION_EXPIRED")

    # --- reservations (8) --------------------------------------------------------------------------------------------

    def start_window(self, reservation: Reservation) -> None:
        reservation.state = "OPEN"
        self.note("8: window starts")
        active = reservation.device.active
        if active is not None and not covers(reservation.holder, active.user):
            self.note(f"8: window takes the device from a session that is {active.state}")
            self.deactivate(active)

    def end_reservation(self, reservation: Reservation) -> None:
        reservation.state = "OVER"
        for session in self.sessions.values():
            if session.reservation is reservation and session.state != "CLOSED":
                self.close(session, "RESERVATION_ENDED")
                self.sweep(session, "RESERVATION_ENDED")

    # --- commands ----------------------------------------------------------------------------------------------------

    def handle_command(self, event: Mapping[str, Any]) -> None:
        """A refused command leaves no trace: each checks everything before it changes anything."""
        commands: dict[str, Callable[[Mapping[str, Any]], None]] = {
            "submit": self.submit,
            "cancel": self.cancel,
            "create_session": self.create_session,
            "close_session": self.close_session,
            "cancel_session": self.cancel_session,
            "reserve": self.reserve,
            # Not in scenario files, but in the law and in the server:
            "set_priority": self.set_priority,
            "set_shares": self.set_shares,
            "delete_reservation": self.delete_reservation,
        }
        verb = next(verb for verb in commands if verb in event)
        try:
            commands[verb](event)
        except Refused as refused:
            code = str(refused)
            self.rejected.append({"at": to_seconds(self.now), "event": event[verb], "code": code})
            self.refused.append(event)
            self.note(f"refused {verb}: {code}")

    def submit(self, event: Mapping[str, Any]) -> None:
        session = None
        if "session" in event:
            session = self.found(self.sessions, event["session"])
        device = session.device if session and "device" not in event else self.device_of(event)
        if session and event.get("user", session.user) != session.user:
            raise Refused("PERMISSION_DENIED")
        job_class = event.get("class", "SESSION" if session else "FAIR_SHARE")
        refuse_if(session is not None and (device is not session.device or job_class == "CALIBRATION"), "INVALID")
        user = "" if job_class == "CALIBRATION" else session.user if session else event["user"]
        if job_class == "FAIR_SHARE":
            self.check_user(user)
        refuse_if(any(key in event and event[key] <= 0 for key in ("run", "estimate", "limit")), "INVALID")
        refuse_if(not -100 <= event.get("priority", 0) <= 100, "INVALID")
        refuse_if(event["submit"] in self.jobs, "ALREADY_EXISTS")
        cache_deadline = None
        if session and session.state not in ("OPEN", "ACTIVE", "INACTIVE"):
            # 5.5: only a session that expired without having been closed before still takes jobs, until the deadline
            late = session.reason == "EXPIRED" and session.strength == 0 and session.cache_deadline is not None
            refuse_if(not late, "PRECONDITION")
            assert session.cache_deadline is not None
            refuse_if(self.now >= session.cache_deadline, "PRECONDITION")
            job_class, cache_deadline = "FAIR_SHARE", session.cache_deadline
            self.note("5.5: late job for an expired session")
        settings = device.settings
        limit = min(to_ns(event["limit"]), settings["limit"]) if "limit" in event else settings["limit"]
        estimate = to_ns(event["estimate"]) if "estimate" in event else settings["default_estimate"]
        if user:
            self.users.add(user)
            self.accounts.update(accounts_above(user))
        self.queue(
            Job(
                name=event["submit"],
                seq=0,
                user=user,
                device=device,
                job_class=job_class,
                session=session,
                priority=event.get("priority", 0),
                estimate=min(estimate, limit),
                limit=limit,
                run=to_ns(event["run"]),
                fails=event.get("fails", False),
                worker_lost=[to_ns(after) for after in event.get("worker_lost", [])],
                cache_deadline=cache_deadline,
            )
        )

    def cancel(self, event: Mapping[str, Any]) -> None:
        job = self.found(self.jobs, event["cancel"])
        self.check_asker(event, job.user)
        refuse_if(job.state not in ("QUEUED", "RUNNING"), "PRECONDITION")
        if job.state == "RUNNING":
            self.end_run(job.device, "CANCELLED")
        else:
            self.finish(job, "CANCELLED_BY_USER")
        session = job.session
        if session is None:
            return
        required = session.device.settings["first_job"] == "REQUIRED"
        if required and job.is_first and session.state != "CLOSED":  # 5.6
            self.note(f"5.6: first job of {session.state} session cancelled")
            self.close(session, "FIRST_JOB_CANCELLED")
            self.sweep(session, "FIRST_JOB_CANCELLED")
        else:
            self.close_if_done(session)

    def create_session(self, event: Mapping[str, Any]) -> None:
        device = self.device_of(event)
        reservation = None
        if "reservation" in event:
            reservation = self.found(self.reservations, event["reservation"])
        self.check_user(event["user"])
        refuse_if(event.get("max_time", 1) <= 0 or event.get("interactive_ttl", 0) < 0, "INVALID")
        refuse_if(reservation is not None and reservation.device is not device, "INVALID")
        refuse_if(event["create_session"] in self.sessions, "ALREADY_EXISTS")
        if reservation is not None:
            refuse_if(reservation.state == "OVER", "PRECONDITION")
            refuse_if(not covers(reservation.holder, event["user"]), "PRECONDITION")
            self.note("8: bound session")
        mode = event.get("mode", "DEDICATED")
        max_time = device.settings["max_time"]
        ttl = device.settings["interactive_ttl_dedicated" if mode == "DEDICATED" else "interactive_ttl_batch"]
        self.created += 1
        session = Session(
            name=event["create_session"],
            number=self.created,
            user=event["user"],
            device=device,
            mode=mode,
            max_time=min(max_time, to_ns(event["max_time"])) if "max_time" in event else max_time,
            interactive_ttl=min(ttl, to_ns(event["interactive_ttl"])) if "interactive_ttl" in event else ttl,
            reservation=reservation,
        )
        self.users.add(session.user)
        self.accounts.update(accounts_above(session.user))
        self.sessions[session.name] = session
        self.change(session, "OPEN")

    def close_session(self, event: Mapping[str, Any]) -> None:
        session = self.found(self.sessions, event["close_session"])
        self.check_asker(event, session.user)
        pending = event.get("pending", session.device.settings["on_close"])
        self.wind_up(session, pending, "CLOSED_BY_USER")

    def cancel_session(self, event: Mapping[str, Any]) -> None:
        session = self.found(self.sessions, event["cancel_session"])
        self.check_asker(event, session.user)
        self.wind_up(session, "CANCEL", "CANCELLED_BY_USER")

    def wind_up(self, session: Session, how: str, reason: str) -> None:
        """5.4: a weaker one, or one of a closed session, changes nothing."""
        if session.state == "CLOSED" or STRENGTH[how] <= session.strength:
            self.note(f"5.4: {how} of {session.state} session changes nothing")
            return
        self.note(f"5.4: {how} of {session.state} session")
        session.strength = STRENGTH[how]
        session.close_reason = reason
        if how != "DRAIN":
            self.sweep(session, "SESSION_CLOSED" if how == "FAIL_QUEUED" else "SESSION_CANCELLED")
        if not self.queued(session) and not self.running(session):
            self.close(session, reason)
        elif session.state != "DRAINING":
            self.change(session, "DRAINING")

    def reserve(self, event: Mapping[str, Any]) -> None:
        device = self.device_of(event)
        holder = event["holder"]  # an account or a user; but nothing is below a user (6)
        refuse_if(not is_path(holder) or any(above in self.users for above in accounts_above(holder)), "INVALID")
        start, end = to_ns(event["start"]), to_ns(event["end"])
        refuse_if(start < self.now or end <= start, "INVALID")
        refuse_if(event["reserve"] in self.reservations, "ALREADY_EXISTS")
        others = [r for r in self.reservations.values() if r.device is device and r.state != "OVER"]
        refuse_if(any(start < other.end and other.start < end for other in others), "PRECONDITION")
        self.created += 1
        reservation = Reservation(event["reserve"], self.created, device, event["holder"], start, end)
        self.reservations[reservation.name] = reservation

    def set_priority(self, event: Mapping[str, Any]) -> None:
        job = self.found(self.jobs, event["set_priority"])
        self.check_asker(event, job.user)
        refuse_if(not -100 <= event["priority"] <= 100, "INVALID")
        refuse_if(job.state != "QUEUED", "PRECONDITION")
        job.priority = event["priority"]

    def set_shares(self, event: Mapping[str, Any]) -> None:
        path = event["set_shares"]
        refuse_if(not is_path(path) or any(above in self.users for above in accounts_above(path)), "INVALID")
        refuse_if(not 0 < event["shares"] < float("inf"), "INVALID")
        self.accounts.update(accounts_above(path))
        self.node(path).shares = float(event["shares"])

    def delete_reservation(self, event: Mapping[str, Any]) -> None:
        reservation = self.found(self.reservations, event["delete_reservation"])
        refuse_if(reservation.state == "OVER", "PRECONDITION")
        self.note(f"8: a reservation is deleted that is {reservation.state}")
        self.end_reservation(reservation)

    def resume(self, event: Mapping[str, Any]) -> None:
        """10: interrupted runs go back; idle clocks and automatic calibrations move by the time that it was down."""
        down = self.now - to_ns(event["down_from"])
        self.note("10: restart")
        for session in self.sessions.values():
            if session.idle_from is not None:
                session.idle_from += down
                self.note("10: idle clock moves")
        for device in self.devices.values():
            device.last_calibration += down
            if device.run is not None:
                self.note("10: run put back")
                self.end_run(device, "PUT_BACK")
            if device.held_since is not None:
                self.note("10: held time ends where the server went down")
                self.end_hold(device, to_ns(event["down_from"]))

    # --- checks ------------------------------------------------------------------------------------------------------

    @staticmethod
    def found(things: Mapping[str, Thing], name: str) -> Thing:
        if name not in things:
            raise Refused("NOT_FOUND")
        return things[name]

    def device_of(self, event: Mapping[str, Any]) -> Device:
        """Without `device`, the only one is meant."""
        return self.found(self.devices, event["device"] if "device" in event else next(iter(self.devices)))

    @staticmethod
    def check_asker(event: Mapping[str, Any], owner: str) -> None:
        """A calibration job's owner is nobody: only an operator, that is no `user`, may do anything with it."""
        if "user" in event and event["user"] != owner:
            raise Refused("PERMISSION_DENIED")

    def check_user(self, path: str) -> None:
        """Users are leaves: a path is an account or a user, never both (6)."""
        refuse_if(not is_path(path) or path in self.accounts, "INVALID")
        refuse_if(any(above in self.users for above in accounts_above(path)), "INVALID")

    # --- what came of it ---------------------------------------------------------------------------------------------

    def note(self, rule: str) -> None:
        self.counts[rule] += 1

    def outcome(self) -> dict[str, Any]:
        return {
            "runs": self.runs,
            "jobs": {job.name: {"state": job.state, "reason": job.reason} for job in self.jobs.values()},
            "sessions": self.changes,
            "charged": {user: round(ns / SECOND, 6) for user, ns in self.charged.items() if ns},
            "rejected": self.rejected,
            "usage": {path: node.settled for path, node in self.nodes.items() if node.settled},
            "counts": dict(self.counts),
        }


def refuse_if(wrong: bool, why: str) -> None:
    if wrong:
        raise Refused({"INVALID": "INVALID_ARGUMENT", "PRECONDITION": "FAILED_PRECONDITION"}.get(why, why))


def is_path(path: str) -> bool:
    """1 to 8 parts of 1 to 64 letters, digits and `. _ @ -` (1)."""
    parts = path.split("/")
    return len(parts) <= 8 and all(re.fullmatch(r"[A-Za-z0-9._@-]{1,64}", part) for part in parts)


def accounts_above(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:i]) for i in range(1, len(parts))]


def child_towards(path: str, user: str) -> str:
    """The child of `path` (the root's is empty) on the way down to `user`."""
    depth = len(path.split("/")) if path else 0
    return "/".join(user.split("/")[: depth + 1])


def covers(holder: str, path: str) -> bool:
    return path == holder or path.startswith(holder + "/")


def play(scenario: Mapping[str, Any]) -> dict[str, Any]:
    """Play a scenario by the law; see the module."""
    return Law(scenario).play()


def unmet(expect: Mapping[str, Any], outcome: Mapping[str, Any]) -> list[str]:
    """What of a scenario's `expect`, in its short or long form, did not come: one sentence each."""
    wrong: list[str] = []
    for key, wanted in expect.items():
        got = outcome[key]
        if key == "runs":
            got = [shorten_run(wish, run) for wish, run in zip_longest_runs(wanted, got)]
        elif key == "jobs":
            wanted = {name: {"state": job["state"], "reason": job.get("reason")} for name, job in wanted.items()}
            got = {name: job for name, job in got.items() if name in wanted}
        elif key == "sessions":
            wanted = {name: [long_change(change) for change in changes] for name, changes in wanted.items()}
            got = {name: changes for name, changes in got.items() if name in wanted}
        if got != wanted:
            wrong.append(f"{key}: expected {wanted}, got {got}")
    return wrong


def zip_longest_runs(wanted: list[Any], got: list[Any]) -> Iterable[tuple[Any, Any]]:
    return [(wanted[i] if i < len(wanted) else {}, run) for i, run in enumerate(got)]


def shorten_run(wish: Any, run: Mapping[str, Any]) -> Any:
    """The run in the form in which the expectation beside it is written."""
    if isinstance(wish, list):
        short = [run["job"], run["start"], run["end"]]
        return [*short, run["outcome"]] if len(wish) == 4 or run["outcome"] != "SUCCEEDED" else short
    return dict(run)


def long_change(change: Any) -> dict[str, Any]:
    if isinstance(change, dict):
        return change
    return dict(zip(("at", "state", "reason"), change, strict=False))

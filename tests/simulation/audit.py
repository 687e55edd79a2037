"""An audit of what a scheduler did, from its events alone, with nothing of its own arithmetic.

Usage is added up from the recorded charges with 40 digits, and every fair-share pick is held against a Fair Tree sort
of all candidates made from scratch (semantics 3, 5.3, 6, 8). Held time is worked out from who had which device when.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from cadenza_server.model import events as happened
from cadenza_server.model.settings import SECOND
from cadenza_server.model.words import JobClass, Rule, RunOutcome, SessionMode, SessionState
from mpmath import mp, mpf

from tests.simulation.service import Instant, Service

DIGITS: Final = 40
NEAR: Final = mpf("1e-12")
"""Relative: candidates whose u/w are as near as that count as equal."""
LOST: Final = (RunOutcome.WORKER_LOST, RunOutcome.PUT_BACK)


def exact_cost(start: int, length: int, half_life: int) -> mpf:
    """The integral of 2**(t / H) over a run, in seconds, with 40 digits. `start`, `length`, `half_life`: ns."""
    with mp.workdps(DIGITS):
        h = mpf(half_life)
        return h / SECOND / mp.log(2) * mpf(2) ** (start / h) * mp.expm1(mpf(length) / h * mp.log(2))


@dataclass
class Node:
    """A path of the share tree: its weight, and its usage as it was charged."""

    path: str
    shares: float = 1.0
    settled: mpf = field(default_factory=mpf)
    in_flight: dict[str, mpf] = field(default_factory=dict)
    """By device."""
    settled_as: int = 0
    in_flight_as: int = 0
    """What was charged, in its order, as one number: where it is the same, the doubles are, too."""

    @property
    def usage(self) -> mpf:
        """u / w."""
        with mp.workdps(DIGITS):
            return mp.fsum([self.settled, *self.in_flight.values()]) / mpf(self.shares)

    def is_charged_like(self, other: "Node") -> bool:
        """Whether the two have had the very same charges, so that they are equal and not only near."""
        return (self.settled_as, self.in_flight_as, self.shares) == (
            other.settled_as,
            other.in_flight_as,
            other.shares,
        )


@dataclass
class Queued:
    """A queued job."""

    name: str
    user: str
    device: str
    seq: int
    priority: int
    estimate: int
    first: bool
    session: str | None
    """None once its session has released it."""

    @property
    def place(self) -> tuple[int, int]:
        """Order within its user."""
        return (-self.priority, self.seq)


@dataclass
class Opened:
    """A session."""

    name: str
    user: str
    device: str
    batch: bool
    max_time: int
    reservation: str | None
    state: SessionState = SessionState.OPEN
    expires_at: int | None = None
    jobs: dict[str, Queued] = field(default_factory=dict)


@dataclass
class Run:
    """A run that goes on."""

    job: Queued | None
    """None: a calibration."""
    user: str
    start: int


def parents(path: str) -> Iterator[str]:
    """The path, and all above it up to the root, which is ""."""
    while path:
        yield path
        path = path.rpartition("/")[0]
    yield ""


def covers(holder: str, path: str) -> bool:
    """Whether the path is the holder's."""
    return path == holder or path.startswith(holder + "/")


class Audit:
    """Follows a recording. What is wrong is an `AssertionError`. `met`: how often what was seen."""

    def __init__(self, service: Service) -> None:
        self.half_life: Final = service.half_life
        self.nodes: Final[dict[str, Node]] = {}
        for path, weight in service.shares.items():
            self.node(path).shares = weight
        self.queued: Final[dict[str, dict[str, Queued]]] = defaultdict(dict)
        """By device; calibrations are not in it."""
        self.of_job: Final[dict[str, Queued]] = {}
        self.calibrations: Final[set[str]] = set()
        self.sessions: Final[dict[str, Opened]] = {}
        self.released: Final[dict[str, dict[str, Queued]]] = defaultdict(dict)
        self.windows: Final[dict[str, happened.ReservationCreated]] = {}
        self.open_windows: Final[dict[str, str]] = {}
        self.runs: Final[dict[str, Run]] = {}
        self.active: Final[dict[str, Opened]] = {}
        """The dedicated session that has the device."""
        self.free_since: Final[dict[str, int]] = {}
        self.ran: Final[Counter[str]] = Counter()
        self.held: Final[Counter[str]] = Counter()
        """Nanoseconds by user."""
        self.charged: Final[Counter[str]] = Counter()
        """The same by what the events say was charged."""
        self.met: Final[Counter[str]] = Counter()

    def follow(self, instants: Sequence[Instant]) -> "Audit":
        """Check a whole recording."""
        for instant in instants:
            for event in instant.events:
                self.see(event, instant.now)
        return self

    # --- what happened ---

    def see(self, event: happened.Event, now: int) -> None:
        """Take one event in."""
        match event:
            case happened.JobQueued():
                self.job_queued(event)
            case happened.JobPriorityChanged(job=name, priority=priority):
                if name not in self.calibrations:
                    self.of_job[name].priority = priority
            case happened.RunStarted():
                self.run_started(event, now)
            case happened.EstimateDoubled(device=device, estimate=estimate):
                run = self.runs[device]
                self.set_in_flight(device, run.user, exact_cost(run.start, estimate, self.half_life), (now, estimate))
            case happened.RunFinished():
                self.run_finished(event, now)
            case happened.JobRequeued(job=name, session=session, job_class=job_class):
                if name not in self.calibrations:
                    self.enter(self.of_job[name], session, job_class)
            case happened.JobEnded(job=name):
                if name not in self.calibrations:
                    self.leave(self.of_job[name])
            case happened.SessionCreated():
                batch = event.mode is SessionMode.BATCH
                self.sessions[event.session] = Opened(
                    event.session, event.user, event.device, batch, event.max_time, event.reservation
                )
            case happened.SessionChanged(session=name, state=state):
                session_of = self.sessions[name]
                session_of.state = state
                if state in (SessionState.INACTIVE, SessionState.CLOSED):
                    self.let_go(session_of, now)
            case happened.SessionJobsReleased(session=name, count=count):
                jobs = self.sessions[name].jobs
                assert len(jobs) == count
                for job in jobs.values():
                    job.session = None
                self.released[name].update(jobs)
                jobs.clear()
                self.let_go(self.sessions[name], now)
            case happened.SessionJobsEnded(session=name, count=count):
                gone = [*self.sessions[name].jobs.values(), *self.released[name].values()]
                assert len(gone) == count
                for job in gone:
                    self.leave(job)
            case happened.HoldEnded():
                assert event.end == now
                self.settle(event.user, event.start, event.end - event.start)
            case happened.SharesChanged(path=path, shares=shares):
                self.node(path).shares = shares
            case happened.ReservationCreated():
                self.windows[event.reservation] = event
            case happened.ReservationStarted(reservation=name, device=device):
                self.open_windows[device] = name
                holder = self.windows[name].holder
                if device in self.active and not covers(holder, self.active[device].user):
                    self.let_go(self.active[device], now)
            case happened.ReservationEnded(reservation=name, device=device):
                del self.windows[name]
                if self.open_windows.get(device) == name:
                    del self.open_windows[device]
            case _:
                pass

    def job_queued(self, event: happened.JobQueued) -> None:
        """A new job."""
        if event.job_class is JobClass.CALIBRATION:
            self.calibrations.add(event.job)
            return
        job = Queued(event.job, event.user, event.device, event.seq, event.priority, event.estimate, event.first, None)
        for path in parents(event.user):
            self.node(path)
        self.of_job[event.job] = job
        self.enter(job, event.session, event.job_class)

    def enter(self, job: Queued, session: str | None, job_class: JobClass) -> None:
        """A job stands in the queue."""
        self.queued[job.device][job.name] = job
        if session is not None:
            job.session = session if job_class is JobClass.SESSION else None
            jobs = self.sessions[session].jobs if job.session else self.released[session]
            jobs[job.name] = job

    def leave(self, job: Queued) -> None:
        """A job leaves the queue, if it is there."""
        self.queued[job.device].pop(job.name, None)
        for session in self.sessions.values():
            session.jobs.pop(job.name, None)
            self.released[session.name].pop(job.name, None)

    def run_started(self, event: happened.RunStarted, now: int) -> None:
        """A pick: hold it against the law."""
        device = event.device
        assert device not in self.runs
        self.end_hold(device, now)
        if event.job_class is JobClass.CALIBRATION:
            self.runs[device] = Run(None, event.user, now)
            return
        job = self.of_job[event.job]
        if event.rule is Rule.FAIR_SHARE:
            self.check_pick(job, now)
            self.active.pop(device, None)
            session = None if job.session is None else self.sessions[job.session]
            if session is not None:
                if session.expires_at is None:
                    session.expires_at = now + session.max_time
                if not session.batch:
                    self.active[device] = session
        self.check_order(job, now)
        self.leave(job)
        self.runs[device] = Run(job, event.user, now)
        charge = exact_cost(now, event.estimate, self.half_life)
        self.set_in_flight(device, event.user, charge, (now, event.estimate))

    def run_finished(self, event: happened.RunFinished, now: int) -> None:
        """The end of a run, and its charge."""
        run = self.runs.pop(event.device)
        self.free_since[event.device] = now
        assert (event.start, event.end) == (run.start, now)
        if run.job is None:
            assert event.charged == 0
            self.met["calibrated"] += 1
            return
        for path in parents(run.user):
            node = self.node(path)
            del node.in_flight[event.device]
            node.in_flight_as = hash((node.in_flight_as, event.device, "ends")) if node.in_flight else 0
        self.met["lost"] += event.outcome in LOST
        if event.outcome not in LOST:
            self.ran[run.user] += now - run.start
        assert event.charged == (0 if event.outcome in LOST else now - run.start)
        if event.charged:
            self.settle(run.user, run.start, event.charged)

    # --- usage ---

    def node(self, path: str) -> Node:
        """A node of the tree, made where there is none."""
        return self.nodes.setdefault(path, Node(path))

    def set_in_flight(self, device: str, user: str, charge: mpf, what: tuple[int, int]) -> None:
        """Charge a run that goes on."""
        for path in parents(user):
            node = self.node(path)
            node.in_flight[device] = charge
            # The doubles depend on the order of charges and on which of them goes; one that is alone is the same.
            node.in_flight_as = hash((node.in_flight_as, *what, device if len(node.in_flight) > 1 else ""))

    def settle(self, user: str, start: int, length: int) -> None:
        """Charge for good."""
        self.charged[user] += length
        cost = exact_cost(start, length, self.half_life)
        for path in parents(user):
            node = self.node(path)
            with mp.workdps(DIGITS):
                node.settled += cost
            node.settled_as = hash((node.settled_as, start, length))

    def let_go(self, session: Opened, now: int) -> None:
        """A dedicated session loses its device."""
        if self.active.get(session.device) is session:
            self.end_hold(session.device, now)
            del self.active[session.device]

    def end_hold(self, device: str, now: int) -> None:
        """The device was idle till now: if a dedicated session had it, that session held it."""
        if device in self.active and device not in self.runs:
            since = self.free_since[device]
            self.held[self.active[device].user] += now - since
            self.met["held"] += now > since
            self.free_since[device] = now

    # --- the order ---

    def may_start(self, job: Queued, now: int) -> bool:
        """Whether the windows of its device let it start (8)."""
        inside = self.open_windows.get(job.device)
        if inside is not None and not covers(self.windows[inside].holder, job.user):
            return False
        return self.may_start_before_window(job, now)

    def may_start_before_window(self, job: Queued, now: int) -> bool:
        """Whether it ends before the next window of others."""
        ahead = [each for each in self.windows.values() if each.device == job.device and each.start > now]
        window = min(ahead, key=lambda each: each.start, default=None)
        return window is None or covers(window.holder, job.user) or now + job.estimate <= window.start

    def fits(self, session: Opened, job: Queued, now: int) -> bool:
        """Whether a batch may run it (5.3)."""
        ends = [] if session.expires_at is None else [session.expires_at]
        if ends and session.reservation is not None:
            ends.append(self.windows[session.reservation].end)
        return all(now + job.estimate <= end for end in ends)

    def session_order(self, session: Opened) -> list[Queued]:
        """Its queued jobs, the first job before all."""
        if session.batch:
            return sorted(session.jobs.values(), key=lambda job: (not job.first, job.estimate, job.place))
        return sorted(session.jobs.values(), key=lambda job: (not job.first, job.place))

    def candidates(self, device: str, now: int) -> dict[str, Queued]:
        """Of each user with a candidate of rule 3 on the device, the pick. No session is active there."""
        found = [job for job in self.queued[device].values() if job.session is None and self.may_start(job, now)]
        for session in self.sessions.values():
            if session.device != device or session.state is SessionState.CLOSED:
                continue
            if session.reservation is not None and self.open_windows.get(device) != session.reservation:
                continue
            jobs = self.session_order(session)
            if session.batch:
                jobs = [job for job in jobs if self.fits(session, job, now) and self.may_start(job, now)]
            found += [job for job in jobs[:1] if self.may_start(job, now)]
        picks: dict[str, Queued] = {}
        for job in sorted(found, key=lambda job: job.place):
            picks.setdefault(job.user, job)
        return picks

    def sort(self, above: str, picks: Mapping[str, Queued]) -> list[tuple[mpf, int, str]]:
        """The children of a node that have candidates, by the Fair Tree: (u/w, seq of the pick, path)."""
        start = above + "/" if above else ""
        children = {start + user[len(start) :].split("/")[0] for user in picks if user.startswith(start)}
        return sorted((self.node(path).usage, self.pick(path, picks).seq, path) for path in children)

    def pick(self, path: str, picks: Mapping[str, Queued]) -> Queued:
        """The pick of an account or user."""
        return picks[path] if path in picks else self.pick(self.sort(path, picks)[0][2], picks)

    def check_pick(self, job: Queued, now: int) -> None:
        """The user was first: at each level nobody has less, and who has had the very same charges came later."""
        picks = self.candidates(job.device, now)
        assert picks.get(job.user) is job, f"{job} is not the pick of its user at {now}: {picks.get(job.user)}"
        for path in list(parents(job.user))[:-1]:
            chosen = self.node(path)
            order = self.sort(path.rpartition("/")[0], picks)
            if len(order) > 1:
                self.met["compared"] += 1
            for usage, seq, other in order:
                if other == path:
                    continue
                assert chosen.usage <= usage * (1 + NEAR), (
                    f"{path} ({chosen.usage}) ran {job.name} at {now} though {other} has less ({usage})"
                )
                if chosen.is_charged_like(self.node(other)):
                    self.met["tie, charged" if chosen.settled_as else "tie, not charged"] += 1
                    assert job.seq < seq, f"{path} and {other} are equal at {now}, but {seq} was before {job.seq}"

    def check_order(self, job: Queued, now: int) -> None:
        """First in, first out: no job of the same user and priority was passed over, but by batches and windows."""
        if job.first or (job.session is not None and self.sessions[job.session].batch):
            return
        for other in self.queued[job.device].values():
            alike = (other.user, other.session, other.priority) == (job.user, job.session, job.priority)
            if alike and other.seq < job.seq:
                assert not self.may_start_before_window(other, now), f"{job} ran at {now} before {other}"
            self.met["in order"] += alike and other is not job

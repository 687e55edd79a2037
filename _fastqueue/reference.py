"""The queue in plain Python: the executable specification of `_queue` and the oracle of its tests.

Law: semantics 3 (dispatch), 5.3 (order inside a session), 6 (fair share), 8 (windows). Nothing here is clever: every
answer is found by looking at everything. The surface, its units and its errors are those of `_queue.pyi`.
"""

import math
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Final, Literal, Self, TypeVar

NEVER: Final[int] = 2**63 - 1
ROOT: Final[int] = 0
NOTHING: Final[int] = -1
HELD: Final[int] = -2
BATCH_FITS_NOTHING: Final[int] = -3
BATCH_MAY_NOT_START: Final[int] = -4

PRIORITY_MAX: Final[int] = 100
SEQ_MAX: Final[int] = 2**48 - 1
DEPTH_MAX: Final[int] = 32
"""Accounts and user on a path, the root included. (A path has 8 parts at most, semantics 1.)"""

# Stored usage is u * 2**-exponent. When the end of a charge is more than EXPONENTS_MAX half-lives past the exponent,
# the exponent moves so that it is EXPONENTS_KEPT behind: so doubles hold usage that is 1,600 half-lives old exactly.
EXPONENTS_MAX: Final[int] = 700
EXPONENTS_KEPT: Final[int] = 640
# Of a longer charge, what lies before its last CHARGE_HALF_LIVES_MAX half-lives is below the last bit of a double.
CHARGE_HALF_LIVES_MAX: Final[int] = 900

T = TypeVar("T")


@dataclass(eq=False)
class _Node:
    parent: int
    depth: int
    shares: float
    settled: float = 0.0
    in_flight: float = 0.0
    runs: int = 0
    is_account: bool = False
    is_user: bool = False


@dataclass(eq=False)
class _Job:
    kind: Literal["CALIBRATION", "SESSION", "FAIR_SHARE"]
    device: int
    user: int
    seq: int
    priority: int
    estimate: int
    session: int = -1
    first: bool = False

    def place(self) -> tuple[int, int]:
        """The order within one user on one device (4)."""
        return (-self.priority, self.seq)


@dataclass(eq=False)
class _Session:
    device: int
    user: int
    batch: bool
    standing: bool = False
    fit_deadline: int = NEVER


@dataclass(eq=False)
class _Run:
    user: int
    start: int
    estimate: int
    charge: float
    calibration: bool


@dataclass(eq=False)
class _Device:
    calibration_outside_dedicated: bool
    inside: int = -1
    next_start: int = NEVER
    next_holder: int = -1
    active: int = -1
    run: _Run | None = None


def _known(things: dict[int, T], handle: int, what: str) -> T:
    thing = things.get(handle)
    if thing is None:
        raise ValueError(f"there is no {what} {handle}")
    return thing


def _add(things: dict[int, T], thing: T) -> int:
    handle = next(handle for handle in range(len(things) + 1) if handle not in things)
    things[handle] = thing
    return handle


def _check_time(time: int) -> None:
    if not 0 <= time <= NEVER:
        raise ValueError(f"a time is 0 to 2**63 - 1 ns, not {time}")


def _check_length(length: int) -> None:
    if not 0 < length <= NEVER:
        raise ValueError(f"a length is positive and below 2**63 ns, not {length}")


def _check_shares(shares: float) -> None:
    if not (shares > 0 and math.isfinite(shares)):
        raise ValueError(f"shares are positive and finite, not {shares}")


def _check_seq(seq: int) -> None:
    if not 0 <= seq <= SEQ_MAX:
        raise ValueError(f"a seq is 0 to 2**48 - 1, not {seq}")


def _check_priority(priority: int) -> None:
    if not -PRIORITY_MAX <= priority <= PRIORITY_MAX:
        raise ValueError(f"a priority is -100 to 100, not {priority}")


def _scale(value: float, exponents: int) -> float:
    """value * 2**exponents; infinite where that is more than a double holds."""
    try:
        return math.ldexp(value, exponents)
    except OverflowError:
        return math.copysign(math.inf, value)


class Queue:
    """Share tree, devices, sessions and queued jobs. See `_queue.pyi` for each method's contract."""

    def __init__(self, half_life_ns: int) -> None:
        _check_length(half_life_ns)
        self._half_life = half_life_ns
        self._k = (half_life_ns / 1e9) / math.log(2)
        self._exponent = 0
        self._nodes: dict[int, _Node] = {ROOT: _Node(-1, 0, 1.0, is_account=True)}
        self._devices: dict[int, _Device] = {}
        self._sessions: dict[int, _Session] = {}
        self._jobs: dict[int, _Job] = {}

    def copy(self) -> Self:
        """Return another one that holds the same."""
        return deepcopy(self)

    # --- the share tree (6) ---

    def add_node(self, parent: int, shares: float = 1.0) -> int:
        """Add an account or user."""
        above = _known(self._nodes, parent, "node")
        _check_shares(shares)
        if above.is_user:
            raise ValueError(f"node {parent} is a user, and users are leaves")
        if above.depth + 1 >= DEPTH_MAX:
            raise ValueError(f"node {parent} is too deep for a child")
        above.is_account = True
        return _add(self._nodes, _Node(parent, above.depth + 1, shares))

    def set_shares(self, node: int, shares: float) -> None:
        """Change w from now on."""
        changed = _known(self._nodes, node, "node")
        _check_shares(shares)
        changed.shares = shares

    def shares(self, node: int) -> float:
        """Return w."""
        return _known(self._nodes, node, "node").shares

    def usage(self, node: int, now: int) -> tuple[float, float]:
        """Return u / g(now), settled and in flight."""
        asked = _known(self._nodes, node, "node")
        _check_time(now)
        n, r = divmod(now, self._half_life)
        g = math.exp2(r / self._half_life)
        return (_scale(asked.settled / g, self._exponent - n), _scale(asked.in_flight / g, self._exponent - n))

    def raw_usage(self, node: int) -> tuple[float, float, int]:
        """Return what is stored."""
        asked = _known(self._nodes, node, "node")
        return (asked.settled, asked.in_flight, self._exponent)

    def restore_usage(self, node: int, settled: float, exponent: int) -> None:
        """Set what was stored."""
        restored = _known(self._nodes, node, "node")
        if not (settled >= 0 and math.isfinite(settled)):
            raise ValueError(f"settled usage is not negative and finite, not {settled}")
        if not 0 <= exponent <= NEVER:
            raise ValueError(f"an exponent is not negative, not {exponent}")
        if exponent > self._exponent:
            self.renormalise(exponent - self._exponent)
        restored.settled = math.ldexp(settled, exponent - self._exponent)

    def normalised_usage(self, node: int) -> float:
        """Return u / w."""
        asked = _known(self._nodes, node, "node")
        return (asked.settled + asked.in_flight) / asked.shares

    def charge(self, user: int, start: int, duration: int) -> None:
        """Settle a held piece."""
        self._check_user(user)
        _check_time(start)
        _check_length(duration)
        cost = self._cost(start, duration)
        self._nodes[user].is_user = True
        for node in self._path(user):
            node.settled += cost

    def _check_user(self, user: int) -> None:
        if _known(self._nodes, user, "node").is_account:
            raise ValueError(f"node {user} is an account, not a user")

    def _path(self, node: int) -> Iterator[_Node]:
        while node >= 0:
            yield self._nodes[node]
            node = self._nodes[node].parent

    def _is_below(self, node: int, holder: int) -> bool:
        """Whether `holder` is the node or above it."""
        while node >= 0 and node != holder:
            node = self._nodes[node].parent
        return node >= 0

    def _cost(self, start: int, duration: int) -> float:
        """The integral of g over [start, start + duration], times 2**-exponent. May move the exponent."""
        last = (start + duration) // self._half_life
        if last - self._exponent > EXPONENTS_MAX:
            self.renormalise(last - self._exponent - EXPONENTS_KEPT)
        if duration // self._half_life >= CHARGE_HALF_LIVES_MAX:
            start += duration - CHARGE_HALF_LIVES_MAX * self._half_life
            duration = CHARGE_HALF_LIVES_MAX * self._half_life
        n, r = divmod(start, self._half_life)
        piece = (self._k * math.exp2(r / self._half_life)) * math.expm1((duration / 1e9) / self._k)
        return math.ldexp(piece, n - self._exponent)

    # --- devices ---

    def add_device(self, calibration_outside_dedicated: bool = False) -> int:
        """Add a free device."""
        return _add(self._devices, _Device(bool(calibration_outside_dedicated)))

    def set_window(self, device: int, inside: int, next_start: int, next_holder: int) -> None:
        """Set the restrictions by reservations."""
        changed = _known(self._devices, device, "device")
        for node in (inside, next_holder):
            if node != -1:
                _known(self._nodes, node, "node")
        _check_time(next_start)
        changed.inside, changed.next_start, changed.next_holder = inside, next_start, next_holder

    # --- sessions ---

    def add_session(self, device: int, user: int, batch: bool) -> int:
        """Add a session without jobs, neither standing nor active."""
        _known(self._devices, device, "device")
        self._check_user(user)
        self._nodes[user].is_user = True
        return _add(self._sessions, _Session(device, user, bool(batch)))

    def remove_session(self, session: int) -> None:
        """Forget a session."""
        removed = _known(self._sessions, session, "session")
        if self.session_size(session):
            raise ValueError(f"session {session} has queued jobs")
        if self._devices[removed.device].active == session:
            self._devices[removed.device].active = -1
        del self._sessions[session]

    def set_standing(self, session: int, standing: bool) -> None:
        """Let the session stand in its owner's queue."""
        _known(self._sessions, session, "session").standing = bool(standing)

    def set_fit_deadline(self, session: int, deadline: int) -> None:
        """Set what a batch's jobs have to fit before."""
        changed = _known(self._sessions, session, "session")
        _check_time(deadline)
        changed.fit_deadline = deadline

    def activate(self, session: int) -> None:
        """Give the device to the session."""
        device = self._devices[_known(self._sessions, session, "session").device]
        if device.active != -1:
            raise ValueError(f"session {device.active} is active on the device")
        device.active = session

    def deactivate(self, device: int) -> None:
        """Take the device from its active session, if there is one."""
        _known(self._devices, device, "device").active = -1

    def active_session(self, device: int) -> int:
        """Return the active session."""
        return _known(self._devices, device, "device").active

    def release_jobs(self, session: int) -> int:
        """Make the session's jobs fair-share jobs."""
        _known(self._sessions, session, "session")
        released = [job for job in self._jobs.values() if job.session == session]
        for job in released:
            job.kind, job.session, job.first = "FAIR_SHARE", -1, False
        return len(released)

    def drop_jobs(self, session: int) -> list[int]:
        """Drop the session's jobs."""
        _known(self._sessions, session, "session")
        dropped = [handle for handle, job in self._jobs.items() if job.session == session]
        for handle in dropped:
            del self._jobs[handle]
        return dropped

    def session_size(self, session: int) -> int:
        """Return how many jobs of the session are queued."""
        _known(self._sessions, session, "session")
        return len(self._session_jobs(session))

    def _session_jobs(self, session: int) -> list[_Job]:
        """In session order (5.3)."""
        jobs = [job for job in self._jobs.values() if job.session == session]
        if self._sessions[session].batch:
            return sorted(jobs, key=lambda job: (not job.first, job.estimate, job.place()))
        return sorted(jobs, key=lambda job: (not job.first, job.place()))

    # --- jobs ---

    def push(self, device: int, user: int, seq: int, priority: int, estimate: int) -> int:
        """Queue a fair-share job."""
        _known(self._devices, device, "device")
        self._check_user(user)
        _check_seq(seq)
        _check_priority(priority)
        _check_length(estimate)
        self._nodes[user].is_user = True
        return _add(self._jobs, _Job("FAIR_SHARE", device, user, seq, priority, estimate))

    def push_session(self, session: int, seq: int, priority: int, estimate: int, first: bool = False) -> int:
        """Queue a session job."""
        owner = _known(self._sessions, session, "session")
        _check_seq(seq)
        _check_priority(priority)
        _check_length(estimate)
        if first and any(job.first for job in self._session_jobs(session)):
            raise ValueError(f"the first job of session {session} is queued already")
        job = _Job("SESSION", owner.device, owner.user, seq, priority, estimate, session, bool(first))
        return _add(self._jobs, job)

    def push_calibration(self, device: int, seq: int) -> int:
        """Queue a calibration job."""
        _known(self._devices, device, "device")
        _check_seq(seq)
        return _add(self._jobs, _Job("CALIBRATION", device, -1, seq, 0, 0))

    def remove(self, job: int) -> None:
        """Take a job off the queue."""
        _known(self._jobs, job, "queued job")
        del self._jobs[job]

    def set_priority(self, job: int, priority: int) -> None:
        """Move a job to where it would stand with this priority."""
        changed = _known(self._jobs, job, "queued job")
        _check_priority(priority)
        if changed.kind == "CALIBRATION":
            raise ValueError(f"job {job} is a calibration, which has no priority")
        changed.priority = priority

    # --- dispatch (3) ---

    def pick(self, device: int, now: int) -> int:
        """Apply the three rules."""
        free = _known(self._devices, device, "device")
        _check_time(now)
        if free.run is not None:
            raise ValueError(f"device {device} runs a job")
        active = self._sessions.get(free.active)
        # Rule 1
        dedicated = active is not None and not active.batch
        if not (free.calibration_outside_dedicated and dedicated):
            queued = [job for job in self._jobs.values() if job.kind == "CALIBRATION" and job.device == device]
            if queued:
                return self._handle(min(queued, key=lambda job: job.seq))
        # Rule 2
        if active is not None:
            jobs = self._session_jobs(free.active)
            if not jobs:
                return HELD
            if not active.batch:
                return self._handle(jobs[0]) if self._may_start(jobs[0], now) else HELD
            fitting = [job for job in jobs if self._fits(job, now)]
            if not fitting:
                return BATCH_FITS_NOTHING
            starting = [job for job in fitting if self._may_start(job, now)]
            return self._handle(starting[0]) if starting else BATCH_MAY_NOT_START
        # Rule 3
        picked = self._pick_below(ROOT if free.inside == -1 else free.inside, device, now, -1)
        return NOTHING if picked is None else self._handle(picked)

    def _handle(self, wanted: _Job) -> int:
        return next(handle for handle, job in self._jobs.items() if job is wanted)

    def _fits(self, job: _Job, now: int) -> bool:
        """Whether a batch's job ends in time for the batch (5.3)."""
        deadline = self._sessions[job.session].fit_deadline
        return deadline == NEVER or now + job.estimate <= deadline

    def _may_start(self, job: _Job, now: int) -> bool:
        """Whether the next window lets the job start (8)."""
        device = self._devices[job.device]
        if device.next_start == NEVER or now + job.estimate <= device.next_start:
            return True
        return device.next_holder != -1 and self._is_below(job.user, device.next_holder)

    def _candidates(self, user: int, device: int, now: int) -> list[_Job]:
        """The user's candidates of rule 3 that may start."""
        fair_share = [
            job for job in self._jobs.values() if job.kind == "FAIR_SHARE" and job.user == user and job.device == device
        ]
        candidates = [job for job in fair_share if self._may_start(job, now)]
        for handle, session in self._sessions.items():
            if session.user != user or session.device != device or not session.standing:
                continue
            if self._devices[device].active == handle:
                continue
            jobs = self._session_jobs(handle)
            if session.batch:
                candidates += [job for job in jobs if self._fits(job, now) and self._may_start(job, now)][:1]
            else:
                candidates += [job for job in jobs[:1] if self._may_start(job, now)]
        return candidates

    def _pick_below(self, node: int, device: int, now: int, without: int) -> _Job | None:
        """The pick of an account or user (6), as if the user `without` had no candidate."""
        if node == without:
            return None
        if self._nodes[node].is_user:
            return min(self._candidates(node, device, now), key=_Job.place, default=None)
        picks: list[tuple[float, int, _Job]] = []
        for child in self._nodes:
            if self._nodes[child].parent == node:
                pick = self._pick_below(child, device, now, without)
                if pick is not None:
                    picks.append((self.normalised_usage(child), pick.seq, pick))
        return min(picks, key=lambda pick: pick[:2])[2] if picks else None

    def runner_up(self, job: int, now: int) -> tuple[int, int, int] | None:
        """Return who came second."""
        won = _known(self._jobs, job, "queued job")
        _check_time(now)
        inside = self._devices[won.device].inside
        top = ROOT if inside == -1 else inside
        if won.kind == "CALIBRATION" or self._pick_below(top, won.device, now, -1) is not won:
            raise ValueError(f"job {job} is not what fair share picks now")
        second = self._pick_below(top, won.device, now, won.user)
        if second is None:
            return None
        node, passed = won.user, second.user
        while self._nodes[node].parent != self._nodes[passed].parent:
            if self._nodes[node].depth >= self._nodes[passed].depth:
                node = self._nodes[node].parent
            else:
                passed = self._nodes[passed].parent
        return (node, passed, second.user)

    def start(self, job: int, now: int) -> None:
        """Begin the run of a job on its device."""
        started = _known(self._jobs, job, "queued job")
        _check_time(now)
        device = self._devices[started.device]
        if device.run is not None:
            raise ValueError(f"device {started.device} runs a job")
        calibration = started.kind == "CALIBRATION"
        charge = 0.0 if calibration else self._cost(now, started.estimate)
        del self._jobs[job]
        device.run = _Run(started.user, now, started.estimate, charge, calibration)
        if not calibration:
            for node in self._path(started.user):
                node.in_flight += charge
                node.runs += 1

    def _running(self, device: int) -> _Run:
        run = _known(self._devices, device, "device").run
        if run is None:
            raise ValueError(f"device {device} runs nothing")
        return run

    def double_estimate(self, device: int) -> int:
        """Double the estimate of the run and its charge."""
        run = self._running(device)
        if run.calibration:
            raise ValueError(f"device {device} runs a calibration, which has no estimate")
        if run.estimate * 2 > NEVER:
            raise ValueError("the estimate is too long to be doubled")
        charge = self._cost(run.start, run.estimate * 2)
        run.estimate *= 2
        change = charge - run.charge
        run.charge = charge
        for node in self._path(run.user):
            node.in_flight += change
        return run.estimate

    def finish(self, device: int, now: int) -> None:
        """End the run."""
        run = self._running(device)
        _check_time(now)
        if now < run.start:
            raise ValueError(f"the run started at {run.start} ns and cannot end at {now} ns")
        cost = 0.0 if run.calibration or now == run.start else self._cost(run.start, now - run.start)
        self._end(device, run, cost)

    def lose(self, device: int) -> None:
        """End the run without a charge."""
        self._end(device, self._running(device), 0.0)

    def _end(self, device: int, run: _Run, cost: float) -> None:
        self._devices[device].run = None
        if run.calibration:
            return
        for node in self._path(run.user):
            node.runs -= 1
            node.in_flight = node.in_flight - run.charge if node.runs else 0.0
            node.settled += cost

    # --- figures ---

    def __len__(self) -> int:
        return len(self._jobs)

    def counts(self, device: int) -> tuple[int, int, int]:
        """Return the queued jobs by class."""
        _known(self._devices, device, "device")
        kinds = [job.kind for job in self._jobs.values() if job.device == device]
        return (kinds.count("CALIBRATION"), kinds.count("SESSION"), kinds.count("FAIR_SHARE"))

    def memory_bytes(self) -> int:
        """Return 0: there is no C memory here."""
        return 0

    def renormalise(self, exponents: int) -> None:
        """Move the exponent."""
        if not 0 <= exponents <= NEVER:
            raise ValueError(f"exponents are not negative, not {exponents}")
        if exponents > NEVER - self._exponent:
            raise ValueError("the exponent would be too large")
        self._exponent += exponents
        for node in self._nodes.values():
            node.settled = math.ldexp(node.settled, -exponents)
            node.in_flight = math.ldexp(node.in_flight, -exponents)
        for device in self._devices.values():
            if device.run is not None:
                device.run.charge = math.ldexp(device.run.charge, -exponents)

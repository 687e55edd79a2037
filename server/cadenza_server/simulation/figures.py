"""Figures of a simulation, counted while it runs: how long jobs wait, what devices do, who gets what.

What is kept of a job that has ended are a few numbers in flat arrays, so percentiles are exact and a million jobs fit.
What each figure means is in docs/simulation.md.
"""

from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cadenza_server.model.events import (
    HoldEnded,
    JobEnded,
    JobQueued,
    JobRequeued,
    RunFinished,
    RunStarted,
    SessionCreated,
    SessionJobsEnded,
)
from cadenza_server.model.words import JobClass, JobState, RunOutcome
from cadenza_server.scheduling import NodeKind, NodeView, Scheduler
from cadenza_server.simulation.distributions import MILLISECOND
from cadenza_server.simulation.listening import Handlers
from cadenza_server.simulation.outcome import Rejected, to_seconds
from cadenza_server.simulation.scenario import Scenario

LOOKS: Final = 200
"""Instants, evenly spaced, at which siblings' usage is compared."""

_CLASSES: Final = tuple(JobClass)
_CLASS_INDEX: Final = {each: i for i, each in enumerate(_CLASSES)}
_LOST: Final = (RunOutcome.WORKER_LOST, RunOutcome.PUT_BACK)
_NOT_WAITING: Final = -1


class _Waiting:
    """A live job: when it came, whose and what it is, when it first started (-1: not yet), whether it is queued."""

    __slots__ = ("came", "job_class", "queued", "started", "user")

    def __init__(self, came: int, user: int, job_class: int) -> None:
        self.came = came
        self.user = user
        self.job_class = job_class
        self.started = -1
        self.queued = True


class Figures:
    """Listens to a simulation; `as_output` gives what it has counted, once that has ended."""

    def __init__(self, scenario: Scenario) -> None:
        self._groups: Final[Mapping[str, str]] = (
            {}
            if scenario.workload is None
            else {user: group.name for group in scenario.workload.groups for user in group.users}
        )
        self._every = max(MILLISECOND, _span(scenario) // LOOKS)
        self._looks_left = 2 * LOOKS
        self._look_at = self._every
        self._looked_at = 0
        self._end = 0
        self._users: Final[list[str]] = []
        self._user_index: Final[dict[str, int]] = {}
        self._queued: Final[list[int]] = []
        self._waiting_since: Final[list[int]] = []
        self._charged: Final[list[int]] = []
        self._live: Final[dict[str, _Waiting]] = {}
        self._of_sessions: Final[dict[str, dict[str, None]]] = {}
        self._waits: Final = _Samples("q")
        self._slowdowns: Final = _Samples("d")
        self._states: Final[Counter[JobState]] = Counter()
        self._reasons: Final[Counter[str]] = Counter()
        self._submitted = 0
        self._busy: Final[Counter[str]] = Counter(dict.fromkeys(scenario.devices, 0))
        self._calibrating: Final[Counter[str]] = Counter()
        self._held: Final[Counter[str]] = Counter()
        self._running: Final[dict[str, tuple[int, bool]]] = {}
        self._sessions = 0
        self._worst_lag = 0.0
        self._worst_lag_of: tuple[str, str, int] | None = None
        self._nodes: tuple[NodeView, ...] = ()

    # --- listening ----------------------------------------------------------------------------------------------

    def handlers(self) -> Handlers:
        """What it counts."""
        return {
            JobQueued: self._job_queued,
            JobRequeued: self._job_requeued,
            RunStarted: self._run_started,
            RunFinished: self._run_finished,
            JobEnded: self._job_ended,
            SessionJobsEnded: self._session_jobs_ended,
            HoldEnded: self._hold_ended,
            SessionCreated: self._session_created,
        }

    def _index(self, user: str) -> int:
        index = self._user_index.get(user)
        if index is None:
            index = self._user_index[user] = len(self._users)
            self._users.append(user)
            self._queued.append(0)
            self._waiting_since.append(_NOT_WAITING)
            self._charged.append(0)
        return index

    def _job_queued(self, event: JobQueued, now: int) -> None:
        job_class = _CLASS_INDEX[event.job_class]
        # Calibrations belong to nobody, whoever has submitted them.
        user = -1 if event.job_class is JobClass.CALIBRATION else self._index(event.user)
        self._live[event.job] = _Waiting(now, user, job_class)
        self._submitted += 1
        if event.session is not None:
            self._of_sessions.setdefault(event.session, {})[event.job] = None
        self._waits_more(user, now)

    def _job_requeued(self, event: JobRequeued, now: int) -> None:
        job = self._live[event.job]
        job.queued = True
        if event.session is not None:
            self._of_sessions.setdefault(event.session, {})[event.job] = None
        self._waits_more(job.user, now)

    def _waits_more(self, user: int, now: int) -> None:
        if user >= 0:
            if not self._queued[user]:
                self._waiting_since[user] = now
            self._queued[user] += 1

    def _waits_no_more(self, job: _Waiting) -> None:
        job.queued = False
        if job.user >= 0:
            self._queued[job.user] -= 1
            if not self._queued[job.user]:
                self._waiting_since[job.user] = _NOT_WAITING

    def _run_started(self, event: RunStarted, now: int) -> None:
        job = self._live[event.job]
        self._waits_no_more(job)
        if event.session is not None:
            self._leave_session(event.session, event.job)
        if job.started < 0:
            job.started = now
            self._waits.add(now - job.came, job.user, job.job_class)
        self._running[event.device] = (now, job.user < 0)

    def _run_finished(self, event: RunFinished, now: int) -> None:
        job = self._live[event.job]
        length = now - event.start
        del self._running[event.device]
        self._busy[event.device] += length
        if job.user < 0:
            self._calibrating[event.device] += length
        else:
            self._charged[job.user] += event.charged
        if length and event.outcome not in _LOST:
            self._slowdowns.add((now - job.came) / length, job.user, job.job_class)

    def _job_ended(self, event: JobEnded, _: int) -> None:
        job = self._live.pop(event.job)
        if job.queued:
            self._waits_no_more(job)
            if event.session is not None:
                self._leave_session(event.session, event.job)
        self._states[event.state] += 1
        if event.reason is not None:
            self._reasons[event.reason] += 1

    def _session_jobs_ended(self, event: SessionJobsEnded, _: int) -> None:
        for name in self._of_sessions.pop(event.session):
            self._waits_no_more(self._live.pop(name))
        self._states[event.state] += event.count
        self._reasons[event.reason] += event.count

    def _leave_session(self, session: str, job: str) -> None:
        queued = self._of_sessions[session]
        del queued[job]
        if not queued:
            del self._of_sessions[session]

    def _hold_ended(self, event: HoldEnded, _: int) -> None:
        length = event.end - event.start
        self._held[event.device] += length
        self._charged[self._index(event.user)] += length

    def _session_created(self, _: SessionCreated, __: int) -> None:
        self._sessions += 1

    # --- looking ------------------------------------------------------------------------------------------------

    def next_look(self) -> int:
        """When it compares siblings' usage next."""
        return self._look_at

    def look(self, scheduler: Scheduler) -> None:
        """Compare the usage of siblings who have had jobs waiting without a break since the last look."""
        at, since = self._look_at, self._looked_at
        self._looked_at = at
        self._looks_left -= 1
        if not self._looks_left:  # It goes on for longer than its commands came: who knows how long?
            self._every *= 2
            self._looks_left = LOOKS
        self._look_at = at + self._every
        waiting: set[str] = set()
        for user, began in zip(self._users, self._waiting_since, strict=True):
            if _NOT_WAITING < began <= since:
                parts = user.split("/")
                waiting.update("/".join(parts[: i + 1]) for i in range(len(parts)))
        if len(waiting) < 2:
            return
        siblings: dict[str, list[tuple[float, str]]] = {}
        for node in scheduler.shares_view(at):
            if node.path in waiting:
                usage = (node.settled + node.in_flight) / node.shares
                siblings.setdefault(node.path.rpartition("/")[0], []).append((usage, node.path))
        for members in siblings.values():
            least, most = min(members), max(members)
            if most[0] - least[0] > self._worst_lag:
                self._worst_lag = most[0] - least[0]
                self._worst_lag_of = (least[1], most[1], at)

    def finish(self, scheduler: Scheduler, now: int) -> None:
        """Count what still runs or is held at the end, up to there."""
        self._end = now
        for device, (start, calibration) in self._running.items():
            self._busy[device] += now - start
            if calibration:
                self._calibrating[device] += now - start
        for device in self._busy:
            record = scheduler.device_record(device)
            if record is not None and record.held_since is not None:
                self._held[device] += now - record.held_since
        self._nodes = scheduler.shares_view(now)

    # --- what it has counted ------------------------------------------------------------------------------------

    def as_output(self, rejected: Sequence[Rejected] = ()) -> dict[str, Any]:
        """Return all figures as JSON's values; lengths are seconds. `rejected`: the commands that were refused."""
        running = len(self._running)
        busy, calibrating = sum(self._busy.values()), sum(self._calibrating.values())
        held = sum(self._held.values())
        return {
            "end": to_seconds(self._end),
            "jobs": {
                "submitted": self._submitted,
                "succeeded": self._states[JobState.SUCCEEDED],
                "failed": self._states[JobState.FAILED],
                "cancelled": self._states[JobState.CANCELLED],
                "running": running,
                "queued": len(self._live) - running,
            },
            "sessions": self._sessions,
            "reasons": dict(sorted(self._reasons.items())),
            "rejected": dict(sorted(Counter(each.code for each in rejected).items())),
            "waiting": self._by_who(self._waits, 1e9),
            "slowdown": self._by_who(self._slowdowns, 1.0),
            "devices": {
                "all": self._device_figures(busy, calibrating, held, len(self._busy)),
                **{
                    device: self._device_figures(self._busy[device], self._calibrating[device], self._held[device], 1)
                    for device in sorted(self._busy)
                },
            },
            "fairness": self._fairness(),
        }

    def _device_figures(self, busy: int, calibrating: int, held: int, devices: int) -> dict[str, float]:
        span = self._end * devices
        return {
            "utilisation": busy / span if span else 0.0,
            "calibrating": calibrating / span if span else 0.0,
            "held": held / span if span else 0.0,
            "held_seconds": to_seconds(held),
        }

    def _by_who(self, samples: "_Samples", unit: float) -> dict[str, Any]:
        values, users, classes = samples.columns()
        values = values / unit
        found: dict[str, Any] = {"all": _percentiles(values)}
        found["classes"] = {
            str(each): _percentiles(values[classes == i]) for i, each in enumerate(_CLASSES) if np.any(classes == i)
        }
        members: dict[str, list[int]] = {}
        for i, user in enumerate(self._users):
            if user in self._groups:
                members.setdefault(self._groups[user], []).append(i)
        found["groups"] = {
            group: _percentiles(values[np.isin(users, members[group])])
            for group in dict.fromkeys(self._groups.values())
            if group in members
        }
        order = np.argsort(users, kind="stable")
        values, users = values[order], users[order]
        starts = np.searchsorted(users, np.arange(len(self._users) + 1))
        found["users"] = {
            user: _percentiles(values[starts[i] : starts[i + 1]])
            for i, user in sorted(enumerate(self._users), key=lambda each: each[1])
            if starts[i] < starts[i + 1]
        }
        return found

    def _fairness(self) -> dict[str, Any]:
        entitled = _entitled(self._nodes)
        total = sum(self._charged) or 1
        used = {user: charged / total for user, charged in zip(self._users, self._charged, strict=True)}
        accounts: defaultdict[str, float] = defaultdict(float)
        groups: dict[str, list[str]] = {group: [] for group in dict.fromkeys(self._groups.values())}
        for user in sorted(used):
            parts = user.split("/")
            for i in range(1, len(parts)):
                accounts["/".join(parts[:i])] += used[user]
            if user in self._groups:
                groups[self._groups[user]].append(user)
        lag: dict[str, Any] = {"seconds": self._worst_lag}
        if self._worst_lag_of is not None:
            behind, ahead, at = self._worst_lag_of
            lag |= {"behind": behind, "ahead": ahead, "at": to_seconds(at)}
        return {
            "worst_lag": lag,
            "accounts": {path: _share(entitled, [path], accounts[path]) for path in sorted(accounts)},
            "groups": {
                group: _share(entitled, users, sum(used[user] for user in users)) for group, users in groups.items()
            },
            "users": {user: _share(entitled, [user], used[user]) for user in sorted(used)},
        }


class _Samples:
    """A value, a user and a class each, in flat arrays."""

    __slots__ = ("_classes", "_users", "_values")

    def __init__(self, kind: str) -> None:
        self._values: Final[array[Any]] = array(kind)
        self._users: Final = array("i")
        self._classes: Final = array("b")

    def add(self, value: float, user: int, job_class: int) -> None:
        """Add one; `user` is -1 for nobody."""
        self._values.append(value)
        self._users.append(user)
        self._classes.append(job_class)

    def columns(self) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Return the three columns."""
        return tuple(  # type: ignore[return-value] # of three
            np.frombuffer(each, dtype=each.typecode) if len(each) else np.zeros(0, dtype=each.typecode)
            for each in (self._values, self._users, self._classes)
        )


def _percentiles(values: NDArray[Any]) -> dict[str, float | int]:
    """Return exact percentiles (the smallest value that no less than the part is at or below), mean, most and count."""
    if not len(values):
        return {"count": 0}
    p50, p90, p99 = np.percentile(values, (50, 90, 99), method="inverted_cdf")
    return {
        "count": len(values),
        "p50": float(p50),
        "p90": float(p90),
        "p99": float(p99),
        "mean": float(np.mean(values)),
        "max": float(np.max(values)),
    }


def _entitled(nodes: Iterable[NodeView]) -> dict[str, float]:
    """Return which part of everything each node would have if all users in `nodes` always had work."""
    known = [node for node in nodes if node.kind is not NodeKind.UNDECIDED]
    weights: defaultdict[str, float] = defaultdict(float)
    for node in known:
        weights[node.path.rpartition("/")[0]] += node.shares
    parts = {"": 1.0}
    for node in known:
        above = node.path.rpartition("/")[0]
        parts[node.path] = parts[above] * node.shares / weights[above]
    return parts


def _share(entitled: Mapping[str, float], paths: Iterable[str], used: float) -> dict[str, float]:
    return {"share": sum(entitled.get(path, 0.0) for path in paths), "used": used}


def _span(scenario: Scenario) -> int:
    """Return how long a scenario goes on at least, if it says no more than when its last command comes."""
    if scenario.until is not None:
        return scenario.until
    if scenario.workload is not None:
        return scenario.workload.duration
    return scenario.steps[-1].at if scenario.steps else 0

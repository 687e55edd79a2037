"""`workload:` of a scenario file: who asks for what how often, read strictly. Its meaning is in docs/simulation.md."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TypeVar

from cadenza_server.model.paths import check_path
from cadenza_server.simulation.distributions import SECONDS_MAX, Constant, Distribution, read_distribution
from cadenza_server.simulation.tree import List, ScenarioError, Table, Tree
from cadenza_server.simulation.values import (
    Keys,
    read_instant,
    read_integer,
    read_length,
    read_number,
    read_text,
    refuse,
    show,
    word_reader,
)

USERS_MAX: Final = 1_000_000
"""In one group."""


class Kind(StrEnum):
    """What a generator makes at each arrival."""

    JOBS = "JOBS"
    """One fair-share job."""
    SESSIONS = "SESSIONS"
    """A dedicated session whose client submits the next job when it has thought about the last result."""
    BATCHES = "BATCHES"
    """A batch of jobs, all submitted at once."""
    CALIBRATIONS = "CALIBRATIONS"
    """A calibration job on each of its devices."""


class Process(StrEnum):
    """How arrivals lie in time."""

    POISSON = "POISSON"
    BURSTS = "BURSTS"
    REGULAR = "REGULAR"


_ONE: Final = Constant(1)
_NOTHING: Final = Constant(0)


@dataclass(frozen=True, slots=True)
class Group:
    """Users that behave alike. `skew`: the k-th of them comes k**-skew times as often as the first."""

    name: str
    users: tuple[str, ...]
    skew: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Generator:
    """One source of work. Times and lengths are nanoseconds, `every` seconds. What does not belong to its kind or
    process has its default."""

    name: str
    kind: Kind
    process: Process
    every: float
    start: int
    end: int
    group: Group | None
    devices: tuple[str, ...]
    run: Distribution
    size: Distribution = _ONE
    """Arrivals in a burst."""
    spread: Distribution = _NOTHING
    """Seconds from the beginning of a burst to an arrival in it."""
    jobs: Distribution = _ONE
    """In a session."""
    think: Distribution = _NOTHING
    """Seconds from a result to the next job."""
    priority: int = 0
    limit: int | None = None
    max_time: int | None = None
    interactive_ttl: int | None = None
    estimate_error: float | None = None
    """Standard deviation of log(estimate / run); None: no estimate is given."""
    fails: float = 0.0
    """Part of the jobs whose program fails."""
    worker_lost: float = 0.0
    """Part of the runs that lose their worker."""


@dataclass(frozen=True, slots=True)
class Workload:
    """All of it. `duration`: nanoseconds in which arrivals come."""

    seed: int
    duration: int
    groups: tuple[Group, ...]
    generators: tuple[Generator, ...]


def read_workload(tree: Tree, devices: Mapping[str, object]) -> Workload:
    """Read `workload`. Raises `ScenarioError` if it is none."""
    keys = Keys(tree, "`workload`", ("seed", "duration", "users", "generators"))
    seed = read_integer(keys.required("seed"))
    duration = read_length(keys.required("duration"))
    groups = _read_groups(keys.take("users"))
    generators = keys.required("generators")
    if not isinstance(generators, Table) or not generators.entries:
        refuse(generators, "generators are a mapping from their names to what they make, with one at least")
    return Workload(
        seed=seed,
        duration=duration,
        groups=tuple(groups.values()),
        generators=tuple(
            _read_generator(_check_name(generators, name), each, duration, groups, devices)
            for name, each in generators.entries.items()
        ),
    )


_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,31}")


def _check_name(table: Table, name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ScenarioError(
            table.lines[name], f"a name has 1 to 32 letters, digits and _, a letter first; {name!r} has not"
        )
    return name


# --- users ----------------------------------------------------------------------------------------------------------


def _read_groups(tree: Tree | None) -> dict[str, Group]:
    if tree is None:
        return {}
    if not isinstance(tree, Table):
        refuse(tree, "users are a mapping from names of groups to who is in them")
    groups: dict[str, Group] = {}
    members: dict[str, str] = {}
    for name, each in tree.entries.items():
        group = groups[name] = _read_group(_check_name(tree, name), each)
        for user in group.users:
            if user in members:
                refuse(each, f"{user!r} is in the group {members[user]!r} already")
            members[user] = name
    for user, name in members.items():
        parts = user.split("/")
        for i in range(1, len(parts)):
            if (above := "/".join(parts[:i])) in members:
                refuse(tree.entries[name], f"{above!r} is a user, so {user!r} cannot be one below it")
    return groups


def _read_group(name: str, tree: Tree) -> Group:
    keys = Keys(tree, "a group of users", ("count", "account", "accounts", "paths", "skew"))
    skew = keys.optional("skew", _ranged("skew", 0.0, 10.0)) or 0.0
    if (paths := keys.take("paths")) is not None:
        for key in ("count", "account", "accounts"):
            if key in keys:
                raise ScenarioError(keys.line(key), f"with `paths` there is no {key!r}: they say who is in the group")
        if not isinstance(paths, List) or not paths.items:
            refuse(paths, "paths are a list of users, with one at least")
        return Group(name, tuple(_read_path(path) for path in paths.items), skew)
    count = keys.required("count")
    number = read_integer(count)
    if not 1 <= number <= USERS_MAX:
        refuse(count, f"a group has 1 to {USERS_MAX} users, not {show(count)}")
    account = keys.optional("account", _read_path)
    accounts = keys.optional("accounts", read_integer)
    if accounts is None:
        above = "" if account is None else f"{account}/"
        users = tuple(f"{above}{name}-{i + 1}" for i in range(number))
        _check(keys.line("account"), users[-1])
        return Group(name, users, skew)
    if not 1 <= accounts <= USERS_MAX:
        raise ScenarioError(keys.line("accounts"), f"accounts are 1 to {USERS_MAX}, not {accounts}")
    stem = "account" if account is None else account
    users = tuple(f"{stem}-{i % accounts + 1}/{name}-{i + 1}" for i in range(number))
    for user in (users[-1], users[min(number, accounts) - 1]):
        _check(keys.line("account"), user)
    return Group(name, users, skew)


def _read_path(tree: Tree) -> str:
    return _check(tree.line, read_text(tree))


def _check(line: int, path: str) -> str:
    try:
        return check_path(path)
    except ValueError as error:
        raise ScenarioError(line, str(error)) from error


# --- generators -----------------------------------------------------------------------------------------------------


def _ranged(what: str, least: float, most: float) -> Callable[[Tree], float]:
    def read(tree: Tree) -> float:
        value = read_number(tree)
        if not least <= value <= most:
            refuse(tree, f"{what} is {least:g} to {most:g}, not {show(tree)}")
        return value

    return read


def _read_priority(tree: Tree) -> int:
    value = read_integer(tree)
    if not -100 <= value <= 100:
        refuse(tree, f"a priority is -100 to 100, not {value}")
    return value


_COMMON: Final = ("kind", "process", "every", "size", "spread", "start", "end", "devices", "run", "fails")
_JOB: Final = ("users", "limit", "estimate_error", "worker_lost")
_SESSION: Final = ("jobs", "max_time", "interactive_ttl")

_KEYS: Final[Mapping[Kind, tuple[str, ...]]] = {
    Kind.JOBS: (*_COMMON, *_JOB, "priority"),
    Kind.SESSIONS: (*_COMMON, *_JOB, *_SESSION, "think"),
    Kind.BATCHES: (*_COMMON, *_JOB, *_SESSION),
    Kind.CALIBRATIONS: _COMMON,
}
"""What a generator of each kind may say."""

_ALL: Final = tuple(dict.fromkeys(key for keys in _KEYS.values() for key in keys))
_read_kind: Final = word_reader(Kind)
_read_process: Final = word_reader(Process)
_read_every: Final = _ranged("every", 0.001, SECONDS_MAX)
_read_part: Final = _ranged("a part", 0.0, 1.0)
_read_error: Final = _ranged("estimate_error", 0.0, 10.0)

_T = TypeVar("_T")


def _or(value: _T | None, default: _T) -> _T:
    return default if value is None else value


def _read_generator(
    name: str, tree: Tree, duration: int, groups: Mapping[str, Group], devices: Mapping[str, object]
) -> Generator:
    kind = _read_kind(Keys(tree, "a generator", _ALL).required("kind"))
    keys = Keys(tree, f"a generator of {kind}", _KEYS[kind])
    process = keys.optional("process", _read_process) or Process.POISSON
    if process is not Process.BURSTS:
        for key in ("size", "spread"):
            if key in keys:
                raise ScenarioError(keys.line(key), f"{key!r} is for process BURSTS, and this one is {process}")
    start = keys.optional("start", read_instant) or 0
    end = _or(keys.optional("end", read_instant), duration)
    if not start < end <= duration:
        line = keys.line("end" if "end" in keys else "start")
        raise ScenarioError(line, "a generator starts before it ends, and ends no later than `duration`")
    return Generator(
        name=name,
        kind=kind,
        process=process,
        every=_read_every(keys.required("every")),
        start=start,
        end=end,
        group=None if kind is Kind.CALIBRATIONS else _read_users(keys.required("users"), groups),
        devices=_or(keys.optional("devices", lambda each: _read_devices(each, devices)), tuple(devices)),
        run=read_distribution(keys.required("run")),
        size=read_distribution(keys.required("size")) if process is Process.BURSTS else _ONE,
        spread=keys.optional("spread", read_distribution) or _NOTHING,
        jobs=read_distribution(keys.required("jobs")) if "jobs" in _KEYS[kind] else _ONE,
        think=read_distribution(keys.required("think")) if "think" in _KEYS[kind] else _NOTHING,
        priority=keys.optional("priority", _read_priority) or 0,
        limit=keys.optional("limit", read_length),
        max_time=keys.optional("max_time", read_length),
        interactive_ttl=keys.optional("interactive_ttl", read_instant),
        estimate_error=keys.optional("estimate_error", _read_error),
        fails=keys.optional("fails", _read_part) or 0.0,
        worker_lost=keys.optional("worker_lost", _read_part) or 0.0,
    )


def _read_users(tree: Tree, groups: Mapping[str, Group]) -> Group:
    name = read_text(tree)
    if name not in groups:
        known = ", ".join(groups) if groups else "none: give `users` of the workload"
        refuse(tree, f"there is no group of users {name!r}; there is {known}")
    return groups[name]


def _read_devices(tree: Tree, devices: Mapping[str, object]) -> tuple[str, ...]:
    if not isinstance(tree, List) or not tree.items:
        refuse(tree, "devices are a list of names, with one at least")
    named: list[str] = []
    for item in tree.items:
        name = read_text(item)
        if name not in devices or name in named:
            refuse(item, f"{name!r} is no device of this scenario, or is here twice: they are {', '.join(devices)}")
        named.append(name)
    return tuple(named)

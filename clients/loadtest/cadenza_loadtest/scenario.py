"""What a load test does, as a YAML file says it. README.md of this folder's parent describes the keys."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, TypeVar

import yaml

T = TypeVar("T")

KINDS: Final = ("job", "jobs", "batch", "session")

JOBS_MAX: Final = 1_000
"""Jobs of one call."""


class ScenarioError(ValueError):
    """A file is no scenario; the message says where, and what is expected there."""


@dataclass(frozen=True, slots=True)
class JobShape:
    """A GHZ circuit, as OpenQASM 3 text."""

    qubits: int
    shots: int
    payload_bytes: int
    """The text is filled up to this length by a comment."""


@dataclass(frozen=True, slots=True)
class Preparation:
    """What is there before the clock starts."""

    jobs_per_user: int
    open_sessions: int
    watches: int


@dataclass(frozen=True, slots=True)
class Traffic:
    """One stream of operations.

    `job`: one call with one job. `jobs`: one call with `jobs` jobs. `batch`: a batch session, its jobs in one call,
    closed. `session`: a dedicated session whose `jobs` jobs are sent one after the other, each when the result of the
    one before is there and `think_s` has passed.
    """

    name: str
    kind: str
    rate: tuple[tuple[float, float], ...]
    """(seconds, operations a second): straight lines between the points, constant after the last."""
    every_s: float
    count: int
    """Instead of a rate: so many operations at once, each `every_s`; 0: there is a rate."""
    users: tuple[int, int]
    """The first and the last user that take part."""
    jobs: int
    think_s: float
    follow: float
    """The share of single jobs whose result is waited for."""


@dataclass(frozen=True, slots=True)
class Objective:
    """A bound for a figure of the report."""

    figure: str
    at_most: float | None
    at_least: float | None


@dataclass(frozen=True, slots=True)
class Scenario:
    """A load test."""

    name: str
    description: str
    duration_s: float
    settle_s: float
    """How long unfinished operations are waited for after the last one began."""
    seed: int
    accounts: int
    users: int
    devices: tuple[str, ...]
    """Empty: the first that the server lists."""
    job: JobShape
    prepare: Preparation
    traffic: tuple[Traffic, ...]
    objectives: tuple[Objective, ...]

    def path_of(self, user: int) -> str:
        """The user's place in the share tree: users are dealt to the accounts in turn."""
        return f"load/account-{user % self.accounts}/user-{user}"


def list_ready() -> dict[str, str]:
    """The scenarios that come with the package: name and description."""
    folder = resources.files("cadenza_loadtest") / "scenarios"
    names = sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))
    return {name: load(name).description for name in names}


def load(source: str) -> Scenario:
    """The scenario in the file `source`, or the ready one of that name. Raises `ScenarioError`."""
    path = Path(source)
    ready = resources.files("cadenza_loadtest") / "scenarios" / f"{source}.yaml"
    if path.suffix in {".yaml", ".yml"}:
        try:
            text, name = path.read_text(encoding="utf-8"), path.stem
        except (OSError, UnicodeDecodeError) as error:
            raise ScenarioError(f"{source}: it cannot be read: {error}") from error
    elif path.name == source and ready.is_file():
        text, name = ready.read_text(encoding="utf-8"), source
    else:
        raise ScenarioError(
            f"{source!r} is neither a .yaml file nor a ready scenario: `cadenza-loadtest --list` shows those"
        )
    try:
        return _read(name, yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise ScenarioError(f"{source}: it is not valid YAML: {error}") from error
    except ScenarioError as error:
        raise ScenarioError(f"{source}: {error}") from error


class _Section:
    """A mapping whose keys are taken one by one; what is left in the end is unknown."""

    def __init__(self, where: str, value: object) -> None:
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            raise ScenarioError(f"{where or 'the file'} must be a mapping of names to values")
        self.where, self.values, self.known = where, dict(value), set[str]()

    def place(self, key: str) -> str:
        return f"{self.where}.{key}" if self.where else key

    def take(self, key: str, default: Any) -> Any:
        self.known.add(key)
        return self.values.get(key, default)

    def number(self, key: str, default: float, *, least: float = 0.0, most: float = math.inf) -> float:
        return check_number(self.place(key), self.take(key, default), least, most)

    def integer(self, key: str, default: int, *, least: int = 0, most: int = 10**7) -> int:
        value = self.take(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ScenarioError(f"{self.place(key)} is {value!r}: write a whole number from {least} to {most}")
        return value

    def text(self, key: str, default: str) -> str:
        value = self.take(key, default)
        if not isinstance(value, str):
            raise ScenarioError(f"{self.place(key)} is {value!r}: write text")
        return value

    def end(self) -> None:
        if unknown := sorted(set(self.values) - self.known):
            raise ScenarioError(
                f"{self.place(unknown[0])} is not known here; known are: {', '.join(sorted(self.known))}"
            )


def check_number(place: str, value: object, least: float, most: float) -> float:
    """`value`, if it is a number of that range. Raises `ScenarioError`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        bounds = f"from {least:g}" + ("" if most == math.inf else f" to {most:g}")
        raise ScenarioError(f"{place} is {value!r}: write a number {bounds}")
    return float(value)


def _read(name: str, value: object) -> Scenario:
    top = _Section("", value)
    users = top.integer("users", 10, least=1)
    job = _Section("job", top.take("job", {}))
    shape = JobShape(
        qubits=job.integer("qubits", 2, least=1, most=30),
        shots=job.integer("shots", 100, least=1),
        payload_bytes=job.integer("payload_bytes", 0, most=2**20),
    )
    job.end()
    prepare = _Section("prepare", top.take("prepare", {}))
    preparation = Preparation(
        jobs_per_user=prepare.integer("jobs_per_user", 0, most=JOBS_MAX),
        open_sessions=prepare.integer("open_sessions", 0),
        watches=prepare.integer("watches", 0, most=10_000),
    )
    prepare.end()
    if preparation.watches and not preparation.jobs_per_user:
        raise ScenarioError("prepare.watches follow queued jobs: set prepare.jobs_per_user")
    devices = top.take("devices", [])
    if not isinstance(devices, list) or not all(isinstance(device, str) for device in devices):
        raise ScenarioError("devices must be a list of names")
    scenario = Scenario(
        name=name,
        description=top.text("description", ""),
        duration_s=top.number("duration_s", 30, least=0.1, most=7 * 86_400),
        settle_s=top.number("settle_s", 30, most=3_600),
        seed=top.integer("seed", 1, most=2**63 - 1),
        accounts=top.integer("accounts", 1, least=1, most=users),
        users=users,
        devices=tuple(devices),
        job=shape,
        prepare=preparation,
        traffic=tuple(_read_each("traffic", top.take("traffic", {}), lambda one: _read_traffic(one, users))),
        objectives=tuple(_read_each("objectives", top.take("objectives", {}), _read_objective)),
    )
    top.end()
    if not scenario.traffic:
        raise ScenarioError("traffic is empty: name at least one stream")
    return scenario


def _read_each(where: str, value: object, read: Callable[[_Section], T]) -> list[T]:
    section = _Section(where, value)
    found = []
    for key, inner in section.values.items():
        one = _Section(f"{where}.{key}", inner)
        found.append(read(one))
        one.end()
    return found


def _read_traffic(one: _Section, users: int) -> Traffic:
    kind = one.text("kind", "job")
    if kind not in KINDS:
        raise ScenarioError(f"{one.place('kind')} is {kind!r}: write one of {', '.join(KINDS)}")
    count = one.integer("count", 0, most=10**6)
    span = one.take("users", [0, users - 1])
    if (
        not isinstance(span, list)
        or len(span) != 2
        or not all(isinstance(end, int) and not isinstance(end, bool) for end in span)
        or not 0 <= span[0] <= span[1] < users
    ):
        raise ScenarioError(f"{one.place('users')} is {span!r}: write [first, last], from 0 to {users - 1}")
    traffic = Traffic(
        name=one.where.rpartition(".")[2],
        kind=kind,
        rate=_read_rate(one.place("rate"), one.take("rate", 0)),
        every_s=one.number("every_s", 10, least=0.001),
        count=count,
        users=(span[0], span[1]),
        jobs=one.integer("jobs", 1, least=1, most=JOBS_MAX),
        think_s=one.number("think_s", 0, most=3_600),
        follow=one.number("follow", 0, most=1),
    )
    if bool(count) == any(rate for _, rate in traffic.rate):
        raise ScenarioError(f"{one.where} needs either a rate (operations a second) or a count (at once, each every_s)")
    return traffic


def _read_rate(place: str, value: object) -> tuple[tuple[float, float], ...]:
    if not isinstance(value, list):
        return ((0.0, check_number(place, value, 0, 10**6)),)
    points = []
    for point in value:
        if not isinstance(point, list) or len(point) != 2:
            raise ScenarioError(f"{place} is {value!r}: write a number, or a list of [seconds, operations a second]")
        points.append((check_number(place, point[0], 0, math.inf), check_number(place, point[1], 0, 10**6)))
    if not points or points[0][0] != 0 or any(a[0] >= b[0] for a, b in pairwise(points)):
        raise ScenarioError(f"{place}: the points begin at 0 seconds and go on in order of time")
    return tuple(points)


def _read_objective(one: _Section) -> Objective:
    bounds: Mapping[str, float | None] = {
        bound: None if (value := one.take(bound, None)) is None else check_number(one.place(bound), value, -1e18, 1e18)
        for bound in ("at_most", "at_least")
    }
    if all(bound is None for bound in bounds.values()):
        raise ScenarioError(f"{one.where} needs at_most or at_least")
    return Objective(one.where.rpartition(".")[2], bounds["at_most"], bounds["at_least"])

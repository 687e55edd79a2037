"""A scenario file, read strictly: the script of what happens to the scheduler on a virtual clock.

The format is that of tests/scenarios/README.md. A file that is no scenario is refused as a whole, with the line and the
reason; a value of a command that is out of range is a command that the scheduler will refuse.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Final

from cadenza_server.model.commands import (
    Caller,
    CancelJob,
    CancelSession,
    CloseSession,
    CreateReservation,
    CreateSession,
    SubmitJob,
)
from cadenza_server.model.paths import check_path
from cadenza_server.model.settings import HALF_LIFE_DEFAULT, PROFILE_DEFAULT, PROFILES, DeviceSettings
from cadenza_server.model.words import (
    CalibrationRule,
    FirstJob,
    JobClass,
    OnExpiry,
    Pending,
    SessionMode,
)
from cadenza_server.scheduling.calibrations import AUTOMATIC_PREFIX
from cadenza_server.simulation.expectation import Expectation, read_expectation
from cadenza_server.simulation.step import Behaviour, Step
from cadenza_server.simulation.tree import List, Scalar, ScenarioError, Table, Tree, parse_tree
from cadenza_server.simulation.values import (
    Keys,
    read_boolean,
    read_instant,
    read_integer,
    read_length,
    read_lengths,
    read_number,
    read_seconds,
    read_text,
    refuse,
    show,
    word_reader,
)
from cadenza_server.simulation.workload import Workload, read_workload

OPERATOR: Final = Caller("operator", operator=True)
"""Who asks where a scenario names nobody. An operator may do all that the owner may."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """What a file says. Times are nanoseconds. With a `workload` there are no `steps`."""

    name: str
    devices: Mapping[str, DeviceSettings]
    steps: tuple[Step, ...]
    workload: Workload | None = None
    shares: Mapping[str, float] = field(default_factory=dict)
    half_life: int = HALF_LIFE_DEFAULT
    until: int | None = None
    expect: Expectation | None = None


_TOP: Final = ("name", "profile", "half_life", "shares", "devices", "events", "workload", "until", "expect")


def read_scenario(path: Path) -> Scenario:
    """Read a file. Raises `ScenarioError` if it is no scenario, `OSError` if it cannot be read."""
    data = path.read_bytes()
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise ScenarioError(data.count(b"\n", 0, error.start) + 1, "this is no UTF-8 text") from error
    return parse_scenario(text)


def parse_scenario(text: str) -> Scenario:
    """Read the text of a file. Raises `ScenarioError` if it is no scenario."""
    top = Keys(parse_tree(text), "a scenario", _TOP)
    name = top.text("name")
    profile = top.optional("profile", _read_profile) or PROFILES[PROFILE_DEFAULT]
    half_life = top.optional("half_life", read_length)
    shares = top.optional("shares", _read_shares)
    until = top.optional("until", read_instant)
    devices = _read_devices(top.required("devices"), profile, until)
    workload = top.optional("workload", lambda tree: read_workload(tree, devices))
    if workload is not None and "events" in top:
        raise ScenarioError(top.line("events"), "a scenario has `events` or a `workload`, not both")
    expect = top.optional("expect", read_expectation)
    return Scenario(
        name=name,
        devices=devices,
        steps=_read_events(top.required("events"), devices) if workload is None else (),
        workload=workload,
        shares=shares or {},
        half_life=HALF_LIFE_DEFAULT if half_life is None else half_life,
        until=until,
        expect=expect,
    )


_read_class: Final = word_reader(JobClass)
_read_mode: Final = word_reader(SessionMode)
_read_pending: Final = word_reader(Pending)


# --- the head -------------------------------------------------------------------------------------------------------


def _read_profile(tree: Tree) -> DeviceSettings:
    if not isinstance(tree, Scalar) or tree.text not in PROFILES:
        refuse(tree, f"a profile is one of {', '.join(PROFILES)}, not {show(tree)}")
    return PROFILES[tree.text]


def _read_shares(tree: Tree) -> dict[str, float]:
    if not isinstance(tree, Table):
        refuse(tree, "shares are a mapping from paths to weights")
    shares = {}
    for path, weight in tree.entries.items():
        try:
            check_path(path)
        except ValueError as error:
            raise ScenarioError(tree.lines[path], str(error)) from error
        shares[path] = read_number(weight)
        if not 0 < shares[path] < float("inf"):
            refuse(weight, f"shares are a positive number, not {show(weight)}")
    return shares


_SETTINGS: Final[Mapping[str, Callable[[Tree], object]]] = {
    "interactive_ttl_dedicated": read_instant,
    "interactive_ttl_batch": read_instant,
    "max_time": read_length,
    "unused_ttl": read_length,
    "on_close": _read_pending,
    "on_expiry": word_reader(OnExpiry),
    "session_cache_ttl": read_instant,
    "first_job": word_reader(FirstJob),
    "calibration": word_reader(CalibrationRule),
    "limit": read_length,
    "max_attempts": read_integer,
    "default_estimate": read_length,
    "calibration_interval": read_length,
    "calibration_duration": read_length,
}
assert set(_SETTINGS) == {each.name for each in fields(DeviceSettings)}


def _read_devices(tree: Tree, profile: DeviceSettings, until: int | None) -> dict[str, DeviceSettings]:
    if not isinstance(tree, Table) or not tree.entries:
        refuse(tree, "devices are a mapping from their names to their settings, with one device at least")
    devices = {}
    for name, each in tree.entries.items():
        if not name:
            raise ScenarioError(tree.lines[name], "a device has a name")
        keys = Keys(each, "a device", ("profile", *_SETTINGS))
        settings = keys.optional("profile", _read_profile) or profile
        for key, read in _SETTINGS.items():
            given = keys.take(key)
            if given is None:
                continue
            try:
                settings = replace(settings, **{key: read(given)})  # type: ignore[arg-type]
            except ScenarioError:
                raise
            except ValueError as error:
                refuse(given, str(error))
            if key == "calibration_interval" and until is None:
                refuse(given, "with calibration_interval set the scenario needs `until`: it would never end")
        devices[name] = settings
    return devices


# --- events ---------------------------------------------------------------------------------------------------------


def _read_events(tree: Tree, devices: Mapping[str, DeviceSettings]) -> tuple[Step, ...]:
    if not isinstance(tree, List):
        refuse(tree, "events are a list")
    only = next(iter(devices)) if len(devices) == 1 else None
    steps = []
    last = 0
    for item in tree.items:
        kinds = [kind for kind in _COMMANDS if isinstance(item, Table) and kind in item.entries]
        if len(kinds) != 1:
            refuse(item, f"an event is a mapping with one of {', '.join(_COMMANDS)}")
        kind = kinds[0]
        allowed, read = _COMMANDS[kind]
        keys = Keys(item, kind, allowed)
        at_tree = keys.required("at")
        at = read_instant(at_tree)
        if at < last:
            refuse(at_tree, "times never go back: this event comes after one that is later")
        last = at
        steps.append(read(at, keys.text(kind), keys, only))
    return tuple(steps)


def _caller(user: str | None) -> Caller:
    return OPERATOR if user is None else Caller(user)


def _device(keys: Keys, only: str | None) -> str:
    named = keys.optional("device", read_text)
    if named is not None:
        return named
    return keys.text("device") if only is None else only


def _submit(at: int, name: str, keys: Keys, only: str | None) -> Step:
    if name.startswith(AUTOMATIC_PREFIX):
        raise ScenarioError(keys.line("submit"), f"names that begin with {AUTOMATIC_PREFIX!r} are the devices' own")
    session = keys.optional("session", read_text)
    job_class = keys.optional("class", _read_class)
    if job_class is None:
        job_class = JobClass.FAIR_SHARE if session is None else JobClass.SESSION
    if session is None:
        device: str | None = _device(keys, only)
        user = keys.optional("user", read_text) if job_class is JobClass.CALIBRATION else keys.text("user")
    else:
        device = keys.optional("device", read_text)
        user = keys.optional("user", read_text)
    behaviour = Behaviour(
        run=read_seconds(keys.required("run")),
        fails=keys.optional("fails", read_boolean) or False,
        worker_lost=keys.optional("worker_lost", read_lengths) or (),
    )
    estimate = keys.optional("estimate", read_seconds)
    if behaviour.run <= 0 or any(length <= 0 for length in behaviour.worker_lost):
        estimate = 0  # a run is nothing that the scheduler is told of: let it refuse the length that it is told of
    command = SubmitJob(
        job=name,
        caller=_caller(user),
        job_class=job_class,
        device=device,
        session=session,
        priority=keys.optional("priority", read_integer) or 0,
        estimate=estimate,
        limit=keys.optional("limit", read_seconds),
    )
    return Step(at, name, command, behaviour)


def _create_session(at: int, name: str, keys: Keys, only: str | None) -> Step:
    command = CreateSession(
        session=name,
        caller=_caller(keys.text("user")),
        device=_device(keys, only),
        mode=keys.optional("mode", _read_mode) or SessionMode.DEDICATED,
        max_time=keys.optional("max_time", read_seconds),
        interactive_ttl=keys.optional("interactive_ttl", read_seconds),
        reservation=keys.optional("reservation", read_text),
    )
    return Step(at, name, command)


def _reserve(at: int, name: str, keys: Keys, only: str | None) -> Step:
    command = CreateReservation(
        reservation=name,
        caller=OPERATOR,
        device=_device(keys, only),
        holder=keys.text("holder"),
        start=read_seconds(keys.required("start")),
        end=read_seconds(keys.required("end")),
    )
    return Step(at, name, command)


def _cancel(at: int, name: str, keys: Keys, _: str | None) -> Step:
    return Step(at, name, CancelJob(job=name, caller=_caller(keys.optional("user", read_text))))


def _close_session(at: int, name: str, keys: Keys, _: str | None) -> Step:
    caller = _caller(keys.optional("user", read_text))
    return Step(at, name, CloseSession(session=name, caller=caller, pending=keys.optional("pending", _read_pending)))


def _cancel_session(at: int, name: str, keys: Keys, _: str | None) -> Step:
    return Step(at, name, CancelSession(session=name, caller=_caller(keys.optional("user", read_text))))


_COMMANDS: Final[Mapping[str, tuple[tuple[str, ...], Callable[[int, str, Keys, str | None], Step]]]] = {
    "reserve": (("at", "reserve", "device", "holder", "start", "end"), _reserve),
    "create_session": (
        ("at", "create_session", "user", "device", "mode", "max_time", "interactive_ttl", "reservation"),
        _create_session,
    ),
    "submit": (
        (
            *("at", "submit", "user", "device", "session", "class", "run", "fails", "worker_lost"),
            *("estimate", "limit", "priority"),
        ),
        _submit,
    ),
    "cancel": (("at", "cancel", "user"), _cancel),
    "close_session": (("at", "close_session", "user", "pending"), _close_session),
    "cancel_session": (("at", "cancel_session", "user"), _cancel_session),
}
"""The keys of each command, and how it is read."""

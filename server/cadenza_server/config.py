"""The configuration: a TOML file becomes one frozen `Config`, or a `ConfigError` that names every mistake.

The tables of `Key` below are the only list of what may be written: they check a file, give the defaults, and print the
effective configuration with comments, which loads again to the same `Config`.
"""

import dataclasses
import difflib
import getpass
import ipaddress
import json
import math
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import platformdirs

from cadenza_server.durations import format_duration, parse_duration
from cadenza_server.execution.plugins import find_kinds
from cadenza_server.execution.snapshots import find_snapshot
from cadenza_server.execution.spec import ACCELERATORS, COUPLINGS, KINDS, METHODS, PRECISIONS, DeviceSpec
from cadenza_server.model.paths import ancestors, check_path
from cadenza_server.model.settings import (
    HALF_LIFE_DEFAULT,
    PROFILE_DEFAULT,
    PROFILES,
    SECOND,
    SHARES_MAX,
    SHARES_MIN,
    DeviceSettings,
)
from cadenza_server.model.words import CalibrationRule, FirstJob, OnExpiry, Pending
from cadenza_server.tokens import TokenEntry, check_hash

LISTEN_DEFAULT: Final = "127.0.0.1:50051"
METRICS_EXAMPLE: Final = "127.0.0.1:9464"
MEBIBYTE: Final = 1024 * 1024
STOP_GRACE_DEFAULT: Final = 5 * SECOND
"""For runs in progress at an orderly stop; what has not ended then is put back into its place."""
DAY: Final = 24 * 3_600 * SECOND

_COUNT_MAX: Final = 2**31 - 1
"""What the contract's smallest integers hold."""
_MESSAGE_BYTES_MIN: Final = 4 * 1024
_MESSAGE_BYTES_MAX: Final = 2**30 - 1
"""gRPC takes 2**31 - 1 at most, and the server listens to twice its limit, to refuse in its own words."""

_DEVICE_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")
_PATH_FORBIDDEN: Final = re.compile(r"[^A-Za-z0-9._@-]")


class ConfigError(Exception):
    """A configuration that cannot be used. `problems`: one sentence each, beginning with the place."""

    def __init__(self, problems: list[str], source: str | None = None) -> None:
        self.problems = problems
        head = f"{source}: " if source else ""
        super().__init__("\n".join(head + problem for problem in problems))


@dataclass(frozen=True, slots=True)
class Address:
    """Where the server listens. Port 0: a free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """Certificate and key in PEM files; with `client_ca`, clients must show a certificate signed by it."""

    certificate: Path
    key: Path
    client_ca: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the server takes at most; `ServerLimits` on the wire. Ages are nanoseconds, None is for ever."""

    message_bytes_max: int = 16 * MEBIBYTE
    jobs_per_call_max: int = 1_000
    pubs_per_job_max: int = 1_000
    circuits_per_job_max: int = 1_000
    terms_per_job_max: int = 100_000
    shots_per_pub_max: int = 10_000_000
    queued_jobs_max: int = 1_000_000
    queued_jobs_per_user_max: int = 200_000
    sessions_per_user_max: int = 1_000
    watches_per_connection_max: int = 1_000
    watches_per_user_max: int = 10_000
    watch_backlog_max: int = 10_000
    answers_per_connection_max: int = 4
    answers_per_user_max: int = 16
    connections_max: int = 10_000
    result_age_max: int | None = None
    result_age_min: int = 7 * DAY
    result_bytes_max: int = 64 * 1024 * MEBIBYTE


@dataclass(frozen=True, slots=True, kw_only=True)
class Logging:
    """Logs go to stderr. `format`: text or json. `level`: debug, info, warning or error."""

    format: str = "text"
    level: str = "info"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceConfig:
    """One device: its scheduling settings (semantics 5.7, 7, 9) and what executes its jobs."""

    profile: str
    settings: DeviceSettings
    spec: DeviceSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All that the server is told. `half_life` and `stop_grace` are nanoseconds; `shares` maps paths of the share tree
    to weights."""

    listen: Address
    data_dir: Path
    operators: tuple[str, ...]
    devices: Mapping[str, DeviceConfig]
    insecure: bool = False
    metrics: Address | None = None
    """Where metrics are served over HTTP; None: nowhere."""
    stop_grace: int = STOP_GRACE_DEFAULT
    half_life: int = HALF_LIFE_DEFAULT
    shares: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    tokens: tuple[TokenEntry, ...] = ()
    tls: Tls | None = None
    limits: Limits = Limits()
    logging: Logging = Logging()


# --- values ---------------------------------------------------------------------------------------------------------


def parse_address(value: object) -> Address:
    """`HOST:PORT`, with an IPv6 host in brackets. Raise `ValueError` with a sentence."""
    text = _text(value)
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        colon = ""
    if not (colon and host and port.isascii() and port.isdigit() and int(port) < 65_536):
        raise ValueError(f"{text!r} is no address: write HOST:PORT, such as {LISTEN_DEFAULT} or [::1]:50051")
    return Address(host, int(port))


def parse_metrics_address(value: object) -> Address:
    """As `parse_address`; a port alone (9464 or `:9464`) is one of this machine only."""
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else _text(value)
    return parse_address(f"127.0.0.1:{text.removeprefix(':')}" if ":" not in text.removeprefix(":") else text)


def default_user(login: str | None = None) -> str:
    """The operating system's user name as a path of the share tree; what is not allowed there becomes `_`."""
    if login is None:
        try:
            login = getpass.getuser()
        except (OSError, KeyError):
            login = "operator"
    return _PATH_FORBIDDEN.sub("_", login)[:64] or "operator"


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text: put it in quotes")
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} is neither true nor false")
    return value


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _COUNT_MAX:
        raise ValueError(f"{value!r} is no whole number of at least 1, and at most {_COUNT_MAX}")
    return value


def _bytes(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**63:
        raise ValueError(f"{repr(value)[:40]} is no number of bytes: write a whole number of at least 1")
    return value


def _message_bytes(value: object) -> int:
    size = _count(value)
    if not _MESSAGE_BYTES_MIN <= size <= _MESSAGE_BYTES_MAX:
        raise ValueError(f"{value!r} is out of range: {_MESSAGE_BYTES_MIN} to {_MESSAGE_BYTES_MAX}")
    return size


def _integer(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{value!r} is no whole number")
    return value


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r} is no number")
    try:
        return float(value)
    except OverflowError:  # TOML has integers of any length
        raise ValueError("the number is too large") from None


def _text_list(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError(f"{value!r} is no list of texts")
    return tuple(_text(item) for item in value)


def _coupling(value: object) -> str | tuple[tuple[int, int], ...]:
    if not isinstance(value, list):
        return _text(value)
    for pair in value:
        if not (isinstance(pair, list) and len(pair) == 2):
            raise ValueError(f"{pair!r} is no pair of qubits: write [[0, 1], [1, 2]]")
    return tuple((_integer(first), _integer(second)) for first, second in value)


def _integer_list(value: object) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise ValueError(f"{value!r} is no list of whole numbers")
    return tuple(_integer(item) for item in value)


def _options(value: object) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{value!r} is no table: write options = {{ name = value }}")
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        raise ValueError("only texts, finite numbers, true, false, lists and tables can be given to a plugin") from None
    return MappingProxyType(value)


def _weight(value: object) -> float:
    try:
        weight = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except OverflowError:  # TOML has integers of any length
        weight = math.inf
    if not SHARES_MIN <= weight <= SHARES_MAX:
        raise ValueError(f"{repr(value)[:40]} is no weight: write a number from {SHARES_MIN:g} to {SHARES_MAX:g}")
    return weight


def _path_list(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError(f'{value!r} is no list of paths: write ["alice", "lab/bob"]')
    return tuple(check_path(_text(item)) for item in value)


def _positive(value: object) -> int:
    length = parse_duration(value)
    if length == 0:
        raise ValueError(f"{value!r} is not positive")
    return length


def _never_or_positive(value: object) -> int | None:
    return None if value == "never" else _positive(value)


def _one_of(*words: str) -> Callable[[object], str]:
    def parse(value: object) -> str:
        if value not in words:
            raise ValueError(f"{value!r} is not one of {', '.join(words)}{_hint(value, words)}")
        return str(value)

    return parse


def _member(kind: type[StrEnum]) -> Callable[[object], StrEnum]:
    check = _one_of(*kind)
    return lambda value: kind(check(value))


def _hint(value: object, known: Any) -> str:
    close = difflib.get_close_matches(str(value), [str(word) for word in known], n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _show(value: object) -> str:
    """`value` as TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        pairs = ", ".join(f"{_show_key(str(name))} = {_show(item)}" for name, item in value.items())
        return f"{{ {pairs} }}" if pairs else "{}"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_show(item) for item in value) + "]"
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def _show_length(value: object) -> str:
    return _show(format_duration(value) if isinstance(value, int) else "never")


def _show_key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else _show(key)


# --- keys -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a table: how it is read, what it means, how it is printed."""

    name: str
    parse: Callable[[object], Any]
    note: str
    show: Callable[[object], str] = _show


_SERVER: Final = (
    Key("listen", parse_address, "HOST:PORT. Port 0: a free one. Beyond loopback, tokens are needed"),
    Key("data_dir", _text, "where jobs, results and history are kept; relative to this file"),
    Key("operators", _path_list, "users who are operators when names are trusted, that is without [[tokens]]"),
    Key("insecure", _flag, "true: listen beyond loopback with tokens but without TLS, as behind a TLS proxy"),
    Key("stop_grace", parse_duration, "how long runs may go on when the server is told to stop", _show_length),
    Key(
        "metrics",
        parse_metrics_address,
        "HOST:PORT (or a port of loopback) where Prometheus may ask; open to all who reach it",
    ),
)
_TOP: Final = (Key("half_life", _positive, "half-life of usage in the fair share", _show_length),)
_TOKEN: Final = (
    Key("name", _text, "for people: whose, which machine"),
    Key("path", lambda value: check_path(_text(value)), "who the caller is in the share tree"),
    Key("role", _one_of("user", "operator"), "user (default) or operator"),
    Key("hash", lambda value: check_hash(_text(value)), "of the token; `cadenza token` makes both"),
)
_TLS: Final = (
    Key("certificate", _text, "PEM file of the server's certificate chain; relative to this file"),
    Key("key", _text, "PEM file of its private key"),
    Key("client_ca", _text, "PEM file: clients must show a certificate that one of these signed"),
)
_LIMITS: Final = (
    Key("message_bytes_max", _message_bytes, "bytes of one message, either way"),
    Key("jobs_per_call_max", _count, "jobs in one SubmitJobs"),
    Key("pubs_per_job_max", _count, "PUBs in one job"),
    Key("circuits_per_job_max", _count, "different circuits in one job"),
    Key("terms_per_job_max", _count, "terms of the observables in one job"),
    Key("shots_per_pub_max", _count, "shots of one PUB, over all its sets of parameter values"),
    Key("queued_jobs_max", _count, "queued jobs of all users"),
    Key("queued_jobs_per_user_max", _count, "queued jobs of one user"),
    Key("sessions_per_user_max", _count, "sessions of one user that are not CLOSED"),
    Key("watches_per_connection_max", _count, "watches of one connection"),
    Key("watches_per_user_max", _count, "watches of one user, over all connections"),
    Key("watch_backlog_max", _count, "changes that a watch may be behind; then it is ended, and can be resumed"),
    Key(
        "answers_per_connection_max", _count, "results, programs and pages on their way to one connection; others wait"
    ),
    Key("answers_per_user_max", _count, "the same of one user, over all connections"),
    Key("connections_max", _count, "connections of all clients; further ones are closed at once"),
    Key("result_age_max", _never_or_positive, 'results older than this are deleted; or "never"', _show_length),
    Key("result_age_min", parse_duration, "younger results are never deleted", _show_length),
    Key("result_bytes_max", _bytes, "bytes of all results; beyond it the oldest are deleted"),
)
_LOGGING: Final = (
    Key("format", _one_of("text", "json"), "text or json, a line an entry, on stderr"),
    Key("level", _one_of("debug", "info", "warning", "error"), "debug, info, warning or error"),
)
_SETTINGS: Final = (
    Key("interactive_ttl_dedicated", parse_duration, "idle timeout of DEDICATED sessions", _show_length),
    Key("interactive_ttl_batch", parse_duration, "idle timeout of BATCH sessions", _show_length),
    Key("max_time", _positive, "how long a session lasts from its first activity", _show_length),
    Key("unused_ttl", _positive, "how long a new session may have no job", _show_length),
    Key("on_close", _member(Pending), "queued jobs at a close that does not say: DRAIN or FAIL_QUEUED"),
    Key("on_expiry", _member(OnExpiry), "queued jobs at expiry: FAIR_SHARE or FAIL"),
    Key("session_cache_ttl", parse_duration, "how long an expired session's data is kept", _show_length),
    Key("first_job", _member(FirstJob), "REQUIRED: cancelling the first job ends the session; INDEPENDENT: not"),
    Key("calibration", _member(CalibrationRule), "when it may run: BEFORE_SESSIONS or OUTSIDE_DEDICATED"),
    Key("limit", _positive, "device time of one job: default and cap", _show_length),
    Key("max_attempts", _count, "how often a job may lose its worker, the last time included"),
    Key("default_estimate", _positive, "expected device time of jobs that nothing is known about", _show_length),
    Key("calibration_interval", _never_or_positive, 'calibrate by itself this often; or "never"', _show_length),
    Key("calibration_duration", _positive, "device time of a calibration that does not say", _show_length),
)
_SPEC: Final = (
    Key("default_shots", _integer, "shots of jobs that name none"),
    Key("default_precision", _number, "precision of Estimator jobs that name none; 0: exact"),
    Key("transpile_level", _integer, "how much jobs are transpiled that do not say: 0 to 3"),
    Key("threads", _integer, "threads of a worker"),
    Key("circuits_cached_max", _integer, "parsed circuits that a worker keeps ready"),
    Key("memory_bytes_max", _integer, "memory that a worker's programs may take; 0: half of the machine's"),
    Key("network", _flag, "true: workers may use the network"),
)
_SPEC_QUBITS: Final = (Key("num_qubits", _integer, "qubits; with kind aer, how many a circuit may have at most"),)
_SPEC_SIMULATOR: Final = (
    Key("method", _one_of(*METHODS), "simulation method of jobs that name none: " + ", ".join(METHODS)),
    Key("precision", _one_of(*PRECISIONS), "of the simulator's numbers: double or single"),
    Key("accelerator", _one_of(*ACCELERATORS), "what computes: cpu, gpu, or auto: a GPU where there is one"),
    Key("gpus", _integer_list, "numbers of the GPUs that the workers take turns on; empty: all"),
    Key("batched_shots", _flag, "with a GPU: whether the shots of a noisy circuit run together"),
    Key("custatevec", _flag, "with a GPU: whether NVIDIA's cuStateVec computes"),
)
_SPEC_NOISE: Final = (
    Key("noise", _flag, "whether it is noisy"),
    Key("drift", _number, "how far error rates wander: standard deviation of their logarithm; 0: not at all"),
    Key("drift_time", _positive, "how long that takes them", _show_length),
    Key("seed", _integer, "chooses how it drifts, and with kind generic error rates and durations"),
)
_SPEC_SNAPSHOT: Final = (Key("snapshot", _text, "a backend of qiskit-ibm-runtime, such as FakeSherbrooke"),)
_SPEC_PLUGIN: Final = (Key("options", _options, "the plugin's own settings"),)
_SPEC_GENERIC: Final = (
    Key("coupling", _coupling, "coupling map: " + ", ".join(COUPLINGS) + ", or pairs of qubits"),
    Key("basis_gates", _text_list, "gates that it has, by Qiskit's names"),
)
_SPEC_OF_KIND: Final = {
    "aer": (*_SPEC_QUBITS, *_SPEC, *_SPEC_SIMULATOR),
    "generic": (*_SPEC_QUBITS, *_SPEC, *_SPEC_SIMULATOR, *_SPEC_GENERIC, *_SPEC_NOISE),
    "snapshot": (*_SPEC_SNAPSHOT, *_SPEC, *_SPEC_SIMULATOR, *_SPEC_NOISE),
}
_SPEC_OF_PLUGINS: Final = (*_SPEC_QUBITS, *_SPEC, *_SPEC_PLUGIN)
_TABLES: Final = ("server", "tokens", "tls", "devices", "shares", "limits", "logging")


# --- reading --------------------------------------------------------------------------------------------------------


class _Reader:
    """Reads tables and collects what is wrong with them, so that one run names every mistake."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def table(self, value: object, place: str, keys: tuple[Key, ...], also: tuple[str, ...] = ()) -> dict[str, Any]:
        """The values of a table by key. `also`: keys that somebody else reads."""
        if not isinstance(value, dict):
            self.problems.append(f"{place} is no table: write it as {place}")
            return {}
        known = {key.name: key for key in keys}
        found = {}
        for name, raw in value.items():
            if name in also:
                continue
            if name not in known:
                allowed = [*also, *known]
                self.problems.append(
                    f"{place}: there is no key {name!r}{_hint(name, allowed)}; allowed are {', '.join(allowed)}"
                )
                continue
            try:
                found[name] = known[name].parse(raw)
            except ValueError as error:
                self.problems.append(f"{place} {name}: {error}")
        return found

    def required(self, place: str, found: Mapping[str, Any], raw: object, *names: str) -> bool:
        """Whether the table has good values for all `names`."""
        for name in names:
            if isinstance(raw, dict) and name not in raw:
                self.problems.append(f"{place}: the key {name!r} is missing")
        return all(name in found for name in names)

    def device(self, name: str, value: object) -> DeviceConfig | None:
        """One `[devices.NAME]`."""
        place = f"[devices.{_show_key(name)}]"
        if not _DEVICE_NAME.fullmatch(name):
            self.problems.append(f"{place}: a device's name has 1 to 64 letters, digits and '. _ -'")
        before = len(self.problems)
        kind = value.get("kind", "aer") if isinstance(value, dict) else "aer"
        profile = value.get("profile", PROFILE_DEFAULT) if isinstance(value, dict) else PROFILE_DEFAULT
        kinds = KINDS if kind in KINDS else (*KINDS, *sorted(find_kinds()))
        for key, word, allowed in (("kind", kind, kinds), ("profile", profile, tuple(PROFILES))):
            try:
                _one_of(*allowed)(word)
            except ValueError as error:
                self.problems.append(f"{place} {key}: {error}")
        spec_keys = _spec_keys(str(kind))
        if isinstance(value, dict):
            value = self._without_foreign(place, value, {key.name for key in spec_keys})
        found = self.table(value, place, (*_SETTINGS, *spec_keys), also=("kind", "profile"))
        if len(self.problems) > before:
            return None
        options = {key.name: found.pop(key.name) for key in spec_keys if key.name in found}
        if "drift_time" in options:
            options["drift_time_ns"] = options.pop("drift_time")
        try:
            if kind == "snapshot":
                options["num_qubits"] = find_snapshot(options.get("snapshot", "")).num_qubits
            settings = dataclasses.replace(PROFILES[profile], **found)
            return DeviceConfig(profile=profile, settings=settings, spec=DeviceSpec(kind=kind, **options))
        except ValueError as error:
            self.problems.append(f"{place}: {error}")
            return None

    def _without_foreign(self, place: str, table: dict[str, Any], own: set[str]) -> dict[str, Any]:
        """The table without the keys that only devices of other kinds have; they are problems."""
        kinds = {**_SPEC_OF_KIND, "a plugin": _SPEC_OF_PLUGINS}
        foreign = {key.name for keys in kinds.values() for key in keys} - own
        for name in [name for name in table if name in foreign]:
            having = [f'"{kind}"' for kind, keys in kinds.items() if any(key.name == name for key in keys)]
            words = " or ".join(having).replace('"a plugin"', "a plugin")
            self.problems.append(f"{place} {name}: only a device of kind {words} has it")
        return {name: raw for name, raw in table.items() if name not in foreign}

    def token(self, index: int, value: object) -> TokenEntry | None:
        """One `[[tokens]]`."""
        place = f"[[tokens]] number {index + 1}"
        found = self.table(value, place, _TOKEN)
        if not self.required(place, found, value, "path", "hash"):
            return None
        return TokenEntry(
            path=found["path"],
            operator=found.get("role") == "operator",
            hash=found["hash"],
            name=found.get("name", ""),
        )

    def tls(self, value: object, folder: Path) -> Tls | None:
        """`[tls]`."""
        found = self.table(value, "[tls]", _TLS)
        if not self.required("[tls]", found, value, "certificate", "key"):
            return None
        paths = {name: _locate(folder, path) for name, path in found.items()}
        return Tls(certificate=paths["certificate"], key=paths["key"], client_ca=paths.get("client_ca"))


def _spec_keys(kind: str) -> tuple[Key, ...]:
    """What a device of this kind may be told of its executor."""
    return _SPEC_OF_KIND.get(kind, _SPEC_OF_PLUGINS)


def _spec_values(spec: DeviceSpec) -> dict[str, object]:
    """What it is told, by key."""
    return {key.name: getattr(spec, _SPEC_NAMES.get(key.name, key.name)) for key in _spec_keys(spec.kind)}


_SPEC_NAMES: Final = {"drift_time": "drift_time_ns"}
_SPEC_DEFAULTS: Final = {
    next((key for key, name in _SPEC_NAMES.items() if name == each.name), each.name): each.default
    for each in dataclasses.fields(DeviceSpec)
}


def _locate(folder: Path, path: str) -> Path:
    return (folder / Path(path).expanduser()).absolute()


def default_devices() -> dict[str, DeviceConfig]:
    """What a server has that is told of no devices: one without noise, one with."""
    settings = PROFILES[PROFILE_DEFAULT]
    return {
        "aer": DeviceConfig(profile=PROFILE_DEFAULT, settings=settings, spec=DeviceSpec(kind="aer")),
        "aer_noisy": DeviceConfig(profile=PROFILE_DEFAULT, settings=settings, spec=DeviceSpec(kind="generic")),
    }


def parse_config(text: str, folder: Path, source: str | None = None) -> Config:
    """The configuration that `text` (TOML) says. Relative paths begin at `folder`. Raises `ConfigError`."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([f"this is not TOML: {error}"], source) from None
    except RecursionError:
        raise ConfigError(["this is no configuration: lists or tables are nested too deep"], source) from None
    read = _Reader()
    top = read.table(raw, "at the top", _TOP, also=_TABLES)
    server = read.table(raw.get("server", {}), "[server]", _SERVER)
    limits = read.table(raw.get("limits", {}), "[limits]", _LIMITS)
    logging = read.table(raw.get("logging", {}), "[logging]", _LOGGING)
    tls = read.tls(raw["tls"], folder) if "tls" in raw else None

    entries = raw.get("tokens", [])
    if not isinstance(entries, list):
        read.problems.append("[[tokens]] is no list of tables: write each token under its own [[tokens]]")
        entries = []
    tokens = [read.token(index, entry) for index, entry in enumerate(entries)]
    hashes = [token.hash for token in tokens if token]
    if len(set(hashes)) < len(hashes):
        read.problems.append("[[tokens]]: two entries have the same hash; make a token for each")
    users = {token.path for token in tokens if token}
    for path in sorted(users):
        read.problems += [
            f"[[tokens]]: {above!r} cannot be a user, as {path!r} is below it: give it a path of its own"
            for above in ancestors(path)
            if above in users
        ]
    if tokens and "operators" in server:
        read.problems.append('[server] operators: it counts without tokens only; give tokens role = "operator"')

    devices = default_devices()
    if "devices" in raw:
        tables = raw["devices"]
        if not isinstance(tables, dict) or not tables:
            read.problems.append("[devices] has no devices: write [devices.NAME]; without [devices] there are two")
            tables = {}
        built = {name: read.device(name, table) for name, table in tables.items()}
        devices = {name: device for name, device in sorted(built.items()) if device}

    shares = _read_shares(raw.get("shares", {}), read)
    if read.problems:
        raise ConfigError(read.problems, source)
    data_dir = server.get("data_dir")
    return Config(
        listen=server.get("listen", parse_address(LISTEN_DEFAULT)),
        data_dir=_locate(folder, data_dir) if data_dir is not None else default_data_dir(),
        operators=() if tokens else server.get("operators", (default_user(),)),
        insecure=server.get("insecure", False),
        metrics=server.get("metrics"),
        stop_grace=server.get("stop_grace", STOP_GRACE_DEFAULT),
        devices=MappingProxyType(devices),
        half_life=top.get("half_life", HALF_LIFE_DEFAULT),
        shares=MappingProxyType(shares),
        tokens=tuple(token for token in tokens if token),
        tls=tls,
        limits=Limits(**limits),
        logging=Logging(**logging),
    )


def _read_shares(table: object, read: _Reader) -> dict[str, float]:
    shares: dict[str, float] = {}
    if not isinstance(table, dict):
        read.problems.append('[shares] is no table: write lines such as "lab/alice" = 2')
        return shares
    for path, weight in table.items():
        try:
            shares[check_path(path)] = _weight(weight)
        except ValueError as error:
            read.problems.append(f"[shares] {_show_key(path)}: {error}")
    return shares


def check_logging(logging: Logging, form: str | None, level: str | None) -> Logging:
    """`logging` with what the command line says in its place. Raises `ConfigError`."""
    read = _Reader()
    given = {name: value for name, value in (("format", form), ("level", level)) if value is not None}
    changed = read.table(given, "--log", _LOGGING)
    if read.problems:
        raise ConfigError([problem.replace("--log ", "--log-", 1) for problem in read.problems])
    return dataclasses.replace(logging, **changed)


def default_data_dir() -> Path:
    """The user's folder for data of programs, by the custom of the operating system."""
    return Path(platformdirs.user_data_dir("cadenza", appauthor=False))


def load_config(path: Path | None) -> Config:
    """The configuration in the file `path`; None: the defaults. Raises `ConfigError`."""
    if path is None:
        return parse_config("", Path.cwd())
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"cannot be read: {getattr(error, 'strerror', None) or error}"], str(path)) from None
    return parse_config(text, path.absolute().parent, str(path))


def check_exposure(config: Config) -> None:
    """Refuse to be reachable by people whom the server cannot tell apart. Raises `ConfigError`."""
    if config.listen.is_loopback:
        return
    if not config.tokens:
        raise ConfigError(
            [
                f"without [[tokens]] names are trusted, so the server listens on loopback only, not on "
                f"{config.listen}: make tokens with `cadenza token --user lab/alice` and put what it prints into the "
                "configuration, or listen on 127.0.0.1"
            ]
        )
    if config.tls is None and not config.insecure:
        raise ConfigError(
            [
                f"without [tls] tokens would cross the network to {config.listen} readable by all: add [tls] with "
                "certificate and key, or, behind a proxy that does TLS, set [server] insecure = true"
            ]
        )


# --- printing -------------------------------------------------------------------------------------------------------


_HEAD: Final = """\
# The effective configuration of a Cadenza server: cadenza serve --config FILE
#
# What is commented out holds all the same: it is a default, or what a device's profile gives. To change such a line,
# remove its first #. A device whose `profile` is changed gets what the other profile gives, in all lines that are
# commented out.
"""


def print_config(config: Config) -> str:
    """The configuration as TOML with comments; it loads again to the same `Config`.

    Defaults, and what profiles give, are commented out: set, they would stand against another profile or version.
    """
    lines = [*_HEAD.splitlines(), ""]
    lines += _print_keys(_TOP, {"half_life": config.half_life}, {"half_life": HALF_LIFE_DEFAULT})
    server: dict[str, object] = {
        "listen": config.listen,
        "data_dir": config.data_dir,
        "insecure": config.insecure,
        "stop_grace": config.stop_grace,
    }
    usual: dict[str, object] = {
        "listen": parse_address(LISTEN_DEFAULT),
        "data_dir": default_data_dir(),
        "insecure": False,
        "stop_grace": STOP_GRACE_DEFAULT,
        "operators": (default_user(),),
    }
    if not config.tokens:
        server["operators"] = config.operators
    if config.metrics is not None:
        server["metrics"] = config.metrics
    lines += _print_table("[server]", _SERVER, server, usual)
    if config.metrics is None:
        example = parse_metrics_address(METRICS_EXAMPLE)
        lines += ["# Without metrics there are none. For example:"]
        lines += _print_keys(_SERVER, {"metrics": example}, {"metrics": example})
    for token in config.tokens:
        lines += ["", *print_token(token)]
    if not config.tokens:
        lines += ["", "# Without [[tokens]] the name that a call gives is trusted. `cadenza token` makes one."]
    if config.tls:
        files = {key.name: getattr(config.tls, key.name) for key in _TLS}
        lines += _print_table("[tls]", _TLS, {name: path for name, path in files.items() if path is not None})
    else:
        examples = {"certificate": "server.pem", "key": "server.key", "client_ca": "clients.pem"}
        lines += ["", "# Without [tls] nothing is encrypted.", *_comment(_print_table("[tls]", _TLS, examples)[1:])]
    for name, device in config.devices.items():
        lines += ["", f"[devices.{_show_key(name)}]"]
        lines += _align([(f"kind = {_show(device.spec.kind)}", ", ".join(KINDS) + ", or a plugin's")])
        lines += _align([(f"profile = {_show(device.profile)}", "gives what is not set: " + ", ".join(PROFILES))])
        given = PROFILES[device.profile]
        lines += _print_keys(
            _SETTINGS,
            {key.name: getattr(device.settings, key.name) for key in _SETTINGS},
            {key.name: getattr(given, key.name) for key in _SETTINGS},
        )
        lines += _print_keys(_spec_keys(device.spec.kind), _spec_values(device.spec), _SPEC_DEFAULTS)
    lines += ["", "[shares]", "# Weights in the share tree; a path that is not named has 1."]
    lines += [f"{_show_key(path)} = {_show(weight)}" for path, weight in config.shares.items()]
    for place, keys, part, default in (
        ("[limits]", _LIMITS, config.limits, Limits()),
        ("[logging]", _LOGGING, config.logging, Logging()),
    ):
        values, usual = ({key.name: getattr(each, key.name) for key in keys} for each in (part, default))
        lines += _print_table(place, keys, values, usual)
    return "\n".join(lines) + "\n"


def print_token(token: TokenEntry) -> list[str]:
    """The lines of one `[[tokens]]`."""
    role = "operator" if token.operator else "user"
    values: dict[str, object] = {"name": token.name, "path": token.path, "role": role, "hash": token.hash}
    return ["[[tokens]]", *_print_keys(_TOKEN, values)]


def _print_table(
    place: str, keys: tuple[Key, ...], values: Mapping[str, object], usual: Mapping[str, object] | None = None
) -> list[str]:
    return ["", place, *_print_keys(keys, values, usual)]


def _print_keys(
    keys: tuple[Key, ...], values: Mapping[str, object], usual: Mapping[str, object] | None = None
) -> list[str]:
    """One line a key that has a value; a value that is the usual one is commented out."""
    found = []
    for key in keys:
        if key.name in values:
            value = values[key.name]
            mark = "# " if usual is not None and key.name in usual and usual[key.name] == value else ""
            found.append((f"{mark}{key.name} = {key.show(value)}", key.note))
    return _align(found)


def _comment(lines: list[str]) -> list[str]:
    return [f"# {line}" for line in lines]


def _align(pairs: list[tuple[str, str]]) -> list[str]:
    return [f"{setting:<40} # {note}" for setting, note in pairs]

"""The configuration: strict, complete, and its print loads again."""

import dataclasses
import re
import tomllib
from pathlib import Path

import pytest
from cadenza_server.config import (
    Address,
    Config,
    ConfigError,
    Limits,
    check_exposure,
    default_user,
    load_config,
    parse_address,
    parse_config,
    print_config,
)
from cadenza_server.model.paths import check_path
from cadenza_server.model.settings import RUNTIME_2023, RUNTIME_2024, SECOND
from cadenza_server.model.words import Pending
from cadenza_server.tokens import TokenBook, TokenEntry, hash_token, make_token

HASH = hash_token("cdz_secret")

EVERYTHING = f"""
half_life = "2d"
[server]
listen = "0.0.0.0:7000"
data_dir = "data"
stop_grace = 40
metrics = 9464
[[tokens]]
name = "ann's laptop"
path = "lab/ann"
role = "operator"
hash = "{HASH}"
[[tokens]]
path = "lab/bob"
hash = "{hash_token("other")}"
[tls]
certificate = "server.pem"
key = "/etc/key.pem"
client_ca = "ca.pem"
[devices."my.qpu"]
kind = "generic"
profile = "runtime-2024"
num_qubits = 3
coupling = [[0, 1], [1, 2]]
basis_gates = ["cz", "rz", "sx"]
max_time = "2h 30m"
limit = 90
default_estimate = 0.25
interactive_ttl_batch = 0
calibration_interval = "6h"
on_close = "FAIL_QUEUED"
[shares]
lab = 2
"lab/ann" = 0.5
[limits]
message_bytes_max = 1000000
queued_jobs_per_user_max = 7
result_age_max = "90d"
result_bytes_max = 10000000000
[logging]
format = "json"
level = "debug"
"""


def parse(text: str) -> Config:
    return parse_config(text, Path("/etc/cadenza"))


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    return caught.value.problems


def test_every_setting_is_read() -> None:
    config = parse(EVERYTHING)
    assert config.listen == Address("0.0.0.0", 7000)
    assert config.data_dir == Path("/etc/cadenza/data")
    assert config.half_life == 2 * 86_400 * SECOND
    assert config.operators == ()
    assert config.tokens[0] == TokenEntry(path="lab/ann", operator=True, hash=HASH, name="ann's laptop")
    assert not config.tokens[1].operator
    assert config.tls is not None
    assert config.tls.key == Path("/etc/key.pem")
    assert config.tls.client_ca == Path("/etc/cadenza/ca.pem")
    device = config.devices["my.qpu"]
    assert device.spec.coupling == ((0, 1), (1, 2))
    assert device.spec.num_qubits == 3
    assert device.settings.max_time == 9_000 * SECOND
    assert device.settings.limit == 90 * SECOND
    assert device.settings.default_estimate == SECOND // 4
    assert device.settings.interactive_ttl_batch == 0
    assert device.settings.calibration_interval == 6 * 3_600 * SECOND
    assert device.settings.on_close is Pending.FAIL_QUEUED
    assert device.settings.on_expiry is RUNTIME_2024.on_expiry
    assert dict(config.shares) == {"lab": 2.0, "lab/ann": 0.5}
    assert config.limits.message_bytes_max == 1_000_000
    assert config.limits.queued_jobs_per_user_max == 7
    assert config.limits.result_age_max == 90 * 86_400 * SECOND
    assert config.limits.result_bytes_max == 10_000_000_000
    assert config.limits.result_age_min == 7 * 86_400 * SECOND
    assert config.stop_grace == 40 * SECOND
    assert config.metrics == Address("127.0.0.1", 9464)
    assert config.logging.format == "json"


def test_without_a_file_there_are_two_devices_on_loopback() -> None:
    config = load_config(None)
    assert list(config.devices) == ["aer", "aer_noisy"]
    assert config.devices["aer"].settings == RUNTIME_2023
    assert config.devices["aer_noisy"].spec.num_qubits == 27
    assert config.listen == Address("127.0.0.1", 50051)
    assert config.operators == (default_user(),)
    check_exposure(config)


@pytest.mark.parametrize(
    "text", ["", EVERYTHING, '[server]\noperators = []\n[devices.a]\ncalibration_interval="never"\n']
)
def test_what_is_printed_loads_again_to_the_same(text: str) -> None:
    config = parse(text)
    printed = print_config(config)
    assert parse_config(printed, Path("/elsewhere")) == config
    assert "# " in printed


def test_a_printed_copy_follows_its_profile_and_its_defaults() -> None:
    printed = print_config(parse("[devices.q]\nmax_time = '1h'\n[limits]\njobs_per_call_max = 7\n"))
    assert "\nmax_time = " in printed
    assert "\n# unused_ttl = " in printed
    changed = parse(printed.replace('profile = "runtime-2023"', 'profile = "runtime-2024"'))
    settings = changed.devices["q"].settings
    assert settings == dataclasses.replace(RUNTIME_2024, max_time=3600 * SECOND)
    assert changed.limits == dataclasses.replace(Limits(), jobs_per_call_max=7)
    every_line = re.sub(r"(?m)^# (?=[a-z_]+ = )", "", printed.partition("[devices.q]")[2])
    table = tomllib.loads("[devices.q]" + every_line)
    assert table["devices"]["q"]["on_close"] == "FAIL_QUEUED"
    assert parse("[devices.q]" + every_line).devices["q"] == parse(printed).devices["q"]


def test_what_is_printed_takes_the_tokens_that_are_pasted_below_it() -> None:
    token = f"[[tokens]]\npath = 'lab/ada'\nhash = '{HASH}'\n"
    config = parse_config(print_config(load_config(None)) + token, Path("/elsewhere"))
    assert [entry.path for entry in config.tokens] == ["lab/ada"]
    assert config.operators == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lissten = 1", "at the top: there is no key 'lissten'"),
        ("[server]\nlissten = 1", "[server]: there is no key 'lissten' (did you mean 'listen'?); allowed are listen,"),
        ("[server]\nlisten = 'nowhere'", "[server] listen: 'nowhere' is no address: write HOST:PORT"),
        ("[server]\nlisten = 'h:99999'", "[server] listen:"),
        ("[server]\noperators = 'ann'", "[server] operators: 'ann' is no list"),
        ("[server]\noperators = ['a b']", "[server] operators: 'a b' is not a path"),
        ("[server]\ninsecure = 1", "[server] insecure: 1 is neither true nor false"),
        ("server = 1", "[server] is no table"),
        (
            "[devices.q]\nkind = 'aerr'",
            "[devices.q] kind: 'aerr' is not one of aer, generic, snapshot (did you mean 'aer'?)",
        ),
        ("[devices.q]\nprofile = 'runtime-2025'", "[devices.q] profile: 'runtime-2025' is not one of runtime-2023"),
        ("[devices.q]\nmax_tme = 1", "[devices.q]: there is no key 'max_tme' (did you mean 'max_time'?)"),
        ("[devices.q]\nmax_time = 0", "[devices.q] max_time: 0 is not positive"),
        ("[devices.q]\nmax_time = -1", "[devices.q] max_time: -1 is out of range"),
        ("[devices.q]\nmax_time = '5 lightyears'", "[devices.q] max_time: '5 lightyears' is no length of time"),
        ("[devices.q]\nmax_time = inf", "[devices.q] max_time: inf is no length of time"),
        ("[devices.q]\nmax_time = true", "[devices.q] max_time: True is no length of time"),
        ("[devices.q]\nmax_attempts = 0", "[devices.q] max_attempts: 0 is no whole number of at least 1"),
        ("[devices.q]\non_close = 'drain'", "[devices.q] on_close: 'drain' is not one of DRAIN, FAIL_QUEUED"),
        ("[devices.q]\nseed = 1", '[devices.q] seed: only a device of kind "generic" or "snapshot" has it'),
        ("[devices.q]\nnum_qubits = 0", "[devices.q]: num_qubits is 0: it must be an integer from 1"),
        ("[devices.q]\nkind='generic'\nnum_qubits = 5", "[devices.q]: coupling 'heavy-hex' is a map of 27 qubits"),
        ("[devices.q]\nkind='generic'\ncoupling = [[0]]", "[devices.q] coupling: [0] is no pair of qubits"),
        ("[devices.'a b']", '[devices."a b"]: a device\'s name has'),
        ("devices = {}", "[devices] has no devices"),
        ("[[tokens]]\npath = 'a'", "[[tokens]] number 1: the key 'hash' is missing"),
        ("[[tokens]]\npath = 'a'\nhash = 'abc'", "[[tokens]] number 1 hash: is no hash of a token"),
        (f"[[tokens]]\npath = 'a'\nrole='root'\nhash = '{HASH}'", "[[tokens]] number 1 role: 'root' is not one of"),
        (f"[[tokens]]\npath='a'\nhash='{HASH}'\n[[tokens]]\npath='b'\nhash='{HASH}'", "[[tokens]]: two entries have"),
        (
            f"[[tokens]]\npath='lab/a'\nhash='{HASH}'\n[[tokens]]\npath='lab'\nhash='{HASH[:-1]}0'",
            "[[tokens]]: 'lab' cannot be a user, as 'lab/a' is below it",
        ),
        (f"[server]\noperators=['a']\n[[tokens]]\npath='a'\nhash='{HASH}'", "[server] operators: it counts without"),
        ("[tls]\nkey = 'k'", "[tls]: the key 'certificate' is missing"),
        ("[shares]\n'a//b' = 1", "'a//b' is not a path"),
        ("[shares]\na = 0", "[shares] a: 0 is no weight"),
        ("[shares]\na = nan", "[shares] a: nan is no weight"),
        ("[shares]\na = 5e-324", "[shares] a: 5e-324 is no weight: write a number from 1e-09 to 1e+09"),
        ("[limits]\nqueued_jobs_max = 0", "[limits] queued_jobs_max: 0 is no whole number of at least 1"),
        ("[limits]\nresult_bytes_max = 0", "[limits] result_bytes_max: 0 is no number of bytes"),
        ("[limits]\nresult_age_max = 0", "[limits] result_age_max: 0 is not positive"),
        ("[server]\nmetrics = 'x'", "[server] metrics: '127.0.0.1:x' is no address"),
        ("[limits]\nmessage_bytes_max = 0", "[limits] message_bytes_max: 0 is no whole number"),
        ("[limits]\nmessage_bytes_max = 1", "[limits] message_bytes_max: 1 is out of range: 4096 to 1073741823"),
        ("[limits]\nmessage_bytes_max = 1073741824", "[limits] message_bytes_max: 1073741824 is out of range"),
        ("[devices.q]\nmax_attempts = 2147483648", "at most 2147483647"),
        ("[logging]\nlevel = 'loud'", "[logging] level: 'loud' is not one of debug, info, warning, error"),
        ("half_life = 0", "at the top half_life: 0 is not positive"),
        ("x = ", "this is not TOML"),
        ("x = " + "[" * 5_000, "nested too deep"),
    ],
)
def test_a_mistake_is_named_with_its_place_and_what_is_allowed(text: str, expected: str) -> None:
    assert any(expected in problem for problem in problems(text)), problems(text)


def test_all_mistakes_are_named_at_once() -> None:
    assert len(problems("[server]\na = 1\n[limits]\nb = 1\n[devices.q]\nc = 1")) == 3


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: cannot be read: No such file"):
        load_config(tmp_path / "none.toml")


def test_relative_paths_begin_at_the_file(tmp_path: Path) -> None:
    file = tmp_path / "cadenza.toml"
    file.write_text("[server]\ndata_dir = 'jobs'\n")
    assert load_config(file).data_dir == tmp_path / "jobs"


@pytest.mark.parametrize(
    ("text", "loopback"),
    [("127.0.0.1:1", True), ("localhost:1", True), ("[::1]:1", True), ("0.0.0.0:1", False), ("example.org:1", False)],
)
def test_loopback_is_told_from_the_network(text: str, loopback: bool) -> None:
    address = parse_address(text)
    assert address.is_loopback is loopback
    assert str(address) == text


def test_without_tokens_only_loopback_is_listened_on() -> None:
    with pytest.raises(ConfigError, match=r"loopback only.*cadenza token"):
        check_exposure(parse("[server]\nlisten = '0.0.0.0:1'"))


def test_tokens_without_tls_beyond_loopback_need_a_clear_word() -> None:
    tokens = f"[[tokens]]\npath = 'a'\nhash = '{HASH}'"
    with pytest.raises(ConfigError, match=r"add \[tls\].*insecure = true"):
        check_exposure(parse(f"[server]\nlisten = '0.0.0.0:1'\n{tokens}"))
    check_exposure(parse(f"[server]\nlisten = '0.0.0.0:1'\ninsecure = true\n{tokens}"))
    check_exposure(parse(EVERYTHING))


def test_any_login_becomes_a_path() -> None:
    assert default_user("DOMAIN\\ann lee") == "DOMAIN_ann_lee"
    assert check_path(default_user("ä" * 100))


def test_a_token_is_found_by_its_hash_alone() -> None:
    token = make_token(lambda count: bytes(range(count)))
    book = TokenBook([TokenEntry(path="lab/ann", operator=True, hash=hash_token(token))])
    found = book.find(token)
    assert found is not None
    assert (found.path, found.operator) == ("lab/ann", True)
    assert book.find(token[:-1]) is None
    assert book.find("") is None
    assert token not in repr(vars(book))


def test_a_token_from_too_little_randomness_is_not_made() -> None:
    with pytest.raises(ValueError, match="16 random bytes"):
        make_token(lambda count: b"1234")

"""The settings of the law: its own table says the profiles, a device overrides each, a session two of them."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from cadenza_server.config import parse_config
from cadenza_server.model.commands import Caller, CreateSession
from cadenza_server.model.settings import PROFILES, RUNTIME_2023, RUNTIME_2024, SECOND, DeviceSettings
from cadenza_server.model.words import CalibrationRule, FirstJob, OnExpiry, Pending, SessionMode
from cadenza_server.scheduling import Scheduler
from cadenza_server.simulation import parse_scenario

LAW = Path(__file__).parents[2] / "server" / "cadenza_server" / "docs" / "semantics.md"
SETTINGS = [each.name for each in fields(DeviceSettings)]
WORDS: dict[str, Any] = {
    "on_close": Pending,
    "on_expiry": OnExpiry,
    "first_job": FirstJob,
    "calibration": CalibrationRule,
}


def value_of(name: str, text: str) -> Any:
    """What the law's table means."""
    if name in WORDS:
        return WORDS[name](text)
    if text == "none":
        return None
    number, _, unit = text.partition(" ")
    return int(number) * SECOND if unit == "s" else int(number)


def profiles_of_the_law() -> dict[str, dict[str, Any]]:
    section = LAW.read_text(encoding="utf-8").split("### 5.7 Profiles\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    profiles = [cell.split("`")[1] for cell in rows[0][1:]]
    found: dict[str, dict[str, Any]] = {profile: {} for profile in profiles}
    for cell, *values in rows[2:]:
        name = cell.split("`")[1]
        if name == "interactive_ttl":
            name = f"{name}_{cell.rpartition(' ')[2]}"
        for profile, text in zip(profiles, values, strict=True):
            found[profile][name] = value_of(name, text)
    return found


def test_profiles_are_those_of_the_laws_table() -> None:
    assert {profile: DeviceSettings(**values) for profile, values in profiles_of_the_law().items()} == PROFILES


def another(name: str) -> tuple[str, Any]:
    """A value that neither profile has, or for a word the other one: as it is written, and what it means."""
    if name in WORDS:
        word = next(each for each in WORDS[name] if each is not getattr(RUNTIME_2023, name))
        return word, word
    return ("7", 7) if name == "max_attempts" else ("77", 77 * SECOND)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", SETTINGS)
def test_a_device_overrides_any_setting_of_its_profile(name: str, profile: str) -> None:
    text, value = another(name)
    expected = replace(PROFILES[profile], **{name: value})
    quoted = f'"{text}"' if name in WORDS else text
    config = parse_config(f'[devices.q]\nprofile = "{profile}"\n{name} = {quoted}\n', Path("/"))
    assert config.devices["q"].settings == expected
    scenario = parse_scenario(
        f"name: x\ndevices: {{q: {{profile: {profile}, {name}: {text}}}, other: {{profile: {profile}}}}}\nevents: []\n"
        "until: 1\n"
    )
    assert scenario.devices == {"q": expected, "other": PROFILES[profile]}


@pytest.mark.parametrize("settings", [RUNTIME_2023, RUNTIME_2024])
@pytest.mark.parametrize("mode", SessionMode)
def test_a_session_may_ask_for_less_than_its_device_gives_and_gets_no_more(
    mode: SessionMode, settings: DeviceSettings
) -> None:
    ttl = settings.interactive_ttl_batch if mode is SessionMode.BATCH else settings.interactive_ttl_dedicated
    for asked_time, asked_ttl, max_time, interactive_ttl in (
        (None, None, settings.max_time, ttl),
        (5 * SECOND, None, 5 * SECOND, ttl),
        (settings.max_time + 1, None, settings.max_time, ttl),
        (None, ttl // 2, settings.max_time, ttl // 2),
        (None, 0, settings.max_time, 0),
        (None, ttl + 1, settings.max_time, ttl),
    ):
        scheduler = Scheduler({"q": settings})
        create = CreateSession(
            session="s", caller=Caller("ann"), device="q", mode=mode, max_time=asked_time, interactive_ttl=asked_ttl
        )
        scheduler.apply([create], 0)
        view = scheduler.session_view("s")
        assert view is not None
        assert (view.max_time, view.interactive_ttl) == (max_time, interactive_ttl)

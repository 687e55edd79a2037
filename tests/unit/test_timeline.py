import re
from colorsys import rgb_to_hsv
from io import StringIO
from pathlib import Path

import pytest
from cadenza_server.simulation import run_files
from cadenza_server.timeline import CALIBRATION, HELD, KEY_MAX, SHADES, Bar, Shade, draw_timeline, pick_colour


@pytest.mark.parametrize(("suffix", "magic"), [("svg", b"<?xml"), ("png", b"\x89PNG")])
def test_the_suffix_says_what_kind_of_picture_is_written(tmp_path: Path, suffix: str, magic: bytes) -> None:
    picture = tmp_path / f"timeline.{suffix}"
    draw_timeline(
        picture,
        title="Who had it",
        rows=["ada", "bob"],
        bars=[Bar("ada", 0, 1, "session job"), Bar("bob", 1, 1.001, "fair-share job")],
        shades=[Shade(0, 1, "hold"), Shade(1, 2, "window", row="bob")],
    )
    assert picture.read_bytes().startswith(magic)


def test_a_picture_of_nothing_has_its_rows(tmp_path: Path) -> None:
    picture = tmp_path / "empty.svg"
    draw_timeline(picture, title="Nobody came", rows=["ada"], bars=[])
    assert "Nobody came" in picture.read_text()


def test_a_suffix_that_is_no_picture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="txt"):
        draw_timeline(tmp_path / "timeline.txt", title="", rows=["ada"], bars=[])


def texts(picture: Path) -> list[str]:
    """What is written in an SVG, in order: matplotlib names each text in a comment."""
    return re.findall(r"<!-- (.*?) -->", picture.read_text())


def test_no_bar_takes_the_colour_of_a_calibration_or_of_a_hold_or_one_like_it() -> None:
    picked = [pick_colour(i) for i in range(1_000)]
    assert len(set(picked[:100])) == 100
    for each in picked:
        hue, saturation, _ = rgb_to_hsv(*(int(each[at : at + 2], 16) / 255 for at in (1, 3, 5)))
        assert 0.05 < hue < 0.93, each
        assert saturation > 0.3, each
    assert not {CALIBRATION, HELD, *SHADES}.intersection(picked)


@pytest.mark.parametrize(
    ("end", "unit", "ticks"),
    [
        (90, "seconds", ["0", "10", "20", "30"]),
        (5_400, "minutes", ["0", "10", "20"]),
        (100_000, "hours", ["0", "3", "6"]),
        (604_800, "days", ["0", "1", "2", "3", "4", "5", "6", "7"]),
    ],
)
def test_the_time_axis_has_a_unit_that_people_read(tmp_path: Path, end: float, unit: str, ticks: list[str]) -> None:
    picture = tmp_path / "timeline.svg"
    draw_timeline(picture, title="", rows=["qpu"], bars=[Bar("qpu", 0, end, "ada")])
    found = texts(picture)
    assert unit in found
    assert found[: len(ticks)] == ticks


def test_the_key_begins_with_what_is_always_the_same_and_goes_on_in_the_order_of_names(tmp_path: Path) -> None:
    picture = tmp_path / "timeline.svg"
    users = ["light-10", "light-2", "ada"]
    draw_timeline(
        picture,
        title="",
        rows=["qpu"],
        bars=[Bar("qpu", i, i + 1, user) for i, user in enumerate([*users, "calibration"])],
        shades=[Shade(3, 4, "reserved for b"), Shade(4, 5, "held"), Shade(5, 6, "reserved for a")],
        colours={"calibration": CALIBRATION, "held": HELD, "not seen": "#000000"},
    )
    key = ["calibration", "held", "reserved for a", "reserved for b", "ada", "light-2", "light-10"]
    assert texts(picture)[-len(key) :] == key


def test_of_too_many_users_those_with_most_time_are_named(tmp_path: Path) -> None:
    picture = tmp_path / "timeline.svg"
    bars = [Bar("qpu", 10 * i, 10 * i + 1 + i / 50, f"user-{i}") for i in range(30)]
    draw_timeline(picture, title="", rows=["qpu"], bars=bars)
    assert texts(picture)[-KEY_MAX - 1 :] == [f"user-{i}" for i in range(6, 30)] + ["and 6 more"]


@pytest.mark.parametrize("name", ["idle-clock-pauses-during-calibration", "calibration-runs-between-session-jobs"])
def test_every_picture_of_a_simulation_has_calibrations_and_holds_in_the_same_colours(
    name: str, tmp_path: Path
) -> None:
    picture = tmp_path / "timeline.svg"
    scenario = Path(__file__).parents[1] / "scenarios" / f"{name}.yaml"
    assert run_files([scenario], True, StringIO(), plot=picture) == 0
    found = texts(picture)
    assert "calibration run" in found
    assert "held idle" in found
    assert f"fill: {CALIBRATION}" in picture.read_text()
    assert f"fill: {HELD}" in picture.read_text()


@pytest.mark.parametrize("suffix", ["svg", "png", "pdf"])
def test_the_same_runs_are_the_same_file(suffix: str, tmp_path: Path) -> None:
    pictures = [tmp_path / f"{name}.{suffix}" for name in ("one", "two")]
    for picture in pictures:
        draw_timeline(picture, title="t", rows=["qpu"], bars=[Bar("qpu", 0, 1, "ada"), Bar("qpu", 1, 2, "bob")])
    assert pictures[0].read_bytes() == pictures[1].read_bytes()

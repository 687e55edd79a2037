from pathlib import Path

import pytest
from cadenza_server.timeline import Bar, Shade, draw_timeline


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

"""Lengths of time as people write them."""

import pytest
from cadenza_server.durations import format_duration, parse_duration
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("value", "length"),
    [
        (0, 0),
        (90, 90_000_000_000),
        (0.1, 100_000_000),
        ("90", 90_000_000_000),
        ("1.5h", 5_400_000_000_000),
        ("2h 30m", 9_000_000_000_000),
        ("2h30m", 9_000_000_000_000),
        (" 5 m ", 300_000_000_000),
        ("250ms", 250_000_000),
        ("7d", 604_800_000_000_000),
    ],
)
def test_people_write_lengths_in_many_ways(value: object, length: int) -> None:
    assert parse_duration(value) == length


@pytest.mark.parametrize("value", ["", "m", "5 5m", "5x", "-5m", "5m and more", -1, True, None, [], float("nan"), 1e30])
def test_what_is_no_length_is_refused_with_a_sentence(value: object) -> None:
    with pytest.raises(ValueError, match=r"is no length of time|is out of range"):
        parse_duration(value)


@given(st.integers(0, 10**18))
def test_what_is_printed_is_read_again(length: int) -> None:
    assert parse_duration(format_duration(length)) == length

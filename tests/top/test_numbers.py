"""Numbers for people."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixserve.cli.top.numbers import (
    show_bar,
    show_count,
    show_duration,
    show_rate,
    show_seconds,
    show_share,
    show_size,
)
from tests.profiles import examples


@pytest.mark.parametrize(
    ("shown", "wanted"),
    [
        (show_rate(None), "-"),
        (show_rate(0.0), "0"),
        (show_rate(0.12345), "0.12"),
        (show_rate(1.2345), "1.23"),
        (show_rate(123.45), "123"),
        (show_rate(1234567.8), "1,234,568"),
        (show_count(1234.0), "1,234"),
        (show_share(0.70026), "70.03%"),
        (show_seconds(None), "-"),
        (show_seconds(math.inf), ">30 s"),
        (show_seconds(0.0000004), "0.40 µs"),
        (show_seconds(0.00226), "2.26 ms"),
        (show_seconds(0.99999), "1.00 s"),
        (show_seconds(12.3), "12.3 s"),
        (show_duration(59.9), "59s"),
        (show_duration(61), "1m 1s"),
        (show_duration(3 * 3600 + 120), "3h 2m"),
        (show_duration(200_000), "2d 7h"),
        (show_duration(-5), "0s"),
        (show_size(999.0), "999 B"),
        (show_size(16.9e6), "16.9 MB"),
        (show_size(999_999.0), "1.00 MB"),
        (show_bar(0.6, 0.6), "███████████┃········"),
        (show_bar(0.5, 0.8), "██████████·····┃····"),
        (show_bar(0.1501, 0.15, 10), "█┃········"),
        (show_bar(None, 0.5, 10), " " * 10),
        (show_bar(0.0, 0.0, 10), "┃·········"),
    ],
)
def test_shown(shown, wanted):
    assert shown == wanted


@settings(max_examples=examples(200))
@given(st.floats(0, 1e18))
def test_numbers_stay_short(value):
    assert len(show_size(value)) <= 13
    assert len(show_seconds(min(value, 1e6))) <= 11
    assert len(show_bar(min(1.0, value), 1.0)) == 20

"""Skipped ranges, compared with plain lists of the remaining positions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixserve_client import InvalidRequest
from mixserve_client.reading.ranges import part
from mixserve_client.reading.skips import Skips

ranges = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)).map(lambda r: (r[0], r[0] + r[1])), max_size=6)


def staying(skips: list[tuple[int, int]], stop: int) -> list[int]:
    return [p for p in range(stop) if not any(first <= p < last for first, last in skips)]


@given(given_ranges=ranges, position=st.integers(0, 90), size=st.integers(1, 40), stop=st.integers(0, 100))
def test_batches_are_made_of_what_stays(given_ranges, position, size, stop):
    skips = Skips.of(given_ranges)
    assert all(a[1] < b[0] for a, b in zip(skips.ranges, skips.ranges[1:], strict=False))
    found, end = skips.take(position, size, stop)
    positions = [p for start, taken in found for p in range(start, start + taken)]
    expected = [p for p in staying(given_ranges, stop) if p >= position]
    assert positions == expected[:size]
    if positions:
        assert end == positions[-1] + 1
        assert skips.first_from(position) == positions[0]


@given(given_ranges=ranges, size=st.integers(1, 40), count=st.integers(1, 8))
def test_shards_of_a_batch_are_its_rows(given_ranges, size, count):
    found, _ = Skips.of(given_ranges).take(0, size, 200)
    rows = [p for start, taken in found for p in range(start, start + taken)]
    cut = [
        part(found, i * len(rows) // count, (i + 1) * len(rows) // count - i * len(rows) // count) for i in range(count)
    ]
    assert [p for pieces in cut for start, taken in pieces for p in range(start, start + taken)] == rows


@pytest.mark.parametrize("wrong", [[(5, 5)], [(7, 2)], [(-1, 4)], [(0, 2**63)], [1], "ab", [(0.5, 2)], None])
def test_what_are_no_ranges(wrong):
    with pytest.raises(InvalidRequest, match="skip must"):
        Skips.of(wrong)

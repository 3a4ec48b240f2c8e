"""Orders of one pass: bijections of any length, and all orders equally often."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixserve.mixture.permutation import permute, sides
from tests.profiles import examples


def order(values: np.ndarray, length: int, keys: np.ndarray) -> np.ndarray:
    """Where `values` go, each under its own key."""
    left, right = sides(length)
    size = len(values)
    grid = np.full(size, left, np.uint64), np.full(size, right, np.uint64)
    return permute(values.astype(np.uint64), np.full(size, length, np.uint64), grid, keys)


def same_key(size: int, seed: int) -> np.ndarray:
    return np.tile(np.random.default_rng(seed).integers(0, 1 << 32, (1, 2), dtype=np.uint32), (size, 1))


@settings(max_examples=examples(200), deadline=None)
@given(length=st.one_of(st.integers(1, 40), st.integers(1, 20_000)), seed=st.integers(0, 1 << 30))
def test_every_record_comes_once(length, seed):
    found = order(np.arange(length), length, same_key(length, seed))
    assert sorted(found.tolist()) == list(range(length))


@pytest.mark.parametrize("length", [2**31 + 11, 2**53 + 1, 2**62 + 3, 2**63 - 1])
def test_long_sources_stay_in_range_and_apart(length):
    values = np.unique(np.random.default_rng(0).integers(0, length, 5000, dtype=np.uint64))
    found = order(values, length, same_key(len(values), 1))
    assert len(np.unique(found)) == len(values)
    assert int(found.max()) < length
    assert found.max() > 0.99 * length


@settings(max_examples=examples(50), deadline=None)
@given(length=st.integers(2, 5000), seed=st.integers(0, 1 << 30), other=st.integers(2, 5000))
def test_a_value_goes_the_same_way_alone(length, seed, other):
    keys = same_key(length, seed)
    whole = order(np.arange(length), length, keys)
    at = other % length
    assert order(np.array([at]), length, keys[:1])[0] == whole[at]


# 99.99 % of fair draws stay below: mean + 3.72 standard deviations of chi-square, for many degrees of freedom.
def most(degrees: int) -> float:
    return degrees * (1 - 2 / (9 * degrees) + 3.72 * math.sqrt(2 / (9 * degrees))) ** 3


@pytest.mark.parametrize("length", [2, 3, 4, 5, 6, 7, 8])
def test_all_orders_of_a_few_records_are_equally_frequent(length):
    orders = math.factorial(length)
    draws = max(20_000, 10 * orders)
    keys = np.random.default_rng(length).integers(0, 1 << 32, (draws, 2), dtype=np.uint32)
    found = order(np.tile(np.arange(length), draws), length, np.repeat(keys, length, axis=0)).reshape(draws, length)
    codes = (found * np.uint64(length) ** np.arange(length, dtype=np.uint64)).sum(axis=1)
    counts = np.unique(codes, return_counts=True)[1]
    expected = draws / orders
    chi_square = ((counts - expected) ** 2).sum() / expected + (orders - len(counts)) * expected
    assert chi_square < most(orders - 1)


@pytest.mark.parametrize("length", [9, 30, 100])
def test_every_record_is_in_every_place_equally_often(length):
    draws = 20_000
    keys = np.random.default_rng(length).integers(0, 1 << 32, (draws, 2), dtype=np.uint32)
    found = order(np.tile(np.arange(length), draws), length, np.repeat(keys, length, axis=0)).reshape(draws, length)
    counts = np.array([np.bincount(found[:, place].astype(np.int64), minlength=length) for place in range(length)])
    chi_square = ((counts - draws / length) ** 2).sum() / (draws / length)
    assert chi_square < most((length - 1) ** 2)
    # Neighbours move independently.
    apart = (found[:, 1].astype(np.int64) - found[:, 0].astype(np.int64)) % length
    frequency = np.bincount(apart, minlength=length)[1:]
    expected = draws / (length - 1)
    assert ((frequency - expected) ** 2).sum() / expected < most(length - 2)

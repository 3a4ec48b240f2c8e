"""Epoch mode: no record twice in a pass, exact shares per block, every position the same in any request."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.extend.random import threefry_2x32

from mixserve import ArraySource, MixDataSourcesConfig, MixDataSourcesNode, local_client
from mixserve.mixture.blocks import PlanBlocks
from mixserve.mixture.counts import Counts
from mixserve.mixture.epoch import EpochPlanner
from mixserve.mixture.leaves import Plan
from mixserve.mixture.sampling import Sampling
from mixserve.mixture.schedule import Entry, Schedule, normalised
from mixserve_client import InvalidRequest, OutOfRange
from mixserve_client.schema.keys import key_words
from tests.mixture.test_64_bits import Computed
from tests.mixture.test_counts import schedules, weights_of
from tests.mixture.test_permutation import most
from tests.profiles import examples

GOLDEN = Path(__file__).with_name("golden_epochs.json")
POSITION_LIMIT = 2**63 - 1


def planner_of(weights, lengths, *, block_size=2048, stop="never", later=(), **options) -> EpochPlanner:
    entries = [Entry(0, normalised(weights)), *(Entry(start, normalised(shares)) for start, shares in later)]
    return EpochPlanner(Sampling(Schedule(tuple(entries)), "epoch", block_size, stop), lengths, **options)


def rows(plan: Plan) -> list[tuple[int, int]]:
    return list(zip(plan.source_ids.tolist(), plan.record_ids.tolist(), strict=True))


@st.composite
def mixtures(draw: st.DrawFn) -> tuple[list[float], list[int]]:
    """Up to 40 sources of 1 to 10^5 records; zero weights anywhere."""
    count = draw(st.integers(1, 40))
    length = st.one_of(st.integers(1, 9), st.integers(1, 1000), st.integers(1, 100_000))
    return draw(weights_of(count)), draw(st.lists(length, min_size=count, max_size=count))


@settings(max_examples=examples(40), deadline=None)
@given(
    mixture=mixtures(),
    block_size=st.sampled_from([1, 3, 64, 1000, 2048]),
    seed=st.integers(0, 2**32 - 1),
    size=st.integers(1, 30_000),
)
def test_no_record_again_before_its_pass_is_over(mixture, block_size, seed, size):
    weights, lengths = mixture
    plan = planner_of(weights, lengths, block_size=block_size).plan(key_words(seed), 0, min(size, 200 * block_size))
    for source, length in enumerate(lengths):
        records = plan.record_ids[plan.source_ids == source]
        whole = len(records) // length * length
        passes = np.sort(records[:whole].reshape(-1, length), axis=1)
        assert (passes == np.arange(length)).all()  # each exactly once
        rest = records[whole:]
        assert len(np.unique(rest)) == len(rest)
        assert weights[source] > 0 or not len(records)


@settings(max_examples=examples(10), deadline=None)
@given(seed=st.integers(0, 2**32 - 1), lengths=st.lists(st.integers(1, 100_000), min_size=1, max_size=4))
def test_a_whole_pass_holds_every_record(seed, lengths):
    planner = planner_of([1.0] * len(lengths), lengths, stop="all_exhausted")
    plan = planner.plan(key_words(seed), 0, planner.end)
    for source, length in enumerate(lengths):
        assert len(np.unique(plan.record_ids[plan.source_ids == source])) == length


@settings(max_examples=examples(40), deadline=None)
@given(mixture=mixtures(), block=st.integers(0, 2**40), seed=st.integers(0, 99))
def test_blocks_hold_exactly_their_shares(mixture, block, seed):
    weights, lengths = mixture
    planner = planner_of(weights, lengths, block_size=512)
    counts = Counts(Schedule((Entry(0, normalised(weights)),)))
    found = np.bincount(planner.plan(key_words(seed), block * 512, 512).source_ids, minlength=len(lengths))
    assert found.tolist() == (counts.at(block * 512 + 512) - counts.at(block * 512)).tolist()


@settings(max_examples=examples(60), deadline=None)
@given(
    schedule=schedules(most=5, sources=6),
    near=st.sampled_from([0, 0, 0, 2**31, 2**32, 2**53, 2**62, POSITION_LIMIT - 20_000]),
    offset=st.integers(0, 9000),
    size=st.integers(1, 5000),
    data=st.data(),
)
def test_a_position_is_the_same_alone_and_in_any_batch(schedule, near, offset, size, data):
    # Starts of schedules are multiples of 7, 64 or 2048, or any number.
    block_size = next(b for b in (2048, 64, 7, 1) if not any(entry.start % b for entry in schedule.entries))
    lengths = data.draw(st.lists(st.integers(1, 5000), min_size=6, max_size=6))[: len(schedule.entries[0].shares)]
    planner = EpochPlanner(Sampling(schedule, "epoch", block_size), lengths)
    key, start = key_words(3), max(0, near + offset - 4000)
    size = min(size, 50 * block_size)
    whole = rows(planner.plan(key, start, size))
    places = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=8))
    for place in places:
        assert rows(planner.plan(key, start + place, 1)) == [whole[place]]
    scattered = np.array([start + place for place in places], np.uint64)
    assert rows(planner.plan_each(key, scattered)) == [whole[place] for place in places]
    cut = data.draw(st.integers(0, size))
    parts = [(start, cut), (start + cut, size - cut)]
    assert [row for part in parts if part[1] for row in rows(planner.plan(key, *part))] == whole
    blocks = PlanBlocks(planner)
    assert [row for part in parts if part[1] for row in rows(blocks.plan(key, [part]))] == whole


def test_golden_vectors():
    """Fixed values: any change of the arithmetic changes every existing epoch mixture."""
    for case in json.loads(GOLDEN.read_text()):
        planner = planner_of(
            case["weights"], case["lengths"], block_size=case["block_size"], stop=case["stop"], later=case["later"]
        )
        assert planner.end == case["end"]
        found = planner.plan(np.array(case["key"], np.uint32), case["start"], len(case["rows"]))
        assert rows(found) == [tuple(row) for row in case["rows"]]


def fold64(key: jax.Array, n: int) -> jax.Array:
    return threefry_2x32(key, jnp.array([n >> 32, n & 0xFFFFFFFF], jnp.uint32))


def murmur_hash(word: int) -> int:
    """MurmurHash3's 32-bit finaliser."""
    word ^= word >> 16
    word = word * 0x85EBCA6B & 0xFFFFFFFF
    word ^= word >> 13
    word = word * 0xC2B2AE35 & 0xFFFFFFFF
    return word ^ word >> 16


def permuted_one(value: int, length: int, key: jax.Array) -> int:
    first, step = map(int, key)
    a = next(n for n in range(1, length + 1) if n * n >= length)
    b = -(-length // a)
    while True:
        left, right, sides, word = value // b, value % b, (a, b), first
        for _ in range(16):
            moved = (left + (murmur_hash(right ^ word) * sides[0] >> 32)) % sides[0]
            left, right, sides, word = right, moved, sides[::-1], (word + (step | 1)) % 2**32
        value = left * b + right
        if value < length:
            return value ^ (step & 1) if value < 2 and length > 1 else value


@pytest.mark.parametrize(("seed", "block"), [(0, 0), (7, 3), (2**32 - 1, 2**33)])
def test_a_block_in_plain_words(seed, block):
    """The documented arithmetic, written slot by slot in Python and jax.random."""
    weights, lengths, size = [0.5, 0.2, 0.0, 0.3], [7, 100, 5, 12], 33
    key = jnp.array([0, seed], jnp.uint32)
    units = [round(w * 2**32) for w in weights]

    def counts(n: int) -> list[int]:
        found = []
        for place, unit in enumerate(units):
            rest = sum(units[place:])
            found.append((n * unit + rest // 2) // rest if sum(units[place + 1 :]) else n if unit else 0)
            n -= found[-1]
        return found

    before, after = counts(block * size), counts(block * size + size)
    listed = [source for source in range(4) for _ in range(after[source] - before[source])]
    order_key = fold64(threefry_2x32(key, jnp.array([2**32 - 1, 1], jnp.uint32)), block)
    pairs = [fold64(order_key, i) for i in range((size + 1) // 2)]
    words = [int(pair[0]) for pair in pairs] + [int(pair[1]) for pair in pairs]
    slots = sorted(range(size), key=lambda slot: (words[slot], slot))
    sources = dict(zip(slots, listed, strict=True))
    ranks, expected = list(before), []
    rows_key = threefry_2x32(key, jnp.array([2**32 - 1, 2], jnp.uint32))
    for slot in range(size):
        source = sources[slot]
        number, row = divmod(ranks[source], lengths[source])
        ranks[source] += 1
        expected.append((source, permuted_one(row, lengths[source], fold64(fold64(rows_key, source), number))))
    planner = planner_of(weights, lengths, block_size=size)
    assert rows(planner.plan(key_words(seed), block * size, size)) == expected


def test_the_order_in_blocks_is_fair():
    """Chi-square of which source is where in a block, over many blocks."""
    weights, size, blocks = [0.5, 0.25, 0.25], 16, 20_000
    plan = planner_of(weights, [1000, 10, 77], block_size=size).plan(key_words(1), 0, size * blocks)
    places = plan.source_ids.reshape(blocks, size)
    chi_square = sum(
        (((places == source).sum(axis=0) - blocks * weight) ** 2).sum() / (blocks * weight)
        for source, weight in enumerate(weights)
    )
    assert chi_square < most((size - 1) * 2)
    # The positions of one source, two at a time: neighbours no more often than others.
    pairs = np.zeros((size, size))
    chosen = np.argsort(places != 1, axis=1, kind="stable")[:, :2]  # two of the four
    np.add.at(pairs, (chosen[:, 0], chosen[:, 1]), 1)
    distance = chosen[:, 1] - chosen[:, 0]
    # The first two of four random places in 16, by their distance.
    ways = np.array(
        [sum((size - 1 - d - i) * (size - 2 - d - i) // 2 for i in range(size - d)) for d in range(1, size - 2)]
    )
    expected = ways / ways.sum() * blocks
    found = np.bincount(distance, minlength=size)[1 : size - 2]
    assert ((found - expected) ** 2 / expected).sum() < most(len(ways) - 1)


def test_other_keys_give_other_orders_of_the_same_records():
    planner = planner_of([1.0, 1.0], [100, 100], block_size=200)
    one, two = (planner.plan(key_words(seed), 0, 200) for seed in (0, 1))
    assert rows(one) != rows(two)
    assert sorted(rows(one)) == sorted(rows(two))
    later = planner.plan(key_words(0), 200, 200)
    assert [r for s, r in rows(one) if s == 0] != [r for s, r in rows(later) if s == 0]  # passes differ


def node_of(lengths=(50, 120, 333), weights=(1, 2, 3), **options) -> MixDataSourcesNode:
    sources = [ArraySource({"id": np.arange(length) + 1000 * i}) for i, length in enumerate(lengths)]
    config = MixDataSourcesConfig(num_sources=len(lengths), weights=weights, **options)
    return MixDataSourcesNode(config, sources)


@pytest.mark.parametrize("stop", ["first_exhausted", "all_exhausted"])
def test_the_end(stop):
    node = node_of(sampling="epoch", stop=stop, block_size=64)
    with local_client({"train": node}) as client:
        described = client.mixture()
        end = described.end
        assert end == (min if stop == "first_exhausted" else max)(source.pass_end for source in described.sources)
        assert end % 64
        whole = client.get_batch_at(0, end, 5, provenance=True)
        seen = [len(np.unique(whole["record_id"][whole["source_id"] == i])) for i in range(3)]
        assert seen == [50, 120, 333] if stop == "all_exhausted" else 50 in seen
        per_source = np.bincount(whole["source_id"])
        assert stop == "all_exhausted" or (per_source <= [50, 120, 333]).all()
        for start, size in ((end, 1), (end - 1, 2), (2**62, 5), (0, end + 1)):
            with pytest.raises(OutOfRange, match=f"ends at position {end}"):
                client.get_batch_at(start, size, 5)
        with pytest.raises(OutOfRange, match=f"ends at position {end}"):
            client.get_batch_at(end, 2, 5, allow_short=True)
        assert len(client.get_batch_at(end - 1, 2, 5, allow_short=True)["id"]) == 1
        with pytest.raises(OutOfRange, match=f"ends at position {end}"):
            node.get_batch_at(end - 1, 2, jax.random.key(5))
        batches = list(client.batches(100, 5))
        assert [len(batch["id"]) for batch in batches] == [100] * (end // 100) + [end % 100] * (end % 100 > 0)
        assert np.concatenate([batch["id"] for batch in batches]).tolist() == whole["id"].tolist()


def test_an_end_that_only_a_schedule_has():
    sources = [Computed(2**62), Computed(2**62)]
    config = MixDataSourcesConfig(num_sources=2, weights=(1, 1), sampling="epoch", stop="first_exhausted")
    with local_client({"train": MixDataSourcesNode(config, sources)}) as client:
        assert client.mixture().end is None
        schedule = [(0, (1, 0))]
        assert client.end(schedule=schedule) == 2**62
        rest = list(client.batches(100, 3, schedule=schedule, start=2**62 - 150))
        assert [len(batch["id"]) for batch in rest] == [100, 50]
        assert len(client.get_batch_at(2**62 - 1, 7, 3, schedule=schedule, allow_short=True)["id"]) == 1


def test_inside_a_program_it_is_a_clear_error():
    for options in ({"sampling": "epoch"}, {"schedule": [(10, (1, 1, 1))]}):
        node = node_of(**options)
        with pytest.raises(InvalidRequest, match="call get_batch_at outside of it"):
            jax.jit(lambda start: node.get_batch_at(start, 4, jax.random.key(0)))(0)  # noqa: B023


def test_nested_mixtures():
    inner = node_of(sampling="epoch", block_size=16)
    plain = node_of((5, 9), (1, 1))
    config = MixDataSourcesConfig(num_sources=2, weights=(3, 1), sampling="epoch", block_size=32)
    with local_client({"train": MixDataSourcesNode(config, [inner, plain])}) as client:
        assert client.mixture().leaves == ("0/0", "0/1", "0/2", "1/0", "1/1")
        found = client.get_batch_at(0, 384, 1, provenance=True)
        assert (
            found["id"].tolist()
            == (found["record_id"] + np.array([0, 1000, 2000, 0, 1000])[found["source_id"]]).tolist()
        )
        assert np.bincount(found["source_id"])[:3].sum() == 288
        # The child continues through its own positions, so its own passes hold.
        first = found["record_id"][found["source_id"] == 0]
        assert len(first) == 48
        assert len(np.unique(first)) == 48
        for start, size in ((0, 7), (374, 10), (33, 1)):
            part = client.get_batch_at(start, size, 1)
            assert part["id"].tolist() == found["id"][start : start + size].tolist()
        far = client.get_plan_at(0, 32 * 200, 1)  # many times the child's length: its shares stay exact
        assert np.bincount(far["source_id"])[:3].tolist() == [800, 1600, 2400]
        for source, length in enumerate((50, 120, 333)):
            records = far["record_id"][far["source_id"] == source]
            whole = np.sort(records[: len(records) // length * length].reshape(-1, length), axis=1)
            assert (whole == np.arange(length)).all()
    with pytest.raises(ValueError, match="draws its positions with replacement"):
        MixDataSourcesNode(MixDataSourcesConfig(num_sources=2, weights=(3, 1)), [inner, plain])
    with pytest.raises(ValueError, match="only the outermost mixture ends"):
        MixDataSourcesNode(config, [node_of(sampling="epoch", stop="all_exhausted"), plain])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sampling": "epochs"}, "sampling must be one of categorical, epoch, got 'epochs'"),
        ({"stop": "first_exhausted"}, "needs sampling='epoch'"),
        ({"sampling": "epoch", "stop": "sometimes"}, "stop must be one of never"),
        ({"sampling": "epoch", "block_size": 0}, "block_size must be an integer in 1..65536, got 0"),
        ({"schedule": [(0, (1, 1, 1))]}, "must start at a position in 1..2\\^63 - 2, got 0"),
        (
            {"schedule": [(5, (1, 1, 1)), (5, (1, 2, 1))]},
            "must start after the entry before it, which starts at 5, and before 2\\^63 - 1, got 5",
        ),
        (
            {"sampling": "epoch", "schedule": [(5, (1, 1, 1)), (9, (1, 2, 1))]},
            "before it, which starts at 2048",
        ),
        ({"sampling": "epoch", "schedule": [(2**63 - 2, (1, 1, 1))]}, "before 2\\^63 - 1, got 9223372036854775808"),
        ({"sampling": "epoch", "block_size": True}, "block_size must be"),
        ({"sampling": "epoch", "block_size": 2.5}, "block_size must be an integer, got 2.5"),
        ({"schedule": [(5, (1, 1))]}, r"schedule\[0\] must be num_sources = 3 numbers, got 2"),
        ({"schedule": [(5, (0, 0, 0))]}, "positive, finite sum"),
        ({"schedule": {5: (1, 1, 1)}}, "must be a list of pairs"),
    ],
)
def test_options_that_are_wrong(options, said):
    with pytest.raises(ValueError, match=said):
        node_of(**options)

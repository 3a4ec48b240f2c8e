"""Differential tests against the reference's own implementation, datarax, in its own environment.

`make test-datarax` runs them; the name keeps them out of `make test`, whose environment cannot have datarax.

Most of the time goes into compiling: each structure (sources, fields, weights, batch size) is a program of its own on
both sides. So the tests draw few structures, and several (start, key) for each; a case is one (structure, start, key).
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from datarax.sources import MemorySource, MemorySourceConfig
from datarax.sources.mixed_source import MixDataSourcesConfig as TheirConfig
from datarax.sources.mixed_source import MixDataSourcesNode as TheirNode
from flax import nnx
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from mixserve import ArraySource, MixDataSourcesConfig, MixDataSourcesNode
from tests.conftest import assert_batches_equal

# The same examples in every run, and no shrinking: each attempt at a smaller example would compile again.
drawn = settings(
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
PLACES = 12

SHAPES = ((), (1,), (3,), (2, 2), (5, 1, 3))
DTYPES = (np.float32, np.int32, np.uint8, ml_dtypes.bfloat16, np.bool_, np.uint16, np.float16, np.int64)
SPECIAL_FLOATS = (np.nan, np.inf, -np.inf, -0.0, 0.0)

Data = dict[str, np.ndarray]
Place = tuple[int, tuple[int, int]]
Read = Callable[[int, np.ndarray], dict[str, Any]]


@dataclass(frozen=True)
class Structure:
    """Sources with common fields, and the batch size at which their mixture is read."""

    fields: tuple[tuple[tuple[int, ...], np.dtype], ...]
    lengths: tuple[int, ...]
    weights: tuple[float, ...]
    shuffled: tuple[bool, ...]
    size: int
    seed: int

    def data(self) -> list[Data]:
        """The fields of every source."""
        rng = np.random.default_rng(self.seed)
        return [
            {f"field{i}": _values(rng, (length, *shape), dtype) for i, (shape, dtype) in enumerate(self.fields)}
            for length in self.lengths
        ]

    def memory_sources(self) -> list[MemorySource]:
        """The reference's sources of the data."""
        return [
            MemorySource(MemorySourceConfig(shuffle=shuffle), data, rngs=nnx.Rngs(0))
            for data, shuffle in zip(self.data(), self.shuffled, strict=True)
        ]


def _values(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    if jnp.issubdtype(dtype, np.floating):
        values = rng.normal(size=shape).astype(dtype)
        return np.where(rng.random(shape) < 0.1, rng.choice(SPECIAL_FLOATS, shape).astype(dtype), values)
    if dtype == np.bool_:
        return rng.random(shape) < 0.5
    # Both sides narrow 64 bits to 32; within these limits that loses nothing.
    limits = np.iinfo(np.int32 if dtype == np.int64 else dtype)
    return rng.integers(limits.min, limits.max, shape, dtype, endpoint=True)


@st.composite
def structures(draw: st.DrawFn, *, shuffle: bool, zeros: bool = True) -> Structure:
    """With `shuffle` one source or more is shuffled, else none; with `zeros` some weights may be 0."""
    count = draw(st.integers(1, 6))
    fields = draw(
        st.lists(st.tuples(st.sampled_from(SHAPES), st.sampled_from(DTYPES).map(np.dtype)), min_size=1, max_size=3)
    )
    weight = st.floats(0.01, 100) | st.sampled_from([0.0, 1.0] if zeros else [1.0])
    return Structure(
        fields=tuple(fields),
        lengths=draw(st.tuples(*[st.integers(1, 60)] * count)),
        weights=draw(st.tuples(*[weight] * count).filter(any)),
        shuffled=draw(st.tuples(*[st.booleans()] * count).filter(any)) if shuffle else (False,) * count,
        size=draw(st.integers(1, 40)),
        seed=draw(st.integers(0, 2**32 - 1)),
    )


@st.composite
def cases(draw: st.DrawFn, **options: bool) -> tuple[Structure, list[Place]]:
    """A structure, and PLACES starts, each with the words of a key."""
    structure = draw(structures(**options))
    last = 2**31 - 1 - structure.size
    start = st.integers(0, last) | st.integers(0, 100) | st.integers(last - 100, last)
    word = st.integers(0, 2**32 - 1)
    places = st.lists(st.tuples(start, st.tuples(word, word)), min_size=PLACES, max_size=PLACES, unique=True)
    return structure, draw(places)


def their_node(structure: Structure, sources: Sequence[Any]) -> TheirNode:
    return TheirNode(TheirConfig(num_sources=len(sources), weights=structure.weights), list(sources))


def our_node(structure: Structure, sources: Sequence[Any], **options: Any) -> MixDataSourcesNode:
    config = MixDataSourcesConfig(num_sources=len(sources), weights=structure.weights, **options)
    return MixDataSourcesNode(config, list(sources))


def eager(node: Any, size: int) -> Read:
    return lambda start, words: node.get_batch_at(start, size, jax.random.wrap_key_data(words))


def jitted(node: Any, size: int) -> Read:
    read = jax.jit(eager(node, size))
    return lambda start, words: read(np.int32(start), words)


def assert_reads_agree(expected: Read, ours: Sequence[Read], places: Sequence[Place]) -> None:
    """Every node of ours gives the expected batches: the same fields, dtypes, shapes and bytes."""
    for start, words in places:
        key = np.array(words, np.uint32)
        batch = expected(start, key)
        for read in ours:
            assert_batches_equal(batch, read(start, key))


def test_our_node_over_their_sources_is_their_node():
    compared: dict[bool, set[Hashable]] = {False: set(), True: set()}

    def check(case):
        structure, places = case
        theirs = their_node(structure, structure.memory_sources())
        ours = our_node(structure, structure.memory_sources())
        size = structure.size
        assert_reads_agree(jitted(theirs, size), [eager(ours, size), jitted(ours, size)], places)
        compared[any(structure.shuffled)].update((structure, place) for place in places)

    for shuffle in compared:
        settings(drawn, max_examples=9)(given(cases(shuffle=shuffle))(check))()
    plain, shuffled = map(len, compared.values())
    assert plain >= 100
    assert shuffled >= 100
    assert plain + shuffled >= 200
    say(
        f"our node over their sources = their node under jit: {plain + shuffled} cases, eager and jitted: "
        f"{plain} of plain sources, {shuffled} with shuffled ones"
    )


def test_our_array_source_is_their_memory_source():
    compared: set[Hashable] = set()

    @settings(drawn, max_examples=6)
    @given(cases(shuffle=False))
    def check(case):
        structure, places = case
        size = structure.size
        ours = [
            our_node(structure, [ArraySource(data) for data in structure.data()], placement=placement)
            for placement in ("host", "device")
        ]
        reads = [eager(node, size) for node in ours] + [jitted(node, size) for node in ours]
        assert_reads_agree(jitted(their_node(structure, structure.memory_sources()), size), reads, places)
        compared.update((structure, place) for place in places)

    check()
    assert len(compared) >= 70
    say(f"our ArraySource = their MemorySource: {len(compared)} cases, eager and jitted, host and device")


def test_nested_nodes_are_their_nested_nodes():
    compared: set[Hashable] = set()

    @settings(drawn, max_examples=5)
    @given(cases(shuffle=True), st.tuples(st.floats(0.01, 100), st.floats(0.01, 100)), st.booleans())
    def check(case, weights, node_first):
        inner, places = case
        outer = replace(inner, lengths=(31,), weights=weights, shuffled=inner.shuffled[:1], seed=inner.seed ^ 1)
        order = slice(None, None, 1 if node_first else -1)
        theirs = [their_node(inner, inner.memory_sources()), *outer.memory_sources()]
        ours = [our_node(inner, inner.memory_sources()), *outer.memory_sources()]
        expected = jitted(their_node(outer, theirs[order]), inner.size)
        node = our_node(outer, ours[order])
        assert_reads_agree(expected, [eager(node, inner.size), jitted(node, inner.size)], places)
        compared.update((inner, weights, node_first, place) for place in places)

    check()
    assert len(compared) >= 60
    say(f"our nested nodes = their nested nodes under jit: {len(compared)} cases, eager and jitted")


def test_iteration_and_element_spec_are_theirs():
    compared = 0

    @settings(drawn, max_examples=30)
    @given(structures(shuffle=False, zeros=False))
    def check(structure):
        nonlocal compared
        theirs = their_node(structure, structure.memory_sources())
        ours = our_node(structure, structure.memory_sources())
        assert ours.element_spec() == _given_spec(structure.memory_sources()[0])  # their node has none
        assert len(ours) == len(theirs)
        for _ in range(2):
            records, expected = list(ours), list(theirs)
            assert len(records) == len(expected)
            for record, other in zip(records, expected, strict=True):
                assert_batches_equal(other, record)
            compared += len(records)

    check()
    assert compared >= 1000
    say(f"our iteration over their sources = their node's iteration: {compared} records, and equal element specs")


def _given_spec(source: MemorySource) -> dict[str, jax.ShapeDtypeStruct]:
    """Their source's spec, in the dtypes that JAX's arrays have: it declares 64 bits and gives 32."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jax.dtypes.canonicalize_dtype(leaf.dtype)), source.element_spec()
    )


def say(line: str) -> None:
    print(f"\n{line}", flush=True)

"""Gathering: every row lands in its place, for all row sizes, layouts, dtypes and origins."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixserve import ArraySource
from mixserve.error_boundary import WrongRecord
from mixserve.failed_read import FailedRead
from mixserve.mixture.gather import HostGather
from mixserve.mixture.plan import Plan
from mixserve.mixture.spec import common_fields, numeric_leaves


def gather(sources, source_ids, record_ids) -> dict[str, np.ndarray]:
    fields = common_fields({str(i): numeric_leaves(str(i), source) for i, source in enumerate(sources)})
    out = {field.name: np.full((len(source_ids), *field.shape), 77).astype(field.dtype) for field in fields}
    HostGather(sources, fields).into(Plan(np.array(source_ids, np.int32), np.array(record_ids, np.int32)), out)
    return out


class Taken:
    """The records of another source, through `take` only."""

    def __init__(self, source):
        self._source = source
        self.element_spec, self.take = source.element_spec, source.take

    def __len__(self):
        return len(self._source)


class Widened:
    """A source that stores int16 and gives int32."""

    def __init__(self, block):
        self._block = block

    def __len__(self):
        return len(self._block)

    def element_spec(self):
        return {"x": jax.ShapeDtypeStruct(self._block.shape[1:], np.int32)}

    def take(self, record_ids):
        return {"x": self._block[record_ids].astype(np.int32)}

    def blocks(self):
        return [{"x": self._block}]


@settings(deadline=None)
@given(data=st.data(), row=st.sampled_from([(), (1,), (3,), (5, 2), (1000,), (9000,)]))
def test_rows_land_in_their_places(data, row):
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    sources = []
    for _ in range(data.draw(st.integers(1, 6))):
        blocks = [
            rng.integers(-99, 99, (int(rng.integers(1, 9)), *row)).astype(np.int32) for _ in range(rng.integers(1, 4))
        ]
        kind = data.draw(st.sampled_from(["arrays", "taken", "widened"]))
        source = ArraySource(*({"x": block} for block in blocks))
        sources.append({"arrays": source, "taken": Taken(source), "widened": Widened(blocks[0].astype(np.int16))}[kind])
    size = data.draw(st.integers(1, 60))
    source_ids = rng.integers(0, len(sources), size)
    record_ids = np.array([rng.integers(0, len(sources[s])) for s in source_ids])
    expected = [sources[s].take(np.array([r]))["x"][0] for s, r in zip(source_ids, record_ids, strict=True)]
    np.testing.assert_array_equal(gather(sources, source_ids, record_ids)["x"], np.stack(expected))


@pytest.mark.parametrize(
    "layout",
    [
        lambda array: array[::-1],
        lambda array: array[::3],
        lambda array: np.asfortranarray(array),
        lambda array: array[:, ::-1],
        lambda array: np.broadcast_to(array[:1], array.shape),
        lambda array: array[:, 1:3],
    ],
)
def test_rows_of_any_layout_are_read_in_place(layout):
    array = layout(np.arange(600, dtype=np.int16).reshape(60, 10))
    ids = np.random.default_rng(0).integers(0, len(array), 40)
    np.testing.assert_array_equal(gather([ArraySource({"x": array})], np.zeros(40), ids)["x"], array[ids])


def test_rows_without_bytes():
    source = ArraySource({"empty": np.zeros((4, 0), np.int32), "x": np.arange(4)})
    batch = gather([source], [0, 0], [3, 1])
    assert batch["empty"].shape == (2, 0)
    assert batch["x"].tolist() == [3, 1]


def test_rows_larger_than_the_byte_view_holds():
    array = np.arange(3 * 20_000, dtype=np.int64).reshape(3, 20_000)
    np.testing.assert_array_equal(gather([ArraySource({"x": array})], [0, 0], [2, 0])["x"], array[[2, 0]])


@pytest.mark.parametrize(
    "wrong", [{}, {"x": np.zeros((1, 2), np.int32)}, {"x": np.zeros(3, np.int32)}, {"x": np.zeros((3, 2))}]
)
def test_a_source_that_gives_other_shapes_than_it_says_is_named(wrong):
    source = Taken(ArraySource({"x": np.zeros((9, 2), np.int32)}))
    source.take = lambda record_ids: wrong or {"y": 1}
    with pytest.raises(
        FailedRead, match=r"of the source '0' .*take of .*Taken.* must return the leaf 'x' as \(\("
    ) as caught:
        gather([source], [0, 0, 0], [1, 2, 3])
    assert isinstance(caught.value.__cause__, WrongRecord)


def test_blocks_that_do_not_fit_their_source_are_refused_before_memory_is_read():
    class Lying(Widened):
        def __len__(self):
            return 1000

    with pytest.raises(ValueError, match=r"must hold len\(source\) = 1000 rows in all, got 10"):
        gather([Lying(np.zeros((10, 2), np.int16))], [0], [500])
    with pytest.raises(ValueError, match="C-contiguous rows"):
        gather([Widened(np.zeros((2, 10), np.int16).T[:, ::-1])], [0], [5])

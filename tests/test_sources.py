"""Sources: what they hold, what they refuse, and that rows come out as they are in files and arrays."""

import mmap

import grain
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixserve import ArraySource, RandomAccessSource, Source, TokenSource
from mixserve.sources import content_bytes
from mixserve.sources.digest import digest_files
from mixserve.sources.open_file import OpenFile
from mixserve_client.schema.dtypes import DTYPES


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_array_source_keeps_every_dtype_of_the_wire(dtype):
    raw = np.random.default_rng(0).integers(0, 2, (6, 3 * dtype.itemsize)).astype(np.uint8)
    source = ArraySource({"x": raw.view(dtype)})
    taken = source.take(np.array([5, 0, 5]))["x"]
    assert source.element_spec()["x"].dtype == dtype == taken.dtype
    assert taken.tobytes() == raw[[5, 0, 5]].tobytes()
    assert isinstance(source, Source)


def test_array_source_joins_shards_without_copying():
    shards = [{"x": np.arange(3)}, {"x": np.arange(0)}, {"x": np.arange(10, 14)}]
    source = ArraySource(*shards)
    assert len(source) == 7
    assert source.take(np.array([6, 2, 3, 0]))["x"].tolist() == [13, 2, 10, 0]
    assert all(np.shares_memory(b["x"], s["x"]) for b, s in zip(source.blocks(), shards, strict=True) if len(s["x"]))


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        (({},), ValueError, "at least one array"),
        (({"x": np.int32(3)},), ValueError, "'x' needs a leading dimension"),
        (({"x": np.zeros(3), "y": np.zeros(4)},), ValueError, "one leading length.*'x': 3.*'y': 4"),
        (({"x": np.array(["a"])},), TypeError, "'x' must be an array of numbers"),
        (({"x": np.zeros(3, ">i4")},), TypeError, "little-endian"),
        (({"x": np.zeros(3, object)},), TypeError, "'x' must be an array of numbers"),
        (
            ({"x": np.zeros(3)}, {"x": np.zeros((3, 1))}),
            ValueError,
            "must have the fields of the first, .* in dict 0, got .* in dict 1",
        ),
    ],
)
def test_array_source_says_what_is_wrong(arguments, error, said):
    with pytest.raises(error, match=said):
        ArraySource(*arguments)


@given(st.lists(st.integers(0, 25), min_size=1, max_size=8), st.integers(1, 12))
def test_token_windows_are_those_of_all_inputs_in_a_row(lengths, window):
    joined = np.arange(sum(lengths), dtype=np.uint16)
    parts = np.split(joined, np.cumsum(lengths)[:-1])
    count = len(joined) // window
    if count == 0:
        with pytest.raises(ValueError, match="less than one window"):
            TokenSource(parts, sequence_length=window)
        return
    source = TokenSource(parts, sequence_length=window)
    assert len(source) == count
    expected = joined[: count * window].reshape(count, window)
    np.testing.assert_array_equal(source.take(np.arange(count))["tokens"], expected)
    np.testing.assert_array_equal(np.concatenate([block["tokens"] for block in source.blocks()]), expected)


def test_token_files_are_memory_mapped(tmp_path):
    path = tmp_path / "a.bin"
    np.arange(100, dtype=np.uint16).tofile(path)
    source = TokenSource(path, sequence_length=8, dtype="uint16", as_dtype="int32", field="ids")
    assert len(source) == 12
    assert source.element_spec()["ids"].dtype == np.int32
    assert source.take(np.array([11]))["ids"].tolist() == [list(range(88, 96))]
    owner = source.blocks()[0]["ids"]
    while isinstance(owner, np.ndarray):
        owner = owner.base
    assert isinstance(owner, mmap.mmap)
    assert repr(source) == "TokenSource(ids: int32[8], length=12)"


def test_token_source_says_what_is_wrong(tmp_path):
    odd = tmp_path / "odd.bin"
    odd.write_bytes(b"12345")
    with pytest.raises(ValueError, match=r"odd\.bin has 5 bytes, which is not a multiple of the 2 bytes"):
        TokenSource(odd, sequence_length=1, dtype="uint16")
    with pytest.raises(ValueError, match=r"dtype is required.*odd\.bin"):
        TokenSource(odd, sequence_length=1)
    with pytest.raises(FileNotFoundError, match=r"none\.bin"):
        TokenSource(tmp_path / "none.bin", sequence_length=1, dtype="uint16")
    with pytest.raises(ValueError, match="sequence_length must be an integer of at least 1, got 0"):
        TokenSource(np.arange(9), sequence_length=0)
    with pytest.raises(ValueError, match="do not all fit"):
        TokenSource(np.arange(9, dtype=np.uint32), sequence_length=1, as_dtype="int32")
    with pytest.raises(ValueError, match="same dtype"):
        TokenSource([np.arange(9, dtype=np.int32), np.arange(9)], sequence_length=1)


def test_digests_see_a_single_changed_value():
    values = np.arange(100_000, dtype=np.int32)
    changed = values.copy()
    changed[77_777] += 1
    digests = {content_bytes(ArraySource({"x": array})) for array in (values, changed, values.reshape(-1, 2), values)}
    assert len(digests) == 3


def test_digests_of_large_arrays_see_their_pieces_and_their_size():
    large = np.zeros(80 << 20, np.uint8)
    first = content_bytes(ArraySource({"x": large}))
    large[-1] = 1
    last_changed = content_bytes(ArraySource({"x": large}))
    assert len({first, last_changed, content_bytes(ArraySource({"x": large[:-1]}))}) == 3


def test_digests_of_files_see_bytes_borders_heads_and_options_but_no_paths(tmp_path):
    def digest(*contents, folder="a", options={"pad": 0}, heads=()):  # noqa: B006
        (tmp_path / folder).mkdir(exist_ok=True)
        paths = [tmp_path / folder / f"{number}.bin" for number in range(len(contents))]
        for path, content in zip(paths, contents, strict=True):
            path.write_bytes(content)
        return digest_files([OpenFile(path) for path in paths], options, heads)

    first = digest(b"abc", b"", b"defg")
    assert digest(b"abc", b"", b"defg", folder="moved") == first
    others = [
        digest(b"abc", b"", b"defG"),
        digest(b"abcd", b"", b"efg"),
        digest(b"abc", b"", b"defg", heads=[b"x"]),
        digest(b"abc", b"", b"defg", options={"pad": 1}),
    ]
    assert len({first, *others}) == 5


def test_digests_of_large_files_see_their_pieces_and_their_size(tmp_path):
    path = tmp_path / "large.bin"
    digests = set()
    for size, last in ((80 << 20, b"\0"), (80 << 20, b"\1"), ((80 << 20) + 1, b"\0")):
        with path.open("wb") as file:
            file.truncate(size)
            file.seek(size - 1)
            file.write(last)
        digests.add(digest_files([OpenFile(path)], {}))
    assert len(digests) == 3


def test_jax_arrays_are_sources_too():
    import jax.numpy as jnp

    source = ArraySource({"x": jnp.ones((4, 2), ml_dtypes.bfloat16)})
    assert source.element_spec()["x"].dtype == ml_dtypes.bfloat16


class Items:
    """A map-style data set that counts its reads."""

    def __init__(self, length: int = 50, odd: int | None = None):
        self.length, self.odd, self.singles = length, odd, 0

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        self.singles += 1
        size = 3 if index == self.odd else 2
        return {"x": np.full(size, index, np.int16), "pair": (index, [float(index)])}


class BatchedItems(Items):
    def __getitems__(self, indices):
        return [Items.__getitem__(self, index) for index in indices]


def check_items(source: Source) -> None:
    ids = np.random.default_rng(0).integers(0, len(source), 40)
    records = source.take(ids)
    assert records["x"].tolist() == [[i, i] for i in ids]
    assert records["pair"][0].tolist() == ids.tolist()
    assert records["pair"][1].tolist() == [[i] for i in ids]  # a list of numbers is an array
    assert records["pair"][1].dtype == source.element_spec()["pair"][1].dtype == np.float64


@pytest.mark.parametrize("threads", [1, 8])
def test_random_access_sources_keep_the_order(threads):
    check_items(RandomAccessSource(Items(), threads=threads))
    assert repr(RandomAccessSource(Items())) == "RandomAccessSource(Items, length=50)"


def test_random_access_sources_use_the_batched_hook():
    items = BatchedItems()
    source = RandomAccessSource(items)
    check_items(source)
    plain = Items()
    check_items(RandomAccessSource(plain))
    assert items.singles == plain.singles  # this test's hook counts as well
    items.__class__ = type("OnlyBatched", (BatchedItems,), {"__getitem__": None})
    check_items(source)


def test_lists_and_grain_data_sets_are_random_access():
    items = [Items()[i] for i in range(20)]
    check_items(RandomAccessSource(items))
    check_items(RandomAccessSource(grain.MapDataset.source(items).map(lambda item: item)))


def test_an_item_of_another_spec_is_named():
    source = RandomAccessSource(Items(odd=7))
    with pytest.raises(ValueError, match=r"record 7 has .*\(3,\)"):
        source.take(np.array([1, 7, 2]))


def test_random_access_sources_need_an_item_and_a_thread():
    with pytest.raises(ValueError, match="at least one item"):
        RandomAccessSource([])
    with pytest.raises(ValueError, match="threads must be an integer of at least 1, got 0"):
        RandomAccessSource(Items(), threads=0)


def test_nested_arrays_are_an_array_source():
    source = ArraySource({"a": {"b/c": np.arange(4)}, "d": (np.ones((4, 2)), np.zeros(4, np.int8))})
    assert list(source.blocks()[0]) == ["a/b~1c", "d/~t0", "d/~t1"]
    assert source.element_spec()["d"][0].shape == (2,)
    assert source.take(np.array([3]))["a"]["b/c"].tolist() == [3]

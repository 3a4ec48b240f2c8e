"""What newcomers pass to the public constructors: it works, or the error says what to pass instead."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixserve import (
    ArraySource,
    MixDataSourcesConfig,
    MixDataSourcesNode,
    RandomAccessSource,
    TokenSource,
    local_client,
)
from mixserve_client import InvalidRequest
from mixserve_client.grain import RemoteIterDataset, RemoteMapDataset
from mixserve_client.nnx import RemoteMixDataSourcesNode
from tests.processes import ONE_SIZE

ROWS = np.arange(12, dtype=np.int32).reshape(4, 3)
TWO = MixDataSourcesConfig(num_sources=2, weights=(1, 1), plan_sizes=ONE_SIZE)


def node_of(*sources):
    weights = (1,) * len(sources)
    return MixDataSourcesNode(
        MixDataSourcesConfig(num_sources=len(sources), weights=weights, plan_sizes=ONE_SIZE), list(sources)
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (ROWS, ROWS),
        (jnp.asarray(ROWS), ROWS),
        (ROWS.tolist(), ROWS.astype(np.int64)),
        ([0.5, 1.5], np.array([0.5, 1.5])),
        ({"t": [[1, 2], [3, 4]]}, {"t": np.array([[1, 2], [3, 4]])}),
        ({"t": [np.int16(1), np.int16(2)]}, {"t": np.array([1, 2], np.int16)}),
        ({"a": {"t": [True, False]}}, {"a": {"t": np.array([True, False])}}),
    ],
)
def test_an_array_source_takes_one_array_and_lists_of_numbers(given, expected):
    taken = ArraySource(given).take(np.arange(len(ArraySource(given))))
    flat = [(taken, expected)]
    while isinstance(flat[0][0], dict):
        flat = [(one[key], other[key]) for one, other in flat for key in other]
    for one, other in flat:
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def test_an_array_alone_is_served_as_it_is():
    with local_client({"train": node_of(ArraySource(ROWS))}) as client:
        batch = client.get_batch_at(0, 5, 7)
        assert batch.shape == (5, 3)
        assert {tuple(row) for row in batch.tolist()} <= {tuple(row) for row in ROWS.tolist()}
    assert repr(ArraySource(ROWS)) == "ArraySource(int32[3], length=4)"


@pytest.mark.parametrize(
    "items", [[{"t": [i, i + 1, i + 2], "y": i} for i in range(6)], [[i, i + 1] for i in range(6)]]
)
def test_lists_of_numbers_in_items_are_arrays_on_every_route(items):
    plain = [{"t": np.array(i["t"]), "y": i["y"]} if isinstance(i, dict) else np.array(i) for i in items]
    node, expected = node_of(RandomAccessSource(items, name="s")), node_of(RandomAccessSource(plain, name="s"))
    assert node.mixture.fields == expected.mixture.fields
    assert [field.shape for field in node.mixture.fields] == ([(3,), ()] if isinstance(items[0], dict) else [(2,)])
    assert str(list(node)) == str(list(expected))
    with local_client({"train": node}) as client, local_client({"train": expected}) as other:
        assert str(client.get_batch_at(0, 5, 7)) == str(other.get_batch_at(0, 5, 7))
        with client.session("s") as session, other.session("s") as known:
            assert str(next(iter(session))) == str(next(iter(known)))
            assert str(session.next_batch(2)) == str(known.next_batch(2))


class Pairs:
    """A source of a user whose lists of numbers are declared as fields of their own."""

    def __len__(self):
        return 6

    def element_spec(self):
        return {"t": [jax.ShapeDtypeStruct((), np.int64)] * 2}

    def take(self, record_ids):
        return {"t": [record_ids.astype(np.int64), record_ids.astype(np.int64) + 1]}

    def __getitem__(self, index):
        return {"t": [index, index + 1]}


def test_lists_that_a_source_declares_as_fields_stay_fields():
    node = node_of(Pairs())
    assert [field.name for field in node.mixture.fields] == ["t/~l0", "t/~l1"]
    with local_client({"train": node}) as client, client.session("s") as session:
        assert next(iter(session)) == {"t": [0, 1]}
        assert [part.tolist() for part in session.next_batch(2)["t"]] == [[1, 2], [2, 3]]
        assert len(client.get_batch_at(0, 5, 7)["t"]) == 2


def test_lists_that_are_not_numbers_alone_stay_as_they_are():
    item = {"pair": (1, [np.zeros(2), np.ones(3)]), "texts": ["a", "b"], "mixed": [1, "a"]}
    source = RandomAccessSource([item])
    assert str(source._getitems([0])[0]) == str(item)
    assert RandomAccessSource([None], threads=1)._getitems([0]) == [None]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "needs a dict of arrays, or one array, got None"),
        ("data.npy", r"got 'data.npy'; .*name=.*np.load\(path"),
        ({"t": [[1, 2], [3]]}, r"the lists in t must have equal lengths, got \[\[1, 2\], \[3\]\]: pad them"),
        ({"t": ["a", "b"]}, "the field 't/~l0' must be an array of numbers, got <U1.*token ids"),
        ({"t": None}, "the field 't' must be an array of numbers, got object.*None"),
        ([{"x": 1}, {"x": 2}], "single number.*a list of records goes into a RandomAccessSource"),
        ({"t": np.array(["2020-01-01"], "M8[D]")}, "the field 't' cannot be served: dtype must be one of"),
        (range(3), "an object with records by number goes into a RandomAccessSource"),
    ],
)
def test_an_array_source_says_what_to_pass_instead(given, said):
    with pytest.raises((TypeError, ValueError), match=said):
        ArraySource(given)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"x": ROWS}, "got a dict, which is indexed by keys: use ArraySource"),
        ("data.jsonl", r"got a str \('data.jsonl'\): open the file"),
        (iter([1]), "got a list_iterator: make a list of it"),
        (None, "got a NoneType"),
    ],
)
def test_a_random_access_source_says_what_to_pass_instead(given, said):
    with pytest.raises(TypeError, match=said):
        RandomAccessSource(given)


def test_a_token_source_takes_lists_and_arrays_of_any_library():
    expected = np.arange(6).reshape(3, 2)
    for given in (list(range(6)), [list(range(4)), [4, 5]], jnp.arange(6), [jnp.arange(5), [5]], range(6)):
        if isinstance(given, list) and len({type(part) for part in given}) == 2:
            given = [np.asarray(part, np.int64) for part in given]  # all inputs store the same dtype
        taken = TokenSource(given, sequence_length=2).take(np.arange(3))["tokens"]
        np.testing.assert_array_equal(taken, expected)


@pytest.mark.parametrize(
    ("given", "options", "said"),
    [
        (3, {}, "must be files, or arrays or lists of token ids, got 3"),
        ([], {}, "at least one file, array or list of token ids, got none"),
        (["a b c"], {}, "dtype is required"),
        ([["a", "b"]], {}, "must be files, or arrays or lists of token ids, got .*'a'"),
        (list(range(4)), {"sequence_length": "2"}, "sequence_length must be an integer of at least 1, got '2'"),
        (list(range(4)), {"sequence_length": None}, "sequence_length must be an integer of at least 1, got None"),
        ("web.bin", {"dtype": "uint17"}, "dtype must be a dtype such as 'uint16' or 'uint32', got 'uint17'"),
        (list(range(4)), {"as_dtype": "int"}, "do not all fit|int"),
    ],
)
def test_a_token_source_says_what_to_pass_instead(given, options, said):
    with pytest.raises((TypeError, ValueError), match=said):
        if TokenSource(given, **{"sequence_length": 2} | options).element_spec()["tokens"].dtype == np.int64:
            raise ValueError("int is int64 here")


def test_a_token_source_refuses_folders(tmp_path):
    with pytest.raises(IsADirectoryError, match="got a folder; pass a list of the files"):
        TokenSource(tmp_path, sequence_length=2, dtype="uint16")


@pytest.mark.parametrize(
    ("config", "sources", "said"),
    [
        (TWO, {"a": ROWS, "b": ROWS}, "sources must be a list in the order of the weights, got"),
        (TWO, [ROWS, ROWS], "wrap an array, or a dict of arrays, in an ArraySource"),
        (TWO, [{"x": ROWS}, {"x": ROWS}], "wrap an array, or a dict of arrays, in an ArraySource"),
        (TWO, [[{"x": 1}], [{"x": 2}]], "wrap an object that has .* in a RandomAccessSource"),
        (TWO, [ArraySource, ArraySource], "which is a class: make an object of it"),
        ([ROWS], TWO, "config must be a MixDataSourcesConfig"),
    ],
)
def test_a_node_says_what_to_pass_instead(config, sources, said):
    with pytest.raises(TypeError, match=said) as raised:
        MixDataSourcesNode(config, sources)
    assert len(str(raised.value)) < 500  # of an array only the beginning


def test_a_configuration_says_what_to_pass_instead():
    with pytest.raises(ValueError, match=r"weights must be .*in the order of the sources, got {.a.: 1}"):
        MixDataSourcesConfig(num_sources=1, weights={"a": 1})
    with pytest.raises(ValueError, match=r"got \(0.5, 0.5\); pass fields by their names"):
        MixDataSourcesConfig((0.5, 0.5))


def test_a_server_takes_nodes_alone():
    with pytest.raises(ValueError, match="must be a MixDataSourcesNode, got ArraySource; put sources into a node"):
        local_client({"train": ArraySource(ROWS)})


@pytest.mark.parametrize("made", [RemoteMixDataSourcesNode, RemoteMapDataset, RemoteIterDataset])
def test_what_needs_a_client_takes_no_address(made):
    options = {} if made is RemoteMixDataSourcesNode else {"batch_size": 4, "key": 7}
    with pytest.raises(InvalidRequest, match=r"such as MixClient.connect\('HOST:PORT'\), got 'localhost:50051'"):
        made("localhost:50051", **options)

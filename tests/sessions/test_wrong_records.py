"""Single records that fail or are not as declared: errors name source and record, in whatever way they are read."""

import grain
import numpy as np
import pytest

from mixserve import MixDataSourcesConfig, MixDataSourcesNode, RandomAccessSource, local_client
from mixserve.error_boundary import WrongRecord
from mixserve_client import ServerFault
from tests.processes import ONE_SIZE

BAD, LENGTH = 3, 8


class Records:
    """Records of one number; the one at `BAD` is `wrong`, or raises it."""

    def __init__(self, wrong):
        self._wrong = wrong

    def __len__(self):
        return LENGTH

    def __getitem__(self, index):
        if index != BAD or self._wrong is None:
            return {"id": np.int64(index)}
        if isinstance(self._wrong, Exception):
            raise self._wrong
        return self._wrong


class OwnDataset(RandomAccessSource):
    """Makes Grain's data set of its records itself."""

    def __init__(self, records):
        super().__init__(records, threads=1)
        self._records = records

    def to_grain_iter_dataset(self):
        return grain.MapDataset.source(self._records).to_iter_dataset(grain.ReadOptions(0, 0))


def mix(*sources, names) -> MixDataSourcesNode:
    config = MixDataSourcesConfig(
        num_sources=len(sources), weights=(1,) * len(sources), source_names=names, plan_sizes=ONE_SIZE
    )
    return MixDataSourcesNode(config, list(sources))


def plain(wrong):
    good = RandomAccessSource(Records(None), threads=1)
    return mix(good, RandomAccessSource(Records(wrong), threads=1), names=("code", "web"))


def nested(wrong):
    return mix(mix(plain(wrong), names=("{}",)), names=("outer",))


def own(wrong):
    return mix(OwnDataset(Records(wrong)), names=("own",))


def own_nested(wrong):
    return mix(own(wrong), names=("outer",))


def ways(client):
    """Ways to read all single records of the client's node."""

    def one_by_one():
        with client.session("records") as session:
            for _ in range(2 * LENGTH):
                next(session)

    def as_batch():
        with client.session("batch") as session:
            session.next_batch(2 * LENGTH)

    return one_by_one, as_batch


# The mixture, its index of the record, and where the record is from.
KINDS = [
    (plain, 7, "the record 3 of the source 'web'"),
    (nested, 7, "the record 3 of the source 'outer/{}/web'"),
    (own, 3, "a record of the source 'own'"),
    (own_nested, 3, "a record of the source 'outer/own'"),
]


@pytest.mark.parametrize(("make", "index", "where"), KINDS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_record_of_a_wrong_shape_is_named(make, index, where):
    node = make({"id": np.arange(3)})
    said = f"at index {index} of the epoch: {where} must have the leaf 'id' as int64[], as the mixture declares, got"
    with local_client({"m": node}) as client:
        for read in ways(client):
            with pytest.raises(ServerFault) as caught:
                read()
            assert str(caught.value).startswith(f"{said} int64[3]; ")
    with pytest.raises(WrongRecord) as caught:
        node.next_batch(2 * LENGTH)
    assert str(caught.value) == f"{said} int64[3]"
    assert int(node.index.get_value()) == 0
    # In process, records come as the source gives them.
    assert [next(node)["id"].shape for _ in range(index + 1)][-1] == (3,)


@pytest.mark.parametrize(("make", "index", "where"), KINDS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_record_that_cannot_be_read_is_named(make, index, where):
    node = make(OSError("no such file"))
    said = f"at index {index} of the epoch: reading {where} failed: OSError"
    with local_client({"m": node}) as client:
        for read in ways(client):
            with pytest.raises(ServerFault) as caught:
                read()
            assert str(caught.value).startswith(f"{said}; ")
            assert "no such file" not in str(caught.value)
    for read in (lambda: node.next_batch(2 * LENGTH), lambda: [next(node) for _ in range(2 * LENGTH)]):
        with pytest.raises(OSError, match="no such file") as caught:
            read()
        assert f"{said}: no such file" in caught.value.__notes__


def test_a_source_with_a_data_set_of_its_own_keeps_its_state():
    node = mix(OwnDataset(Records(None)), names=("own",))
    for _ in range(3):
        next(node)
    state = node.get_state()
    expected = [int(next(node)["id"]) for _ in range(2)]
    other = mix(OwnDataset(Records(None)), names=("own",))
    other.set_state(state)
    assert [int(next(other)["id"]) for _ in range(2)] == expected == [3, 4]
    # The state is that of Grain's own iterator, as it was before.
    assert state["iterator"] == '{"parents": [{"next_index": 3}], "index": 3, "stop": false}'


def test_records_that_do_not_stack_are_named():
    """Records without a declaration, such as texts, have batches if they are all alike."""
    texts = [{"text": "a", "ids": np.arange(2)}, {"text": "b", "ids": np.arange(2)}, {"text": "c", "ids": np.arange(5)}]
    node = mix(RandomAccessSource(texts), names=("texts",))
    assert node.next_batch(2)["text"].tolist() == ["a", "b"]
    node.reset()
    with pytest.raises(WrongRecord) as caught:
        node.next_batch(3)
    assert str(caught.value) == (
        "at index 2 of the epoch: the record 2 of the source 'texts' cannot be stacked on the record before it: "
        "the field ['ids'] has the shapes [2] and [5]"
    )
    assert int(node.index.get_value()) == 0
    other = mix(RandomAccessSource([{"text": "a"}, {"other": "b"}]), names=("texts",))
    with pytest.raises(WrongRecord, match=r"the record 1 of .* 'texts' .*: only that one has the field \['text'\]"):
        other.next_batch(2)

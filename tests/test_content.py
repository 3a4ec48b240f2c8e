"""The fingerprint covers the content of every source that can be identified, and says so if one cannot."""

import logging
import pickle
import re
import threading
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from mixserve import ArraySource, MixDataSourcesConfig, MixDataSourcesNode, RandomAccessSource, local_client, serve
from mixserve.cli.main import app
from mixserve.mixture import content
from mixserve_client import FingerprintMismatch, MixClient
from tests.processes import ONE_SIZE

RECORDS = 200


class Data:
    """A typical data set of a user: items by their number, and no digest."""

    def __init__(self, first: int = 0, records: int = RECORDS):
        self._first, self._records = first, records

    def __len__(self) -> int:
        return self._records

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {"x": np.full(4, self._first + index, np.int32)}


class Changed(Data):
    """One sampled record differs."""

    def __init__(self, place: int):
        super().__init__()
        self._place = place

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {"x": np.full(4, -1, np.int32)} if index == self._place else super().__getitem__(index)


class Random(Data):
    """Augmented: its records differ at every read."""

    def __init__(self):
        super().__init__()
        self._noise = np.random.default_rng(0)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {"x": self._noise.integers(0, 100, 4).astype(np.int32)}


class Broken(Data):
    """Its last record cannot be read."""

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if index == len(self) - 1:
            raise SystemExit("this record is gone")
        return super().__getitem__(index)


class Stuck(Data):
    """After `after` reads of its last record, every read except that of record 0 hangs."""

    def __init__(self, first: int = 0, after: int = 1):
        super().__init__(first)
        self.ends = threading.Event()
        self._reads, self._after = 0, after

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        self._reads += index == len(self) - 1
        if index and self._reads > self._after:
            self.ends.wait(60)
        return super().__getitem__(index)


def node(*data: Any, weights: tuple[float, ...] | None = None, **options: Any) -> MixDataSourcesNode:
    sources = [
        one if hasattr(one, "take") else RandomAccessSource(one, threads=1, name=f"s{i}") for i, one in enumerate(data)
    ]
    config = MixDataSourcesConfig(
        num_sources=len(sources), weights=weights or (1.0,) * len(sources), plan_sizes=ONE_SIZE, **options
    )
    return MixDataSourcesNode(config, sources)


def fingerprint(*data: Any, **options: Any) -> str:
    return node(*data, **options).mixture.fingerprint


def test_equal_records_have_equal_fingerprints_and_other_records_others():
    known = fingerprint(Data())
    assert fingerprint(Data()) == known  # as on another replica
    assert fingerprint(pickle.loads(pickle.dumps(Data()))) == known
    assert len({known, fingerprint(Data(1)), fingerprint(Changed(0)), fingerprint(Changed(RECORDS - 1))}) == 4
    spread = RECORDS // 2 * 65 // RECORDS * (RECORDS - 1) // 65
    assert fingerprint(Changed(spread)) != known


def test_keyed_records_are_sampled_under_one_key():
    class Keyed(RandomAccessSource):
        def take_keyed(self, record_ids, keys):
            return {"x": self.take(record_ids)["x"] + keys[:, :1].view(np.int32)}

    assert fingerprint(Keyed(Data())) == fingerprint(Keyed(Data()))
    assert fingerprint(Keyed(Data())) != fingerprint(Keyed(Data(1)))


def test_an_id_stands_for_the_content_and_nothing_is_read():
    class Unread(Data):
        def __getitem__(self, index: int) -> dict[str, np.ndarray]:
            assert index == 0, "only the first record is read, for the spec"
            return super().__getitem__(index)

    class Named(Unread):
        content_id = "web 2"

    known = fingerprint(Unread(), content_ids=("web 1",))
    assert fingerprint(Unread(5), content_ids=("web 1",)) == known
    assert fingerprint(RandomAccessSource(Unread(), content_id="web 1", name="s0")) == known
    assert fingerprint(Unread(), content_ids=("web 2",)) == fingerprint(Named()) != known
    assert fingerprint(Named(), content_ids=("web 1",)) == known
    assert fingerprint(pickle.loads(pickle.dumps(RandomAccessSource(Data(), content_id="web 1", name="s0")))) == known


def test_an_id_goes_before_a_digest():
    arrays = {"x": np.zeros((8, 4), np.int32)}
    assert fingerprint(ArraySource(arrays), content_ids=("a",)) != fingerprint(ArraySource(arrays))
    assert fingerprint(ArraySource(arrays), content_ids=("a",)) != fingerprint(ArraySource(arrays), content_ids=("b",))


@pytest.mark.parametrize("wrong", ["", "x" * 257, 7, b"x"])
def test_what_is_no_id_is_refused(wrong):
    with pytest.raises(ValueError, match="content_id of the source 's0' must be a string"):
        node(Data(), content_ids=(wrong,))
    with pytest.raises(ValueError, match="content_ids must be num_sources = 1"):
        node(Data(), content_ids=("a", "b"))
    with pytest.raises(ValueError, match="nested mixture '0' cannot have a content_id"):
        MixDataSourcesNode(MixDataSourcesConfig(num_sources=1, weights=(1.0,), content_ids=("a",)), [node(Data())])


@pytest.mark.parametrize(
    ("data", "said"),
    [(Random, "differ when they are read again"), (Broken, "SystemExit: this record is gone"), (Stuck, "takes longer")],
)
def test_content_that_cannot_be_identified_stays_out_with_a_warning(monkeypatch, caplog, data, said):
    caplog.set_level(logging.WARNING, "mixserve")
    monkeypatch.setattr(content, "SAMPLING_S", 0.5)
    made = data()
    try:
        with serve({"train": node(Data(), made)}, shared_memory=False) as server:
            (message,) = (m for record in caplog.records if "does not cover" in (m := record.getMessage()))
            for part in (said, "'s1'", "content_id"):
                assert part in message
            with local_client({"train": node(Data(), Data(), content_ids=(None, "known"))}) as known:
                assert [source.content_unknown for source in known.mixture().sources] == [False, False]
            with MixClient.connect(server.address) as client:
                assert [source.content_unknown for source in client.mixture().sources] == [False, True]
    finally:
        getattr(made, "ends", threading.Event()).set()


def test_content_of_which_only_a_sample_is_known_is_told(caplog):
    caplog.set_level(logging.WARNING, "mixserve")
    inner = node(Data())
    few, whole = Data(records=content.SAMPLED_RECORDS), ArraySource({"x": np.zeros((RECORDS, 4), np.int32)}, name="s3")
    config = MixDataSourcesConfig(num_sources=1, weights=(1.0,), source_names=("inner",), plan_sizes=ONE_SIZE)
    nodes = {
        "train": node(Data(), Data(), few, whole, content_ids=(None, "known", None, None)),
        "nested": MixDataSourcesNode(config, [inner]),
        "valid": node(Data(), content_ids=("valid",)),
    }
    with serve(nodes, shared_memory=False) as server, MixClient.connect(server.address) as client:
        assert [source.content_sampled for source in client.mixture("train").sources] == [True, False, False, False]
        assert [source.content_sampled for source in client.mixture("nested").sources] == [True]
        assert not any(source.content_unknown for source in client.mixture("train").sources)
        shown = CliRunner().invoke(app, ["info", server.address]).output
    said = [record.getMessage() for record in caplog.records]
    assert [("'nested'" in one, "inner" in one, "66 records" in one) for one in said[:1]] == [(True, True, True)]
    assert [("'train'" in one, "sources: s0. " in one, "content_id" in one) for one in said[1:]] == [(True, True, True)]
    warnings = re.findall("warning: the fingerprint covers only a sample of the records of (.*): give", shown)
    assert warnings == ["inner", "s0"]


def test_content_that_is_unknown_in_a_nested_mixture_is_unknown_outside(caplog):
    inner = node(Data(), Random())
    with local_client(
        {"train": MixDataSourcesNode(MixDataSourcesConfig(num_sources=1, weights=(1.0,)), [inner])}
    ) as client:
        assert [source.content_unknown for source in client.mixture().sources] == [True]


def test_two_mixtures_of_one_fingerprint_are_refused_only_if_their_records_are_known_to_differ(monkeypatch):
    monkeypatch.setattr(content, "SAMPLING_S", 0.5)
    for first, second in ((Data(), Data()), (Data(), Data(1)), (Random(), Random())):
        serve({"train": node(first), "valid": node(second)}, shared_memory=False).stop()
    slow = Stuck(), Stuck(1)
    try:
        with pytest.raises(
            ValueError, match="'train' and 'valid' have the same fingerprint, but the records of their sources 's0'"
        ):
            serve({"train": node(slow[0]), "valid": node(slow[1])}, shared_memory=False)
        named = {name: node(data, content_ids=(name,)) for name, data in zip(("train", "valid"), slow, strict=True)}
        serve(named, shared_memory=False).stop()
    finally:
        for one in slow:
            one.ends.set()


def test_a_state_of_another_mixture_is_refused_where_equal_fingerprints_say_too_little():
    nodes = {"train": node(Random()), "valid": node(Random()), "a": node(Data()), "b": node(Data())}
    with local_client(nodes) as client:
        assert client.mixture("train").fingerprint == client.mixture("valid").fingerprint
        state = client.batches(4, 0, mixture="train").get_state()
        with pytest.raises(FingerprintMismatch, match=r"'train'.*content_id"):
            client.batches(4, 0, mixture="valid").set_state(state)
        client.batches(4, 0, mixture="train").set_state(state)
        client.batches(4, 0, mixture="valid", strict=False).set_state(state)
        client.batches(4, 0, mixture="b").set_state(client.batches(4, 0, mixture="a").get_state())

"""Mixtures of one server that differ only in their records never get each other's."""

from collections.abc import Iterator

import numpy as np
import pytest

from mixserve import MixDataSourcesConfig, MixDataSourcesNode, RandomAccessSource, local_client, serve
from mixserve.mixture import content
from mixserve_client import MixClient
from tests.conftest import ROUTES, TRANSPORTS

RECORDS, ROW = 40, 64
SIZE, KEY = 16, 3


def make_node(offset: int, source: type = RandomAccessSource) -> MixDataSourcesNode:
    """A mixture whose sources do not identify their content; its records are in [offset, offset + 2 * RECORDS)."""
    sources = [
        source([{"x": np.full(ROW, offset + first + i, np.int32)} for i in range(RECORDS)]) for first in (0, RECORDS)
    ]
    return MixDataSourcesNode(MixDataSourcesConfig(num_sources=2, weights=(0.7, 0.3)), sources)


@pytest.fixture(scope="module", autouse=True)
def unknown_content() -> Iterator[None]:
    """Leave no time to read samples, so that fingerprints do not cover the content."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(content, "SAMPLING_S", 0.0)
        yield


@pytest.fixture(scope="module", params=TRANSPORTS)
def equal(request, tmp_path_factory) -> Iterator[MixClient]:
    """A client of a server with the mixtures train and valid."""
    nodes = {"train": make_node(0), "valid": make_node(1000)}
    if request.param == "in-process":
        with local_client(nodes) as client:
            yield client
        return
    folder = str(tmp_path_factory.mktemp("shm"))
    options = {"shared_memory": folder} | ROUTES[request.param]
    with serve(nodes, shared_memory=folder) as server, MixClient.connect(server.address, **options) as client:
        yield client


def test_their_fingerprints_are_equal(equal):
    assert equal.mixture("train").fingerprint == equal.mixture("valid").fingerprint


@pytest.mark.parametrize("provenance", [False, True], ids=["records", "provenance"])
def test_of_calls(equal, provenance):
    for start in range(0, 10 * SIZE, SIZE):
        for _ in range(2):
            train = equal.get_batch_at(start, SIZE, KEY, mixture="train", provenance=provenance)["x"]
            valid = equal.get_batch_at(start, SIZE, KEY, mixture="valid", provenance=provenance)["x"]
            np.testing.assert_array_equal(train + 1000, valid)


def test_of_positions(equal):
    positions = np.arange(200, 0, -7)
    for _ in range(3):
        train = equal.get_batch_by_positions(positions, KEY, mixture="train")["x"]
        valid = equal.get_batch_by_positions(positions, KEY, mixture="valid")["x"]
        np.testing.assert_array_equal(train + 1000, valid)


@pytest.mark.parametrize("weights", [None, (0.2, 0.8)], ids=["the mixture's weights", "weights of the reader"])
def test_of_iterators(equal, weights):
    readers = [equal.batches(SIZE, KEY, mixture=name, stop=60 * SIZE) for name in ("train", "valid") * 2]
    for reader in readers:
        if weights is not None:
            reader.schedule_weights(weights)
    for batches in zip(*readers, strict=True):
        for place, batch in enumerate(batches):
            assert (batch["x"] // 1000 == place % 2).all()
            np.testing.assert_array_equal(batch["x"], batches[0]["x"] + 1000 * (place % 2))


class Source(RandomAccessSource):
    """Records that depend on the source."""

    def take_keyed(self, record_ids, keys):
        return {"x": self.take(record_ids)["x"] + keys[:, :1].view(np.int32) * 0}


def test_where_only_one_takes_keys():
    """Equal fingerprints again, but one needs plans with keys, also under a schedule that the other had before."""
    nodes = {"valid": make_node(1000), "train": make_node(0, Source)}
    with local_client(nodes) as client:
        assert client.mixture("train").fingerprint == client.mixture("valid").fingerprint
        readers = [client.batches(SIZE, KEY, mixture=name, stop=5 * SIZE) for name in nodes]
        for reader in readers:
            reader.schedule_weights((0.2, 0.8), 3 * SIZE)
        for valid, train in zip(*readers, strict=True):
            np.testing.assert_array_equal(train["x"] + 1000, valid["x"])

"""A server that comes back with another mixture: the client says what has changed, not two hashes alone."""

from collections.abc import Callable
from typing import Any

import pytest

from mixserve import ArraySource, MixDataSourcesConfig, MixDataSourcesNode, local_client, serve
from mixserve_client import FingerprintMismatch, InvalidRequest, MixClient, MixtureDescription
from mixserve_client.reading.source_list import describe_sources, read_sources
from mixserve_client.schema.mixture import SourceDescription, differences
from tests.conftest import arrays

LENGTHS = {"a": 40, "b": 60}


def node(
    weights: tuple[float, ...] = (0.5, 0.5), lengths: dict[str, int] = LENGTHS, seed: int = 0, **options: Any
) -> MixDataSourcesNode:
    sources = [ArraySource(arrays(length, seed + i), name=name) for i, (name, length) in enumerate(lengths.items())]
    return MixDataSourcesNode(MixDataSourcesConfig(num_sources=len(sources), weights=weights, **options), sources)


CHANGES: dict[str, tuple[MixDataSourcesNode, str]] = {
    "weights": (node((0.3, 0.7)), "the source 'a' has 30.0000% of the weights, not 50.0000%"),
    "a length": (node(lengths={"a": 41, "b": 60}), "the source 'a' has 41 records, not 40"),
    "a name": (node(lengths={"a": 40, "c": 60}), "the source 'b' is gone; the source 'c' is new"),
    "the order": (node(lengths={"b": 60, "a": 40}), "the sources are in another order"),
    "the way of drawing": (node(sampling="epoch"), "sampling is 'epoch', not 'categorical'"),
    "content": (node(seed=9), "nothing that a description shows, so it is the content of a source"),
    "a schedule": (node(schedule=[(64, (0.9, 0.1))]), "the weight schedule is another one"),
}
CALLS: dict[str, Callable[[MixClient, Any], Any]] = {
    "a call": lambda client, _: client.get_batch_at(0, 3, 7),
    "a stream": lambda client, _: client.get_batch_at(0, 9000, 7),
    "positions": lambda client, _: client.get_batch_by_positions([3, 1], 7),
    "an iterator": lambda _, batches: next(batches),
    "the description": lambda client, _: client.mixture(),
}


@pytest.mark.parametrize("changed", CHANGES)
def test_what_has_changed_is_said(changed):
    other, said = CHANGES[changed]
    with serve({"train": node()}) as server:
        address = server.address
        client = MixClient.connect(address, patience_s=20)
        batches = client.batches(4, 7)
        next(batches)
        position = batches.get_state()["position"]
    with client, serve({"train": other}, address):
        for name in CALLS if changed == "weights" else ("a call",):
            with pytest.raises(FingerprintMismatch) as raised:
                for _ in range(100_000):  # of the iterator's batches, some may have come before
                    CALLS[name](client, batches)
                    position = batches.get_state()["position"]
            assert said in str(raised.value), name
            assert len(str(raised.value)) < 2000
        assert batches.get_state()["position"] == position


def test_many_differences_are_counted():
    with serve({"train": node()}) as server, MixClient.connect(server.address) as client:
        known: MixtureDescription = client.mixture()
    names = {f"source-{i}": 10 for i in range(20)}
    with serve({"train": node((0.05,) * 20, names)}) as server, MixClient.connect(server.address) as client:
        text = differences(known, client.mixture())
    assert text.endswith("; and 17 more")
    assert text.count(";") == 5


STATE_CHANGES = {
    "weights": "the source 'a' has 30.0000% of the weights, not 50.0000%",
    "a length": "the source 'a' has 41 records, not 40",
    "a name": "the source 'b' is gone; the source 'c' is new",
    "content": "not the names, lengths and weights of the sources, so it is their content",
}


@pytest.mark.parametrize("changed", STATE_CHANGES)
def test_a_saved_state_says_what_has_changed_since(changed):
    with local_client({"train": node()}) as client:
        batches = client.batches(4, 7)
        next(batches)
        state = batches.get_state()
    with local_client({"train": CHANGES[changed][0]}) as client:
        with pytest.raises(FingerprintMismatch, match=r"What has changed: .*strict=False") as raised:
            client.batches(4, 7).set_state(state)
        assert STATE_CHANGES[changed] in str(raised.value)
        for damaged in ("", "[", "[[1]]", '[["a", "b", "c"]]', "[" * 5000, "7", '[["a", 1e999, 1]]', '{"a": 1}'):
            with pytest.raises(FingerprintMismatch) as raised:
                client.batches(4, 7).set_state(state | {"sources": damaged})
            assert "What has changed" not in str(raised.value)
        with pytest.raises(InvalidRequest, match="sources must be a string"):
            client.batches(4, 7).set_state(state | {"sources": 7})


def test_a_state_does_not_grow_with_thousands_of_sources():
    few, many = ([SourceDescription(f"source-{i}", 10, 1 / n) for i in range(n)] for n in (100, 5000))
    assert read_sources(describe_sources(few)) == tuple(few)
    assert describe_sources(many) == ""

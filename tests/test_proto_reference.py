"""The .proto is a reference on its own: its tables are the code's, and gRPC's own defaults can follow what it says."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from mixserve import ArraySource, MixDataSourcesConfig, MixDataSourcesNode, MixServer, serve
from mixserve.servicer import hosted
from mixserve_client import MixClient, errors
from mixserve_client.reading.state import ReaderState
from mixserve_client.wire import methods
from mixserve_client.wire._generated import mix_pb2
from mixserve_client.wire.error import ERROR_METADATUM
from tests.conftest import assert_batches_equal
from tests.processes import ONE_SIZE

PROTO = (Path(__file__).parents[1] / "protos/mixserve/v1/mix.proto").read_text()
DEFAULT_BYTES = 4 << 20  # the longest message that a gRPC client receives unless it is told otherwise
DEADLINE_S = 60


@pytest.fixture(scope="module")
def server() -> Iterator[MixServer]:
    rows = np.arange(64 * 8192, dtype=np.uint32).reshape(64, 8192)
    config = MixDataSourcesConfig(num_sources=1, weights=(1.0,), plan_sizes=ONE_SIZE)
    with serve({"train": MixDataSourcesNode(config, [ArraySource({"x": rows}, name="a")])}) as made:
        yield made


def test_the_table_of_errors_is_the_tree():
    rows = re.findall(r"^//   ([A-Z]\w+) +([A-Z_]{5,})  ", PROTO, re.MULTILINE)
    assert dict(rows) == {cls.__name__: cls.code for cls in errors._CLASSES}
    assert len(rows) == len(errors._CLASSES)


def test_the_keys_of_a_state_are_those_of_our_reader(server):
    table = PROTO[PROTO.index("//   version ") :].split("syntax =")[0]
    listed = {
        name for names in re.findall(r"^//   (\w+(?:, \w+)*)  ", table, re.MULTILINE) for name in names.split(", ")
    }
    with MixClient.connect(server.address) as client:
        batches = client.batches(4, 7, worker=(0, 2), skip=[(5, 6)], schedule=[(8, (1.0,))])
        next(batches)
        state = batches.get_state()
        assert listed == state.keys() | {"short"}
        # What a client in another language would write, from the table alone.
        written = {name: state[name] for name in ("version", "mixture", "fingerprint")} | {
            "key": [0, 7],
            "position": 12,
        }
        resumed = client.batches(4, 0)
        resumed.set_state(json.loads(json.dumps(written)))
        assert_batches_equal(next(resumed), client.get_batch_at(12, 4, 7))
    assert ReaderState.of(state).short is None


def read(address: str, method: str, *requests: object) -> Iterator[mix_pb2.Batch]:
    """The replies that a gRPC client without any option gets."""
    with grpc.insecure_channel(address) as channel:
        for request in requests:
            call = channel.unary_stream if "Stream" in method else channel.unary_unary
            replies = call(method, None, mix_pb2.Batch.FromString)(request.SerializeToString(), timeout=DEADLINE_S)
            yield from replies if "Stream" in method else [replies]


def request(start: int, size: int) -> mix_pb2.GetBatchAtRequest:
    key = mix_pb2.Key(implementation="threefry2x32", words=[0, 7])
    return mix_pb2.GetBatchAtRequest(start=start, size=size, key=key)


def test_a_client_with_the_defaults_of_grpc_reads_what_the_comments_say_that_it_can(server):
    with MixClient.connect(server.address) as client:
        mixture = client.mixture()
        size = mixture.limits.size
        assert size * mixture.row_bytes > DEFAULT_BYTES
        whole = client.get_batch_at(3, size, 7)["x"]
    with pytest.raises(grpc.RpcError) as raised:
        list(read(server.address, methods.GET_BATCH_AT, request(3, size)))
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert ERROR_METADATUM not in dict(raised.value.trailing_metadata())

    small = (DEFAULT_BYTES - (64 << 10)) // mixture.row_bytes
    pieces = [request(3 + at, min(small, size - at)) for at in range(0, size, small)]
    stream = mix_pb2.StreamBatchesRequest(first=request(3, size), stride=size, count=1, reply_rows=size)
    for method, requests in ((methods.GET_BATCH_AT, pieces), (methods.STREAM_BATCHES, [stream])):
        replies = list(read(server.address, method, *requests))
        arrays = [np.frombuffer(reply.arrays[0].data, "<u4").reshape(reply.arrays[0].shape) for reply in replies]
        np.testing.assert_array_equal(np.concatenate(arrays), whole)


def test_data_begin_at_multiples_of_64_bytes(server):
    with grpc.insecure_channel(server.address) as channel:
        reply: bytes = channel.unary_unary(methods.GET_BATCH_AT)(request(0, 2).SerializeToString(), timeout=DEADLINE_S)
    data = mix_pb2.Batch.FromString(reply).arrays[0].data
    assert reply.index(data) % 64 == 0


def test_a_server_that_comes_back_with_smaller_limits_is_streamed_from(server, monkeypatch):
    config = MixDataSourcesConfig(num_sources=1, weights=(1.0,), plan_sizes=ONE_SIZE)
    node = MixDataSourcesNode(config, [ArraySource({"x": np.arange(50, dtype=np.int32)}, name="a")])
    with serve({"train": node}) as first:
        address = first.address
        client = MixClient.connect(address, patience_s=DEADLINE_S)
        before = client.get_batch_at(5, 30, 7)
    monkeypatch.setattr(hosted, "_SIZE", 8)  # as a later version of mixserve may have it
    with client, serve({"train": node}, address):
        for _ in range(2):
            assert_batches_equal(client.get_batch_at(5, 30, 7), before)
        with pytest.raises(errors.InvalidRequest):
            client.get_batch_at(-1, 30, 7)
        assert client.mixture().limits.size == 8

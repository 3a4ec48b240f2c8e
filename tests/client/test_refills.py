"""What an iterator does between a trainer's steps: requests that are encoded once, and batches that are read ahead."""

import gc
import threading
import weakref
from dataclasses import replace
from queue import SimpleQueue

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixserve import ArraySource, MixDataSourcesConfig, MixDataSourcesNode, serve
from mixserve.servicer import Services
from mixserve_client import MixClient, Unavailable
from mixserve_client.reading.direct import DirectStream
from mixserve_client.rpc.asking import Request
from mixserve_client.rpc.retry import RetryingCaller
from mixserve_client.rpc.threads import DaemonThreadPool
from mixserve_client.schema.fields import Content
from mixserve_client.schema.keys import key_words
from mixserve_client.schema.requests import BatchRequest, StreamRequest
from mixserve_client.transport import buffers
from mixserve_client.transport.base import Lane
from mixserve_client.transport.buffers import MemoryPool
from mixserve_client.transport.in_process import InProcessTransport
from mixserve_client.wire import methods
from mixserve_client.wire._generated import mix_pb2
from mixserve_client.wire.request import encode_batch_request, encode_stream_request, with_batches
from tests.client.test_shared_memory import until
from tests.processes import ONE_SIZE

SIZE, ROW = 64, 1024  # 256 KiB


@pytest.fixture(scope="module")
def node() -> MixDataSourcesNode:
    config = MixDataSourcesConfig(num_sources=1, weights=(1.0,), plan_sizes=ONE_SIZE)
    return MixDataSourcesNode(config, [ArraySource({"tokens": np.arange(1000 * ROW, dtype=np.int32).reshape(-1, ROW)})])


numbers = st.integers(1, 2**62)


@given(
    name=st.text(max_size=9),
    schedule=st.sampled_from(["", "weights"]),
    content=st.sampled_from(Content),
    start=st.integers(0, 2**62),
    ranges=st.tuples(numbers, numbers, numbers, numbers),
)
def test_a_request_that_is_put_together_is_the_one_that_protobuf_writes(name, schedule, content, start, ranges):
    size, stride, count, reply_rows = ranges
    first = BatchRequest(name, start, size, key_words(5), "f", schedule, content)
    whole = encode_stream_request(StreamRequest(first, stride, count, reply_rows))
    without_rows = encode_batch_request(replace(first, start=0, size=0))
    built = with_batches(without_rows, start, size, stride, count, reply_rows)
    parse = mix_pb2.StreamBatchesRequest.FromString
    assert parse(built) == parse(whole)


def test_a_stream_that_has_begun_makes_its_request_once(node):
    first = BatchRequest("train", 0, SIZE, key_words(5))
    data = encode_stream_request(StreamRequest(first, SIZE, 1, SIZE))
    made = []

    def next_request() -> Request | None:
        made.append(len(made))
        return None if len(made) > 1 else Request(data, 1, SIZE * ROW * 4)

    services = Services({"train": node})
    caller = RetryingCaller([InProcessTransport(services, on_close=services.close)], 1.0)
    try:
        replies = caller.stream(methods.STREAM_BATCHES, next_request, bytes)
        replies.begin(Lane())
        assert len(list(replies)) == 1
        assert len(made) == 2  # the request, and that there is no other one
    finally:
        caller.close()


@pytest.mark.parametrize("shared", [True, False])
def test_batches_are_taken_from_the_connection_while_a_trainer_computes(node, tmp_path, shared):
    folder = str(tmp_path) if shared else False
    with (
        serve({"train": node}, shared_memory=folder) as server,
        MixClient.connect(server.address, shared_memory=folder, patience_s=20) as client,
    ):
        list(client.batches(SIZE, 1, stop=2 * SIZE))  # opens the channel: a thread reads the streams before that
        batches = client.batches(SIZE, 3, stop=20 * SIZE)
        first = next(batches)
        # The trainer computes, and calls nothing.
        streams = [stream for one in batches.batches._in_flight._fetching for stream in one.streams]
        assert streams
        assert all(isinstance(stream, DirectStream) for stream in streams)
        until(lambda: all(stream.has_ended for stream in streams))
        assert sum(len(stream._ready) for stream in streams) == 19
        got = [first, *batches]
        assert client.transport.startswith("shared memory" if shared else "bulk")
        expected = client.get_batch_at(0, 20 * SIZE, 3)
    assert np.array_equal(np.concatenate([batch["tokens"] for batch in got]), expected["tokens"])


def test_a_task_without_a_result_is_run_by_an_idle_thread():
    pool, done = DaemonThreadPool(2, on_exit=lambda: None), SimpleQueue[int | None]()
    try:
        for _ in range(20):
            pool.start(lambda: done.put(threading.current_thread().ident))
            assert done.get(timeout=20) is not None
            until(lambda: not pool._idle.empty())
        assert len(pool._threads) == 1
    finally:
        pool.close()
    with pytest.raises(Unavailable, match="closed"):
        pool.start(lambda: None)


def test_memory_comes_back_with_the_last_view_and_no_reference_to_it_stays():
    gc.collect()
    pool, before = MemoryPool(), set(buffers._lent)
    root = pool.borrow(1 << 20)
    address, view, gone = root.ctypes.data, memoryview(root[5:])[7:], weakref.ref(root)
    del root
    gc.collect()  # the pool does not know memory that is lent: only its array does
    assert gone() is not None
    assert len(set(buffers._lent) - before) == 1
    assert pool.borrow(1 << 20).ctypes.data != address
    del view
    assert gone() is None
    assert not set(buffers._lent) - before
    assert address in {pool.borrow(1 << 20).ctypes.data, pool.borrow(1 << 20).ctypes.data}

"""The client over every transport: the same bytes and the same errors as the node itself."""

import gc
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from itertools import pairwise

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mixserve import MixDataSourcesNode, MixServer, local_client, serve
from mixserve_client import (
    DeadlineExceeded,
    FingerprintMismatch,
    InvalidRequest,
    MixClient,
    MixserveError,
    OutOfRange,
    ServerFault,
    Unavailable,
    UnknownMixture,
    errors,
)
from mixserve_client.reading.ranges import Shard
from mixserve_client.rpc import tries
from mixserve_client.wire import methods
from mixserve_client.wire._generated import mix_pb2
from tests.conftest import assert_batches_equal, make_node
from tests.profiles import examples
from tests.test_node import two


def direct(node: MixDataSourcesNode, start: int, size: int, seed: int) -> dict[str, np.ndarray]:
    out = {f.name: np.empty((size, *f.shape), f.dtype) for f in node.mixture.fields}
    node.read_into(start, np.array([0, seed], np.uint32), out)
    return out


@settings(max_examples=examples(30), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=st.integers(0, 2**63 - 3000), size=st.integers(1, 2000), seed=st.integers(0, 2**32 - 1))
def test_batches_are_those_of_the_node_in_the_stored_dtypes(node, client, start, size, seed):
    batch = client.get_batch_at(start, size, seed)
    assert batch["id"].dtype == np.int64
    assert_batches_equal(batch, direct(node, start, size, seed))


@pytest.mark.parametrize("placement", ["host", "device"])
def test_every_placement_and_route_gives_the_same_bytes(placement):
    node = two()
    expected = node.get_batch_at(3, 500, jax.random.key(5))
    with local_client({"train": node}, placement=placement) as local:
        assert local.mixture().placement == placement
        assert_batches_equal(local.get_batch_at(3, 500, 5), expected)
    with serve({"train": node}, placement=placement) as server, MixClient.connect(server.address) as remote:
        assert remote.mixture().placement == placement
        assert_batches_equal(remote.get_batch_at(3, 500, 5), expected)


def test_every_kind_of_key_names_the_same_batch(client):
    expected = client.get_batch_at(0, 9, 7)
    for key in (jax.random.key(7), jax.random.PRNGKey(7), np.array([0, 7], np.uint32), [0, 7], np.int64(7)):
        assert_batches_equal(client.get_batch_at(0, 9, key), expected)


def test_the_description(client, node):
    mixture = client.mixture()
    assert client.mixtures() == ("train",)
    assert mixture == client.mixture("train")
    assert mixture.fields == node.mixture.fields
    assert [(s.name, s.length) for s in mixture.sources] == [("source-0", 10), ("source-1", 20), ("source-2", 30)]
    assert mixture.weights == pytest.approx((0.5, 0.2, 0.3))
    assert mixture.fingerprint == node.mixture.fingerprint
    assert mixture.limits.size == 65536
    assert mixture.element_spec["id"].dtype == np.int64


def test_a_batch_larger_than_a_request_is_put_together_in_place(client, node):
    size = 150_000  # 8 MB, and more rows than one request allows
    assert size > client.mixture().limits.size
    assert_batches_equal(client.get_batch_at(10**12, size, 1), direct(node, 10**12, size, 1))


@given(st.integers(1, 10**6), st.integers(1, 64))
def test_shards_are_cut_without_gap_or_overlap(size, count):
    shards = [Shard(size, (index, count), (0, 1)).of(size) for index in range(count)]
    assert [offset for offset, _ in shards] == [index * size // count for index in range(count)]
    assert sum(rows for _, rows in shards) == size
    assert all(end == offset + rows for (offset, rows), (end, _) in pairwise(shards))


BAD_ARGUMENTS = [
    ({"size": 0}, InvalidRequest, "size must be at least 1, got 0"),
    ({"size": -3}, InvalidRequest, "size must be at least 1, got -3"),
    ({"start": -1}, InvalidRequest, "start must be at least 0, got -1"),
    ({"start": 2**63 - 4}, OutOfRange, r"start \+ size must be at most 2\^63 - 1"),
    ({"start": 2**70}, OutOfRange, r"start \+ size must be at most 2\^63 - 1"),
    ({"start": 0.5}, InvalidRequest, "start must be an integer, got 0.5"),
    ({"key": None}, InvalidRequest, "key must be .* got None"),
    ({"key": np.zeros(3, np.uint32)}, InvalidRequest, r"key must be .* shape \(3,\)"),
    ({"key": np.zeros(2, np.int64)}, InvalidRequest, "key must be .* int64"),
    ({"key": jax.random.key(0, impl="rbg")}, InvalidRequest, "threefry2x32.*'rbg'"),
    ({"mixture": "trian"}, UnknownMixture, "mixture must be one of 'train', got 'trian'"),
    ({"timeout_s": 0}, InvalidRequest, "timeout_s must be a positive number of seconds, got 0"),
    ({"timeout_s": float("nan")}, InvalidRequest, "timeout_s"),
]


@pytest.mark.parametrize(("arguments", "error", "said"), BAD_ARGUMENTS, ids=lambda value: str(value)[:40])
def test_bad_arguments_are_typed_errors_and_the_server_goes_on(client, arguments, error, said):
    good = {"start": 0, "size": 8, "key": 0}
    with pytest.raises(error, match=said):
        client.get_batch_at(**good | arguments)
    assert len(client.get_batch_at(**good)["id"]) == 8


KEY = mix_pb2.Key(implementation="threefry2x32", words=[0, 1])
BAD_REQUESTS = [
    (mix_pb2.GetBatchAtRequest(size=0, key=KEY), InvalidRequest, "size must be at least 1, got 0"),
    (mix_pb2.GetBatchAtRequest(size=65537, key=KEY), InvalidRequest, r"size must be in 1\.\.65536, got 65537"),
    (mix_pb2.GetBatchAtRequest(start=-5, size=1, key=KEY), InvalidRequest, "start must be at least 0, got -5"),
    (mix_pb2.GetBatchAtRequest(start=2**63 - 1, size=1, key=KEY), OutOfRange, r"at most 2\^63 - 1"),
    (mix_pb2.GetBatchAtRequest(size=1), InvalidRequest, "key is required"),
    (mix_pb2.GetBatchAtRequest(size=1, key=mix_pb2.Key(words=[0, 1])), InvalidRequest, "implementation must be"),
    (
        mix_pb2.GetBatchAtRequest(size=1, key=mix_pb2.Key(implementation="rbg", words=[0, 1, 2, 3])),
        InvalidRequest,
        "implementation must be 'threefry2x32', got 'rbg'",
    ),
    (
        mix_pb2.GetBatchAtRequest(size=1, key=mix_pb2.Key(implementation="threefry2x32", words=[1])),
        InvalidRequest,
        "2 words of 32 bits, got 1",
    ),
    (mix_pb2.GetBatchAtRequest(mixture="x", size=1, key=KEY), UnknownMixture, "one of 'train', got 'x'"),
    (
        mix_pb2.GetBatchAtRequest(size=1, key=KEY, expected_fingerprint="00"),
        FingerprintMismatch,
        "expected '00'",
    ),
]


@pytest.mark.parametrize(("request_", "error", "said"), BAD_REQUESTS, ids=lambda value: str(value)[:40])
def test_bad_requests_are_typed_errors_and_the_server_goes_on(client, call, request_, error, said):
    with pytest.raises(error, match=said):
        call(methods.GET_BATCH_AT, request_.SerializeToString())
    assert len(client.get_batch_at(0, 8, 0)["id"]) == 8


@settings(max_examples=examples(60), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(method=st.sampled_from([methods.LIST_MIXTURES, methods.GET_MIXTURE, methods.GET_BATCH_AT]), data=st.binary())
def test_random_bytes_as_a_request_are_answered_or_refused(
    call: Callable[[str, bytes], bytes], method: str, data: bytes
):
    try:
        call(method, data)
    except MixserveError as error:
        # CorruptReply: they begin as a request with a checksum does.
        assert isinstance(error, InvalidRequest | OutOfRange | UnknownMixture | errors.CorruptReply), error


def test_truncated_requests_are_refused(call):
    whole = mix_pb2.GetBatchAtRequest(mixture="train", size=8, key=KEY).SerializeToString()
    for cut in range(1, len(whole)):
        try:
            call(methods.GET_BATCH_AT, whole[:cut])
        except InvalidRequest as error:
            assert str(error)
        else:
            pytest.fail(f"cut at {cut} was answered")


def test_unknown_fields_in_a_request_are_tolerated(call):
    request = mix_pb2.GetBatchAtRequest(size=1, key=KEY).SerializeToString()
    assert call(methods.GET_BATCH_AT, request + b"\xfa\x3e\x05later") == call(methods.GET_BATCH_AT, request)


def test_a_server_of_several_mixtures_wants_a_name():
    with local_client({"b": make_node(seed=1), "a": make_node(seed=2)}) as client:
        assert client.mixtures() == ("a", "b")
        with pytest.raises(InvalidRequest, match="this server has several; it must be one of 'a', 'b'"):
            client.get_batch_at(0, 1, 0)
        assert client.get_batch_at(0, 1, 0, mixture="a").keys() == client.get_batch_at(0, 1, 0, mixture="b").keys()


def test_fingerprints_tell_mixtures_apart():
    nodes = [
        make_node(),
        make_node(),
        make_node(seed=1),
        make_node(weights=(0.5, 0.3, 0.2)),
        make_node(weights=(0.5, 0.5)),
        make_node(source_names=("x", "y", "z")),
        two(),
    ]
    fingerprints = [node.mixture.fingerprint for node in nodes]
    assert fingerprints[0] == fingerprints[1]
    assert len(set(fingerprints)) == len(nodes) - 1
    assert make_node(placement="device").mixture.fingerprint == fingerprints[0]


class Broken:
    """A source that fails when it is read."""

    def __len__(self):
        return 3

    def element_spec(self):
        return {"x": jax.ShapeDtypeStruct((), np.int32)}

    def take(self, record_ids):
        raise ZeroDivisionError("a secret of the server")


def test_a_fault_of_the_server_is_named_by_an_id_that_its_log_holds(caplog):
    from mixserve import MixDataSourcesConfig

    node = MixDataSourcesNode(MixDataSourcesConfig(num_sources=1, weights=(1.0,)), [Broken()])
    with serve({"x": node}) as server, MixClient.connect(server.address) as client:
        with pytest.raises(ServerFault, match=r"id [0-9a-f]{8}") as caught:
            client.get_batch_at(0, 1, 0)
        assert client.mixtures() == ("x",)
    assert "secret" not in str(caught.value)
    fault = str(caught.value).split()[-1]
    assert any(fault in record.getMessage() and record.exc_info for record in caplog.records)


@pytest.mark.parametrize("cls", errors._CLASSES, ids=lambda cls: cls.__name__)
def test_errors_cross_the_wire_by_name_and_else_by_code(cls):
    shared = {
        "NOT_FOUND": errors.UnknownMixture,
        "DATA_LOSS": errors.CorruptReply,
        "RESOURCE_EXHAUSTED": errors.Overloaded,
        "FAILED_PRECONDITION": errors.FingerprintMismatch,
    }
    by_code = shared.get(cls.code, cls)
    assert type(errors.from_wire(cls.__name__, cls.code, "said")) is cls
    assert type(errors.from_wire(None, cls.code, "said")) is by_code
    assert str(errors.from_wire(cls.__name__, cls.code, "said")) == "said"
    assert type(errors.from_wire("NoSuchError", cls.code, "said")) is by_code


def test_other_statuses_are_faults_that_name_them():
    assert "UNIMPLEMENTED" in str(errors.from_wire(None, "UNIMPLEMENTED", "no such method"))


def test_states_are_json_and_small(client):
    with client.batches(batch_size=8, key=7) as batches:
        next(batches)
        state = batches.get_state()
    assert json.loads(json.dumps(state)) == state
    assert state == {
        "version": 1,
        "mixture": "train",
        "fingerprint": client.mixture().fingerprint,
        "key": [0, 7],
        "position": 8,
        "sources": json.dumps([[source.name, source.length, source.weight] for source in client.mixture().sources]),
    }


def test_closed_clients_say_so(node, server):
    for client in (MixClient.connect(server.address), local_client({"train": node})):
        client.get_batch_at(0, 1, 0)
        client.close()
        client.close()
        with pytest.raises(Unavailable, match="closed"):
            client.get_batch_at(0, 1, 0)


def test_a_deadline_ends_the_search_for_a_server():
    with MixClient.connect("127.0.0.1:1") as client, pytest.raises(DeadlineExceeded, match="timeout_s ran out"):
        client.get_batch_at(0, 1, 0, timeout_s=0.3)


def test_patience_ends_the_search_for_a_server():
    with MixClient.connect("127.0.0.1:1", patience_s=0.3) as client, pytest.raises(Unavailable, match="patience_s"):
        client.mixtures()


def test_a_wait_for_a_server_is_logged_again_and_again(caplog, monkeypatch):
    monkeypatch.setattr(tries, "_LOG_AFTER_S", 0.1)
    monkeypatch.setattr(tries, "_LOG_EVERY_S", 0.15)
    with MixClient.connect("127.0.0.1:1", patience_s=2.2) as client, pytest.raises(Unavailable, match="patience_s"):
        client.mixtures()
    said = r"still waiting for a server, for \d+ s now, up to 2 s \(patience_s\): 127\.0\.0\.1:1: .*"
    assert 2 <= len(caplog.messages) <= 3  # one a second, and they say how many others there were
    assert all(re.fullmatch(said, message) for message in caplog.messages)


def test_the_next_replica_answers_where_one_is_silent(server):
    with MixClient.connect(["127.0.0.1:1", server.address], patience_s=20) as client:
        assert client.mixtures() == ("train",)
        assert client.transport.endswith(f"grpc {server.address}")


@pytest.mark.parametrize("address", ["", " host:1", []])
def test_addresses_that_are_none(address):
    with pytest.raises(InvalidRequest, match="address"):
        MixClient.connect(address)


def test_a_unix_socket_is_an_address_like_any_other(tmp_path, node):
    with serve({"train": node}, f"unix://{tmp_path}/socket") as server, MixClient.connect(server.address) as client:
        assert_batches_equal(client.get_batch_at(0, 5, 1), direct(node, 0, 5, 1))


def test_a_changed_mixture_behind_the_same_address_is_refused():
    with serve({"train": make_node(seed=1)}) as first:
        address = first.address
        client = MixClient.connect(address, patience_s=20)
        batch = client.get_batch_at(0, 5, 1)
    with client:
        with serve({"train": make_node(seed=2)}, address):
            with pytest.raises(FingerprintMismatch, match=r"batches would differ.*content of a source"):
                client.get_batch_at(0, 5, 1)
            with pytest.raises(FingerprintMismatch):
                client.mixture()
        with serve({"train": make_node(seed=1)}, address):
            assert_batches_equal(client.get_batch_at(0, 5, 1), batch)


def test_the_server_fixture_listens_on_loopback(server: MixServer):
    assert server.address.startswith("127.0.0.1:")


def test_everything_asked_of_a_closed_client_is_refused(node, server):
    for client in (MixClient.connect(server.address), local_client({"train": node})):
        batches = client.batches(8, 0)
        next(batches)
        client.close()
        for _ in range(3):
            with pytest.raises(Unavailable):
                while True:  # batches in flight may still arrive
                    next(batches)
        with pytest.raises(Unavailable, match="closed"):
            client.get_batch_at(0, 10**6, 0)


def test_dropped_clients_leave_no_threads(node):
    def fetchers() -> int:
        return sum(thread.name == "mixserve-fetch" for thread in threading.enumerate())

    before = fetchers()
    for _ in range(10):
        next(local_client({"train": node}).batches(8, 0))
    gc.collect()
    deadline = time.monotonic() + 30
    while fetchers() > before:
        assert time.monotonic() < deadline, fetchers()
        time.sleep(0.01)


@pytest.mark.parametrize("ending", ["", "it.close(); client.close()"])
def test_a_program_may_end_while_batches_are_in_flight(ending):
    program = (
        "import atexit, threading\n"
        "left = lambda: [t.name for t in threading.enumerate() if t.name == 'mixserve-fetch']\n"
        "atexit.register(lambda: print(left()))\n"  # registered first, so called last
        "import numpy as np\nfrom mixserve import *\n"
        "source = ArraySource({'x': np.zeros((1000, 512), np.int32)})\n"
        "node = MixDataSourcesNode(MixDataSourcesConfig(num_sources=1, weights=(1.0,)), [source])\n"
        f"client = local_client({{'x': node}})\nit = client.batches(3000, 0, prefetch=8)\nnext(it)\n{ending}\n"
    )
    for _ in range(2):
        ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "[]\n", "")


def test_timeouts_may_be_any_positive_number(client):
    for timeout_s in (np.float32(30), np.int64(30), 1e10, float("inf")):
        assert client.mixtures(timeout_s=timeout_s) == ("train",)

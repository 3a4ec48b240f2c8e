"""What a server does not give as a source, and what those who ask for it are told."""

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from mixserve import ArraySource, MixServer, RemoteSource, local_client, serve
from mixserve.access.certificates import ServerTls
from mixserve.sources.hops import current_hops
from mixserve_client import (
    InvalidRequest,
    MixClient,
    MixserveError,
    OutOfRange,
    PermissionDenied,
    ServerFault,
    SourceChanged,
    TlsOptions,
    Unauthenticated,
    Unavailable,
    UnknownMixture,
    UnknownSource,
)
from mixserve_client.schema.requests import RecordsRequest
from mixserve_client.wire import methods
from mixserve_client.wire._generated import mix_pb2
from mixserve_client.wire.request import encode_records_request
from tests.certificates import NEEDS_OPENSSL, Made
from tests.remote.serving import array_sources, mixed, rows, serve_sources
from tests.test_children import Keyed
from tests.tokens.files import Tokens
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def data() -> Iterator[MixServer]:
    with serve_sources(array_sources()[:2], ["a", "b"]) as server:
        yield server


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        (
            {"mixture": "other", "source": "a"},
            UnknownMixture,
            r"the mixture 'other' at 127\.0\.0\.1.*one of 'data', got 'other'",
        ),
        ({"source": "c"}, UnknownSource, r"the source 'c' of the only mixture at 127.*one of a, b, got 'c'"),
        ({}, InvalidRequest, r"source is required.*one of a, b"),
        ({"source": 3}, InvalidRequest, "source must be the name of a source, got 3"),
        ({"source": "a", "patience_s": 0}, InvalidRequest, "patience_s must be a positive number"),
        ({"source": "a", "tls": 7}, InvalidRequest, "tls must be True"),
    ],
)
def test_what_does_not_exist_is_named_with_what_does(data, arguments, error, said):
    with pytest.raises(error, match=said):
        RemoteSource(data.address, **arguments)


def test_a_source_whose_records_depend_on_a_key_is_refused():
    with serve_sources([Keyed()], ["a"]) as server, pytest.raises(InvalidRequest, match="depend on a key too"):
        RemoteSource(server.address)


def test_nobody_there_is_said_with_the_address():
    began = time.monotonic()
    with pytest.raises(Unavailable, match=r"the source 'a' of the mixture 'm' at localhost:1: .* read from itself"):
        RemoteSource("localhost:1", mixture="m", source="a", patience_s=0.2)
    assert time.monotonic() - began < 5


def take(server: MixServer, *, rows_: int = 4, **changed: Any) -> list[bytes | memoryview]:
    """The replies to a request for records."""
    request = {"mixture": "data", "source": "a", "record_ids": np.array([1, 2]), "reply_rows": rows_} | changed
    data = request.pop("raw", None) or encode_records_request(RecordsRequest(**request))
    with MixClient.connect(server.address, shared_memory=False, bulk=False) as client:
        transport = client.catalog.resources.here.caller.transport
        return list(transport.stream(methods.TAKE_RECORDS, data, 20, 1, 1 << 20))


@pytest.mark.parametrize(
    ("changed", "error", "said"),
    [
        ({"record_ids": np.array([3, 50])}, OutOfRange, r"record_ids must be in 0\.\.49, .* 'a', got 50"),
        ({"record_ids": np.array([-1])}, OutOfRange, r"got -1"),
        ({"record_ids": np.array([], np.int64)}, InvalidRequest, "1 to 65536, got 0"),
        ({"record_ids": np.zeros(65537, np.int64)}, InvalidRequest, "1 to 65536, got 65537"),
        ({"reply_rows": 0}, InvalidRequest, "reply_rows must be at least 1, got 0"),
        ({"hops": 9}, InvalidRequest, r"hops must be in 0\.\.8, got 9.*in a circle"),
        ({"hops": -1}, InvalidRequest, "hops"),
        ({"expected_fingerprint": "f" * 64}, MixserveError, "its records would differ"),
        ({"raw": b"\xff"}, InvalidRequest, "TakeRecordsRequest"),
        ({"raw": bytes(1 << 21)}, InvalidRequest, "must have at most 1048576 bytes"),
    ],
)
def test_requests_are_bounded_before_anything_is_read(data, changed, error, said):
    with pytest.raises(error, match=said):
        take(data, **changed)


def test_replies_have_as_many_rows_as_were_asked_for(data):
    replies = take(data, record_ids=np.arange(50), reply_rows=20)
    sizes = [mix_pb2.Batch.FromString(bytes(reply)).arrays[0].shape[0] for reply in replies]
    assert sizes == [20, 20, 10]


def test_other_records_at_the_same_place_are_refused_at_every_read(data):
    """The data change while this server runs: another server takes the address."""
    first = serve_sources([ArraySource(rows(30, 1))], ["a"])
    address = first.address
    remote, here = RemoteSource(address, patience_s=20), array_sources()[1]
    node = mixed([here, remote], ("here", "there"))
    with serve({"train": node}, address="127.0.0.1:0") as server, MixClient.connect(server.address) as client:
        client.get_batch_at(0, 64, 0)
        first.stop(0)
        with serve({"data": mixed([ArraySource(rows(30, 2))], ["a"])}, address=address):
            for _ in range(2):
                with pytest.raises(
                    SourceChanged,
                    match=rf"a record of the source 'there' .*'a' of .* at {address}.*would differ.*Restart",
                ):
                    client.get_batch_at(64, 64, 0)
            assert client.get_plan_at(64, 64, 0)["source_id"].shape == (64,)
        with serve({"data": mixed([ArraySource(rows(30, 1))], ["a"])}, address=address):  # the first ones are back
            deadline = time.monotonic() + 30
            while True:
                try:
                    client.get_batch_at(64, 64, 0)
                    break
                except SourceChanged:  # the replica is asked again later
                    assert time.monotonic() < deadline


def test_of_replicas_the_one_with_the_old_records_is_asked(data):
    old, new = (serve_sources([ArraySource(rows(30, seed))], ["a"]) for seed in (1, 2))
    with old, new:
        remote = RemoteSource([old.address, new.address])
        for _ in range(20):
            np.testing.assert_array_equal(remote.take(np.array([5]))["x"], rows(30, 1)["x"][[5]])


def test_a_source_that_is_gone_for_long_is_said_with_its_address(data):
    first = serve_sources([ArraySource(rows(30, 1))], ["a"])
    node = mixed([array_sources()[0], RemoteSource(first.address, patience_s=0.3)], ("here", "there"))
    address = first.address
    first.stop(0)
    said = rf"the source 'a' of the mixture 'data' at {address}: no server answered"
    with serve({"train": node}, address="127.0.0.1:0") as server:
        client = MixClient.connect(server.address, patience_s=0.5)
        with client, pytest.raises(Unavailable, match=said):
            client.get_batch_at(0, 64, 0)


class Broken:
    """A source whose record 3 cannot be read."""

    def __init__(self) -> None:
        self._rows = ArraySource(rows(10, 0))
        self.element_spec, self.content_digest = self._rows.element_spec, self._rows.content_digest

    def __len__(self) -> int:
        return len(self._rows)

    def take(self, record_ids: np.ndarray) -> Any:
        if 3 in record_ids:
            raise OSError("the disk says no")
        return self._rows.take(record_ids)


def test_a_record_that_cannot_be_read_there_is_named_here():
    with serve_sources([Broken()], ["a"]) as data:
        node = mixed([RemoteSource(data.address)], ["far"])
        with serve({"train": node}, address="127.0.0.1:0") as server, MixClient.connect(server.address) as client:
            found = r"the record 3 of the source 'far' failed.*the record 3 of the source 'a' failed.*under the id"
            with pytest.raises(ServerFault, match=found) as caught:
                client.get_batch_at(0, 64, 0)
            assert "the disk says no" not in str(caught.value)  # which may be a secret of that server


def test_a_token_needs_the_role_and_the_mixture(tmp_path):
    tokens = Tokens(tmp_path / "tokens.yaml", {"of-data": ("reader", ["data"]), "of-other": ("reader", ["other"])})
    nodes = {name: mixed([ArraySource(rows(10, 0))], ["a"]) for name in ("data", "other")}
    with serve(nodes, address="127.0.0.1:0", tokens=tokens.path) as server:
        file = tmp_path / "token"
        file.write_text(tokens["of-data"])
        remote = RemoteSource(server.address, mixture="data", token_file=file)
        assert remote.take(np.array([1]))["x"].shape == (1, 9)
        with pytest.raises(PermissionDenied, match=r"'other' at.*not for the mixture"):
            RemoteSource(server.address, mixture="other", token_file=file)
        with pytest.raises(Unauthenticated, match="'data' at"):
            RemoteSource(server.address, mixture="data")
        with pytest.raises(Unauthenticated):
            RemoteSource(server.address, mixture="data", token="mixserve-wrong")
        # To a reader here that is a fault of this server: it must not look for another token.
        node = mixed([remote], ["far"])
        tokens.write("of-data")
        client = local_client({"train": node})
        wait_until(lambda: "token" in refusal(client), "that the token is refused", 10)
        with pytest.raises(ServerFault, match="of this call was revoked"):
            client.get_batch_at(0, 8, 0)


@NEEDS_OPENSSL
def test_records_come_over_tls(tmp_path):
    made = Made.in_folder(tmp_path)
    tls = ServerTls(made.server.certificate, made.server.key)
    with serve({"data": mixed([ArraySource(rows(30, 0))], ["a"])}, address="localhost:0", tls=tls) as server:
        remote = RemoteSource(server.address, tls=TlsOptions(ca=made.authority.ca))
        np.testing.assert_array_equal(remote.take(np.array([5]))["x"], rows(30, 0)["x"][[5]])
        with pytest.raises(Unauthenticated, match="the server speaks TLS"):
            RemoteSource(server.address, patience_s=0.5)


def test_servers_that_read_from_each_other_in_a_circle_say_so():
    """The first server's source is at first its own, and then, after a restart, that of the second, which asks it."""
    source = ArraySource(rows(30, 0))
    first = serve_sources([source], ["a"])
    address = first.address
    with serve_sources([RemoteSource(address)], ["a"]) as second:
        circle = RemoteSource(second.address)
        first.stop(0)
        with serve({"data": mixed([circle], ["a"])}, address=address), MixClient.connect(address) as client:
            began = time.monotonic()
            with pytest.raises(ServerFault, match="in a circle"):
                client.get_batch_at(0, 8, 0)
            assert time.monotonic() - began < 20


class Noting(Broken):
    """A source that notes how many servers have asked for its records."""

    def take(self, record_ids: np.ndarray) -> Any:
        self.hops = current_hops()
        return self._rows.take(record_ids)


def test_a_source_is_read_for_as_many_servers_as_have_asked():
    """In the thread that reads it, which is not that of the call."""
    source = Noting()
    with serve_sources([source], ["a"]) as server:
        take(server, hops=3)
        assert source.hops == 3
        take(server, hops=0, record_ids=np.array([5]))
        assert source.hops == 0


def refusal(client: MixClient) -> str:
    try:
        client.get_batch_at(0, 8, 0)
    except MixserveError as error:
        return str(error)
    return ""

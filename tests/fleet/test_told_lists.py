"""Clients that were given `ray://HOST:PORT`: any server, which tells the list of all. No Ray is needed for that."""

from contextlib import ExitStack

import jax
import numpy as np
import pytest

from mixserve import ArraySource, MixDataSourcesConfig, MixDataSourcesNode, serve
from mixserve_client import AsyncMixClient, CorruptReply, InvalidRequest, MixClient
from mixserve_client.schema.server import FleetList, ServerDescription
from mixserve_client.wire.server import decode_server, encode_server
from tests.waiting import wait_until

_FOLLOWS_S = 15.0


def _node():
    config = MixDataSourcesConfig(num_sources=1, weights=(1.0,))
    return MixDataSourcesNode(config, [ArraySource({"x": np.arange(1000, dtype=np.int32)})])


def _known(client):
    return {replica.address for replica in client.catalog.resources.here.caller._replicas.all}


def test_a_client_follows_the_list_that_replicas_tell():
    node = _node()
    with ExitStack() as stack:
        first, second, third = (stack.enter_context(serve({"train": node.clone()})) for _ in range(3))
        for one in (first, second):
            one.tell_fleet(FleetList(1, (first.address, second.address)))
        # The seed that is not there is left for the one that is.
        client = stack.enter_context(MixClient.connect(f"ray://127.0.0.1:9,{first.address}", patience_s=30))
        batches = client.batches(8, 7)
        at = 0

        def read_until(is_so, what):
            nonlocal at
            for _ in range(20):
                found = next(batches)["x"]
                assert np.array_equal(found, node.get_batch_at(at, 8, jax.random.key(7))["x"])
                at += 8
            return is_so()

        wait_until(lambda: read_until(lambda: len(_known(client)) == 2, ""), "the list of two", _FOLLOWS_S)
        # The first one ends without a word, so that only the second one can tell of the third.
        for one in (second, third):
            one.tell_fleet(FleetList(2, (second.address, third.address)))
        first.stop(grace_s=0)
        took_s = wait_until(
            lambda: read_until(lambda: _known(client) == {second.address, third.address}, ""), "the list", _FOLLOWS_S
        )
        print(f"the client has the new list after {took_s:.1f} s")
        # A server that is not in the fleet any more may tell an old list.
        second.tell_fleet(FleetList(1, (first.address,)))
        assert second.address in _known(client)


def test_a_single_replica_that_moves_is_found_again():
    node = _node()
    with ExitStack() as stack:
        first, second = (stack.enter_context(serve({"train": node.clone()})) for _ in range(2))
        first.tell_fleet(FleetList(1, (first.address,)))
        client = stack.enter_context(MixClient.connect(f"ray://{first.address}", patience_s=60, shared_memory=False))
        client.get_batch_at(0, 8, 7)
        wait_until(lambda: _known(client) == {first.address}, "the list of one", _FOLLOWS_S)
        first.tell_fleet(FleetList(2, (second.address,)))
        wait_until(lambda: _known(client) == {second.address}, "the list with the other", _FOLLOWS_S)
        first.stop(grace_s=0)
        client.get_batch_at(8, 8, 7)


def test_a_server_that_tells_no_list_is_read_alone(server, caplog):
    with MixClient.connect(f"ray://{server.address}") as client:
        client.get_batch_at(0, 4, 7)
        wait_until(lambda: "cannot be looked up" in caplog.text, "a line in the log")
        client.get_batch_at(4, 4, 7)


def test_sessions_need_the_address_of_one_server(server):
    with MixClient.connect(f"ray://{server.address}") as client, pytest.raises(InvalidRequest, match="lives on one"):
        client.session("s")


@pytest.mark.parametrize(
    "address", ["ray://", "ray://a b", "ray://host:", "ray://host:99999", "ray://a/b/c", "ray://h:1,", "ray://h:1,name"]
)
@pytest.mark.parametrize("connect", [MixClient.connect, AsyncMixClient.connect])
def test_other_addresses_are_refused(address, connect):
    with pytest.raises(InvalidRequest, match="ray://"):
        connect(address)


def test_a_list_is_told_as_it_was_given():
    given = ServerDescription(fleet=FleetList(3, ("a:1", "[::1]:2")))
    assert decode_server(encode_server(given)) == given
    assert decode_server(b"").fleet == FleetList()


@pytest.mark.parametrize("address", ["", ":1", "a", "a:0", "a b:1", "::1:5", "a:1,b:2", "x" * 400 + ":1"])
def test_a_list_with_what_is_no_address_is_refused(address):
    with pytest.raises(CorruptReply, match="replica"):
        decode_server(encode_server(ServerDescription(fleet=FleetList(1, (address,)))))

"""Clients ask the servers of their own zone, and others while none of these answers."""

import time
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest

from mixserve import ArraySource, MixDataSourcesConfig, MixDataSourcesNode, MixServer, serve
from mixserve.config import ConfigError, load_config
from mixserve_client import InvalidRequest, MixClient
from mixserve_client.schema.server import ServerDescription
from mixserve_client.schema.stats import by_name
from mixserve_client.wire._generated import mix_pb2
from mixserve_client.wire.server import decode_server, encode_server
from tests.processes import DEADLINE_S, ONE_SIZE, server_process, write_mixture


@pytest.fixture
def stack():
    with ExitStack() as opened:
        yield opened


def start(stack: ExitStack, zone: str | None, address: str = "127.0.0.1:0", **options: Any) -> MixServer:
    config = MixDataSourcesConfig(num_sources=1, weights=(1.0,), plan_sizes=ONE_SIZE)
    node = MixDataSourcesNode(config, [ArraySource({"x": np.arange(1000, dtype=np.int32)})])
    return stack.enter_context(serve({"train": node}, address, shared_memory=False, zone=zone, **options))


def records(server: MixServer) -> float:
    return sum(sample.value for sample in by_name(server.stats.collect())["mixserve_records_total"].samples)


def read_until(client: MixClient, is_so) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not is_so():
        assert time.monotonic() < deadline
        client.get_batch_at(0, 8, 7)


def test_requests_stay_in_the_zone_while_one_of_it_answers(stack):
    here, there, unknown = start(stack, "a"), start(stack, "b"), start(stack, None)
    address = here.address
    client = stack.enter_context(
        MixClient.connect([there.address, unknown.address, address], zone="a", patience_s=DEADLINE_S)
    )
    fleet = client._caller._replicas.fleet
    read_until(client, lambda: None not in [one.zone for one in fleet.all])
    assert [one.zone for one in fleet.all] == ["b", "", "a"]
    others = records(there), records(unknown)
    with client.batches(8, 7) as batches:
        for _ in range(200):
            next(batches)
    for start_at in range(50):
        client.get_batch_at(start_at, 8, 7)
    assert (records(there), records(unknown)) == others
    here.stop(0)
    for start_at in range(50):
        client.get_batch_at(start_at, 8, 7)
    assert records(there) + records(unknown) >= sum(others) + 50 * 8
    back = start(stack, "a", address)
    read_until(client, lambda: records(back) > 8)  # those of the request that asked whether it is back
    others = records(there), records(unknown)
    for start_at in range(50):
        client.get_batch_at(start_at, 8, 7)
    assert (records(there), records(unknown)) == others


def test_a_client_asks_few_of_many_and_others_when_these_are_lost(stack):
    servers = [start(stack, None, bulk=False) for _ in range(20)]
    client = stack.enter_context(MixClient.connect([one.address for one in servers], patience_s=DEADLINE_S))
    for at in range(200):
        client.get_batch_at(at, 8, 7)
    asked = [one for one in servers if records(one)]
    assert 0 < len(asked) <= 16
    for one in asked:
        one.stop(0)
    client.get_batch_at(0, 8, 7)
    assert any(records(one) for one in servers if one not in asked)


def test_the_command_tells_its_zone(tmp_path):
    config = write_mixture(tmp_path)
    config.write_text(config.read_text().replace("{port: 0}", "{port: 0, zone: rack-7}"))
    with server_process(config) as server, MixClient.connect(server.address()) as client:
        assert decode_server(client._caller.call("/mixserve.v1.MixService/GetServer", b"")).zone == "rack-7"
    with (
        server_process(config, "--zone", "rack-8") as server,
        MixClient.connect(server.address()) as client,
    ):
        assert decode_server(client._caller.call("/mixserve.v1.MixService/GetServer", b"")).zone == "rack-8"


@pytest.mark.parametrize("zone", ["", "a" * 65, "a\nb", 7])
def test_other_names_of_zones_are_refused(zone, tmp_path):
    with pytest.raises(InvalidRequest, match="zone must be 1 to 64 printable characters"):
        MixClient.connect("localhost:1", zone=zone)
    config = write_mixture(tmp_path)
    written = "7.5" if zone == 7 else repr(zone).replace("'", '"')
    config.write_text(config.read_text().replace("{port: 0}", f"{{port: 0, zone: {written}}}"))
    with pytest.raises(ConfigError, match=r"server\.zone"):
        load_config(config)


def test_a_server_of_a_zone_is_told():
    told = ServerDescription(zone="a")
    assert decode_server(encode_server(told)) == told
    with pytest.raises(Exception, match="the zone of a server must be a short name"):
        decode_server(mix_pb2.Server(zone="a\0b").SerializeToString())

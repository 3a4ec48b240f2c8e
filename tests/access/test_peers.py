"""Which gRPC peers are on this host."""

import socket
from contextlib import closing, suppress
from pathlib import Path

import grpc
import pytest

from mixserve import MixDataSourcesNode, serve
from mixserve.access.identity import EVERYBODY, acting_as
from mixserve.access.peers import is_on_this_host, split_peer
from mixserve.servicer import Services
from mixserve.serving.shared_memory import SharedMemory
from mixserve_client.transport.handshake import DEFAULT_FOLDER
from mixserve_client.wire import methods
from mixserve_client.wire.server import decode_server

HERE = ["unix:", "unix:/tmp/socket", "ipv4:127.0.0.1:1", "ipv4:127.9.8.7:1", "ipv6:%5B::ffff:127.0.0.1%5D:1"]
# Addresses of documentation, which no host has.
ELSEWHERE = [
    "ipv4:198.51.100.7:1",
    "ipv6:%5B2001:db8::1%5D:1",
    "ipv6:%5B::ffff:198.51.100.7%5D:1",
    "ipv6:%5Bfe80::1%25nowhere0%5D:1",
    "ipv4:nonsense:1",
    "ipv4:",
    "vsock:2:1",
    "",
]


def own_address() -> str | None:
    """An address of this host that is not loopback, if it has one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, suppress(OSError):
        probe.connect(("198.51.100.7", 9))  # sends nothing
        return str(probe.getsockname()[0])
    return None


@pytest.mark.parametrize("peer", HERE)
def test_peers_of_this_host(peer: str) -> None:
    assert is_on_this_host(peer)


@pytest.mark.parametrize("peer", ELSEWHERE)
def test_peers_of_other_hosts(peer: str) -> None:
    assert not is_on_this_host(peer)


def test_a_peer_has_kind_and_host() -> None:
    assert split_peer("ipv6:%5Bfe80::1%25eth0%5D:50000") == ("ipv6", "fe80::1%eth0")
    assert split_peer("unix:/tmp/x:1") == ("unix", "")


def path_told(node: MixDataSourcesNode, memory: SharedMemory, peer: str) -> str:
    with closing(Services({"train": node}, slots=memory)) as services, acting_as(EVERYBODY, lambda: peer):
        return decode_server(services.handle(methods.GET_SERVER, b"")).shared_memory


def test_other_hosts_are_not_told_where_the_socket_is(node: MixDataSourcesNode, tmp_path: Path) -> None:
    with closing(SharedMemory(DEFAULT_FOLDER)) as memory:
        assert path_told(node, memory, HERE[0]) == path_told(node, memory, HERE[2]) == memory.path
        assert path_told(node, memory, ELSEWHERE[0]) == path_told(node, memory, ELSEWHERE[1]) == ""
    with closing(SharedMemory(str(tmp_path))) as memory:  # which containers may share
        assert path_told(node, memory, ELSEWHERE[0]) == memory.path


def test_a_client_that_names_this_host_by_its_address_has_shared_memory(node: MixDataSourcesNode) -> None:
    address = own_address()
    if address is None:
        pytest.skip("this host has no other address")
    with (
        serve({"train": node}, f"{address}:0", insecure=True) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        told = decode_server(channel.unary_unary(methods.GET_SERVER)(b"", timeout=20)).shared_memory
    assert told.startswith(DEFAULT_FOLDER)

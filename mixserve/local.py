"""The in-process mode: the client of the network, handed the servicer."""

from collections.abc import Mapping

from mixserve.node import MixDataSourcesNode
from mixserve.servicer import MixServicer
from mixserve_client import MixClient
from mixserve_client.transport.in_process import InProcessTransport


def local_client(nodes: Mapping[str, MixDataSourcesNode], *, placement: str | None = None) -> MixClient:
    """A client of `nodes` in this process: the same calls, the same bytes and the same errors, without a socket."""
    return MixClient([InProcessTransport(MixServicer(nodes, placement=placement))])

"""A client of nodes in this process."""

from collections.abc import Mapping
from pathlib import Path

from mixserve.node import MixDataSourcesNode
from mixserve.pooled_memory import PooledMemory
from mixserve.servicer import Services
from mixserve.sessions import TTL_S
from mixserve_client import MixClient
from mixserve_client.transport.in_process import InProcessTransport


def local_client(
    nodes: Mapping[str, MixDataSourcesNode],
    *,
    placement: str | None = None,
    state_dir: Path | str | None = None,
    session_ttl_s: float = TTL_S,
    name: str | None = None,
) -> MixClient:
    """A client of `nodes` in this process: the same calls, the same bytes and the same errors, without a socket.

    `placement` (auto, host or device) overrides the nodes' own. Sessions and checkpoints are kept in the folder
    `state_dir`; without one, sessions end with the client. If a holder is silent for `session_ttl_s` seconds, others
    may open its session. `name` is as in `MixClient.connect`.

    Raises ValueError for bad arguments, and OSError if the folder cannot be used.
    """
    services = Services(
        nodes, placement=placement, memory=PooledMemory(), state_dir=state_dir, session_ttl_s=session_ttl_s
    )
    return MixClient([InProcessTransport(services, on_close=services.close)], name=name)

"""The module `ray`, and a connection to a cluster."""

import os
import socket
from importlib import import_module
from typing import Any

from mixserve_client.errors import InvalidRequest, Unavailable
from mixserve_client.transport.ray_controller import NAMESPACE

_SHOWN = 300
_REACH_S = 10.0
_HEAD = "node:__internal_head__"  # a resource that Ray gives to the head node alone


def import_ray() -> Any:
    """The module. Raises InvalidRequest if it is not installed."""
    try:
        return import_module("ray")
    except ImportError as error:
        raise InvalidRequest(f"Ray cannot be imported: pip install 'mixserve[ray]' ({error})") from error


def attached(address: str | None) -> Any:
    """The module, connected to the cluster at `address` (None: that of RAY_ADDRESS, else that of this machine), unless
    this process is connected to one.

    Raises InvalidRequest without Ray, and Unavailable if there is no cluster.
    """
    ray = import_ray()
    if ray.is_initialized():
        return ray
    wanted = address or os.environ.get("RAY_ADDRESS") or "auto"
    try:
        _check_reached(wanted)
        ray.init(address=wanted, namespace=NAMESPACE, log_to_driver=False, logging_level="ERROR")
    except Exception as error:  # Ray has many, and they have no common base
        said = (
            "no cluster of Ray runs on this machine" if wanted == "auto" else f"no cluster of Ray answers at {wanted}"
        )
        raise Unavailable(
            f"{said}: start one with `ray start --head`, or name it with --address or RAY_ADDRESS "
            f"({type(error).__name__}: {error!s:.{_SHOWN}})"
        ) from error
    return ray


def of_head(ray: Any) -> dict[str, float]:
    """The resource that leads the controller to the head node; empty if Ray does not tell which node that is.

    With another node it would be lost too, and look at no replica until Ray has seen that. The head's loss ends a
    cluster in any case.
    """
    # Not an affinity to the node: a soft one is ignored for actors that need no core.
    return {_HEAD: 0.001} if any(node["Alive"] and _HEAD in node["Resources"] for node in ray.nodes()) else {}


def _check_reached(address: str) -> None:
    """Raises OSError if nobody listens at `host:port`: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if port.isdecimal() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), _REACH_S).close()

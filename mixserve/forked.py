"""Refuses JAX in a forked process: JAX's threads do not survive a fork, and a program would wait for them."""

import os
import sys

from mixserve_client.errors import InvalidRequest

_lost_jax = False


def check_jax() -> None:
    """Raises InvalidRequest in a process that was forked after its parent had used JAX."""
    if _lost_jax:
        raise InvalidRequest(
            f"this process ({os.getpid()}) was forked off one that had used JAX, and lacks JAX's threads, so a JAX "
            "program would never end: start processes with the method 'spawn' or 'forkserver', fork before the node is "
            "made, or serve(...) the node and use MixClient.connect(...) here"
        )


def _look() -> None:
    # A private variable, not JAX's own function: that takes a lock that another thread of the parent may have held.
    global _lost_jax
    _lost_jax = _lost_jax or bool(getattr(sys.modules.get("jax._src.xla_bridge"), "_backends", None))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_look)

"""Private copies of nodes under names: held by one trainer each, and taken up again after any end of the server."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mixserve.sessions.registry import JOURNAL_DAYS, TTL_S, Sessions
    from mixserve.sessions.storage import StateFolder

__all__ = ["JOURNAL_DAYS", "TTL_S", "Sessions", "StateFolder"]

# Imported at first use: `mixserve explain ADDR` opens files by `storage`, and must not load JAX for that.
_HOMES = {"JOURNAL_DAYS": "registry", "TTL_S": "registry", "Sessions": "registry", "StateFolder": "storage"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mixserve.sessions' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"mixserve.sessions.{_HOMES[name]}"), name)
    globals()[name] = value  # Python calls __getattr__ only for names that are missing here
    return value

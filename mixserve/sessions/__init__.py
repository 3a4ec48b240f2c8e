"""Private copies of nodes under names: held by one trainer each, and taken up again after any end of the server."""

from typing import TYPE_CHECKING

from mixserve.lazy import lazy_attributes

if TYPE_CHECKING:
    from mixserve.sessions.registry import JOURNAL_DAYS, TTL_S, Sessions
    from mixserve.sessions.storage import StateFolder

__all__ = ["JOURNAL_DAYS", "TTL_S", "Sessions", "StateFolder"]

# Imported at first use: `mixserve explain ADDR` opens files by `storage`, and must not load JAX for that.
__getattr__ = lazy_attributes(
    __name__,
    {
        "JOURNAL_DAYS": "mixserve.sessions.registry",
        "Sessions": "mixserve.sessions.registry",
        "StateFolder": "mixserve.sessions.storage",
        "TTL_S": "mixserve.sessions.registry",
    },
)

"""Private copies of nodes under names: held by one trainer each, and taken up again after any end of the server."""

from mixserve.sessions.registry import JOURNAL_DAYS, TTL_S, Sessions
from mixserve.sessions.storage import StateFolder

__all__ = ["JOURNAL_DAYS", "TTL_S", "Sessions", "StateFolder"]

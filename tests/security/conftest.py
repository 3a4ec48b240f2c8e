"""The servers of these tests."""

from tests.security.world import world

__all__ = ["world"]

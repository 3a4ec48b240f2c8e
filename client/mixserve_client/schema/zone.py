"""Where a server or a client is, as its operator names it: a zone of a cloud, a rack, a room."""

from typing import Any

from mixserve_client.errors import InvalidRequest

MOST_CHARACTERS = 64


def is_zone(name: Any) -> bool:
    """Whether it is the name of a zone: 1 to 64 printable characters."""
    return isinstance(name, str) and name.isprintable() and 1 <= len(name) <= MOST_CHARACTERS


def check_zone(name: Any) -> str | None:
    """`name` itself. Raises InvalidRequest unless it is None, or the name of a zone."""
    if name is None or is_zone(name):
        return name
    raise InvalidRequest(f"zone must be 1 to {MOST_CHARACTERS} printable characters, got {name!r:.100}")

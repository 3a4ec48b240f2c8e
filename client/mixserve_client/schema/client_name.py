"""The name under which a server shows a client."""

import os
import socket
from typing import Any

from mixserve_client.credentials import check_no_token
from mixserve_client.errors import InvalidRequest

MOST_CHARACTERS = 64


def check_client_name(name: Any) -> str | None:
    """`name` itself. Raises InvalidRequest unless it is None, or 1 to 64 printable characters."""
    if name is None:
        return None
    if isinstance(name, str):
        check_no_token(name, "name must be a name for this client")
    if not isinstance(name, str) or not name.isprintable() or not 1 <= len(name) <= MOST_CHARACTERS:
        raise InvalidRequest(f"name must be 1 to {MOST_CHARACTERS} printable characters, got {name!r:.100}")
    return name


def own_name() -> str:
    """The name of a client that has none: HOST/PID of this process."""
    process = f"/{os.getpid()}"
    host = "".join(one for one in socket.gethostname() if one.isprintable())
    return host[: MOST_CHARACTERS - len(process)] + process

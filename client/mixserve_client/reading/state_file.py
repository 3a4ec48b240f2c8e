"""An iterator's state <-> its file in an Orbax checkpoint."""

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from mixserve_client.errors import InvalidRequest

_NAME = "mixserve_state.json"


def write_state(directory: Any, state: dict[str, Any]) -> Awaitable[None]:
    """Write the state when the folder exists; `directory` is Orbax's promise of one, or a path."""
    text = json.dumps(state)  # now: the iterator may move on before the folder exists

    async def write() -> None:
        folder = await directory.await_creation() if hasattr(directory, "await_creation") else _path(directory)
        (folder / _NAME).write_text(text)

    return write()


def load_state(directory: Any, set_state: Callable[[dict[str, Any]], None]) -> Awaitable[None]:
    """Read the state and pass it to `set_state`; nothing is left to await. Raises what these two raise.

    This is done at once because Orbax hides the errors of what it awaits: it says "incompatible handler" instead.
    """
    set_state(read_state(directory))
    return nothing_left()


async def nothing_left() -> None:
    """What Orbax awaits when a state is loaded already."""


def read_state(directory: Any) -> dict[str, Any]:
    """The state that `write_state` wrote to a folder. Raises InvalidRequest if the file is not JSON, OSError if there
    is no file."""
    file = _path(directory) / _NAME
    try:
        return json.loads(file.read_text())
    except (ValueError, RecursionError) as error:  # json.loads recurses for nested lists
        raise InvalidRequest(f"{file} is not JSON: {error}") from error


def _path(directory: Any) -> Any:
    # Orbax passes its own path objects, which also reach stores that are not file systems; leave them as they are.
    return Path(directory) if isinstance(directory, str) else directory

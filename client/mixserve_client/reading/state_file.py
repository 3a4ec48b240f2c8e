"""An iterator's state <-> the file that holds it in a checkpoint of Orbax."""

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from mixserve_client.errors import InvalidRequest

_NAME = "mixserve_state.json"


def write_state(directory: Any, state: dict[str, Any]) -> Awaitable[None]:
    """Take the state now, and write it when the folder is there: `directory` is Orbax's promise of one, or a path."""
    text = json.dumps(state)

    async def write() -> None:
        folder = await directory.await_creation() if hasattr(directory, "await_creation") else _path(directory)
        (folder / _NAME).write_text(text)

    return write()


def load_state(directory: Any, set_state: Callable[[dict[str, Any]], None]) -> Awaitable[None]:
    """Read the state now, and give it to `set_state` when Orbax asks for that. Raises what `read_state` raises."""
    state = read_state(directory)

    async def take() -> None:
        set_state(state)

    return take()


def read_state(directory: Any) -> dict[str, Any]:
    """The state in a folder that `write_state` wrote to. Raises InvalidRequest for what is none, OSError where there is
    no file."""
    file = _path(directory) / _NAME
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise InvalidRequest(f"{file} is no JSON: {error}") from error


def _path(directory: Any) -> Any:
    # Orbax has paths of its own, which know stores that are no file systems.
    return Path(directory) if isinstance(directory, str) else directory

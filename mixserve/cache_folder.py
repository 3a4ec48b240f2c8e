"""The folder in which mixserve may keep what it can make again, for this user."""

import os
from pathlib import Path


def user_cache_folder() -> Path:
    """`$XDG_CACHE_HOME/mixserve`, else `~/.cache/mixserve`. Raises RuntimeError if this user has no home."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(given) if Path(given).is_absolute() else Path.home() / ".cache") / "mixserve"

"""The functions that a configuration file names: imported from modules beside the file, and called with care."""

import importlib
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from operator import attrgetter
from pathlib import Path
from typing import Any

from mixserve.shown import said_by, short, shown


def import_function(name: str, folder: Path, key: str) -> Callable[..., Any]:
    """The function that `module:name` names, which stands under `key` in the file. Raises ValueError and TypeError."""
    module, _, function = name.partition(":")
    with running(folder, f"{key}: {name}"):
        found = attrgetter(function)(importlib.import_module(module))
    if not callable(found):
        raise TypeError(f"{key}: {name} must be a function, and is {shown(found)}")
    return found


@contextmanager
def running(folder: Path, what: str) -> Generator[None, None, None]:
    """Around code of the user's: modules in `folder` can be imported meanwhile, and whatever the code raises becomes a
    ValueError that names `what`: `sys.exit` in it does not end the command as a success."""
    with _importable(folder):
        try:
            yield
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise ValueError(f"{short(what, 200)} failed: {type(error).__name__}: {said_by(error, 1000)}") from error


@contextmanager
def _importable(folder: Path) -> Generator[None, None, None]:
    entry = str(folder.resolve())
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        with suppress(ValueError):  # the modules may have changed the path themselves
            sys.path.remove(entry)

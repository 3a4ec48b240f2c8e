"""The functions that a configuration file names: importing them from modules next to the file, and calling them."""

import importlib
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from operator import attrgetter
from pathlib import Path
from typing import Any

from mixserve_client.schema.text import describe_error, shorten, show


def import_function(name: str, folder: Path, key: str) -> Callable[..., Any]:
    """The function `name`, as `module:function`, from under `key` in the file.

    Raises ValueError if importing it fails, TypeError if it is not callable.
    """
    module, _, function = name.partition(":")
    with running(folder, f"{key}: {name}"):
        found = attrgetter(function)(importlib.import_module(module))
    if not callable(found):
        raise TypeError(f"{key}: {name} must be a function, got {show(found)}")
    return found


@contextmanager
def running(folder: Path, what: str) -> Generator[None, None, None]:
    """For user code: makes modules in `folder` importable, and turns all that the code raises into a ValueError that
    names `what`."""
    with _importable(folder):
        try:
            yield
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # also SystemExit: `sys.exit` in the code must not end the command as a success
            raise ValueError(
                f"{shorten(what, 200)} failed: {type(error).__name__}: {describe_error(error, 1000)}"
            ) from error


@contextmanager
def _importable(folder: Path) -> Generator[None, None, None]:
    entry = str(folder.resolve())
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        with suppress(ValueError):  # the modules may have removed it from the path themselves
            sys.path.remove(entry)

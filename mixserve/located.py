"""Errors of opening a configuration's mixtures -> ConfigErrors that name the file and the key."""

import errno
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from zipfile import BadZipFile

from mixserve.config import ConfigError
from mixserve.failed_read import read_note
from mixserve_client.errors import MixserveError
from mixserve_client.schema.text import describe_error, shorten

T = TypeVar("T")


def mixture_key(mixture: str) -> str:
    """The key of a mixture in the file."""
    return f"mixtures.{shorten(mixture, 100)}"


def source_key(mixture: str, source: str) -> str:
    """The key of a source in the file."""
    return f"{mixture_key(mixture)}.sources.{shorten(source, 100)}"


def at(file: Path, key: str, make: Callable[[], T]) -> T:
    """The result of `make`. Its errors become ConfigErrors that name file and key, unless they do already."""
    try:
        return make()
    except (ConfigError, KeyboardInterrupt):
        raise
    except BaseException as error:  # a source may be a user's code, and raise anything, even SystemExit
        raise ConfigError(f"{shorten(str(file), 300)}: {key}: {_describe_error(error)}") from error


def _describe_error(error: BaseException) -> str:
    """The error's message, after its class if the message alone would not be clear."""
    note = read_note(error)  # it names the source
    said = describe_error(error, 1000) if note is None else shorten(note, 1000)
    if isinstance(error, OSError) and error.errno == errno.EMFILE:
        said += "; every mapped file has a descriptor: raise this process's limit (ulimit -n), or merge files"
    is_plain = isinstance(error, OSError | ValueError | TypeError | KeyError | ImportError | EOFError | BadZipFile)
    return said if is_plain or note is not None or said == type(error).__name__ else f"{type(error).__name__}: {said}"


@contextmanager
def starting(file: Path) -> Generator[None, None, None]:
    """Turns errors of users' sources while a server starts into a ConfigError that names `file`.

    Errors of addresses and folders (OSError) pass through.
    """
    try:
        yield
    except (OSError, ConfigError, MixserveError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise ConfigError(
            f"{shorten(str(file), 300)}: the mixtures cannot be served: {_describe_error(error)}"
        ) from error

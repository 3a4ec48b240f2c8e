"""Errors of a command -> a message and an exit code."""

import os
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import NoReturn

import typer


def _print(text: str) -> None:
    print(f"mixserve: {text}", file=sys.stderr)


_say = _print


def say_errors_by(say: Callable[[str], None]) -> None:
    """From now on, call `say` with the message of an error in place of printing it."""
    global _say  # there is one standard error, too
    _say = say


@contextmanager
def plain_errors() -> Generator[None, None, None]:
    """Prints a user's errors as one plain message and exits with code 2. Other errors keep their traceback."""
    from mixserve.config import ConfigError
    from mixserve_client.errors import MixserveError
    from mixserve_client.schema.text import show

    try:
        yield
    except BrokenPipeError:
        _end_quietly()
    except (ConfigError, MixserveError, OSError) as error:
        _end_with(error)
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):
            _end_quietly()  # this is how rich reports it
        # From a user's code: our commands raise typer.Exit, which is not a SystemExit.
        _end_with(ConfigError(f"the code of a source or a statistic called sys.exit({show(error.code)})"))


def _end_quietly() -> NoReturn:
    """End with 0, since the reader of the output, such as `head`, has seen enough."""
    # Python would write what is left at the end, and fail again.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise typer.Exit(0)


def _end_with(error: Exception) -> NoReturn:
    from mixserve_client.redaction import hide_tokens
    from mixserve_client.schema.text import shorten

    _say(shorten(hide_tokens(str(error))))
    raise typer.Exit(2) from error

"""Long work -> a progress bar where a person looks at a terminal, and lines in the log where none does."""

import logging
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

_logger = logging.getLogger("mixserve")


@contextmanager
def show_progress(what: str, total: int, into: Path) -> Generator[Callable[[int], None], None, None]:
    """Says that `what` begins and ends; the function that it yields takes how much of `total` is done. `into` is where
    the result goes."""
    if not sys.stderr.isatty():
        _logger.info("%s into %s", what, into)
        yield _say_nothing
        _logger.info("%s: done", what)
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.update(task, completed=done)


def _say_nothing(_done: int) -> None:
    pass


def tell(message: str) -> None:
    """Say on a terminal, or in the log, why nothing happens."""
    if sys.stderr.isatty():
        print(f"mixserve: {message}", file=sys.stderr)
    else:
        _logger.info("%s", message)

"""A progress bar for work that may be over at once."""

import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager

_SHOWN_AFTER_S = 1.0


@contextmanager
def late_progress(what: str, total: int | None) -> Generator[Callable[[int], None], None, None]:
    """A progress bar on stderr, if that is a terminal, from the first second on. The function that it yields takes how
    many more of the `total` are done."""
    if not sys.stderr.isatty():
        yield lambda _done: None
        return
    from rich.console import Console
    from rich.progress import Progress

    progress = Progress(console=Console(stderr=True), transient=True)
    task = progress.add_task(what, total=total)
    timer = threading.Timer(_SHOWN_AFTER_S, progress.start)
    timer.daemon = True
    timer.start()
    try:
        yield lambda done: progress.advance(task, done)
    finally:
        timer.cancel()
        timer.join()
        progress.stop()

"""Standard output for texts and tables, which are cut to a width only where people read them."""

import os
import sys

from rich.console import Console

_PIPE_WIDTH, _HEIGHT = 1 << 20, 25  # in characters and lines


def open_console() -> Console:
    """Rich's console of standard output. If that is a pipe or a file, lines are as long as they need to be.

    The width of the environment's COLUMNS is kept.
    """
    console = Console(highlight=False)
    # Not `is_terminal`, which FORCE_COLOR sets: `grep` must find whole paths even if they are coloured.
    if not sys.stdout.isatty() and not os.environ.get("COLUMNS", "").isdecimal():
        # Without a height as well, Rich ignores the width if TERM is "dumb".
        console.size = _PIPE_WIDTH, _HEIGHT
    return console

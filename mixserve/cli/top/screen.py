"""The terminal while `mixserve top` shows a picture on it, and as it was before, after that."""

import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType

from rich.console import Console
from rich.text import Text

Draw = Callable[[int, int], Text]

_QUIT = frozenset(b"qQ\x03\x04")  # and Ctrl-C and Ctrl-D, where the terminal sends them as characters
_ESCAPE = b"\x1b"
_LEAST_S = 0.1  # between two pictures
_AGAIN_S = 1.0  # times grow, whatever servers say
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Bell:
    """Wakes a thread that waits for its descriptor `woken`: from other threads, and from signal handlers."""

    def __init__(self) -> None:
        self.woken, self._waker = os.pipe()
        os.set_blocking(self.woken, False)
        os.set_blocking(self._waker, False)

    def ring(self) -> None:
        """Wake it."""
        with suppress(OSError):  # it is full, and so will wake
            os.write(self._waker, b"!")

    def hush(self) -> None:
        """Forget the rings so far."""
        with suppress(BlockingIOError):
            while os.read(self.woken, 4096):
                pass


def show(console: Console, bell: Bell, draw: Draw) -> int:
    """Show what `draw` makes of the terminal's width and height, until the user or a signal ends it.

    A picture follows each ring of `bell`, each change of the size, and each second. Returns the exit code: that of a
    process that was ended by the signal, 0 for the user's own keys.
    """
    ended = list[int]()
    resized = list[int]()
    stopped = list[int]()
    with ExitStack() as held:
        for number in _ENDING:
            held.enter_context(_handling(number, ended, bell))
        held.enter_context(_handling(signal.SIGWINCH, resized, bell))
        held.enter_context(_handling(signal.SIGTSTP, stopped, bell))
        while not ended:
            with _screen(console) as keys:
                _show_until(console, bell, draw, keys, ended, resized, stopped)
            if stopped and not ended:  # Ctrl-Z: the shell gets a terminal that it can use
                stopped.clear()
                os.kill(os.getpid(), signal.SIGSTOP)
    return 0 if ended[0] in (0, signal.SIGINT) else 128 + ended[0]


def _show_until(
    console: Console,
    bell: Bell,
    draw: Draw,
    keys: int | None,
    ended: list[int],
    resized: list[int],
    stopped: list[int],
) -> None:
    shown_at, is_new, size = -_AGAIN_S, True, (0, 0)
    while not ended and not stopped:
        now = time.monotonic()
        if resized or console.size != size:
            resized.clear()
            is_new, shown_at, size = True, -_AGAIN_S, console.size
        if (is_new and now >= shown_at + _LEAST_S) or now >= shown_at + _AGAIN_S:
            # Overwritten line by line, not cleared first, which would flicker.
            _paint(console, draw(*size))
            shown_at, is_new = now, False
        wait_s = shown_at + (_LEAST_S if is_new else _AGAIN_S) - now
        readable, _, _ = select.select([bell.woken] if keys is None else [bell.woken, keys], [], [], max(0.0, wait_s))
        if bell.woken in readable:
            bell.hush()
            is_new = True
        if keys is not None and keys in readable:
            typed = os.read(keys, 1024)
            if not typed:  # the terminal has gone
                ended.append(signal.SIGHUP)
            elif typed[:1] != _ESCAPE and _QUIT & set(typed):  # F2 is Escape, O, Q
                ended.append(0)


def _paint(console: Console, picture: Text) -> None:
    with console.capture() as captured:
        console.print(picture, end="", no_wrap=True, crop=True)
    lines = captured.get().split("\n")
    # Each line ends by erasing the rest of it, the last one by erasing all below.
    console.file.write("\x1b[H" + "\x1b[K\n".join(lines) + "\x1b[K\x1b[J")
    console.file.flush()


@contextmanager
def _screen(console: Console) -> Iterator[int | None]:
    """The alternate screen, without a cursor, and keys without Enter. Yields where keys are read, if they can be."""
    keys = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else None
    before = None if keys is None else termios.tcgetattr(keys)
    try:
        if keys is not None:
            tty.setcbreak(keys, termios.TCSANOW)
        console.set_alt_screen(True)
        console.show_cursor(False)
        yield keys
    finally:
        console.show_cursor(True)
        console.set_alt_screen(False)
        console.file.flush()
        if keys is not None and before is not None:
            termios.tcsetattr(keys, termios.TCSANOW, before)


@contextmanager
def _handling(number: signal.Signals, told: list[int], bell: Bell) -> Iterator[None]:
    """Within the block, the signal is noted in `told`, and rings the bell."""

    def note(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        told.append(number)
        bell.ring()

    before = signal.signal(number, note)
    try:
        yield
    finally:
        signal.signal(number, before)

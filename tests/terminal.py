"""A terminal for tests: a real pseudo-terminal around a real command, and what stands on its screen."""

import codecs
import errno
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Mapping

DEADLINE_S = 60

# Makes it the session's terminal, so that its signals come. Not in a `preexec_fn`: with one, Python runs what gRPC does
# before forks.
_LAUNCHER = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
_SEQUENCE = re.compile(r"\x1b\[(\??)([\d;]*)([A-Za-z])")


class Screen:
    """The characters of a terminal's screen, by the few control sequences that programs of ours may send.

    A picture comes in pieces: from where the cursor goes home to where all below is erased. `is_whole` says that none
    is under way, and that the last one was made for the size that the terminal has.
    """

    def __init__(self, columns: int, rows: int):
        self.columns, self.rows = columns, rows
        self.alternate, self.cursor = False, True
        self.colours = set[str]()  # of SGR sequences so far: all of their numbers
        self._in_picture = self._is_too_wide = False
        self._may_be_too_wide = False  # since a change of the size, of which the program learns a moment later
        self._main, self._other = [""] * rows, [""] * rows
        self._x = self._y = 0
        self._rest = ""

    @property
    def lines(self) -> list[str]:
        """The lines that are shown, without what is empty at their ends."""
        return [line.rstrip() for line in (self._other if self.alternate else self._main)]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    @property
    def is_whole(self) -> bool:
        return not (self._in_picture or self._may_be_too_wide)

    def resize(self, columns: int, rows: int) -> None:
        self.columns, self.rows = columns, rows
        self._may_be_too_wide = True
        for lines in (self._main, self._other):
            lines[:] = [*lines, *[""] * rows][:rows]
        self._x, self._y = min(self._x, columns - 1), min(self._y, rows - 1)

    def feed(self, data: str) -> None:
        data = self._rest + data
        self._rest = ""
        at = 0
        while at < len(data):
            if data[at] != "\x1b":
                self._put(data[at])
                at += 1
            elif found := _SEQUENCE.match(data, at):
                self._obey(*found.groups())
                at = found.end()
            elif len(data) - at < 16:  # the rest of it comes later
                self._rest = data[at:]
                return
            else:
                raise AssertionError(f"unknown sequence {data[at : at + 16]!r}")

    def _put(self, char: str) -> None:
        if char == "\n":
            self._y += 1
            if self._y == self.rows:  # the screen scrolls: a picture that is too tall shows in the tests
                lines = self._other if self.alternate else self._main
                lines[:] = [*lines[1:], ""]
                self._y -= 1
        elif char == "\r":
            self._x = 0
        else:
            assert char.isprintable(), repr(char)
            lines = self._other if self.alternate else self._main
            line = lines[self._y].ljust(self._x)
            if self._x >= self.columns:
                assert self._may_be_too_wide, f"a line is wider than the terminal: {line!r}"
                self._is_too_wide = True
                return
            lines[self._y] = line[: self._x] + char + line[self._x + 1 :]
            self._x += 1

    def _obey(self, private: str, numbers: str, what: str) -> None:
        lines = self._other if self.alternate else self._main
        match private + what, numbers:
            case "m", _:
                self.colours.update(numbers.split(";"))
            case "H", "":
                self._x = self._y = 0
                self._in_picture, self._is_too_wide = True, False
            case "K", "":
                lines[self._y] = lines[self._y][: self._x]
            case "J", "":
                lines[self._y] = lines[self._y][: self._x]
                lines[self._y + 1 :] = [""] * (len(lines) - self._y - 1)
                self._in_picture, self._may_be_too_wide = False, self._may_be_too_wide and self._is_too_wide
            case "?h", "1049":
                self.alternate, self._other = True, [""] * self.rows
            case "?l", "1049":
                self.alternate = self._in_picture = False
            case (("?h" | "?l"), "25"):
                self.cursor = what == "h"
            case unknown:
                raise AssertionError(f"unknown sequence {unknown}")


class Terminal:
    """`python ARGUMENTS` in a terminal of its own. As a context manager, ends it."""

    def __init__(self, *arguments: str, columns: int = 120, rows: int = 30, env: Mapping[str, str] | None = None):
        self._master, slave = pty.openpty()
        self.screen = Screen(columns, rows)
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._set_size()
        self.modes = termios.tcgetattr(slave)
        clean = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
        self.process = subprocess.Popen(
            [sys.executable, "-S", "-c", _LAUNCHER, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=clean | {"TERM": "xterm-256color", "PYTHONUNBUFFERED": "1", **(env or {})},
            start_new_session=True,
        )
        self._slave = slave  # stays open, so that its modes can be read after the end

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.process.wait(DEADLINE_S)
        os.close(self._slave)
        os.close(self._master)

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def resize(self, columns: int, rows: int) -> None:
        self.screen.resize(columns, rows)
        self._set_size()  # the kernel sends SIGWINCH

    def wait_for(self, condition: Callable[[str], object]) -> str:
        """The text of the screen when a whole picture fulfils `condition`."""
        until = time.monotonic() + DEADLINE_S
        while not (self.screen.is_whole and condition(self.screen.text)):
            assert time.monotonic() < until, f"the screen shows\n{self.screen.text}"
            self._read(0.1)
        return self.screen.text

    def wait_for_stop(self) -> None:
        """Wait until the process has been stopped, as by Ctrl-Z."""
        until = time.monotonic() + DEADLINE_S
        while (status := os.waitpid(self.process.pid, os.WUNTRACED | os.WNOHANG))[0] == 0:
            assert time.monotonic() < until
            self._read(0.05)
        assert os.WIFSTOPPED(status[1])
        self._read(0.05)

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        """The exit code, after all output."""
        until = time.monotonic() + DEADLINE_S
        while self.process.poll() is None:
            assert time.monotonic() < until, f"the screen shows\n{self.screen.text}"
            self._read(0.05)
        while self._read(0.05):
            pass
        return self.process.returncode

    def modes_now(self) -> list:
        return termios.tcgetattr(self._slave)

    def _set_size(self) -> None:
        size = struct.pack("HHHH", self.screen.rows, self.screen.columns, 0, 0)
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, size)

    def _read(self, timeout_s: float) -> bool:
        readable, _, _ = select.select([self._master], [], [], timeout_s)
        if not readable:
            return False
        try:
            data = os.read(self._master, 1 << 16)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return False
        self.screen.feed(self._decoder.decode(data))
        return True

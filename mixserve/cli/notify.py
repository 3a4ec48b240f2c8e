"""What a server tells the service manager that started it: the protocol of systemd's sd_notify, without its library.

The manager names a datagram socket in NOTIFY_SOCKET. Each message is lines of the form NAME=VALUE.
"""

import os
import socket
import threading
import time
from collections.abc import Callable, MutableMapping
from contextlib import suppress

_SEND_S = 5.0  # a manager that hangs must not hang the server


class Notifier:
    """Tells the manager of this process; without one it does nothing. Thread-safe."""

    def __init__(self, environment: MutableMapping[str, str] = os.environ):
        """Takes the manager's variables out of `environment`, so that no other process tells it anything."""
        address = environment.pop("NOTIFY_SOCKET", "")
        watchdog, pid = environment.pop("WATCHDOG_USEC", ""), environment.pop("WATCHDOG_PID", "")
        # A path, or "@" and a name without a file. There are other kinds, for virtual machines.
        self._address = address if address.startswith("/") else f"\0{address[1:]}" if address.startswith("@") else ""
        is_ours = not pid or pid == str(os.getpid())
        self._watchdog_s = int(watchdog) / 1e6 if is_ours and watchdog.isdecimal() else 0.0

    def ready(self, status: str) -> None:
        """The server serves, or has reloaded."""
        self._tell("READY=1", f"STATUS={status}")

    def status(self, status: str) -> None:
        """What the server does, in one line for people."""
        self._tell(f"STATUS={status}")

    def reloading(self, status: str) -> None:
        """The server reads its files again; `ready` follows."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._tell("RELOADING=1", f"MONOTONIC_USEC={now}", f"STATUS={status}")

    def stopping(self, status: str) -> None:
        """The server finishes its calls, and ends."""
        self._tell("STOPPING=1", f"STATUS={status}")

    def watch(self, is_alive: Callable[[], bool]) -> None:
        """From now on tell the manager again and again that `is_alive()`, if it wants to know that.

        It restarts a server that does not tell it in time.
        """
        if self._address and self._watchdog_s:
            watching = threading.Thread(target=self._watch, args=(is_alive,), name="mixserve-watchdog", daemon=True)
            watching.start()

    def _watch(self, is_alive: Callable[[], bool]) -> None:
        while True:
            if is_alive():
                self._tell("WATCHDOG=1")
            time.sleep(self._watchdog_s / 2)

    def _tell(self, *lines: str) -> None:
        if not self._address:
            return
        message = "\n".join(line.replace("\n", " ") for line in lines).encode(errors="replace")
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
            made.settimeout(_SEND_S)
            made.sendto(message, self._address)

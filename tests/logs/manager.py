"""A stand-in for systemd: starts a command, and gets what it tells by sd_notify."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

DEADLINE_S = 150  # a server of several processes starts slowly beside other tests


class Manager:
    """Starts `command` as the service manager would; `abstract` is for a socket without a file."""

    def __init__(
        self, command: Sequence[str], folder: Path, *, watchdog_s: float = 0, abstract: bool = False, **variables: str
    ):
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        # Short, since the path of a socket may have 107 bytes.
        path = f"/tmp/mixserve-notify-{os.getpid()}-{time.monotonic_ns()}"
        self._socket.bind(f"\0{path}" if abstract else path)
        self._path = None if abstract else Path(path)
        self.messages = list[dict[str, str]]()
        self.address = f"@{path}" if abstract else path
        environment = os.environ | variables | {"NOTIFY_SOCKET": self.address}
        if watchdog_s:
            environment["WATCHDOG_USEC"] = str(int(watchdog_s * 1e6))
        self._log = folder / "service.log"
        with self._log.open("wb") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=out, env=environment, cwd=folder)

    def log(self) -> str:
        return self._log.read_text()

    def wait_for(self, is_it: Callable[[dict[str, str]], bool]) -> dict[str, str]:
        """The next message that is so; those before it are in `messages`, too."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            message = self._receive(max(0.01, deadline - time.monotonic()))
            assert message is not None, f"{self.messages}\n{self.log()}"
            if is_it(message):
                return message

    def poll(self, name: str) -> bool:
        """Whether the next message, which may take half a second, has that variable."""
        message = self._receive(0.5)
        return message is not None and name in message

    def _receive(self, timeout_s: float) -> dict[str, str] | None:
        self._socket.settimeout(timeout_s)
        try:
            data = self._socket.recv(1 << 16)
        except TimeoutError:
            return None
        message = dict(line.split("=", 1) for line in data.decode().splitlines())
        self.messages.append(message)
        return message

    def wait_for_name(self, name: str) -> dict[str, str]:
        """The next message with that variable."""
        return self.wait_for(lambda message: name in message)

    def reload(self) -> dict[str, str]:
        """Do as `systemctl reload` does for Type=notify-reload. Returns the message that the reload has begun."""
        sent = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self.process.send_signal(signal.SIGHUP)
        begun = self.wait_for_name("RELOADING")
        assert int(begun["MONOTONIC_USEC"]) >= sent  # otherwise it would be about an earlier signal
        self.wait_for_name("READY")
        return begun

    def stop(self) -> int:
        """Do as `systemctl stop` does; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        self.wait_for_name("STOPPING")
        return self.process.wait(DEADLINE_S)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._socket.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)

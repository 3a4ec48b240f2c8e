"""A mixture.yaml -> a training run during which server and trainer are killed, and its history."""

import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from mixserve.demo.child import Child
from mixserve.demo.corpus import mixture_file
from mixserve.demo.display import Display
from mixserve.demo.history import History
from mixserve.demo.journal import JournalReader
from mixserve.demo.trainer import JOURNAL, STATE, save_interval

_POLL_S = 0.02
_PATIENCE_S = 180.0
_STILL_S = 5.0


class Rehearsal:
    """A server and a trainer in child processes, which never outlive the `with` block."""

    def __init__(self, folder: Path, steps: int, display: Display):
        for left_over in (JOURNAL, STATE):
            (folder / left_over).unlink(missing_ok=True)
        self.history = History()
        self._folder = folder
        self._steps = steps
        self._display = display
        self._journal = JournalReader(folder / JOURNAL)
        self._address = f"127.0.0.1:{_free_port()}"
        self._children = ExitStack()
        with ExitStack() as undo:  # a trainer that cannot be started must not leave a server
            undo.push(self)
            self._server = self._start_server()
            self._trainer = self._start_trainer()
            undo.pop_all()

    def run_to_step(self, step: int) -> None:
        """Wait until the trainer has made this step."""
        self._watch_until(lambda: self.history.last_step >= step, f"step {step}")

    def kill_server(self) -> None:
        """SIGKILL while requests are in flight, then restart the server at the same address."""
        # Frozen first, so that later requests get no answer. The trainer prefetches one more batch at every step, so
        # each step after the next one leaves a request in flight. A trainer that makes no more steps waits for one.
        self._server.freeze()
        self._take_in()
        asked, frozen_at = self.history.last_step, time.monotonic()
        self._watch_until(
            lambda: self.history.last_step >= asked + 3 or time.monotonic() > frozen_at + _STILL_S, f"step {asked + 3}"
        )
        if self.history.digest is not None:
            raise RuntimeError(f"the trainer finished before its server was killed: {self._steps} --steps are too few")
        in_flight = max(1, self.history.last_step - asked - 1)
        self._server.kill()
        self._note_kill("server", f"at least {in_flight} request{'s' if in_flight > 1 else ''} in flight")
        self._server = self._start_server()

    def kill_trainer(self) -> None:
        """SIGKILL about halfway between two saves, then restart the trainer: it resumes from the saved state."""
        interval = save_interval(self._steps)
        self._watch_until(
            lambda: self.history.saved_step > 0 and interval // 2 <= self.history.unsaved_steps < interval - 1,
            "the middle between two saved states",
        )
        self._trainer.kill()
        self._take_in()
        self._note_kill("trainer", f"{self.history.unsaved_steps} steps after it saved its state")
        started = self.history.trainers_started
        self._trainer = self._start_trainer()
        self._watch_until(lambda: self.history.trainers_started > started, "the new trainer")

    def finish(self) -> str:
        """Wait until the trainer has made all its steps, and stop the server. Returns the digest of all batches."""
        self._watch_until(self._trainer.has_ended, "the last step")
        self._take_in()
        self._server.stop()
        if self.history.digest is None:
            raise RuntimeError("the trainer ended without a digest")
        return self.history.digest

    def _watch_until(self, reached: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while not reached():
            if time.monotonic() > deadline:
                raise RuntimeError(f"{what} has not come in {_PATIENCE_S:.0f} s")
            if self._server.has_ended():
                raise RuntimeError("the server ended without being asked to; see server.log")
            # Only when the journal has nothing new: the trainer's last entries may have come after the last look.
            if self._trainer.has_ended() and self._take_in() == 0 and not reached():
                raise RuntimeError(f"the trainer ended before {what}: {self._steps} --steps are too few")
            time.sleep(_POLL_S)
            self._take_in()

    def _take_in(self) -> int:
        entries = self._journal.read()
        for entry in entries:
            self.history.add(entry)
        self._display.show(self.history)
        return len(entries)

    def _note_kill(self, name: str, circumstances: str) -> None:
        step = self.history.last_step
        self.history.kills.append((step, name))
        self._display.tell(f"step {step}: {name} killed (SIGKILL), {circumstances}; restarted")

    def _start_server(self) -> Child:
        host, _, port = self._address.rpartition(":")
        arguments = ["mixserve", "serve", str(mixture_file(self._folder)), "--host", host, "--port", port]
        return self._start("server", arguments)

    def _start_trainer(self) -> Child:
        arguments = ["mixserve.demo.trainer", self._address, str(self._folder), str(self._steps)]
        return self._start("trainer", arguments)

    def _start(self, name: str, arguments: list[str]) -> Child:
        child = Child(name, arguments, self._folder / f"{name}.log", compiled=self._folder / "compiled")
        return self._children.enter_context(child)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._children.close()


def _free_port() -> int:
    # Chosen here, not by the server: a restarted server must have the same address.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]

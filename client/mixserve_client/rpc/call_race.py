"""A single call to one replica, and if it is late to another one as well: the first reply counts."""

import time
from queue import Empty, SimpleQueue
from typing import NamedTuple

from mixserve_client.errors import MixserveError, Unavailable
from mixserve_client.rpc.hedging import LATEST_S, Hedging
from mixserve_client.rpc.replica import Attempt, Replica
from mixserve_client.rpc.replicas import Replicas
from mixserve_client.rpc.stream_wait import LOST_S
from mixserve_client.rpc.threads import DaemonThreadPool


class _Answer(NamedTuple):
    attempt: Attempt
    reply: bytes
    error: BaseException | None


class CallRace:
    """Runs calls in threads, since a call cannot be ended by another thread: a hand-off for each is the price."""

    def __init__(self, replicas: Replicas, hedging: Hedging, threads: DaemonThreadPool):
        self._replicas = replicas
        self._hedging = hedging
        self._threads = threads

    def call(self, attempt: Attempt, timeout_s: float | None, fingerprint: str) -> tuple[Replica, bytes]:
        """Who answered, and the reply. Raises what the call of `attempt` raises, if no other one answers."""
        answers: SimpleQueue[_Answer] = SimpleQueue()
        self._begin(attempt, timeout_s, answers)
        answer = self._wait(answers, self._hedging.after_s)
        if answer is None:
            answer = self._with_another(attempt, timeout_s, fingerprint, answers)
        if answer.error is None:
            return answer.attempt.replica, answer.reply
        try:
            raise answer.error
        finally:
            del answer  # its traceback leads to this frame

    def _with_another(
        self, attempt: Attempt, timeout_s: float | None, fingerprint: str, answers: "SimpleQueue[_Answer]"
    ) -> _Answer:
        after_s = self._hedging.after_s
        other = self._other(attempt, after_s, fingerprint)
        if other is None:
            answer = self._wait(answers, LATEST_S - after_s)
            if answer is not None:
                return answer
            other = self._other(attempt, LATEST_S, fingerprint)
        if other is None:
            return answers.get()
        rival = Attempt(other, attempt.asked, attempt.span)
        rival.note_sent(beside=True)
        self._begin(rival, timeout_s, answers)
        answer = answers.get()
        if answer.error is not None and answer.attempt is rival:
            if isinstance(answer.error, MixserveError):
                self._replicas.note_failure(rival, answer.error, fingerprint)
            return answers.get()
        if answer.error is not None:  # the rival may still answer: the caller need not know
            if isinstance(answer.error, MixserveError):
                self._replicas.note_failure(attempt, answer.error, fingerprint)
            later = answers.get()
            return later if later.error is None else answer
        answer.attempt.note_answered()
        late_s = time.monotonic() - attempt.began
        if answer.attempt is rival and late_s >= LOST_S:
            name = attempt.replica.transport.name
            error = Unavailable(f"{name}: no reply came for {late_s:.1f} s, and another one answered")
            self._replicas.note_failure(attempt, error, fingerprint)
        return answer

    def _other(self, attempt: Attempt, waited_s: float, fingerprint: str) -> Replica | None:
        """The replica to ask as well after a wait of so long, which is counted; None if there is none."""
        if not self._hedging.may_take(waited_s):
            return None
        other = self._replicas.choose({attempt.replica}, fingerprint)
        return other if other is not None and self._hedging.take(waited_s) else None

    def _wait(self, answers: "SimpleQueue[_Answer]", seconds: float) -> _Answer | None:
        try:
            return answers.get(timeout=max(0.0, seconds))
        except Empty:
            return None

    def _begin(self, attempt: Attempt, timeout_s: float | None, answers: "SimpleQueue[_Answer]") -> None:
        def run() -> None:
            try:
                reply = self._replicas.call(attempt.replica, attempt.sent, timeout_s)
            except BaseException as error:
                answers.put(_Answer(attempt, b"", error))
            else:
                answers.put(_Answer(attempt, reply, None))

        self._threads.start(run)

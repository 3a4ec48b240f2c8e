"""The tries of one request: which replica is next, how long to wait before, and when to give up."""

import random
import time
from typing import NamedTuple, Protocol, TypeVar

from mixserve_client.errors import CorruptReply, DeadlineExceeded, MixserveError, Overloaded, Unavailable
from mixserve_client.rpc.asking import Asking
from mixserve_client.rpc.failures import Kind, kind_of
from mixserve_client.rpc.replica import Attempt, Replica
from mixserve_client.rpc.replicas import Replicas

E = TypeVar("E", bound=MixserveError)

_LOG_AFTER_S, _LOG_EVERY_S = 5.0, 60.0
UNLIMITED_S = 1e8  # gRPC's clocks overflow beyond this
_LONGEST_DELAY_S = 2.0
# Requests that wait for the same server must not all come back at once.
_SPREAD = 0.25
# After a fault of one replica, how long to wait for another one that does not answer at present.
_FAULT_PATIENCE_S = 30.0
# Bits may flip on the way to any replica; one that sends nonsense must not keep a request for long.
_CORRUPT_ROUNDS = 4
_PLAIN = Asking()


class Waiting(Protocol):
    """What waits: until when, and whether it still does."""

    @property
    def deadline(self) -> float | None: ...

    @property
    def is_cancelled(self) -> bool: ...


class Deadline(NamedTuple):
    """Of a call, which cannot be cancelled."""

    deadline: float | None
    is_cancelled: bool = False


class Tries:
    """Counts rounds over the replicas, and the time in which none has answered. For one thread at a time."""

    def __init__(self, replicas: Replicas, waiting: Waiting, asking: Asking = _PLAIN):
        self._replicas = replicas
        self._waiting = waiting
        self._asking = asking
        self._begin()

    def reset(self) -> None:
        """A reply has come."""
        if self._first_failure:
            self._begin()

    def _begin(self) -> None:
        self._tried = set[Replica]()
        # Of this round. Without their tracebacks, which lead to the frames of all callers, and so to what these hold.
        self._errors = dict[Replica, MixserveError]()
        self._rounds = 0
        # Patience is counted from the first failure after a reply: a stream that has run for hours has all of it.
        self._first_failure, self._log_at_s = 0.0, _LOG_AFTER_S

    def remaining_s(self) -> float | None:
        """Seconds until the deadline, None for no limit. Raises DeadlineExceeded."""
        deadline = self._waiting.deadline
        if deadline is None:
            return None
        remaining_s = deadline - time.monotonic()
        if remaining_s <= 0:
            raise DeadlineExceeded("timeout_s ran out before the request could be sent; allow more time")
        return None if remaining_s > UNLIMITED_S else remaining_s

    def limit_s(self, most_s: float | None = None) -> float | None:
        """How long the next attempt may wait for a reply; None for no limit.

        `most_s` is how long its reader waits for a reply at most.
        """
        deadline = self._waiting.deadline
        left_s = most_s if deadline is None else deadline - time.monotonic()
        return self._replicas.limit_s(self._rounds, left_s)

    def choose(self) -> Replica:
        """The next replica to ask. Waits if all that are left are busy; raises as `failed` does."""
        while (found := self._next()) is None:
            now = time.monotonic()
            self._first_failure = self._first_failure or now
            busy_s = min(one.busy_until for one in self._replicas.all) - now
            error = Overloaded(
                f"every server is busy: {self._replicas.describe()}", max(busy_s, self._replicas.first_delay_s)
            )
            self._end_round(error, now)
        return found

    def failed(self, attempt: Attempt, error: MixserveError) -> None:
        """An attempt has failed. Returns when the next one may begin.

        Raises `error` if the request is cancelled or no replica can be asked instead, Unavailable or Overloaded after
        `patience_s`, and DeadlineExceeded if the wait would reach the deadline.
        """
        kind, now = kind_of(error), time.monotonic()
        # The only server has a limit of its own, which the same request would meet again.
        is_final = kind == Kind.FINAL or (self._replicas.alone is not None and isinstance(error, DeadlineExceeded))
        if is_final or self._replicas.closed or self._waiting.is_cancelled:
            try:
                raise error
            finally:
                # Its traceback leads to this frame, and this frame to it: such a cycle would keep what the frames of
                # all callers hold, also batches in shared memory, until Python's cycle collector runs.
                del error
        self._replicas.note_failure(attempt, error, self._asking.fingerprint)
        self._first_failure = self._first_failure or now
        self._tried.add(attempt.replica)
        self._errors[attempt.replica] = error.with_traceback(None)
        silent_s = now - self._first_failure
        if isinstance(error, Unavailable) and silent_s >= self._replicas.patience_s:
            said = f"no server answered for {silent_s:.1f} s (patience_s); last error: {self._said(error)}"
            raise _of_request(Unavailable(said), error) from error
        self._log(silent_s, error)
        if self._next() is None:
            try:
                self._end_round(error, now)
            except MixserveError:
                del error  # a cycle, as above
                raise
        self._replicas.figures.note_retry(error)

    def _log(self, silent_s: float, error: MixserveError) -> None:
        """Say that no replica has answered for so long, at growing intervals."""
        if silent_s < self._log_at_s:
            return
        self._replicas.logs.warn(
            "waiting",
            "still waiting for a server, for %.0f s now, up to %.0f s (patience_s): %s",
            silent_s,
            self._replicas.patience_s,
            self._said(error),
        )
        self._log_at_s = silent_s + min(silent_s, _LOG_EVERY_S)

    def _next(self) -> Replica | None:
        asking = self._asking
        return self._replicas.choose(self._tried, asking.fingerprint, in_order=asking.in_order, reader=asking.reader)

    def _end_round(self, error: MixserveError, now: float) -> None:
        """No replica is left to ask: give up, or wait before all are asked once more. Raises as `failed` does."""
        silent_s = now - self._first_failure
        try:
            self._raise_fault(silent_s)
        except MixserveError:
            del error  # a cycle, as in `failed`
            raise
        self._log(silent_s, error)
        # The exponent has a limit: after 1,024 rounds, half an hour, 2 ** rounds no longer fits a float.
        delay_s = min(self._replicas.first_delay_s * 2 ** min(self._rounds, 10), _LONGEST_DELAY_S)
        waits = [one.retry_after_s for one in (error, *self._errors.values()) if isinstance(one, Overloaded)]
        if isinstance(error, Overloaded):
            delay_s = max(delay_s, min(waits))
        delay_s *= 1 + random.random() * _SPREAD
        if isinstance(error, Overloaded) and silent_s + delay_s >= self._replicas.patience_s:
            said = f"{error}; patience_s = {self._replicas.patience_s:g} ran out"
            raise _of_request(Overloaded(said, error.retry_after_s), error) from error
        deadline = self._waiting.deadline
        if deadline is not None and now + delay_s >= deadline:
            said = f"timeout_s ran out while no server answered; last error: {self._said(error)}"
            raise _of_request(DeadlineExceeded(said), error) from error
        self._rounds += 1
        self._tried.clear()
        self._errors.clear()
        self._replicas.wait(delay_s, lambda: self._waiting.is_cancelled)

    def _raise_fault(self, silent_s: float) -> None:
        """Raise what every replica said, if it is nothing that passes."""
        errors = [self._errors[one] for one in self._replicas.all if one in self._errors]
        lasting = [one for one in errors if kind_of(one) not in (Kind.LOST, Kind.BUSY)]
        if not lasting:
            return
        if all(isinstance(one, CorruptReply) for one in lasting) and self._rounds < _CORRUPT_ROUNDS:
            return
        # Of those that were not asked, or do not answer, one may have the right mixture.
        if len(lasting) < len(self._replicas.all):
            patience_s = self._replicas.patience_s
            if any(kind_of(one) == Kind.FAULT for one in lasting):
                patience_s = min(_FAULT_PATIENCE_S, patience_s)
            if silent_s < patience_s:
                return
        error = next((one for one in lasting if kind_of(one) == Kind.FAULT), lasting[0])
        self._errors.clear()
        try:
            raise error
        finally:
            del error, errors, lasting  # a cycle, as in `failed`

    def _said(self, error: MixserveError) -> str:
        return str(error) if self._replicas.alone is not None else self._replicas.describe()


def _of_request(error: E, last: MixserveError) -> E:
    """`error`, with the id of the request that failed last."""
    error.request_id = last.request_id
    return error

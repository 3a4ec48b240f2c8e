"""Looks at replicas again and again, and scales them as the policy says."""

import threading
import time
from collections.abc import Callable

from mixserve.autoscaling.policy import Decision, Policy
from mixserve.autoscaling.seen import Seen
from mixserve_client.errors import DeadlineExceeded, MixserveError, Overloaded, Unavailable
from mixserve_client.schema.text import shorten

_FIRST_PAUSE_S, _MOST_PAUSE_S = 30.0, 300.0  # before what failed is tried again
_ERROR_CHARACTERS = 500


def autoscale(
    policy: Policy,
    observe: Callable[[], tuple[int, Seen]],
    scale: Callable[[int], None] | None,
    ended: threading.Event,
    *,
    every_s: float = 5.0,
    say: Callable[[str], None] = print,
    say_every_s: float = 60.0,
) -> None:
    """Decide every `every_s` seconds, and call `scale` for another number of replicas, until `ended` is set.

    `observe` returns how many replicas there are, and what is seen of them; it raises MixserveError if none answers.
    `scale` makes them as many as it is told, or raises; then it is called again after 30 s, later after up to 5 min.
    None: only say what would be done. All calls are in this thread, one after another. `say` gets a line for each
    decision that differs from the one before it, and one every `say_every_s`.

    Raises what `observe` raises at the first look, if later ones cannot be any better.
    """
    _Loop(policy, scale, say, say_every_s).run(observe, ended, every_s)


class _Loop:
    def __init__(
        self, policy: Policy, scale: Callable[[int], None] | None, say: Callable[[str], None], say_every_s: float
    ):
        self._policy, self._scale, self._say, self._say_every_s = policy, scale, say, say_every_s
        self._done = 0  # the number that was decided on, and made so; 0 at first
        self._said_s = 0.0
        self._again_s, self._pause_s = 0.0, _FIRST_PAUSE_S

    def run(self, observe: Callable[[], tuple[int, Seen]], ended: threading.Event, every_s: float) -> None:
        """As `autoscale`."""
        is_first, due = True, time.monotonic()
        while not ended.is_set():
            try:
                replicas, seen = observe()
                error = None
            except MixserveError as found:
                if is_first and not isinstance(found, (DeadlineExceeded, Overloaded, Unavailable)):
                    raise  # such as a token that servers do not know: no later look is any better
                replicas, seen, error = 0, Seen(0), found
            # The first look has no rates yet, and a name in DNS may stand for more servers at the second one.
            if not is_first or error is not None:
                self._turn(replicas, seen, error)
            is_first = is_first and error is not None
            due = max(due + every_s, time.monotonic())
            ended.wait(max(0.0, due - time.monotonic()))

    def _turn(self, replicas: int, seen: Seen, error: MixserveError | None) -> None:
        now_s = time.monotonic()
        decision = self._policy.decide(now_s, replicas, seen)
        self._done = self._done or replicas
        if self._done and decision.replicas != self._done:
            self._change(now_s, replicas, decision)
        if now_s - self._said_s >= self._say_every_s or not self._said_s:
            self._said_s = now_s
            if error is None:
                text = f"{_replicas(replicas)}, {_figures(seen)}: {decision.why}"
            else:
                text = f"no replica answers: {type(error).__name__}: {error}"
            self._say(shorten(text, _ERROR_CHARACTERS))

    def _change(self, now_s: float, replicas: int, decision: Decision) -> None:
        instead = "as there are" if decision.replicas == replicas else f"in place of {_replicas(replicas)}"
        text = f"{decision.replicas} {instead}: {decision.why}"
        if self._scale is None:
            self._say(f"would have {text}")
            self._done = decision.replicas
            return
        if now_s < self._again_s:
            return
        self._say(text)
        try:
            self._scale(decision.replicas)
        except Exception as error:  # whatever a user's function raises: the next time may be better
            self._again_s = time.monotonic() + self._pause_s
            said = shorten(f"{type(error).__name__}: {error}", _ERROR_CHARACTERS)
            self._say(f"that failed, and is tried again in {self._pause_s:.0f} s: {said}")
            self._pause_s = min(2 * self._pause_s, _MOST_PAUSE_S)
        else:
            self._done, self._again_s, self._pause_s = decision.replicas, 0.0, _FIRST_PAUSE_S


def _replicas(count: int) -> str:
    return "1 replica" if count == 1 else f"{count} replicas"


def _figures(seen: Seen) -> str:
    parts = ["1 reader" if seen.readers == 1 else f"{seen.readers} readers"]
    if seen.wait_share is not None:
        parts.append(f"waiting {seen.wait_share:.1%}")
    if seen.busy is not None:
        parts.append(f"{seen.busy:.2f} replies at a time for each")
    if seen.load is not None:
        parts.append(f"{seen.load / 1e6:.1f} MB/s")
    return ", ".join(parts)

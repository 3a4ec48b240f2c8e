"""A policy that scales a fleet, in a thread of its controller."""

import threading
from collections.abc import Callable

from mixserve.autoscaling import Seen, autoscale
from mixserve.ray.messages import AutoscalingSpec

_SAY_EVERY_S = 60.0


class Autoscaler:
    """Runs at most one policy at a time. `said` is its last line."""

    def __init__(
        self,
        observe: Callable[[], tuple[int, Seen]],
        scale: Callable[[int], None],
        say: Callable[[str], None],
    ):
        """These are as in `mixserve.autoscaling.autoscale`."""
        self.said = ""
        self._observe, self._scale, self._say = observe, scale, say
        self._spec: AutoscalingSpec | None = None
        self._ended = threading.Event()

    def follow(self, spec: AutoscalingSpec | None) -> None:
        """Scale by this policy from now on, with None by none."""
        if spec == self._spec:
            return
        self._ended.set()  # of the thread before
        self._spec, self._ended, self.said = spec, threading.Event(), ""
        if spec is not None:
            arguments = spec, self._ended
            threading.Thread(target=self._run, args=arguments, name="mixserve-autoscale", daemon=True).start()

    def _run(self, spec: AutoscalingSpec, ended: threading.Event) -> None:
        def say(text: str) -> None:
            if not ended.is_set():
                self.said = f"{spec.least} to {spec.most}: {text}"
            self._say(text)

        def scale(replicas: int) -> None:
            if not ended.is_set():
                self._scale(replicas)

        autoscale(spec.policy(), self._observe, scale, ended, every_s=spec.every_s, say=say, say_every_s=_SAY_EVERY_S)

"""Single calls of the mixture that hangs, 16 at a time, each given up after a second: as trainers that try again do."""

import threading
import time
from itertools import count

from mixserve_client import MixClient, MixserveError

_MIXTURE = "hangs"
_CALLERS, _GIVES_UP_S = 16, 1.0


def attack(address: str) -> None:
    """Call, give up, and call again, each time for other rows."""
    starts = count(0, 4)

    def call() -> None:
        with MixClient.connect(address, shared_memory=False, patience_s=1e6) as client:
            while True:
                until = time.monotonic() + _GIVES_UP_S
                try:
                    client.get_batch_at(next(starts), 4, 1, mixture=_MIXTURE, timeout_s=_GIVES_UP_S)
                except MixserveError:
                    time.sleep(max(0.0, until - time.monotonic()))

    callers = [threading.Thread(target=call) for _ in range(_CALLERS)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()

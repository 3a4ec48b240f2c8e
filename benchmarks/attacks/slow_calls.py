"""200 callers of the mixture of which a record takes 50 ms, each as fast as it gets answers."""

import threading
from itertools import count

from mixserve_client import MixClient, MixserveError

_MIXTURE = "slow"
_CALLERS = 200


def attack(address: str) -> None:
    """Call for one record after another, and do as the server says."""
    starts = count()

    def call() -> None:
        with MixClient.connect(address, shared_memory=False, patience_s=1e6) as client:
            while True:
                try:
                    client.get_batch_at(next(starts), 1, 1, mixture=_MIXTURE)
                except MixserveError:
                    continue

    callers = [threading.Thread(target=call) for _ in range(_CALLERS)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()

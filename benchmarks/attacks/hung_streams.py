"""Iterators over the mixture that hangs, 24 over gRPC and 24 over bulk channels, that wait for as long as it takes."""

import threading

from mixserve_client import MixClient, MixserveError

_MIXTURE = "hangs"
_READERS = 24


def attack(address: str) -> None:
    """Wait for the first batch of each iterator."""

    def read(key: int, bulk: bool) -> None:
        with MixClient.connect(address, shared_memory=False, bulk=bulk, patience_s=1e6) as client:
            while True:
                try:
                    next(client.batches(4, key, mixture=_MIXTURE))
                except MixserveError:
                    continue

    readers = [threading.Thread(target=read, args=(key, key % 2 == 0)) for key in range(2 * _READERS)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()

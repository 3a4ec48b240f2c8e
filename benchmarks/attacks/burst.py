"""No attack but a busy minute: 48 readers of 16 MiB batches, whose memory should go back when they are gone."""

import threading

from benchmarks.attacks.mixtures import ROW_BYTES, TRAIN
from mixserve_client import MixClient, MixserveError

_READERS = 48
_ROWS = (16 << 20) // ROW_BYTES


def attack(address: str) -> None:
    """Read until the process is ended."""
    threads = [threading.Thread(target=_read, args=(address, key)) for key in range(_READERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _read(address: str, key: int) -> None:
    while True:
        try:
            with MixClient.connect(address, shared_memory=False, bulk=key % 2 == 0) as client:
                for at in range(1 << 30):
                    client.get_batch_at(at, _ROWS, key=key, mixture=TRAIN)
                    for _, batch in zip(range(2), client.batches(_ROWS, key=key, mixture=TRAIN), strict=False):
                        del batch
        except MixserveError:
            continue

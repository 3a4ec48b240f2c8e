"""60 single calls of 16 MiB each over each of four connections that take no reply."""

from benchmarks.attacks.half_open import keep_calling
from benchmarks.attacks.mixtures import ROW_BYTES
from benchmarks.attacks.raw import GET_BATCH_AT, batch_request

_CONNECTIONS, _CALLS = 4, 60
_ROWS = (16 << 20) // ROW_BYTES
_AGAIN_S = 0.2  # as Overloaded says


def attack(address: str) -> None:
    """Ask for everything at once, and again for what the server ends."""
    keep_calling(address, (GET_BATCH_AT,), batch_request(0, _ROWS), _CONNECTIONS, _CALLS, 0, _AGAIN_S)

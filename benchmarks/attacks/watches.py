"""Watches of health, 200 over each of four connections that take no answer."""

from benchmarks.attacks.half_open import keep_calling
from benchmarks.attacks.half_open_health import HEALTH

_CONNECTIONS, _WATCHES = 4, 200


def attack(address: str) -> None:
    """Open them, and others in place of those that the server ends."""
    keep_calling(address, (f"{HEALTH}Watch",), b"", _CONNECTIONS, _WATCHES, 0, 0.5)

"""400 health checks over each of four connections that never send their request, and as many watches."""

from benchmarks.attacks.half_open import keep_calling

HEALTH = "/grpc.health.v1.Health/"
_CONNECTIONS, _CALLS = 4, 400


def attack(address: str) -> None:
    """Open them, and others in place of those that the server ends."""
    keep_calling(address, (f"{HEALTH}Check", f"{HEALTH}Watch"), None, _CONNECTIONS, _CALLS)

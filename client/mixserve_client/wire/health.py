"""The standard health service, grpc.health.v1.Health: requests have a name, and replies an enum, both field 1."""

from mixserve_client.errors import CorruptReply
from mixserve_client.wire import frame

# Read by hand: `mixserve health` runs every few seconds in a container, so it loads no more code than it needs.
CHECK = "/grpc.health.v1.Health/Check"
# The name of a mixture's health is MIXTURE/NAME.
MIXTURE = "mixture"
_FIELDS = 256  # it has one; others may be newer
_STATUSES = ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")


def encode_check(mixture: str | None = None) -> bytes:
    """A HealthCheckRequest for a mixture, or for the whole server."""
    if mixture is None:
        return b""
    return frame.delimited(1, f"{MIXTURE}/{mixture}".encode(errors="replace"))


def decode_status(reply: bytes) -> str:
    """The name of the status in a HealthCheckResponse. Raises CorruptReply."""
    status = 0
    try:
        for number, value in frame.fields(memoryview(reply), _FIELDS):
            if number == 1 and isinstance(value, int):
                status = value
        return _STATUSES[status]
    except (ValueError, IndexError) as error:
        raise CorruptReply(f"the server's health must be a HealthCheckResponse, got {reply[:50]!r}") from error

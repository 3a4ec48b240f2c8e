"""Decodes replies of the standard health service, grpc.health.v1.Health: one enum, field 1."""

from mixserve_client.errors import CorruptReply
from mixserve_client.wire import frame

# Read by hand: `mixserve health` runs every few seconds in a container, so it loads no more code than it needs.
CHECK = "/grpc.health.v1.Health/Check"
_FIELDS = 256  # it has one; others may be newer
_STATUSES = ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")


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

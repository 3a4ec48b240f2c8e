"""What is asked, and what every try of one request has in common."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from mixserve_client.schema.requests import Sender

# The requests that send a schedule to a server: all of it for True, its last entry for False.
Definitions = Callable[[bool], Iterable[bytes]]


class Asking(NamedTuple):
    """What every try of one request has in common.

    `fingerprint` is that of the mixture that it is for: replicas that have another one are asked only if no other is
    left. With `in_order` the first replica of the list is asked first, and not the one that is likely to be quickest.
    `mixture` is its name, for traces. `reader` is who asks for batches; requests of one go to the same replica.
    """

    definitions: Definitions | None = None
    fingerprint: str = ""
    in_order: bool = False
    mixture: str = ""
    reader: Sender | None = None


class Request(NamedTuple):
    """A request for a stream of up to `replies` replies of up to `reply_bytes` bytes."""

    data: bytes
    replies: int
    reply_bytes: int


NextRequest = Callable[[], Request | None]

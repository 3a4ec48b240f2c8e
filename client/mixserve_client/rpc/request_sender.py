"""Who sends the requests for batches: an iterator, or a call that belongs to none."""

import time

from mixserve_client.metrics.reading import IteratorFigures
from mixserve_client.schema.requests import Sender


class RequestSender:
    """Tells servers who sends a request. Any thread may use it, and it keeps no client alive."""

    __slots__ = ("_iterator", "_plain", "reader")

    def __init__(self, client: str, iterator: IteratorFigures | None = None):
        """`client` is the client's name."""
        self._plain = Sender(client)
        self._iterator = iterator
        # Without what changes from request to request.
        self.reader = self._plain if iterator is None else Sender(client, iterator.number)

    @property
    def client(self) -> str:
        """The client's name."""
        return self._plain.client

    def waits(self) -> bool:
        """Whether a caller waits for a reply now: a trainer at its iterator, and always one that has none."""
        return self._iterator is None or self._iterator.waits.since is not None

    def now(self) -> Sender:
        """The sender of a request that is made now."""
        iterator = self._iterator
        if iterator is None:
            return self._plain
        return Sender(self._plain.client, iterator.number, iterator.waits.at(time.monotonic()))

"""Who sends a client's requests for batches: an iterator, or a call that belongs to none."""

from collections.abc import Callable

from mixserve_client.rpc.resources import Resources
from mixserve_client.schema.requests import Sender

WaitShare = Callable[[], float | None]


class RequestSender:
    """Tells a server who sends a request. Safe to use from many threads, and in forked processes."""

    def __init__(self, resources: Resources, number: int = 0, wait_share: WaitShare | None = None):
        """`number` is that of the iterator, 0 for none, and `wait_share()` which part of its time its trainer waits."""
        self._resources = resources
        self.number = number
        self._wait_share = wait_share

    def now(self) -> Sender:
        """The sender of a request that is made now."""
        sender = self._resources.here.sender
        if not self.number:
            return sender
        return Sender(sender.client, self.number, None if self._wait_share is None else self._wait_share())

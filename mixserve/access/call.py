"""What is known of the call that a thread answers, for logs and statistics."""

import secrets

from mixserve_client.schema.requests import Sender


class Call:
    """A call of `method`, a name without its service. The other fields are filled as the call is read."""

    __slots__ = ("_id", "method", "mixture", "sender")

    def __init__(self, method: str):
        self.method = method
        self.mixture = ""
        self.sender = Sender()
        self._id = ""

    @property
    def id(self) -> str:
        """Eight hexadecimal digits, under which the log and the caller's error speak of this call."""
        # Made when it is needed: most calls do not fail.
        if not self._id:
            self._id = secrets.token_hex(4)
        return self._id

    def is_for(self, mixture: str, sender: Sender) -> None:
        """The call has been read."""
        self.mixture, self.sender = mixture, sender

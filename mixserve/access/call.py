"""What is known of the call that a thread answers, for logs and statistics."""

import logging
import math
import secrets

from mixserve_client.errors import MixserveError, Overloaded, class_of
from mixserve_client.schema.requests import Sender
from mixserve_client.schema.text import describe_error

_logger = logging.getLogger("mixserve")

_SHOWN = 1000


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

    def fail(self, error: MixserveError) -> None:
        """The call ends with `error`, which gets its id unless it has one: that of a line about another one like it."""
        if not error.request_id:
            error.request_id = self.id
        if _logger.isEnabledFor(logging.DEBUG):
            fields, said = error_fields(error), describe_error(error, _SHOWN)
            text = "%s ended with %s: %s"
            _logger.debug(text, self.method, fields["error"], said, extra={"call": self, **fields})


def error_fields(error: MixserveError) -> dict[str, object]:
    """The fields of a log record about `error`: its class, and when to ask again."""
    found: dict[str, object] = {"error": class_of(error).__name__}
    if isinstance(error, Overloaded) and math.isfinite(error.retry_after_s):
        found["retry_after_s"] = round(error.retry_after_s, 3)
    return found

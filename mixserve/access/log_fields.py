"""Log records get what is known of the call that their thread answers, for whatever formats them."""

import logging
from collections.abc import Iterator
from urllib.parse import unquote

from mixserve.access.call import Call
from mixserve.access.identity import current_caller

# Not of the root, nor of others: how a program logs is its own affair.
LOGGERS = ("mixserve", "mixserve.audit")


class CallFields(logging.Filter):
    """Sets `request`, `method`, `mixture`, `client`, `peer` and `who` on each record that is about a call.

    Such a record is made by the thread that answers the call, or has the call itself as its attribute `call`. What the
    record has already stays. Lets every record pass.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        for name, value in _fields(record):
            record.__dict__.setdefault(name, value)
        return True


def add_call_fields() -> None:
    """Do so for the records of our loggers; a second call does nothing."""
    for logger in map(logging.getLogger, LOGGERS):
        if not any(isinstance(known, CallFields) for known in logger.filters):
            logger.addFilter(CallFields())


def _fields(record: logging.LogRecord) -> Iterator[tuple[str, str]]:
    caller = current_caller()
    call: Call | None = record.__dict__.get("call", caller.call)
    if call is None:
        return
    yield "request", call.id
    yield "method", call.method
    if call.mixture:
        yield "mixture", call.mixture
    if call.sender.client:
        yield "client", call.sender.client
    if call is caller.call:
        yield "peer", unquote(caller.peer())
        yield "who", caller.identity.name

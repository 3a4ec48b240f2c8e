"""What is no error of ours -> one that tells the client nothing but where to look."""

import logging
import secrets
from collections.abc import Generator
from contextlib import contextmanager

from mixserve_client.errors import MixserveError, ServerFault

_logger = logging.getLogger("mixserve")


@contextmanager
def faults(what: str) -> Generator[None]:
    """Turns other errors than ours into ServerFault with an id, under which the log has the cause."""
    try:
        yield
    except MixserveError:
        raise
    except Exception as error:
        fault = secrets.token_hex(4)
        _logger.exception("fault %s in %s", fault, what)
        raise ServerFault(f"the server failed on this request; its log has the cause under the id {fault}") from error

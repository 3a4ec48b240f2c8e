"""The audit: a line of the logger "mixserve.audit" for whatever changes a session or a checkpoint, or is refused."""

import json
import logging
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from urllib.parse import unquote

from mixserve.access.identity import current_caller
from mixserve_client.schema.text import shorten

_logger = logging.getLogger("mixserve.audit")

_PLAIN = re.compile(r"[\w.:/\[\]@+-]+", re.ASCII)
_LONGEST = 300
_EVERY_S = 1.0
_MOST_KINDS = 1024

Clock = Callable[[], float]


def audit(event: str, **about: object) -> None:
    """Log who did `event`, from where, and what it is `about`. None stands for what is not said.

    The line has the form `event=… who=… peer=…`, and the record has the same as a dict, `audit`.
    """
    if not _logger.isEnabledFor(logging.INFO):
        return
    caller = current_caller()
    _write(event, caller.identity.name, caller.peer() or "this process", about)


class Refusals:
    """Lines about refused calls: one a second for each kind and caller, with the number of calls since the last one."""

    def __init__(self, clock: Clock = time.monotonic):
        self._clock = clock
        self._lock = threading.Lock()
        self._said: OrderedDict[tuple[str, str], tuple[float, int]] = OrderedDict()  # when, and how many since

    def add(self, kind: str, who: str, peer: str, method: str, why: str) -> None:
        """Count a refused call, and log it unless one of that kind and caller was just logged."""
        now = self._clock()
        with self._lock:
            when, skipped = self._said.pop((kind, who), (-_EVERY_S, 0))
            is_silent = now - when < _EVERY_S
            self._said[kind, who] = (when, skipped + 1) if is_silent else (now, 0)
            while len(self._said) > _MOST_KINDS:
                self._said.popitem(last=False)
        if not is_silent and _logger.isEnabledFor(logging.INFO):
            _write("refused", who, peer, {"method": method, "status": kind, "calls": skipped + 1, "why": why})


def _write(event: str, who: str, peer: str, about: dict[str, object]) -> None:
    fields = {"event": event, "who": who, "peer": unquote(peer)}
    fields |= {name: value for name, value in about.items() if value is not None}
    line = " ".join(f"{name}={_escape(value)}" for name, value in fields.items())
    _logger.info("%s", line, extra={"audit": fields})


def _escape(value: object) -> str:
    """One word: texts with other characters than those of names are quoted as in JSON, without line breaks."""
    text = shorten(str(value), _LONGEST)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)

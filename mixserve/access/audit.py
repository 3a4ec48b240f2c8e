"""The audit: a line of the logger "mixserve.audit" for whatever changes a session or a checkpoint, or is refused."""

import json
import logging
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import unquote

from mixserve.access.failures import host_of
from mixserve.access.identity import current_caller
from mixserve_client.redaction import hide_tokens
from mixserve_client.schema.text import shorten

_logger = logging.getLogger("mixserve.audit")

_PLAIN = re.compile(r"[\w.:/\[\]@+-]+", re.ASCII)
_LONGEST = 300
_EVERY_S = 1.0
_MOST_KINDS = 1024

Clock = Callable[[], float]


def audit(event: str, **about: object) -> None:
    """Log who did `event`, from where, and what it is `about`. None stands for what is not said.

    The line has the form `event=… who=… peer=… …`, and the record has the same as a dict, `audit`. The last field,
    `request`, is the id of the call.
    """
    if not _logger.isEnabledFor(logging.INFO):
        return
    caller = current_caller()
    request = None if caller.call is None else caller.call.id
    _write(event, caller.identity.name, caller.peer() or "this process", about | {"request": request})


class Refusals:
    """Lines about refused calls: one a second for each kind and caller, with the number of calls since the last one."""

    def __init__(self, clock: Clock = time.monotonic):
        self._clock = clock
        self._lock = threading.Lock()
        self._said: OrderedDict[tuple[str, str, str], _Refused] = OrderedDict()

    def add(self, kind: str, who: str, peer: str, method: str, why: str, request: str | None = None) -> None:
        """Count a refused call, and log it unless one of that kind, caller and host was just logged."""
        now, key = self._clock(), (kind, who, host_of(peer))
        with self._lock:
            last = self._said.pop(key, None)
            calls = 1 if last is None else last.skipped + 1
            is_silent = last is not None and now - last.when < _EVERY_S
            refused = _Refused(now, 0, peer, method, why, request)
            self._said[key] = (
                refused if last is None or not is_silent else refused._replace(when=last.when, skipped=calls)
            )
            while len(self._said) > _MOST_KINDS:
                self._said.popitem(last=False)
        if not is_silent:
            self._log(key, refused, calls)

    def report(self) -> None:
        """Log what was counted since the last lines; call it every few seconds."""
        now = self._clock()
        with self._lock:
            due = [(key, last) for key, last in self._said.items() if last.skipped and now - last.when >= _EVERY_S]
            for key, last in due:
                self._said[key] = last._replace(when=now, skipped=0)
        for key, last in due:
            self._log(key, last, last.skipped)

    def _log(self, key: tuple[str, str, str], last: "_Refused", calls: int) -> None:
        if _logger.isEnabledFor(logging.INFO):
            about = {
                "method": last.method, "status": key[0], "calls": calls, "why": last.why, "request": last.request
            }  # fmt: skip
            _write("refused", key[1], last.peer, about)


class _Refused(NamedTuple):
    """The last refused call of a kind: when a line was written, how many calls came since, and what the last was."""

    when: float
    skipped: int
    peer: str
    method: str
    why: str
    request: str | None


def _write(event: str, who: str, peer: str, about: dict[str, object]) -> None:
    fields = {"event": event, "who": who, "peer": unquote(peer)}
    fields |= {name: value for name, value in about.items() if value is not None}
    line = " ".join(f"{name}={_escape(value)}" for name, value in fields.items())
    _logger.info("%s", line, extra={"audit": fields})


def _escape(value: object) -> str:
    """One word: texts with other characters than those of names are quoted as in JSON, without line breaks."""
    text = shorten(hide_tokens(str(value)), _LONGEST)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)

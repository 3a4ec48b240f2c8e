"""Records of the log -> lines of text for people, or JSON objects for programs."""

import json
import logging
from datetime import UTC, datetime
from typing import Any

from mixserve_client.schema.text import escape_unprintable

# In the order in which they come in a line.
_FIELDS = (
    "request", "method", "client", "peer", "who", "mixture", "source", "record", "position", "error", "retry_after_s"
)  # fmt: skip
_IN_TEXT = ("request", "mixture", "client")


class TextFormatter(logging.Formatter):
    """Time, level, worker, message; of a call its id, mixture and client in brackets."""

    def __init__(self, worker: int | None = None):
        whose = "" if worker is None else f"worker {worker}: "
        super().__init__(f"%(asctime)s %(levelname)s {whose}%(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # of the base class
        # Errors may show what clients sent, and those of sources what is in files: nobody shall forge a line by it.
        record.message = _plain(record.message)
        line = super().formatMessage(record)
        if hasattr(record, "audit"):  # its message has all of its fields
            return line
        about = [f"{name} {_plain(value)}" for name, value in _present(record, _IN_TEXT)]
        return f"{line} [{', '.join(about)}]" if about else line

    def formatException(self, ei: Any) -> str:  # noqa: N802  # of the base class
        return escape_unprintable(super().formatException(ei))


class JsonFormatter(logging.Formatter):
    """One JSON object per record, on one line."""

    def __init__(self, worker: int | None = None):
        super().__init__()
        self._worker = {} if worker is None else {"worker": worker}

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, UTC)
        found: dict[str, Any] = {
            "time": when.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self._worker,
            **dict(_present(record, (*_FIELDS, "audit"))),
        }
        if record.exc_info and record.exc_info[0] is not None:
            found["traceback"] = self.formatException(record.exc_info)
        # ASCII, because the encoding of standard error may be any.
        return json.dumps(found, default=str)


def _present(record: logging.LogRecord, names: tuple[str, ...]) -> list[tuple[str, Any]]:
    """Those of the fields that the record has."""
    return [(name, value) for name in names if (value := record.__dict__.get(name)) not in (None, "")]


def _plain(value: object) -> str:
    """A value that clients or files may have chosen, without line breaks and what terminals act upon."""
    return escape_unprintable(str(value)).replace("\n", "\\n")

"""The log of `mixserve serve`: lines of text for people, or JSON objects for programs, on standard error."""

import json
import logging
import sys
import threading
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from mixserve.access.log_fields import add_call_fields
from mixserve.cli.plain_errors import say_errors_by
from mixserve.config import LogFormat, LogLevel
from mixserve_client.schema.text import escape_unprintable

# In the order in which they come in a line.
_FIELDS = (
    "request", "method", "client", "peer", "who", "mixture", "source", "record", "position", "error", "retry_after_s"
)  # fmt: skip
_IN_TEXT = ("request", "mixture", "client")

_logger = logging.getLogger("mixserve")


class Log:
    """Writes all records of this process; `worker` is its number if there are several."""

    def __init__(self, worker: int | None = None):
        self._worker = worker
        self._handler = logging.StreamHandler(sys.stderr)
        logging.getLogger("mixserve.audit").setLevel(logging.INFO)  # who did what must not depend on the level
        add_call_fields()
        self.use("text", "info")
        logging.getLogger().addHandler(self._handler)

    def use(self, log_format: LogFormat, level: LogLevel) -> None:
        """From now on, write so, and what is at least as important as `level`."""
        is_json = log_format == "json"
        self._handler.setFormatter(JsonFormatter(self._worker) if is_json else TextFormatter(self._worker))
        if is_json:
            logging.captureWarnings(True)
            say_errors_by(lambda text: _logger.critical("%s", text))
            sys.excepthook, threading.excepthook = _log_uncaught, _log_uncaught_of_thread
        self.set_level(level)

    def set_level(self, level: LogLevel) -> None:
        """Write what is at least as important as `level`; of other libraries warnings at least, and their audit."""
        number = logging.getLevelNamesMapping()[level.upper()]
        _logger.setLevel(number)
        logging.getLogger("mixserve_client").setLevel(max(number, logging.WARNING))
        logging.getLogger().setLevel(max(number, logging.WARNING))


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


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    _logger.critical("the server ends by an error: %s", kind.__name__, exc_info=(kind, error, trace))


def _log_uncaught_of_thread(about: threading.ExceptHookArgs) -> None:
    error = about.exc_value
    if error is not None and not isinstance(error, SystemExit):
        name = "a thread" if about.thread is None else f"the thread {about.thread.name}"
        _logger.critical("%s ends by an error", name, exc_info=(about.exc_type, error, about.exc_traceback))

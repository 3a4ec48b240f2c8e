"""The log of `mixserve serve`: lines of text for people, or JSON objects for programs, on standard error."""

import logging
import sys
import threading
from types import TracebackType

from mixserve.access.log_fields import add_call_fields
from mixserve.cli.plain_errors import say_errors_by
from mixserve.config import LogFormat, LogLevel
from mixserve.log_lines import JsonFormatter, TextFormatter

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


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    _logger.critical("the server ends by an error: %s", kind.__name__, exc_info=(kind, error, trace))


def _log_uncaught_of_thread(about: threading.ExceptHookArgs) -> None:
    error = about.exc_value
    if error is not None and not isinstance(error, SystemExit):
        name = "a thread" if about.thread is None else f"the thread {about.thread.name}"
        _logger.critical("%s ends by an error", name, exc_info=(about.exc_type, error, about.exc_traceback))

"""What `mixserve serve` does at SIGHUP: it reads its configuration again, and uses the little that can change."""

import logging
from pathlib import Path

from mixserve.cli.logs import Log
from mixserve.config import Config, load_config

_logger = logging.getLogger("mixserve")


class Reloader:
    """Reads the configuration of a server that runs: its `log_level` is used, and all else needs a restart."""

    def __init__(self, config_file: Path, config: Config, log: Log, *, has_level: bool, says_so: bool = True):
        """`config` is what the server runs with. With `has_level`, a flag sets the level of the log. Without `says_so`,
        another process logs what is new."""
        self._file, self._config, self._log = config_file, config, log
        self._has_level, self._says_so = has_level, says_so

    def read(self) -> bool:
        """Read the file. False if it cannot be used: then all stays as it was, and the log says why."""
        try:
            config = load_config(self._file)
        except Exception as error:  # whatever it is, the server must go on
            if self._says_so:
                said = "; ".join(str(error).splitlines()) or type(error).__name__
                _logger.error("nothing was reloaded, and all stays as it was: %s", said)
            return False
        level = self._config.server.log_level if self._has_level else config.server.log_level
        if not self._has_level:
            self._log.set_level(level)
        if self._says_so:
            said = "--log-level stays" if self._has_level else f"log_level is {level}"
            _logger.info("read %s again: %s", self._file, said)
            if self._differs(config):
                _logger.warning("%s has changes that need a restart: only log_level is used by a reload", self._file)
        return True

    def _differs(self, config: Config) -> bool:
        """Whether more than the level has changed since the start."""
        level = {"log_level": self._config.server.log_level}
        return config.model_copy(update={"server": config.server.model_copy(update=level)}) != self._config

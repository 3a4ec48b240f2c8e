"""The folders and files of a server, as its configuration says; and its programs, which are loaded from one of them."""

import logging
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from mixserve.access.entries import BadTokens
from mixserve.access.tokens import read_tokens
from mixserve.config import Config, ConfigError
from mixserve.reach import beside

_logger = logging.getLogger("mixserve")


def choose_folder(key: str, flag: bool | str | None, configured: bool | str, config_file: Path) -> bool | str:
    """The flag, else the file's value under `key`. Raises ConfigError."""
    if flag is not None:
        return flag
    return str(beside(key, configured, config_file)) if isinstance(configured, str) else configured


def token_file(config: Config, config_file: Path) -> Path | None:
    """The file of tokens, if there is one, after a look at what it has. Raises ConfigError and OSError."""
    if config.server.tokens is None:
        return None
    path = beside("tokens", config.server.tokens, config_file)
    try:
        count = len(read_tokens(path))
    except BadTokens as error:
        raise ConfigError(f"{config_file}: server.tokens: {error}") from error
    _logger.info("calls need one of %d tokens of %s", count, path)
    return path


@contextmanager
def compiling(config: Config, cache: bool | str) -> Generator[None]:
    """Load or compile the programs that these mixtures most likely need, while modules are imported.

    Their sources may turn out to need others, which compile later.
    """
    from mixserve.mixture import programs
    from mixserve.mixture.compilation_cache import choose_folder
    from mixserve.mixture.draw import Parts

    choose_folder(cache if isinstance(cache, bool) else Path(cache))
    sizes, parts = programs.first_sizes(programs.PLAN_SIZES), Parts(long=False, fetch=False)
    for mixture in config.mixtures.values():
        if mixture.sampling == "categorical":
            count = len(mixture.sources)
            programs.begin({*programs.draws(count, parts, sizes), programs.probe_scores(count)})
    try:
        yield
    except BaseException:
        programs.drop_unstarted()
        raise

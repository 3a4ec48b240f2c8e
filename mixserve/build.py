"""Checked configuration -> nodes, with their files opened; errors name the file and the key."""

import errno
import resource
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar
from zipfile import BadZipFile

from mixserve.config import Config, ConfigError, MixtureConfig, load_config
from mixserve.node import MixDataSourcesConfig, MixDataSourcesNode
from mixserve.shown import said_by, short
from mixserve.sources.kinds.functions import import_function
from mixserve_client.errors import MixserveError

T = TypeVar("T")
_FILES = 1 << 16


def build_nodes(config: Config, file: Path, *, placement: str | None = None) -> dict[str, MixDataSourcesNode]:
    """The nodes of `config`, which was read from `file`; paths are relative to it. Raises ConfigError."""
    _allow_many_files()
    return {
        name: _at(file, _key(name), lambda: _node(mixture, file, _key(name), placement))  # noqa: B023
        for name, mixture in config.mixtures.items()
    }


def open_nodes(
    file: Path, *, placement: str | None = None, mixture: str | None = None
) -> dict[str, MixDataSourcesNode]:
    """The nodes of the configuration in `file`, whose sources, or those of `mixture`, have said everything that a
    description of them needs: what is wrong with them shows now. Raises ConfigError."""
    nodes = build_nodes(load_config(file), file, placement=placement)
    for name, node in nodes.items() if mixture not in nodes else [(mixture, nodes[mixture])]:
        _at(file, _key(name), lambda: node.mixture.fingerprint)  # noqa: B023
    return nodes


@contextmanager
def starting(file: Path) -> Generator[None, None, None]:
    """What sources of the user's own raise while a server starts becomes a ConfigError that names `file`; errors of
    addresses and folders stay what they are."""
    try:
        yield
    except (OSError, ConfigError, MixserveError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise ConfigError(f"{short(str(file), 300)}: the mixtures cannot be served: {_said(error)}") from error


def _key(mixture: str) -> str:
    return f"mixtures.{short(mixture, 100)}"


def _node(mixture: MixtureConfig, file: Path, key: str, placement: str | None) -> MixDataSourcesNode:
    sources = [
        _at(file, f"{key}.sources.{short(name, 100)}", lambda: source.open(file.parent))  # noqa: B023
        for name, source in mixture.sources.items()
    ]
    config = MixDataSourcesConfig(
        num_sources=len(sources),
        weights=mixture.weights,
        sampling=mixture.sampling,
        block_size=mixture.block_size,
        stop=mixture.stop,
        schedule=mixture.later_weights,
        placement=placement or mixture.placement,
        source_names=tuple(mixture.sources),
        content_ids=tuple(source.content_id for source in mixture.sources.values()),
        cacheable=mixture.cacheable,
        batch_stats_fn=_statistics(mixture, file.parent),
        precomputed_stats=mixture.precomputed_stats,
    )
    node = MixDataSourcesNode(config, sources)
    _ = node.mixture.fields  # a server has nothing but batches
    return node


def _at(file: Path, key: str, make: Callable[[], T]) -> T:
    """What `make` makes; its errors become ConfigErrors that name file and key, unless they do already.

    Sources may be code of the user's own, which raises whatever it likes, SystemExit among it.
    """
    try:
        return make()
    except (ConfigError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise ConfigError(f"{short(str(file), 300)}: {key}: {_said(error)}") from error


def _said(error: BaseException) -> str:
    """The error's own words; those that only Python's programmers understand come with its class."""
    said = said_by(error, 1000)
    if isinstance(error, OSError) and error.errno == errno.EMFILE:
        said += "; every mapped file holds a descriptor: raise the limit of this process (ulimit -n), or join files"
    is_plain = isinstance(error, OSError | ValueError | TypeError | KeyError | ImportError | EOFError | BadZipFile)
    return said if is_plain or said == type(error).__name__ else f"{type(error).__name__}: {said}"


def _statistics(mixture: MixtureConfig, folder: Path) -> Callable[..., Any] | None:
    name = mixture.batch_stats_fn
    return None if name is None else import_function(name, folder, "batch_stats_fn")


def _allow_many_files() -> None:
    """Use as many descriptors as the system allows: every slot of shared memory and every mapped file holds one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):  # less than `hard` may be allowed
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))

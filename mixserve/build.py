"""A checked configuration -> nodes, with their files opened. Errors name the file and the key."""

import errno
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from zipfile import BadZipFile

from mixserve.config import Config, ConfigError, MixtureConfig, load_config
from mixserve.descriptors import allow_many_files
from mixserve.failed_read import read_note
from mixserve.mixture.examine import Examined, examine_leaf
from mixserve.node import MixDataSourcesConfig, MixDataSourcesNode
from mixserve.sources.kinds.functions import import_function
from mixserve.sources.prepared import preparing_in
from mixserve_client.errors import MixserveError
from mixserve_client.schema.text import describe_error, shorten

T = TypeVar("T")

# The time for the sample of a source, and for those of all sources.
_SAMPLE_S, _SAMPLES_S = 0.2, 10.0
_MOST_SAMPLED = 500  # sources of a mixture; tables show no more


def build_nodes(config: Config, file: Path | str, *, placement: str | None = None) -> dict[str, MixDataSourcesNode]:
    """The nodes of `config`, which was read from `file`. Paths in it are relative to `file`. Raises ConfigError."""
    allow_many_files()
    path, prepared = Path(file), config.server.prepared
    with preparing_in(None if prepared is None else (path.parent / prepared).absolute()):
        return {
            name: _at(path, _key(name), lambda: _node(mixture, path, _key(name), placement))  # noqa: B023
            for name, mixture in config.mixtures.items()
        }


def open_nodes(
    file: Path, *, placement: str | None = None, mixture: str | None = None
) -> dict[str, MixDataSourcesNode]:
    """The nodes of the configuration in `file`, with the sources of all mixtures, or of `mixture`, checked.

    Raises ConfigError.
    """
    nodes = build_nodes(load_config(file), file, placement=placement)
    for name, node in nodes.items() if mixture not in nodes else [(mixture, nodes[mixture])]:
        # Computing a fingerprint calls everything that a description needs of the sources, so faults show now.
        _at(file, _key(name), lambda: node.mixture.fingerprint)  # noqa: B023
    return nodes


def examine_sources(
    nodes: Mapping[str, MixDataSourcesNode], file: Path, *, full: bool, tell: Callable[[int], None]
) -> dict[str, list[Examined]]:
    """What is known of the leaves of every mixture. Reads the first record, the last and some between, or all if
    `full`; `tell` is called with numbers of records that `full` has read.

    Raises ConfigError, which names the source and the first record that cannot be read.
    """
    sampled = sum(min(_MOST_SAMPLED, len(node.mixture.leaves)) for node in nodes.values())
    seconds = min(_SAMPLE_S, _SAMPLES_S / max(1, sampled))
    return {
        name: [
            _at(
                file,
                f"{_key(name)}.sources.{shorten(leaf, 100)}",
                lambda: examine_leaf(
                    node.mixture,  # noqa: B023
                    number,  # noqa: B023
                    seconds=seconds if number < _MOST_SAMPLED else 0,  # noqa: B023
                    full=full,
                    tell=tell,
                ),
            )
            for number, leaf in enumerate(node.mixture.leaf_names)
        ]
        for name, node in nodes.items()
    }


@contextmanager
def starting(file: Path) -> Generator[None, None, None]:
    """Turns errors of users' sources while a server starts into a ConfigError that names `file`.

    Errors of addresses and folders (OSError) pass through.
    """
    try:
        yield
    except (OSError, ConfigError, MixserveError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise ConfigError(
            f"{shorten(str(file), 300)}: the mixtures cannot be served: {_describe_error(error)}"
        ) from error


def _key(mixture: str) -> str:
    return f"mixtures.{shorten(mixture, 100)}"


def _node(mixture: MixtureConfig, file: Path, key: str, placement: str | None) -> MixDataSourcesNode:
    sources = [
        _at(file, f"{key}.sources.{shorten(name, 100)}", lambda: source.open(file.parent))  # noqa: B023
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
    _ = node.mixture.fields  # raises now if the sources' records do not fit together: a server serves only batches
    return node


def _at(file: Path, key: str, make: Callable[[], T]) -> T:
    """The result of `make`. Its errors become ConfigErrors that name file and key, unless they do already."""
    try:
        return make()
    except (ConfigError, KeyboardInterrupt):
        raise
    except BaseException as error:  # a source may be a user's code, and raise anything, even SystemExit
        raise ConfigError(f"{shorten(str(file), 300)}: {key}: {_describe_error(error)}") from error


def _describe_error(error: BaseException) -> str:
    """The error's message, after its class if the message alone would not be clear."""
    note = read_note(error)  # it names the source
    said = describe_error(error, 1000) if note is None else shorten(note, 1000)
    if isinstance(error, OSError) and error.errno == errno.EMFILE:
        said += "; every mapped file has a descriptor: raise this process's limit (ulimit -n), or merge files"
    is_plain = isinstance(error, OSError | ValueError | TypeError | KeyError | ImportError | EOFError | BadZipFile)
    return said if is_plain or note is not None or said == type(error).__name__ else f"{type(error).__name__}: {said}"


def _statistics(mixture: MixtureConfig, folder: Path) -> Callable[..., Any] | None:
    name = mixture.batch_stats_fn
    return None if name is None else import_function(name, folder, "batch_stats_fn")

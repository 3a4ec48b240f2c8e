"""A checked configuration -> nodes, with their files opened. Errors name the file and the key."""

import errno
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from zipfile import BadZipFile

from mixserve.config import Config, ConfigError, MixtureConfig, load_config
from mixserve.descriptors import allow_many_files
from mixserve.failed_read import read_note
from mixserve.mixture.examine import Examined, examine_leaf
from mixserve.mixture.mixture import Mixture
from mixserve.mixture.scan import Scanned, scan_leaf
from mixserve.node import MixDataSourcesConfig, MixDataSourcesNode
from mixserve.sources.kinds.base import SourceConfig
from mixserve.sources.kinds.expanding import expand
from mixserve.sources.kinds.functions import import_function
from mixserve.sources.prepared import preparing_in
from mixserve.sources.skipped import SkipLists, SkippedRecords, check_can_skip, identity, most_skipped
from mixserve.sources.without import SourceWithout
from mixserve_client.errors import MixserveError
from mixserve_client.schema.text import describe_error, shorten

T = TypeVar("T")
# Mixture, name of the source, the source, its content_id in the file -> the source without some records.
LeaveOut = Callable[[str, str, Any, str | None], Any]

# The time for the sample of a source, and for those of all sources.
_SAMPLE_S, _SAMPLES_S = 0.2, 10.0
_MOST_SAMPLED = 500  # sources of a mixture; tables show no more


def build_nodes(
    config: Config, file: Path | str, *, placement: str | None = None, leave_out: LeaveOut | None = None
) -> dict[str, MixDataSourcesNode]:
    """The nodes of `config`, which was read from `file`. Paths in it are relative to `file`. Raises ConfigError.

    `leave_out` gets sources with `on_error: skip`, and returns them without the records that cannot be decoded; by
    default those that the file beside `file` lists.
    """
    allow_many_files()
    path, prepared = Path(file), config.server.prepared
    if leave_out is None and any(skipping(config).values()):
        leave_out = read_lists(path).leave_out
    folder = None if prepared is None else _at(path, "server.prepared", lambda: expand(prepared, path.parent))
    with preparing_in(None if folder is None else (path.parent / folder).absolute()):
        return {
            name: _at(path, _key(name), lambda: _node(mixture, path, name, placement, leave_out))  # noqa: B023
            for name, mixture in config.mixtures.items()
        }


def open_nodes(
    file: Path, *, placement: str | None = None, mixture: str | None = None, leave_out: LeaveOut | None = None
) -> dict[str, MixDataSourcesNode]:
    """The nodes of the configuration in `file`, with the sources of all mixtures, or of `mixture`, checked. `leave_out`
    is that of `build_nodes`.

    Raises ConfigError.
    """
    nodes = build_nodes(load_config(file), file, placement=placement, leave_out=leave_out)
    for name, node in nodes.items() if mixture not in nodes else [(mixture, nodes[mixture])]:
        # Computing a fingerprint calls everything that a description needs of the sources, so faults show now.
        _at(file, _key(name), lambda: node.mixture.fingerprint)  # noqa: B023
    return nodes


def examine_sources(
    nodes: Mapping[str, MixDataSourcesNode],
    file: Path,
    *,
    full: bool,
    tell: Callable[[int], None],
    scanned: Mapping[tuple[str, str], Scanned] | None = None,
) -> dict[str, list[Examined]]:
    """What is known of the leaves of every mixture. Reads the first record, the last and some between, or all if
    `full`, except of those that were `scanned`, by mixture and source; `tell` is called with numbers of records that
    `full` has read.

    Raises ConfigError, which names the source and the first record that cannot be read.
    """
    sampled = sum(min(_MOST_SAMPLED, len(node.mixture.leaves)) for node in nodes.values())
    seconds = min(_SAMPLE_S, _SAMPLES_S / max(1, sampled))
    known = {key: found.ids for key, found in (scanned or {}).items()}
    return {
        name: [
            _at(
                file,
                _source_key(name, leaf),
                lambda: examine_leaf(
                    node.mixture,  # noqa: B023
                    number,  # noqa: B023
                    seconds=seconds if number < _MOST_SAMPLED else 0,  # noqa: B023
                    full=full,
                    tell=tell,
                    known=known.get((name, leaf)),  # noqa: B023
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


def skipping(config: Config) -> dict[str, list[str]]:
    """By mixture, the names of the sources with `on_error: skip`."""
    return {
        name: [source for source, of_source in mixture.sources.items() if of_source.on_error == "skip"]
        for name, mixture in config.mixtures.items()
    }


def read_lists(file: Path) -> SkipLists:
    """The lists of records that are left out of the sources of the configuration in `file`. Raises ConfigError."""
    return _at(file, "on_error", lambda: SkipLists.read(file))


def list_undecodable(
    config: Config, file: Path, mixture: str | None, tell: Callable[[int], None]
) -> dict[tuple[str, str], Scanned]:
    """Read all records of the sources with `on_error: skip`, of all mixtures or of `mixture`. Write the list of each
    source, when it is complete, to the file beside `file`. By mixture and source, what was found.

    Raises ConfigError, and leaves the source's list as it was, if a record cannot be read for another reason than its
    data, or if too many cannot be decoded.
    """
    sources = skipping(config)
    lists = _at(file, "on_error", lambda: _lists_to_write(file, sources))
    nodes = build_nodes(config, file, placement="host", leave_out=_check_only)
    found = dict[tuple[str, str], Scanned]()
    for name in sources if mixture is None else [mixture]:
        for source in sources[name]:
            found[name, source] = _at(
                file,
                _source_key(name, source),
                lambda: _scan(nodes[name].mixture, config.mixtures[name], name, source, lists, tell),  # noqa: B023
            )
    return found


def _lists_to_write(file: Path, sources: Mapping[str, Sequence[str]]) -> SkipLists:
    """The lists, without those of sources that are no more. Raises OSError if they cannot be written."""
    try:
        lists = SkipLists.read(file)
    except ValueError:  # a damaged file is made anew
        lists = SkipLists(file, {})
    lists.keep(sources)
    lists.write()  # now, and not after hours of reading
    return lists


def _scan(
    mixture: Mixture, config: MixtureConfig, name: str, source: str, lists: SkipLists, tell: Callable[[int], None]
) -> Scanned:
    leaf: Any = mixture.children[list(config.sources).index(source)]
    number = next(i for i, one in enumerate(mixture.leaves) if one is leaf)
    content = identity(leaf, config.sources[source].content_id).hex()
    found = scan_leaf(mixture, number, most_skipped(len(leaf)), tell)
    lists.put(name, source, SkippedRecords(content=content, records=len(leaf), skipped=list(found.bad)))
    lists.write()
    return found


def _check_only(_mixture: str, _name: str, source: Any, content_id: str | None) -> Any:
    """The source with all records, if some could be left out. Raises ValueError."""
    check_can_skip(source, content_id)
    return source


def _key(mixture: str) -> str:
    return f"mixtures.{shorten(mixture, 100)}"


def _source_key(mixture: str, source: str) -> str:
    return f"{_key(mixture)}.sources.{shorten(source, 100)}"


def _node(
    mixture: MixtureConfig, file: Path, mixture_name: str, placement: str | None, leave_out: LeaveOut | None
) -> MixDataSourcesNode:
    def opened(name: str, config: SourceConfig) -> Any:
        source = config.open(file.parent)
        if config.on_error == "raise" or leave_out is None:
            return source
        return leave_out(mixture_name, name, source, config.content_id)

    sources = [
        _at(file, _source_key(mixture_name, name), lambda: opened(name, source))  # noqa: B023
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
        # With records left out, the source has an identity of its own, made of the id and of theirs.
        content_ids=tuple(
            None if isinstance(source, SourceWithout) else of_source.content_id
            for source, of_source in zip(sources, mixture.sources.values(), strict=True)
        ),
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

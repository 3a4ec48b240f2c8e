"""A checked configuration -> nodes, with their files opened. Errors name the file and the key."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mixserve.config import Config, MixtureConfig, load_config
from mixserve.descriptors import allow_many_files
from mixserve.located import at, mixture_key, source_key
from mixserve.node import MixDataSourcesConfig, MixDataSourcesNode
from mixserve.sources.kinds.base import SourceConfig
from mixserve.sources.kinds.expanding import expand
from mixserve.sources.kinds.functions import import_function
from mixserve.sources.prepared import preparing_in
from mixserve.sources.skipped import SkipLists
from mixserve.sources.without import SourceWithout

# Mixture, name of the source, the source, its content_id in the file -> the source without some records.
LeaveOut = Callable[[str, str, Any, str | None], Any]


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
    folder = None if prepared is None else at(path, "server.prepared", lambda: expand(prepared, path.parent))
    with preparing_in(None if folder is None else (path.parent / folder).absolute()):
        return {
            name: at(path, mixture_key(name), lambda: _node(mixture, path, name, placement, leave_out))  # noqa: B023
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
        at(file, mixture_key(name), lambda: node.mixture.fingerprint)  # noqa: B023
    return nodes


def skipping(config: Config) -> dict[str, list[str]]:
    """By mixture, the names of the sources with `on_error: skip`."""
    return {
        name: [source for source, of_source in mixture.sources.items() if of_source.on_error == "skip"]
        for name, mixture in config.mixtures.items()
    }


def read_lists(file: Path) -> SkipLists:
    """The lists of records that are left out of the sources of the configuration in `file`. Raises ConfigError."""
    return at(file, "on_error", lambda: SkipLists.read(file))


def _node(
    mixture: MixtureConfig, file: Path, mixture_name: str, placement: str | None, leave_out: LeaveOut | None
) -> MixDataSourcesNode:
    def opened(name: str, config: SourceConfig) -> Any:
        source = config.open(file.parent)
        if config.on_error == "raise" or leave_out is None:
            return source
        return leave_out(mixture_name, name, source, config.content_id)

    sources = [
        at(file, source_key(mixture_name, name), lambda: opened(name, source))  # noqa: B023
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


def _statistics(mixture: MixtureConfig, folder: Path) -> Callable[..., Any] | None:
    name = mixture.batch_stats_fn
    return None if name is None else import_function(name, folder, "batch_stats_fn")

"""What `mixserve check` reads of the data: a sample, or all of them, and the records that cannot be decoded."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mixserve.build import build_nodes, skipping
from mixserve.config import Config, MixtureConfig
from mixserve.located import at, source_key
from mixserve.mixture.examine import Examined, examine_leaf
from mixserve.mixture.mixture import Mixture
from mixserve.mixture.scan import Scanned, scan_leaf
from mixserve.node import MixDataSourcesNode
from mixserve.sources.skipped import SkipLists, SkippedRecords, check_can_skip, identity, most_skipped

# The time for the sample of a source, and for those of all sources.
_SAMPLE_S, _SAMPLES_S = 0.2, 10.0
_MOST_SAMPLED = 500  # sources of a mixture; tables show no more


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
            at(
                file,
                source_key(name, leaf),
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


def list_undecodable(
    config: Config, file: Path, mixture: str | None, tell: Callable[[int], None]
) -> dict[tuple[str, str], Scanned]:
    """Read all records of the sources with `on_error: skip`, of all mixtures or of `mixture`. Write the list of each
    source, when it is complete, to the file beside `file`. By mixture and source, what was found.

    Raises ConfigError, and leaves the source's list as it was, if a record cannot be read for another reason than its
    data, or if too many cannot be decoded.
    """
    sources = skipping(config)
    lists = at(file, "on_error", lambda: _lists_to_write(file, sources))
    nodes = build_nodes(config, file, placement="host", leave_out=_check_only)
    found = dict[tuple[str, str], Scanned]()
    for name in sources if mixture is None else [mixture]:
        for source in sources[name]:
            found[name, source] = at(
                file,
                source_key(name, source),
                lambda: _scan(nodes[name].mixture, config.mixtures[name], name, source, lists, tell),  # noqa: B023
            )
    return found


def _lists_to_write(file: Path, sources: Mapping[str, Sequence[str]]) -> SkipLists:
    """The lists, without those of sources that are no more. Raises OSError if they cannot be written."""
    try:
        lists = SkipLists.read(file)
    except ValueError:  # a damaged file is made again
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

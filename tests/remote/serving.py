"""Mixtures whose sources are on other servers, beside the same mixtures with all sources in one place."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mixserve import ArraySource, MixDataSourcesConfig, MixDataSourcesNode, MixServer, serve
from mixserve_client import MixClient
from mixserve_client.schema.tree import flatten
from tests.processes import ONE_SIZE

NAMES = ("a", "b", "c")


def mixed(sources: Sequence[Any], names: Sequence[str] = NAMES, **options: Any) -> MixDataSourcesNode:
    """A mixture of the sources; the first has most of the weight."""
    weights = (0.5, *[0.5 / (len(sources) - 1)] * (len(sources) - 1)) if len(sources) > 1 else (1.0,)
    options = {"sampling": "epoch", "block_size": 64, "plan_sizes": ONE_SIZE, **options}
    config = MixDataSourcesConfig(num_sources=len(sources), weights=weights, source_names=tuple(names), **options)
    return MixDataSourcesNode(config, list(sources))


def rows(length: int, seed: int, width: int = 9) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).integers(0, 1 << 40, (length, width))}


def array_sources(seed: int = 0) -> list[ArraySource]:
    return [ArraySource(rows(50 + 30 * number, seed + number)) for number in range(3)]


def serve_sources(sources: Sequence[Any], names: Sequence[str], **options: Any) -> MixServer:
    """A server that has the sources in its mixture `data`."""
    return serve({"data": mixed(sources, names)}, address="127.0.0.1:0", **options)


def write_yaml(folder: Path, name: str, mixtures: dict[str, dict[str, str]]) -> Path:
    """A configuration file with these sources, which are written as YAML."""
    lines = ["mixtures:"]
    for mixture, sources in mixtures.items():
        lines += [f"  {mixture}:", "    sampling: epoch", "    block_size: 64", "    sources:"]
        lines += [f"      {source}: {written}" for source, written in sources.items()]
    file = folder / name
    file.write_text("\n".join(lines) + "\n")
    return file


def digests(client: MixClient, *, stop: int = 640, size: int = 16, **options: Any) -> list[bytes]:
    """The bytes of the batches of a mixture."""
    batches = map(flatten, client.batches(size, 7, stop=stop, **options))
    return [b"".join(np.asarray(batch[name]).tobytes() for name in sorted(batch)) for batch in batches]

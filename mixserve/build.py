"""Checked configuration -> nodes, with their files opened; errors name the file and the key."""

import importlib
import sys
import zipfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from glob import glob, has_magic
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mixserve.config import ArraysConfig, Config, ConfigError, FactoryConfig, MixtureConfig, SourceConfig, TokensConfig
from mixserve.node import MixDataSourcesConfig, MixDataSourcesNode
from mixserve.sources import ArraySource, FollowsReference, Source, TokenSource
from mixserve_client.wire.dtypes import dtype_named

T = TypeVar("T")


def build_nodes(config: Config, file: Path, *, placement: str | None = None) -> dict[str, MixDataSourcesNode]:
    """The nodes of `config`, which was read from `file`; paths are relative to it. Raises ConfigError."""
    return {
        name: _at(file, f"mixtures.{name}", lambda: _node(mixture, file, f"mixtures.{name}", placement))  # noqa: B023
        for name, mixture in config.mixtures.items()
    }


def _node(mixture: MixtureConfig, file: Path, key: str, placement: str | None) -> MixDataSourcesNode:
    sources = [
        _at(file, f"{key}.sources.{name}", lambda: _source(source, file.parent))  # noqa: B023
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
    """What `make` makes; its errors become ConfigErrors that name file and key, unless they do already."""
    try:
        return make()
    except ConfigError:
        raise
    except OSError as error:
        raise ConfigError(f"{file}: {key}: {error}") from error
    except (ValueError, TypeError, KeyError, EOFError, ImportError, AttributeError, zipfile.BadZipFile) as error:
        said = error.args[0] if isinstance(error, KeyError) else error
        raise ConfigError(f"{file}: {key}: {said}") from error


def _source(config: SourceConfig, folder: Path) -> Any:
    match config:
        case TokensConfig():
            return TokenSource(
                _paths(config.path, folder),
                sequence_length=config.sequence_length,
                dtype=dtype_named(config.dtype),
                as_dtype=None if config.as_dtype is None else dtype_named(config.as_dtype),
                field=config.field,
            )
        case ArraysConfig():
            blocks = [_arrays(path, config.dtypes) for path in _paths(config.path, folder)]
            return ArraySource(*blocks)
        case FactoryConfig():
            return _manufactured(config, folder)


def _paths(patterns: str | list[str], folder: Path) -> list[Path]:
    """The files that the patterns match, those of each pattern sorted."""
    found: list[Path] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        matches = sorted(glob(pattern, root_dir=folder, recursive=True)) if has_magic(pattern) else [pattern]
        if not matches:
            raise ValueError(f"path: no file matches {pattern!r} in {folder}")
        found += [folder / match for match in matches]
    return found


def _arrays(path: Path, dtypes: dict[str, str]) -> dict[str, np.ndarray]:
    if path.is_dir():
        arrays = {file.stem: np.load(file, mmap_mode="r") for file in sorted(path.glob("*.npy"))}
        if not arrays:
            raise ValueError(f"path: the folder {path} holds no .npy files")
    else:
        with path.open("rb") as file:
            loaded = np.load(file)
            if isinstance(loaded, np.ndarray):
                raise ValueError(f"path: {path} is one array; use an .npz file, or a folder of one .npy file per field")
            arrays = dict(loaded)
    unknown = dtypes.keys() - arrays.keys()
    if unknown:
        raise ValueError(f"dtypes: {path} has the fields {sorted(arrays)}, not {sorted(unknown)}")
    return {name: _as_named(name, array, dtypes.get(name)) for name, array in arrays.items()}


def _as_named(field: str, array: np.ndarray, name: str | None) -> np.ndarray:
    """`array` in the dtype that NumPy's format could not name; other dtypes are not reinterpreted."""
    dtype = array.dtype if name is None else dtype_named(name)
    if dtype != array.dtype and (array.dtype.kind != "V" or array.dtype.itemsize != dtype.itemsize):
        raise ValueError(f"dtypes: the field {field!r} is stored as {array.dtype}, which is not {dtype} unnamed")
    return array.view(dtype)


def _manufactured(config: FactoryConfig, folder: Path) -> Any:
    function = _imported(config.function, folder, "function")
    try:
        with _importable(folder):
            source = function(**config.arguments)
    except Exception as error:  # whatever the user's code raises
        raise ValueError(f"function: {config.function} failed: {type(error).__name__}: {error}") from error
    if not isinstance(source, Source | FollowsReference):
        raise TypeError(f"function: {config.function} must return a Source, got {source!r}")
    return source


def _statistics(mixture: MixtureConfig, folder: Path) -> Callable[..., Any] | None:
    name = mixture.batch_stats_fn
    return None if name is None else _imported(name, folder, "batch_stats_fn")


def _imported(name: str, folder: Path, key: str) -> Any:
    """What `module:name` names."""
    module, _, function = name.partition(":")
    try:
        with _importable(folder):
            return attrgetter(function)(importlib.import_module(module))
    except Exception as error:  # whatever the user's code raises
        raise ValueError(f"{key}: {name} failed: {type(error).__name__}: {error}") from error


@contextmanager
def _importable(folder: Path) -> Generator[None, None, None]:
    """Modules beside the configuration file can be imported meanwhile."""
    sys.path.insert(0, str(folder.resolve()))
    try:
        yield
    finally:
        sys.path.remove(str(folder.resolve()))

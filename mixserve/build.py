"""Checked configuration -> nodes, with their files opened; errors name the file and the key."""

import errno
import importlib
import resource
import stat
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from glob import has_magic
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar
from zipfile import BadZipFile

import numpy as np

from mixserve.config import (
    ArraysConfig,
    Config,
    ConfigError,
    FactoryConfig,
    MixtureConfig,
    SourceConfig,
    TokensConfig,
    load_config,
)
from mixserve.globbing import MOST_MATCHES, matches
from mixserve.node import MixDataSourcesConfig, MixDataSourcesNode
from mixserve.shown import said_by, short, shown
from mixserve.sources import ArraySource, FollowsReference, Source, TokenSource
from mixserve_client.errors import MixserveError
from mixserve_client.schema.dtypes import dtype_named

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
        _at(file, f"{key}.sources.{short(name, 100)}", lambda: _source(source, file.parent))  # noqa: B023
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
            blocks = [_arrays(path, config.dtypes) for path in _paths(config.path, folder, or_folders=True)]
            return ArraySource(*blocks)
        case FactoryConfig():
            return _manufactured(config, folder)


def _paths(patterns: str | list[str], folder: Path, *, or_folders: bool = False) -> list[Path]:
    """The files that the patterns match, those of each pattern sorted. Raises ValueError for what is no file."""
    found: list[Path] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        names = matches(pattern, str(folder)) if has_magic(pattern) else [pattern]
        if not names:
            raise ValueError(f"path: no file matches {shown(pattern)} in {folder}")
        found += [folder / name for name in names]
        if len(found) > MOST_MATCHES:
            raise ValueError(f"path: more than {MOST_MATCHES:,} files; join them to fewer")
    for path in found:
        _check_kind(path, or_folder=or_folders)
    return found


def _check_kind(path: Path, *, or_folder: bool = False) -> None:
    """Raises ValueError: to open a pipe waits without end, and devices have no size. OSError where nothing is there."""
    mode = path.stat().st_mode
    if stat.S_ISREG(mode) or (or_folder and stat.S_ISDIR(mode)):
        return
    found = next((name for is_one, name in _KINDS_OF_FILES if is_one(mode)), "something else")
    raise ValueError(f"path: {path} must be a file{' or a folder' if or_folder else ''}, and is {found}")


_KINDS_OF_FILES: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def _arrays(path: Path, dtypes: dict[str, str]) -> dict[str, np.ndarray]:
    if path.is_dir():
        files = sorted(path.glob("*.npy"))
        if not files:
            raise ValueError(f"path: the folder {path} holds no .npy files")
        arrays = {file.stem: _mapped(file) for file in files}
    else:
        with _opened(path), path.open("rb") as file:
            loaded = np.load(file)
            if isinstance(loaded, np.ndarray):
                raise ValueError(f"path: {path} is one array; use an .npz file, or a folder of one .npy file per field")
            arrays = dict(loaded)
        if not arrays:
            raise ValueError(f"path: {path} holds no arrays")
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise ValueError(f"path: {path} holds {shown(name)}, which is not an array")
    unknown = dtypes.keys() - arrays.keys()
    if unknown:
        raise ValueError(f"dtypes: {path} has the fields {sorted(arrays)}, not {sorted(unknown)}")
    return {name: _as_named(name, array, dtypes.get(name)) for name, array in arrays.items()}


def _mapped(file: Path) -> np.ndarray:
    _check_kind(file)
    with _opened(file):
        loaded = np.load(file, mmap_mode="r")
        if not isinstance(loaded, np.ndarray):
            loaded.close()
            raise ValueError("it is an .npz file under the name of an .npy file")
        return loaded


@contextmanager
def _opened(path: Path) -> Generator[None, None, None]:
    """What NumPy, zipfile and zlib say of a damaged file, which is many classes, becomes a ValueError that names it."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        said = said_by(error, 500)
        if str(path) in said:
            raise ValueError(said) from error
        raise ValueError(f"path: {path} cannot be read as arrays: {said}") from error


def _as_named(field: str, array: np.ndarray, name: str | None) -> np.ndarray:
    """`array` in the dtype that NumPy's format could not name; other dtypes are not reinterpreted."""
    dtype = array.dtype if name is None else dtype_named(name)
    if dtype != array.dtype and (array.dtype.kind != "V" or array.dtype.itemsize != dtype.itemsize):
        raise ValueError(f"dtypes: the field {field!r} is stored as {array.dtype}, which is not {dtype} unnamed")
    return array.view(dtype)


def _manufactured(config: FactoryConfig, folder: Path) -> Any:
    function = _imported(config.function, folder, "function")
    with _importable(folder), _users_code(f"function: {config.function}"):
        source = function(**config.arguments)
        is_source = isinstance(source, Source | FollowsReference)  # which looks at attributes
    if not is_source:
        raise TypeError(f"function: {config.function} must return a Source, got {shown(source)}")
    return source


def _statistics(mixture: MixtureConfig, folder: Path) -> Callable[..., Any] | None:
    name = mixture.batch_stats_fn
    return None if name is None else _imported(name, folder, "batch_stats_fn")


def _imported(name: str, folder: Path, key: str) -> Callable[..., Any]:
    """The function that `module:name` names."""
    module, _, function = name.partition(":")
    with _importable(folder), _users_code(f"{key}: {name}"):
        found = attrgetter(function)(importlib.import_module(module))
    if not callable(found):
        raise TypeError(f"{key}: {name} must be a function, and is {shown(found)}")
    return found


@contextmanager
def _users_code(what: str) -> Generator[None, None, None]:
    """Whatever the user's code raises becomes a ValueError: `sys.exit` in it does not end the command as a success."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise ValueError(f"{short(what, 200)} failed: {type(error).__name__}: {said_by(error, 1000)}") from error


@contextmanager
def _importable(folder: Path) -> Generator[None, None, None]:
    """Modules beside the configuration file can be imported meanwhile."""
    entry = str(folder.resolve())
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        with suppress(ValueError):  # the modules may have changed the path themselves
            sys.path.remove(entry)


def _allow_many_files() -> None:
    """Use as many descriptors as the system allows: every slot of shared memory and every mapped file holds one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):  # less than `hard` may be allowed
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))

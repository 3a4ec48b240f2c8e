"""OLMo's lists of token files: the mixes of OLMo-core, its mixtures of sources, and the data section of OLMo."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

from mixserve.cli.migrate.listed import (
    Listed,
    Mix,
    length_of,
    mapping_of,
    read_mapping,
    read_text,
    text_of,
    texts_of,
    weight_of,
)
from mixserve_client.errors import InvalidRequest
from mixserve_client.schema.text import show

_NOTES = [
    "Records are those of OLMo: each file is cut for itself, and what is left at its end is dropped. Their order is "
    "not OLMo's.",
]
_BY_SIZE = (
    "Weights are numbers of records, so that all sources end a pass at about the same position, as in OLMo's epoch."
)
_LIMITS = (
    "max_repetition_ratio and max_source_fraction do not carry over: a source has all records of its files, and begins "
    "again when all of them have come."
)


def parse(given: Sequence[str]) -> Mix:
    """The mix of a text file of `label,path` lines, or of a YAML file. Raises InvalidRequest, or OSError."""
    if len(given) != 1:
        raise InvalidRequest(f"--from olmo takes one file, a mix (.txt) or a configuration (.yaml); got {len(given)}")
    file = Path(given[0])
    return _of_yaml(file) if file.suffix in (".yml", ".yaml") else _of_lines(file)


def _of_lines(file: Path) -> Mix:
    found: list[tuple[str, str, str]] = []
    for number, line in enumerate(read_text(file).splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        where = f"{file}, line {number}"
        label, *paths = (part.strip() for part in line.split(","))
        if len(paths) != 1 or not label or not paths[0]:
            raise InvalidRequest(f"{where}: must be LABEL,PATH, got {show(line)}")
        found.append((label, paths[0], where))
    if not found:
        raise InvalidRequest(f"{file}: has no lines of LABEL,PATH")
    return Mix("tokens", {"train": _by_label(found)}, [*_NOTES, _BY_SIZE])


def _by_label(found: Iterable[tuple[str, str, str]]) -> list[Listed]:
    """A source for each label. A path that comes again is in a further source, since a source has it once."""
    times: dict[tuple[str, str], int] = {}
    sources: dict[tuple[str, int], Listed] = {}
    for label, path, where in found:
        again = times[label, path] = times.get((label, path), 0) + 1
        source = sources.setdefault((label, again), Listed(label, [], where))
        source.paths.append(path)
        source.places.append(where)
    return list(sources.values())


def _of_yaml(file: Path) -> Mix:
    found = read_mapping(file)
    sources = found.get("sources")
    if sources is not None:
        return _of_sources(sources, f"{file}, sources")
    if found.get("data") is None:
        raise InvalidRequest(f"{file}: must have sources (a mixture of OLMo-core) or data (a configuration of OLMo)")
    data = mapping_of(found["data"], f"{file}, data")
    if data.get("paths") is not None:
        paths = texts_of(data["paths"], f"{file}, data.paths")
        listed = [("data", path, f"{file}, data.paths[{number}]") for number, path in enumerate(paths)]
    else:
        datasets = mapping_of(data.get("datasets"), f"{file}, data.datasets, since data.paths is missing")
        listed = [
            (label, path, f"{file}, data.datasets.{label}")
            for label, value in datasets.items()
            for path in texts_of(value, f"{file}, data.datasets.{label}")
        ]
    dtype = text_of(data.get("memmap_dtype", "uint16"), f"{file}, data.memmap_dtype")
    model = mapping_of(found.get("model") or {}, f"{file}, model")
    length = length_of(model.get("max_sequence_length"), f"{file}, model.max_sequence_length")
    return Mix("tokens", {"train": _by_label(listed)}, [*_NOTES, _BY_SIZE], [], length, dtype)


def _of_sources(value: Any, where: str) -> Mix:
    if not isinstance(value, list):
        raise InvalidRequest(f"{where}: must be a list of sources, got {show(value)}")
    found: list[Listed] = []
    for number, item in enumerate(cast("list[Any]", value)):
        here = f"{where}[{number}]"
        source = mapping_of(item, here)
        name = text_of(source.get("source_name"), f"{here}, source_name")
        ratio = weight_of(source.get("target_ratio"), f"{here}, target_ratio")
        found.append(Listed(name, texts_of(source.get("paths"), f"{here}, paths"), here, ratio))
    if not found:
        raise InvalidRequest(f"{where}: is empty")
    return Mix("tokens", {"train": found}, [*_NOTES, _LIMITS])

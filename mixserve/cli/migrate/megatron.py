"""Megatron-LM's blends: `--data-path`, `--data-args-path` and `--per-split-data-args-path`."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

from mixserve.cli.migrate.listed import Listed, Mix, mapping_of, read_json, read_text, weight_of
from mixserve_client.errors import InvalidRequest
from mixserve_client.schema.text import show

_SPLITS = ("train", "valid", "test")
_NOTES = [
    "Shares are those of Megatron, the order of samples is not. Windows are those of documents in stored order; with "
    "`order`, those of Megatron's shuffled documents.",
]
_NO_SPLIT = (
    "Megatron's --split (969,30,1 by default) does not carry over: these sources have all documents, also those that "
    "Megatron keeps to validate and to test on."
)


def parse(given: Sequence[str]) -> Mix:
    """The blend that `--data-path` gives, or that the one file has: a text, or JSON of splits.

    Raises InvalidRequest, which names the line, or OSError.
    """
    file = Path(given[0])
    if len(given) == 1 and file.suffix == ".json":
        return _splits(file)
    if len(given) == 1 and file.is_file():
        words = [
            (word, f"{file}, line {number}")
            for number, line in enumerate(read_text(file).splitlines(), 1)
            for word in line.split()
        ]
    else:
        words = [(word, f"word {number}") for number, word in enumerate(given, 1)]
    return Mix("megatron", {"train": _blend(words, str(file))}, [*_NOTES, _NO_SPLIT])


def _splits(file: Path) -> Mix:
    found = mapping_of(read_json(file), str(file))
    mixtures: dict[str, list[Listed]] = {}
    for split in _SPLITS:
        where = f"{file}, {split}"
        value: Any = found.get(split)
        if not value:
            continue
        words: list[Any] = value.split() if isinstance(value, str) else value
        if not isinstance(words, list) or not all(isinstance(word, str | int | float) for word in words):
            raise InvalidRequest(f"{where}: must be a list of weights and prefixes, got {show(value)}")
        numbered = enumerate(cast("list[str | int | float]", words), 1)
        mixtures[split] = _blend([(str(word), f"{where}, word {number}") for number, word in numbered], where)
    if not mixtures:
        raise InvalidRequest(f"{file}: must have a blend for train, valid or test, got {show(found)}")
    return Mix("megatron", mixtures, list(_NOTES))


def _blend(words: Iterable[tuple[str, str]], where: str) -> list[Listed]:
    """As Megatron reads it: an odd number of words, or words of which none is a weight, are prefixes alone."""
    words = list(words)
    if not words:
        raise InvalidRequest(f"{where}: is empty; it must have prefixes, or a weight before each")
    weights = [word for word, _ in words[::2] if _is_number(word)]
    if len(words) % 2 == 1:
        if len(words) > 1 and weights and not any(_is_number(word) for word, _ in words[1::2]):
            raise InvalidRequest(
                f"{words[-1][1]}: weights and prefixes must alternate, but {show(words[-1][0])} is without the other"
            )
        return [_listed(prefix, place, None) for prefix, place in words]
    if not weights:
        return [_listed(prefix, place, None) for prefix, place in words]
    return [
        _listed(prefix, place, weight_of(weight, weight_place))
        for (weight, weight_place), (prefix, place) in zip(words[::2], words[1::2], strict=True)
    ]


def _listed(prefix: str, where: str, weight: float | int | None) -> Listed:
    if _is_number(prefix):
        raise InvalidRequest(
            f"{where}: weights and prefixes must alternate, but {show(prefix)} is where a prefix is due"
        )
    prefix = prefix.removesuffix(".bin").removesuffix(".idx")
    return Listed(Path(prefix).name.removesuffix("_text_document") or prefix, [prefix], where, weight)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True

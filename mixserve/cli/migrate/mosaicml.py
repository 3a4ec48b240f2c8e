"""MosaicML's streams: the `streams` of llm-foundry's YAML, or of `StreamingDataset` written as YAML."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from mixserve.cli.migrate.listed import Listed, Mix, length_of, mapping_of, read_mapping, text_of, weight_of
from mixserve_client.errors import InvalidRequest
from mixserve_client.schema.text import show

_SHARES = ("proportion", "repeat", "choose", "samples")  # `samples` is an older name of `choose`
_NOTES = [
    "Shares are those of the streams, the order of samples is not. Nothing is downloaded: the folders must have all "
    "shards, without compression. epoch_size does not carry over: a source begins again when all of it has come.",
]


def parse(given: Sequence[str]) -> Mix:
    """The streams of a YAML file. Raises InvalidRequest, or OSError."""
    if len(given) != 1:
        raise InvalidRequest(f"--from mosaicml takes one YAML file; got {len(given)}")
    file = Path(given[0])
    found = read_mapping(file)
    mixtures: dict[str, list[Listed]] = {}
    length: int | None = None
    for loader, name in (("train_loader", "train"), ("eval_loader", "validation")):
        value = found.get(loader)
        if isinstance(value, dict):  # eval_loader may also be a list, of loaders with labels
            where = f"{file}, {loader}.dataset"
            dataset = mapping_of(value.get("dataset"), where)
            mixtures[name] = _Streams(found, dataset, where).read()
            asked = _resolve(dataset.get("max_seq_len"), found, f"{where}.max_seq_len")
            length = length or length_of(asked, f"{where}.max_seq_len")
    if not mixtures:
        mixtures["train"] = _Streams(found, found, str(file)).read()
    return Mix("mds", mixtures, list(_NOTES), [], length)


class _Streams:
    """The streams of one data set."""

    def __init__(self, document: dict[str, Any], dataset: dict[str, Any], where: str):
        self._document, self._dataset, self._where = document, dataset, where

    def read(self) -> list[Listed]:
        streams = self._dataset.get("streams")
        if streams is None:
            if not self._get(self._dataset, "local", self._where) and not self._get(
                self._dataset, "remote", self._where
            ):
                raise InvalidRequest(f"{self._where}: must have streams, or local and remote of one")
            return [self._listed("data", self._dataset, self._where)]
        if isinstance(streams, list):
            named = [(None, value) for value in cast("list[Any]", streams)]
        else:
            named = list(mapping_of(streams, f"{self._where}.streams").items())
        found: list[Listed] = []
        for number, (name, value) in enumerate(named):
            where = f"{self._where}.streams" + (f"[{number}]" if name is None else f".{name}")
            found.append(self._listed(name, mapping_of(value, where), where))
        self._check_shares(found, [mapping_of(value, "") for _, value in named])
        return found

    def _listed(self, name: str | None, stream: dict[str, Any], where: str) -> Listed:
        place = self._get(stream, "local", where) or self._get(stream, "remote", where)
        split = self._get(stream, "split", where) or self._get(self._dataset, "split", where) or ""
        given = [key for key in _SHARES if stream.get(key) is not None]
        if len(given) > 1:
            raise InvalidRequest(f"{where}: may have one of {', '.join(_SHARES)}, got {' and '.join(given)}")
        share = weight_of(self._get(stream, given[0], where), f"{where}.{given[0]}") if given else None
        path = f"{text_of(place, f'{where}: local')}/{split}".rstrip("/")
        repeat = share if given == ["repeat"] and share is not None else 1
        own = name or Path(path).name
        return Listed(own, [path], where, None if given == ["repeat"] else share, repeat)

    def _check_shares(self, found: Sequence[Listed], streams: Sequence[dict[str, Any]]) -> None:
        if not found:
            raise InvalidRequest(f"{self._where}.streams: is empty")
        with_proportion = [stream.get("proportion") is not None for stream in streams]
        if any(with_proportion) and not all(with_proportion):
            here = found[with_proportion.index(False)].where
            raise InvalidRequest(f"{here}: must have a proportion, since another stream has one")

    def _get(self, section: dict[str, Any], key: str, where: str) -> Any:
        return _resolve(section.get(key), self._document, f"{where}.{key}")


def _resolve(value: Any, document: dict[str, Any], where: str) -> Any:
    """The value, with `${a.b}` replaced by what the document has at that key, as OmegaConf does."""
    for _ in range(16):
        found = re.search(r"\$\{([^{}]*)\}", value) if isinstance(value, str) else None
        if found is None:
            return value
        at: Any = document
        for key in found[1].split("."):
            at = cast("dict[str, Any]", at).get(key, found) if isinstance(at, dict) else found
        if at is found or (found[0] != value and not isinstance(at, str | int | float)):
            raise InvalidRequest(f"{where}: the file does not say what {show(found[0])} is: write the path itself")
        value = at if found[0] == value else value.replace(found[0], str(at))
    raise InvalidRequest(f"{where}: {show(value)} refers to itself")

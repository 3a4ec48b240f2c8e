"""The file beside a configuration that lists the records which cannot be decoded, and are left out of its sources."""

import hashlib
import json
import shlex
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import numpy as np
from jaxtyping import Int
from pydantic import Field, StrictInt, ValidationError

from mixserve.disk import replace_file
from mixserve.sources.kinds.base import Section
from mixserve.sources.open_file import check_is_regular
from mixserve.sources.source import Source, content_bytes, is_array_backed, is_keyed
from mixserve.sources.without import SourceWithout
from mixserve_client.schema.text import describe_error, shorten, show

_MOST_BYTES = 64 << 20
_LARGEST_SHARE, _MOST, _FEW = 0.01, 1_000_000, 16


def most_skipped(records: int) -> int:
    """How many records of a source may be left out: 1 % of them (of small sources 16, but no more than half), and at
    most a million. With more, something is wrong with all of the data, or with how they are read."""
    return min(_MOST, max(int(records * _LARGEST_SHARE), min(_FEW, records // 2)))


class SkippedRecords(Section):
    """The records of a source that are left out, by their ids, which rise; and the `identity` of its content, in
    hexadecimal, and its number of records with all of them."""

    content: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    records: Annotated[StrictInt, Field(ge=0, lt=1 << 63)]
    skipped: list[StrictInt]

    def ids(self) -> Int[np.ndarray, " some"]:
        """The ids of the records. Raises ValueError if they are not what `mixserve check` writes."""
        # Before they are an array: they may have more than 64 bits.
        if self.skipped and (min(self.skipped) < 0 or max(self.skipped) >= self.records):
            raise ValueError(f"has ids that are not in 0..{self.records - 1}")
        ids = np.array(self.skipped, np.int64)
        if (ids[1:] <= ids[:-1]).any():
            raise ValueError("has ids that do not rise")
        if len(ids) > most_skipped(self.records):
            raise ValueError(f"has {len(ids):,} of {self.records:,} records, more than {most_skipped(self.records):,}")
        return ids


class _Content(Section):
    version: Literal[1]
    mixtures: dict[str, dict[str, SkippedRecords]]


class SkipLists:
    """The lists of all sources of a configuration file with `on_error: skip`, by mixture and source."""

    def __init__(self, config_file: Path, lists: Mapping[str, Mapping[str, SkippedRecords]]):
        self._lists = {mixture: dict(of_mixture) for mixture, of_mixture in lists.items()}
        self._command = f"mixserve check {shlex.quote(shorten(str(config_file), 300))} --full"
        self.path = path_of(config_file)

    @classmethod
    def read(cls, config_file: Path) -> "SkipLists":
        """The lists in the file beside `config_file`; none if there is no such file.

        Raises ValueError, which names the file, if it is not as `mixserve check` writes it; OSError.
        """
        path = path_of(config_file)
        try:
            return cls(config_file, _read(path).mixtures if path.exists() else {})
        except (ValueError, RecursionError) as error:
            said = f"{path} is not as mixserve check writes it: {_describe(error)}; remove it, and make it again: "
            raise ValueError(f"{said}{cls(config_file, {})._command}") from error

    def leave_out(self, mixture: str, name: str, source: Any, content_id: str | None) -> Any:
        """The source without the records that are listed for it. Raises ValueError if there is no list, or if it is one
        of other data."""
        check_can_skip(source, content_id)
        found = self._lists.get(mixture, {}).get(name)
        if found is None:
            raise ValueError(
                f"on_error: skip needs the list of the records that cannot be decoded, and {self.path} has none for "
                f"this source; make it: {self._command}. Then copy it to all servers of the mixture"
            )
        if found.records != len(source) or found.content != identity(source, content_id).hex():
            raise ValueError(
                f"on_error: skip: the data, or how they are read, have changed since {self.path} was made ("
                f"{found.records:,} records then, {len(source):,} now); make it again: {self._command}"
            )
        try:
            ids = found.ids()
        except ValueError as error:
            raise ValueError(f"on_error: skip: {self.path} {error}; make it again: {self._command}") from None
        if not len(ids) and is_array_backed(source):
            return source  # its rows are copied, not decoded
        hint = f"{self.path.name} does not list it, and this command would: {self._command}"
        return SourceWithout(source, ids, content_id=content_id, hint=hint)

    def put(self, mixture: str, name: str, records: SkippedRecords) -> None:
        """Set the list of a source, in memory."""
        self._lists.setdefault(mixture, {})[name] = records

    def keep(self, sources: Mapping[str, Collection[str]]) -> None:
        """Forget the lists of all but these sources, by mixture."""
        kept = {
            mixture: {name: found for name, found in of_mixture.items() if name in sources.get(mixture, ())}
            for mixture, of_mixture in self._lists.items()
        }
        self._lists = {mixture: of_mixture for mixture, of_mixture in kept.items() if of_mixture}

    def write(self) -> None:
        """Write the file: aside, and renamed when it is on the disk. Equal lists make equal bytes.

        Raises ValueError if servers would refuse the file because of its size; OSError.
        """
        lists = {
            mixture: {name: found.model_dump() for name, found in of_mixture.items()}
            for mixture, of_mixture in self._lists.items()
        }
        content = json.dumps({"version": 1, "mixtures": lists}, sort_keys=True) + "\n"
        if len(content) > _MOST_BYTES:
            listed = sum(len(found.skipped) for of_mixture in self._lists.values() for found in of_mixture.values())
            raise ValueError(
                f"{self.path} would have {len(content):,} bytes for {listed:,} records of all sources, and may have "
                f"{_MOST_BYTES:,}: with so many, mend the data, or give some sources a configuration file of their own"
            )
        replace_file(self.path, content.encode("ascii"))


def path_of(config_file: Path) -> Path:
    """The file of the lists: `mixture.skipped.json` of `mixture.yaml`."""
    name = config_file.name
    stem = config_file.stem if config_file.suffix.lower() in (".yaml", ".yml") else name
    return config_file.with_name(f"{stem}.skipped.json")


def identity(source: Source, content_id: str | None) -> bytes:
    """What a list is of: the SHA-256 of the source's digest, else of its `content_id`; empty if there is neither."""
    # The digest first, although the fingerprint takes the id: a disk may damage data that keep their id.
    digest, own = content_bytes(source), _own_id(source, content_id)
    if not digest and own is None:
        return b""
    return hashlib.sha256(digest or f"content_id:{own}".encode(errors="surrogatepass")).digest()


def check_can_skip(source: Any, content_id: str | None) -> None:
    """Raises ValueError if records of the source cannot be left out."""
    if is_keyed(source) or not isinstance(source, Source):
        raise ValueError(
            "on_error: skip is for sources whose records depend on their number alone, with a take(record_ids); "
            f"got {show(source, 100)}, whose records also depend on a key"
        )
    if not identity(source, content_id):
        raise ValueError(
            "on_error: skip needs to know which data its list is of, and the source has no content_digest(): give it a "
            "content_id, and change it when the data change"
        )


def _own_id(source: Source, content_id: str | None) -> str | None:
    own: Any = getattr(source, "content_id", None) if content_id is None else content_id
    return own if isinstance(own, str) else None


def _read(path: Path) -> _Content:
    check_is_regular(path)
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(f"it has more than {_MOST_BYTES:,} bytes")
    return _Content.model_validate(json.loads(path.read_bytes()))


def _describe(error: ValueError | RecursionError) -> str:
    if not isinstance(error, ValidationError):
        return describe_error(error, 300)
    first = cast(Any, error.errors(include_url=False)[0])
    return f"{shorten('.'.join(map(str, first['loc'])), 200)}: {shorten(first['msg'], 200)}"

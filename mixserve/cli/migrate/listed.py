"""What a list of data says: its sources, in the words of its library, with the place of each in the list."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from mixserve.yaml_file import BadYaml, read_yaml
from mixserve_client.errors import InvalidRequest
from mixserve_client.schema.text import show

_LARGEST_LIST = 64 << 20
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


@dataclass(frozen=True)
class Listed:
    """One source of a list. Without a weight it gets its number of records, times `repeat`."""

    name: str
    paths: list[str]
    where: str  # its place in the list, for errors: "blend.txt, line 3"
    weight: float | int | None = None
    repeat: float | int = 1
    places: list[str] = field(default_factory=list[str])  # of each path, if they have places of their own

    def place_of(self, number: int) -> str:
        """The place of a path in the list."""
        return self.places[number] if self.places else self.where


@dataclass
class Mix:
    """All that a list says: `mixtures` by name, the kind of their sources, and lengths and dtypes if it has them."""

    kind: str
    mixtures: dict[str, list[Listed]]
    notes: list[str]  # what does not carry over: comments at the top of the file
    options: list[str] = field(default_factory=list[str])  # lines of each mixture
    sequence_length: int | None = None
    dtype: str | None = None


@dataclass(frozen=True)
class Places:
    """Where the paths of a list are on this machine."""

    base: Path
    replace: Sequence[str]  # OLD=NEW

    def __post_init__(self) -> None:
        for one in self.replace:
            if not one.partition("=")[0] or "=" not in one:
                raise InvalidRequest(f"--replace must be OLD=NEW, such as gs://bucket=/mnt/bucket; got {show(one)}")

    def local(self, path: str, where: str) -> Path:
        """The path here, which may be a pattern. Raises InvalidRequest if it is remote, or has a placeholder."""
        for one in self.replace:
            old, _, new = one.partition("=")
            path = path.replace(old, new)
        if _URL.match(path):
            raise InvalidRequest(
                f"{where}: {show(path)} is remote, and mixserve reads files of this machine: mount or copy them, and "
                "say where they are with --replace OLD=NEW, such as --replace gs://bucket=/mnt/bucket"
            )
        found = re.search(r"\{\w+\}", path)
        if found:
            raise InvalidRequest(f"{where}: say what {found[0]} is with --replace '{found[0]}=NAME'")
        return self.base / Path(path).expanduser()


def read_text(path: Path) -> str:
    """The text of a list. Raises OSError, or InvalidRequest if it is not a text of a sensible size."""
    with path.open("rb") as file:
        content = file.read(_LARGEST_LIST + 1)
    if len(content) > _LARGEST_LIST:
        raise InvalidRequest(f"{path}: a list may have at most {_LARGEST_LIST >> 20} MiB, and this is larger")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{path}: must be a text in UTF-8, not data: {error}") from error


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises OSError, or InvalidRequest that names the line."""
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{path}: is not JSON: {error}") from error


def read_mapping(path: Path) -> dict[str, Any]:
    """The content of a YAML file. Raises OSError, or InvalidRequest that names the line."""
    try:
        return mapping_of(read_yaml(path), str(path))
    except BadYaml as error:
        raise InvalidRequest(f"{path}: {error}") from error


def mapping_of(value: Any, where: str) -> dict[str, Any]:
    """`value`, if it is a mapping with texts as keys. Raises InvalidRequest."""
    if not isinstance(value, Mapping):
        raise InvalidRequest(f"{where}: must be a mapping, got {show(value)}")
    return {str(key): item for key, item in cast("Mapping[object, Any]", value).items()}


def texts_of(value: Any, where: str) -> list[str]:
    """`value`, if it is a list of texts. Raises InvalidRequest."""
    items = cast("list[Any]", value) if isinstance(value, list) else []
    if not items or not all(isinstance(item, str) and item for item in items):
        raise InvalidRequest(f"{where}: must be a list of paths, got {show(value)}")
    return items


def text_of(value: Any, where: str) -> str:
    """`value`, if it is a text. Raises InvalidRequest."""
    if not isinstance(value, str) or not value.strip():
        raise InvalidRequest(f"{where}: must be a path, got {show(value)}")
    return value


def weight_of(value: Any, where: str) -> float | int:
    """`value`, if it is a weight: a number, or a text of one. Raises InvalidRequest."""
    try:
        number = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number) or number < 0 or (isinstance(value, str) and "_" in value):  # "4_5" is not 45
        raise InvalidRequest(f"{where}: a weight must be a number of at least 0, got {show(value)}")
    return int(number) if number == int(number) else number


def length_of(value: Any, where: str) -> int | None:
    """`value`, if it is a number of tokens, or not given. Raises InvalidRequest."""
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidRequest(f"{where}: must be a number of tokens, got {show(value)}")
    return value

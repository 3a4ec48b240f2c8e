"""A YAML file -> dicts, lists and scalars: strictly, and in bounded time and memory for any file."""

import os
import stat
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mixserve_client.schema.text import shorten, show

LARGEST_FILE_BYTES = 64 << 20
MOST_LEVELS = 64
# Values in the whole file. An alias counts as all values that it repeats: a few lines of aliases to aliases expand to
# billions of values ("billion laughs"), and merges copy them.
MOST_VALUES = 1 << 21
_CHARACTERS_PER_VALUE = 256  # long texts count as several values
_LONGEST_NUMBER = 1000  # converting one takes time that grows with the square of its length

_PREFIX = "tag:yaml.org,2002:"
_MERGE, _TEXT = _PREFIX + "merge", _PREFIX + "str"
_LISTS = tuple(_PREFIX + name for name in ("seq", "omap", "pairs"))
_MAPPINGS = tuple(_PREFIX + name for name in ("map", "set"))
_SCALARS = tuple(_PREFIX + name for name in ("null", "bool", "int", "float", "binary", "timestamp", "str"))
_NUMBERS = tuple(_PREFIX + name for name in ("int", "float", "timestamp"))
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the loader in C is ten times faster


class BadYaml(ValueError):
    """The text is not YAML, or uses something that we do not accept. The message names line and column."""


# From the keys of the mappings around a key (None for a list), whether it is a name and so a text, as in `no: 1`.
IsName = Callable[[tuple[Hashable, ...]], bool]


def read_yaml(path: Path, is_name: IsName = lambda _: False) -> Any:
    """The content of the YAML file at `path`. Keys that are names are the texts that are written.

    Raises OSError if the file cannot be read, and BadYaml if it is too large, is not YAML, has a key twice, or exceeds
    this module's limits.
    """
    return parse_yaml(read_text(path), is_name=is_name)


def parse_yaml(text: str, loader: Any = _Loader, is_name: IsName = lambda _: False) -> Any:
    """The content of the one YAML document in `text`; None if it is empty. `loader` is a loader class of PyYAML.

    Resolves merge keys (`<<: *anchor`). Raises BadYaml.
    """
    # From events, not by yaml.load: that accepts duplicate keys, and expands aliases and nesting without limits.
    return _Reader(is_name).read(yaml.parse(text, loader))


def read_text(path: Path, most_bytes: int = LARGEST_FILE_BYTES) -> str:
    """The text of the regular file at `path`. Raises OSError, and BadYaml if it is too large or is not UTF-8."""
    with open(path, "rb", opener=_open_at_once) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise BadYaml("must be a regular file, not a pipe, socket or device")
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise BadYaml(f"may have at most {most_bytes >> 20} MiB, and is larger")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadYaml(
            f"is not YAML in UTF-8: byte {error.start} is 0x{content[error.start]:02x}; save it as UTF-8"
        ) from error


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # without it, opening a FIFO waits for a writer


@dataclass(slots=True)
class _Open:
    """A list or mapping that has not ended yet."""

    tag: str
    anchor: str | None
    mark: Any
    values: int  # the count of the file's values when it began
    items: list[Any] = field(default_factory=list[Any])
    mapping: dict[Hashable, Any] = field(default_factory=dict[Hashable, Any])
    merged: list[Any] = field(default_factory=list[Any])
    key: Any = None
    has_key: bool = False


@dataclass(frozen=True, slots=True)
class _Anchored:
    value: Any
    values: int


class _Merge:
    """The key `<<`."""


class _Reader:
    """Builds values from events. Dicts keep the file's order, with merged keys first, as in PyYAML's SafeLoader."""

    # A stack of its own: recursion would end with a RecursionError at the depth of Python's, not at MOST_LEVELS.

    def __init__(self, is_name: IsName) -> None:
        self._is_name = is_name
        self._open: list[_Open] = []
        self._anchors: dict[str, _Anchored | None] = {}  # None: its value has not ended yet
        self._values = 0
        self._root: Any = None
        self._documents = 0
        self._scalars = yaml.SafeLoader("")
        self._plain: dict[str, Any] = {}
        self._handlers: dict[type[Any], Callable[[Any], None]] = {
            yaml.DocumentStartEvent: self._begin_document,
            yaml.AliasEvent: self._alias,
            yaml.ScalarEvent: self._scalar,
            yaml.SequenceStartEvent: self._begin,
            yaml.MappingStartEvent: self._begin,
            yaml.SequenceEndEvent: self._end_list,
            yaml.MappingEndEvent: self._end_mapping,
        }

    def read(self, events: Iterator[Any]) -> Any:
        try:
            for event in events:
                handler = self._handlers.get(type(event))
                if handler is not None:
                    handler(event)
        except yaml.YAMLError as error:
            raise BadYaml(f"is not YAML: {_describe_error(error)}") from error
        except (
            ValueError,
            OverflowError,
        ) as error:  # PyYAML's scanner in Python raises these for escapes such as "\UFFFFFFFF"
            if isinstance(error, BadYaml):
                raise
            raise BadYaml(f"is not YAML: {shorten(str(error), 500)}") from error
        return self._root

    def _begin_document(self, event: Any) -> None:
        self._documents += 1
        if self._documents > 1:
            raise _bad(event, "must have one YAML document, and a second one begins here")

    def _begin(self, event: Any) -> None:
        is_list = isinstance(event, yaml.SequenceStartEvent)
        tag = event.tag if event.tag not in (None, "!") else _LISTS[0] if is_list else _MAPPINGS[0]
        if tag not in (_LISTS if is_list else _MAPPINGS):
            raise _bad(event, f"the tag {show(tag)} is not known for a {'list' if is_list else 'mapping'}")
        if len(self._open) >= MOST_LEVELS:
            raise _bad(event, f"values may be nested at most {MOST_LEVELS} levels deep, and these are deeper")
        self._count(event, 1)
        if event.anchor is not None:
            self._anchors[event.anchor] = None
        self._open.append(_Open(tag, event.anchor, event, self._values))

    def _end_list(self, event: Any) -> None:  # noqa: ARG002
        ended = self._open.pop()
        value: Any = ended.items
        if ended.tag != _LISTS[0]:
            value = [pair for item in value for pair in _pairs(ended, item)]
        self._finish(ended, value)

    def _end_mapping(self, event: Any) -> None:  # noqa: ARG002
        ended = self._open.pop()
        value: Any = ended.mapping
        if ended.merged:
            value = {key: item for mapping in ended.merged for key, item in mapping.items()} | value
        self._finish(ended, value if ended.tag == _MAPPINGS[0] else set(value))

    def _finish(self, ended: _Open, value: Any) -> None:
        if ended.anchor is not None:
            self._anchors[ended.anchor] = _Anchored(value, self._values - ended.values + 1)
        self._add(ended.mark, value)

    def _alias(self, event: Any) -> None:
        name = event.anchor
        if name not in self._anchors:
            raise _bad(event, f"the alias *{shorten(name, 100)} has no anchor &{shorten(name, 100)} before it")
        anchored = self._anchors[name]
        if anchored is None:
            raise _bad(event, f"the alias *{shorten(name, 100)} is inside its own anchor")
        self._count(event, anchored.values)
        self._add(event, anchored.value)

    def _scalar(self, event: Any) -> None:
        values = 1 + len(event.value) // _CHARACTERS_PER_VALUE
        self._count(event, values)
        value = event.value if self._is_written_name(event) else self._scalar_value(event)
        if event.anchor is not None:
            self._anchors[event.anchor] = _Anchored(value, values)
        self._add(event, value)

    def _is_written_name(self, event: Any) -> bool:
        """Whether the scalar is a name without quotes that YAML reads as something else, such as `no` or `2024`."""
        if event.tag is not None or not event.implicit[0] or not self._is_at_key():
            return False
        if isinstance(self._plain.get(event.value), str):
            return False  # nearly all keys
        tag = self._scalars.resolve(yaml.ScalarNode, event.value, (True, False))
        if tag in (_TEXT, _MERGE):
            return False
        # The keys under which each of the open values lies; the outermost has none.
        path = tuple(opened.key if opened.tag in _MAPPINGS else None for opened in self._open[:-1])
        return self._is_name(path)

    def _is_at_key(self) -> bool:
        return bool(self._open) and self._open[-1].tag in _MAPPINGS and not self._open[-1].has_key

    def _scalar_value(self, event: Any) -> Any:
        text: str = event.value
        if event.tag in (None, "!"):
            if not event.implicit[0]:
                return text
            if text not in self._plain:
                found = self._construct(event, self._scalars.resolve(yaml.ScalarNode, text, (True, False)))
                if len(text) > _CHARACTERS_PER_VALUE:
                    return found
                self._plain[text] = found
            return self._plain[text]
        return self._construct(event, event.tag)

    def _construct(self, event: Any, tag: str) -> Any:
        text: str = event.value
        if tag == _MERGE:
            return _Merge
        if tag in (_TEXT, _PREFIX + "value"):
            return text
        if tag not in _SCALARS:
            raise _bad(event, f"the tag {show(tag)} is not known for {show(text)}")
        if tag in _NUMBERS and len(text) > _LONGEST_NUMBER:
            raise _bad(
                event,
                f"a number or date may have at most {_LONGEST_NUMBER:,} characters, and {show(text, 60)} has "
                f"{len(text):,}; quote it if it is text",
            )
        try:
            return self._scalars.yaml_constructors[tag](self._scalars, yaml.ScalarNode(tag, text))
        except (yaml.YAMLError, ValueError, LookupError, ArithmeticError, TypeError, AttributeError) as error:
            kind = tag.removeprefix(_PREFIX)
            raise _bad(
                event,
                f"{show(text)} is not a valid {kind}: {shorten(_describe_error(error), 200)}; quote it if it is text",
            ) from error

    def _add(self, mark: Any, value: Any) -> None:
        """Add `value` to the innermost open list or mapping (as key or value), or make it the root."""
        if not self._open:
            if value is _Merge:
                raise _bad(mark, "<< is for mappings; quote it if it is text")
            self._root = value
            return
        top = self._open[-1]
        is_key = self._is_at_key()
        if value is _Merge and not is_key:
            raise _bad(mark, "<< is for keys; quote it if it is text")
        if top.tag in _LISTS:
            top.items.append(value)
        elif is_key:
            top.key, top.has_key = _check_key(mark, top, value), True
        else:
            top.has_key = False
            if top.key is _Merge:
                top.merged += _mappings(mark, value)
            else:
                top.mapping[top.key] = value

    def _count(self, mark: Any, values: int) -> None:
        self._values += values
        if self._values > MOST_VALUES:
            raise _bad(
                mark,
                f"the file may have at most {MOST_VALUES:,} values, with those that its aliases repeat, and has more",
            )


def _check_key(mark: Any, mapping: _Open, key: Any) -> Any:
    if isinstance(key, list | dict | set):
        raise _bad(mark, f"a key must be a text or a number, got {show(key)}")
    if key in mapping.mapping:  # PyYAML would take the last one silently
        raise _bad(mark, f"the key {show(key)} is there twice; remove one")
    return key


def _mappings(mark: Any, value: Any) -> list[dict[Hashable, Any]]:
    """The mappings that `<<` merges, in the order in which later ones override earlier ones."""
    # In YAML, earlier mappings of the list override later ones, so the order is reversed.
    found: list[Any] = [value] if not isinstance(value, list) else value[::-1]
    if not all(isinstance(mapping, dict) for mapping in found):
        raise _bad(mark, f"<< merges a mapping or a list of mappings, got {show(value)}")
    return found


def _pairs(opened: _Open, item: Any) -> list[tuple[Hashable, Any]]:
    if not isinstance(item, dict) or len(item) != 1:
        raise _bad(
            opened.mark, f"{opened.tag.removeprefix(_PREFIX)} is a list of mappings of one key, got {show(item)}"
        )
    return list(item.items())


def _bad(event: Any, problem: str) -> BadYaml:
    mark = event.start_mark
    return BadYaml(f"line {mark.line + 1}, column {mark.column + 1}: {problem}")


def _describe_error(error: BaseException) -> str:
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return shorten(" ".join(str(error).split()), 500)
    parts = [error.problem, error.context]
    said = " ".join(shorten(part, 200) for part in parts if part)
    return f"line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}: {said}"

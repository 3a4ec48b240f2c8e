"""Proposed sources -> the text of a configuration file, with comments."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import wrap

from rich.console import Console

from mixserve.cli.check import show_bytes
from mixserve.cli.proposed_sources import Proposal
from mixserve.config import ConfigError, load_config
from mixserve_client.errors import InvalidRequest
from mixserve_client.schema.text import shorten

_COMMENT_AT = 60
_PLAIN = re.compile(r"[A-Za-z_][\w-]*")
_SPECIAL = ("y", "n", "yes", "no", "on", "off", "true", "false", "null")


def write_mixtures(
    out: Path, mixtures: Mapping[str, Sequence[Proposal]], notes: Sequence[str], options: Sequence[str] = ()
) -> None:
    """Write `out` as a whole: notes as comments, then the mixtures, each with `options` as further lines.

    The text is read as a configuration before it gets its name. Raises InvalidRequest if that fails.
    """
    text = "\n".join(_lines(mixtures, notes, options)) + "\n"
    aside = out.with_name(f".{out.name}.new")
    try:
        aside.write_text(text, "utf-8")
        load_config(aside)
        aside.replace(out)
    except ConfigError as error:
        raise InvalidRequest(f"cannot write a configuration of these files: {error}") from error
    finally:
        aside.unlink(missing_ok=True)


def check_out(out: Path, *, force: bool) -> None:
    """Raises InvalidRequest if `out` exists, and not `force`."""
    if out.exists() and not force:
        raise InvalidRequest(f"{out} exists: give another --out, or --force to overwrite it")


def print_next(console: Console, out: Path) -> None:
    """Say that `out` is written, and what to do with it."""
    console.print(f"{out} is written. Next:\n  mixserve check {out}\n  mixserve serve {out}", markup=False)


def give_names(found: Sequence[Proposal]) -> None:
    """Give sources of one name different ones."""
    names: set[str] = set()
    for source in found:
        name, number = source.name, 1
        while source.name in names:
            number += 1
            source.name = f"{name}_{number}"
        names.add(source.name)


def _lines(mixtures: Mapping[str, Sequence[Proposal]], notes: Sequence[str], options: Sequence[str]) -> Iterator[str]:
    yield from (f"# {line}" for note in notes for line in wrap(note, 110))
    yield "mixtures:"
    for name, sources in mixtures.items():
        yield f"  {name}:"
        yield "    sampling: epoch  # no record comes again before all of its source have come"
        yield from (f"    {option}" for option in options)
        yield "    sources:"
        total = sum(source.group.nbytes for source in sources)
        for source in sources:
            yield f"      {_key(source.name)}:"
            yield from (f"        {line}" for line in _source_lines(source, total))


def _source_lines(source: Proposal, total: int) -> Iterator[str]:
    count, size = len(source.group.paths), source.group.nbytes
    files = f"{count:,} files, " if count > 1 else ""
    yield _commented(f"kind: {source.group.kind}", f"{files}{show_bytes(size)}")
    yield from _path_lines(source)
    for key, value in source.options.items():
        yield _commented(f"{key}: {value}", source.comments.get(key, ""))
    if source.fields:
        yield "fields:"
        for field in source.fields:
            mark = "" if field.is_served else "# "
            yield _commented(f"  {mark}{_key(field.name)}: {field.text}", field.comment)
    elif source.ids is None and source.spec:
        shown = ", ".join(f"{name} {dtype}{list(shape)}" for name, (dtype, shape) in source.spec.items())
        yield f"# its fields: {shorten(shown, 300)}"
    share = f"by size it would be {size / total:.3g}" if 0 < size < total else ""
    yield _commented(f"weight: {source.weight}", source.comments.get("weight", share))


def _path_lines(source: Proposal) -> Iterator[str]:
    said = source.comments.get("path", "")
    if isinstance(source.path, list) and len(source.path) > 1:
        yield _commented("path:", said)
        yield from (f"  - {json.dumps(path, ensure_ascii=False)}" for path in source.path)
    else:
        one = source.path[0] if isinstance(source.path, list) else source.path
        yield _commented(f"path: {json.dumps(one, ensure_ascii=False)}", said)


def _commented(text: str, comment: str) -> str:
    return f"{text:<{_COMMENT_AT}}  # {comment}" if comment else text


def _key(name: str) -> str:
    return name if _PLAIN.fullmatch(name) and name.lower() not in _SPECIAL else json.dumps(name, ensure_ascii=False)

"""`mixserve init`: files and folders -> a configuration file that serves them, with comments."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from mixserve.cli.check import show_bytes
from mixserve.cli.data_files import MOST_ENTRIES, look_at
from mixserve.cli.proposed_sources import Proposal, propose_sources, set_length
from mixserve.config import ConfigError, load_config
from mixserve_client.errors import InvalidRequest
from mixserve_client.schema.text import shorten

_MOST_UNKNOWN = 20
_COMMENT_AT = 60
_PLAIN = re.compile(r"[A-Za-z_][\w-]*")
_SPLITS = {
    "validation": ("validation", "valid", "val", "dev", "eval"),
    "test": ("test",),
    "train": ("train", "training"),
}
_SPECIAL = ("y", "n", "yes", "no", "on", "off", "true", "false", "null")


def run(paths: Sequence[Path], *, out: Path, sequence_length: int | None, force: bool) -> None:
    """Look at the paths, write `out`, and say what was recognised.

    Raises InvalidRequest if `out` exists and not `force`, or if nothing is recognised; OSError if a path is not there.
    """
    if out.exists() and not force:
        raise InvalidRequest(f"{out} exists: give another --out, or --force to overwrite it")
    looked = look_at(paths)
    unknown = [(str(path), said) for path, said in looked.unknown]
    found: list[Proposal] = []
    for group in looked.groups:
        proposed, refused = propose_sources(group, out.parent, sequence_length)
        found += proposed
        unknown += refused
    console = Console(highlight=False)
    if not found:
        said = "".join(f"\n  {path}: {reason}" for path, reason in unknown[:_MOST_UNKNOWN])
        raise InvalidRequest(f"no data was recognised in {', '.join(map(str, paths))}{said}")
    _give_names(found)
    _agree_on_length(found, sequence_length)
    mixtures = _by_spec(found)
    _write(out, "\n".join(_lines(mixtures)) + "\n")
    for name, sources in mixtures.items():
        for source in sources:
            size = show_bytes(source.group.nbytes)
            said = f"{name}.{source.name}: {source.group.kind}, {_show_path(source)}, {size}"
            console.print(said, markup=False, soft_wrap=True)
    for path, reason in unknown[:_MOST_UNKNOWN]:
        console.print(f"not recognised: {path}: {reason}", markup=False, soft_wrap=True)
    if len(unknown) > _MOST_UNKNOWN:
        console.print(f"and {len(unknown) - _MOST_UNKNOWN:,} more that were not recognised")
    if looked.is_cut:
        console.print(f"there is more: only about {MOST_ENTRIES:,} entries were looked at; give fewer folders")
    console.print(f"{out} is written. Next:\n  mixserve check {out}\n  mixserve serve {out}", markup=False)


def _show_path(source: Proposal) -> str:
    count = len(source.group.paths)
    first = next(iter(source.path.values())) if isinstance(source.path, dict) else source.path[0]
    return f"{first}{'' if count == 1 else f' ({count:,} files)'}"


def _give_names(found: Sequence[Proposal]) -> None:
    """Give sources of one name different ones."""
    names: set[str] = set()
    for source in found:
        name, number = source.name, 1
        while source.name in names:
            number += 1
            source.name = f"{name}_{number}"
        names.add(source.name)


def _agree_on_length(found: Sequence[Proposal], asked: int | None) -> None:
    """Give all files of tokens of one dtype the length that the shortest of them allows."""
    tokens = [source for source in found if source.ids is not None]
    for dtype in {source.spec["tokens"][0] for source in tokens}:
        alike = [source for source in tokens if source.spec["tokens"][0] == dtype]
        length = min(source.spec["tokens"][1][0] for source in alike)
        for source in alike:
            set_length(source, length, asked)


def _by_spec(found: Sequence[Proposal]) -> dict[str, list[Proposal]]:
    """The sources by the name of their mixture: those of a mixture must have one spec, and be of one split."""
    mixtures: dict[str, list[Proposal]] = {}
    specs: dict[str, list[object]] = {}
    for source in found:
        split = _split(source)
        known = specs.setdefault(split, [])
        if source.spec not in known:
            known.append(source.spec)
        number = known.index(source.spec) + 1
        mixtures.setdefault(split if number == 1 else f"{split}_{number}", []).append(source)
    return mixtures


def _split(source: Proposal) -> str:
    """Whether the source is of data to train, to validate or to test on, by the words in its path."""
    paths = list(source.path.values()) if isinstance(source.path, dict) else source.path
    path = paths[0] if len(paths) == 1 else str(Path(paths[0]).parent)
    words = re.split(r"[^a-z]+", "/".join(Path(path.lower()).parts[-3:]))
    return next((split for word in reversed(words) for split, all_of in _SPLITS.items() if word in all_of), "train")


def _lines(mixtures: dict[str, list[Proposal]]) -> Iterator[str]:
    yield "# Written by mixserve init: look at it, change it, and see what it serves with mixserve check."
    if len(mixtures) > 1:
        yield "# Sources with other fields, and those to validate or test on, are in mixtures of their own."
    yield "mixtures:"
    for name, sources in mixtures.items():
        yield f"  {name}:"
        yield "    sampling: epoch  # no record comes again before all of its source have come"
        yield "    sources:"
        total = sum(source.group.nbytes for source in sources)
        for source in sources:
            yield f"      {_key(source.name)}:"
            yield from (f"        {line}" for line in _source_lines(source, total))


def _source_lines(source: Proposal, total: int) -> Iterator[str]:
    count, size = len(source.group.paths), source.group.nbytes
    files = f"{count:,} files, " if count > 1 else ""
    yield _commented(f"kind: {source.group.kind}", f"{files}{show_bytes(size)}")
    one = source.path[0] if isinstance(source.path, list) and len(source.path) == 1 else source.path
    yield _commented(f"path: {json.dumps(one, ensure_ascii=False)}", source.comments.get("path", ""))
    for key, value in source.options.items():
        yield _commented(f"{key}: {value}", source.comments.get(key, ""))
    if source.fields:
        yield "fields:"
        for field in source.fields:
            mark = "" if field.is_served else "# "
            yield _commented(f"  {mark}{_key(field.name)}: {field.text}", field.comment)
    elif source.ids is None:
        shown = ", ".join(f"{name} {dtype}{list(shape)}" for name, (dtype, shape) in source.spec.items())
        yield f"# its fields: {shorten(shown, 300)}"
    share = f"by size it would be {size / total:.3g}" if 0 < size < total else ""
    yield _commented("weight: 1", share)


def _commented(text: str, comment: str) -> str:
    return f"{text:<{_COMMENT_AT}}  # {comment}" if comment else text


def _key(name: str) -> str:
    return name if _PLAIN.fullmatch(name) and name.lower() not in _SPECIAL else json.dumps(name, ensure_ascii=False)


def _write(out: Path, text: str) -> None:
    """Write the file as a whole, after it was read once as a configuration."""
    aside = out.with_name(f".{out.name}.new")
    try:
        aside.write_text(text, "utf-8")
        load_config(aside)
        aside.replace(out)
    except ConfigError as error:
        raise InvalidRequest(f"cannot write a configuration of these files: {error}") from error
    finally:
        aside.unlink(missing_ok=True)

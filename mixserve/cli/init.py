"""`mixserve init`: files and folders -> a configuration file that serves them, with comments."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from mixserve.cli.check import show_bytes
from mixserve.cli.console import open_console
from mixserve.cli.data_files import MOST_ENTRIES, look_at
from mixserve.cli.proposed_sources import Proposal, propose_sources, set_length
from mixserve.cli.written_mixtures import check_out, give_names, print_next, write_mixtures
from mixserve_client.errors import InvalidRequest

_MOST_UNKNOWN = 20
_SPLITS = {
    "validation": ("validation", "valid", "val", "dev", "eval"),
    "test": ("test",),
    "train": ("train", "training"),
}


def run(
    paths: Sequence[str], *, out: Path, sequence_length: int | None, force: bool, only_with_from: Mapping[str, object]
) -> None:
    """Look at the paths, write `out`, and say what was recognised.

    Raises InvalidRequest if `out` exists and not `force`, if nothing is recognised, or if an option is given that only
    `--from` takes; OSError if a path is not there.
    """
    for option, given in only_with_from.items():
        if given:
            raise InvalidRequest(f"{option} needs --from, the library whose list of data is read")
    check_out(out, force=force)
    looked = look_at([Path(path) for path in paths])
    unknown = [(str(path), said) for path, said in looked.unknown]
    found: list[Proposal] = []
    for group in looked.groups:
        proposed, refused = propose_sources(group, out.parent, sequence_length)
        found += proposed
        unknown += refused
    console = open_console()
    if not found:
        said = "".join(f"\n  {path}: {reason}" for path, reason in unknown[:_MOST_UNKNOWN])
        raise InvalidRequest(f"no data was recognised in {', '.join(paths)}{said}")
    give_names(found)
    _agree_on_length(found, sequence_length)
    mixtures = _by_spec(found)
    write_mixtures(out, mixtures, _notes(mixtures))
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
    print_next(console, out)


def _show_path(source: Proposal) -> str:
    count = len(source.group.paths)
    first = next(iter(source.path.values())) if isinstance(source.path, dict) else source.path[0]
    return f"{first}{'' if count == 1 else f' ({count:,} files)'}"


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


def _notes(mixtures: dict[str, list[Proposal]]) -> list[str]:
    said = ["Written by mixserve init: look at it, change it, and see what it serves with mixserve check."]
    if len(mixtures) > 1:
        said.append("Sources with other fields, and those to validate or test on, are in mixtures of their own.")
    return said

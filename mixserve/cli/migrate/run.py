"""`mixserve init --from`: another library's list of data -> a configuration file that serves the same mixture."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mixserve.cli.console import open_console
from mixserve.cli.migrate import maxtext, megatron, mosaicml, olmo
from mixserve.cli.migrate.listed import Mix, Places
from mixserve.cli.migrate.proposals import propose_mix
from mixserve.cli.written_mixtures import check_out, give_names, print_next, write_mixtures
from mixserve_client.errors import InvalidRequest
from mixserve_client.schema.text import show

_LIBRARIES: Mapping[str, Callable[[Sequence[str]], Mix]] = {
    "megatron": megatron.parse,
    "maxtext": maxtext.parse,
    "olmo": olmo.parse,
    "mosaicml": mosaicml.parse,
}


def run(
    library: str,
    given: Sequence[str],
    *,
    out: Path,
    sequence_length: int | None,
    force: bool,
    base: Path | None,
    replace: Sequence[str],
    dtype: str | None,
) -> None:
    """Read the library's list, open its data, write `out`, and say what it serves.

    Raises InvalidRequest, which names the place in the list, if the list is malformed or names data that cannot be
    served, or if `out` exists and not `force`; OSError if the list cannot be read.
    """
    if library not in _LIBRARIES:
        raise InvalidRequest(f"--from must be one of {', '.join(_LIBRARIES)}, got {show(library)}")
    if dtype is not None and library != "olmo":
        raise InvalidRequest(f"--dtype is for --from olmo: the files of {library} say their dtypes")
    check_out(out, force=force)
    places = Places(Path.cwd() if base is None else base, replace)
    mix = _LIBRARIES[library](given)
    mixtures = {
        name: propose_mix(mix, sources, places, out.parent, length=sequence_length, dtype=dtype)
        for name, sources in mix.mixtures.items()
    }
    for sources in mixtures.values():
        give_names(sources)
    notes = [f"Written by mixserve init --from {library}: look at it, and see what it serves with mixserve check."]
    write_mixtures(out, mixtures, [*notes, *mix.notes], mix.options)
    console = open_console()
    for name, sources in mixtures.items():
        console.print(f"{name}: {len(sources):,} sources of kind {mix.kind}", markup=False, soft_wrap=True)
    for note in mix.notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)
    print_next(console, out)

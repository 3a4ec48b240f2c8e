"""The sources of a list -> what to write of them in a configuration file. Their files are opened."""

import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from glob import has_magic
from pathlib import Path
from typing import Any

import numpy as np

from mixserve.cli.data_files import Group
from mixserve.cli.migrate.listed import Listed, Mix, Places
from mixserve.cli.proposed_fields import propose, see_records
from mixserve.cli.proposed_sources import (
    DEFAULT_LENGTH,
    Proposal,
    Sample,
    guess_dtype,
    open_proposed,
    sample_of,
    set_record_kind,
    written_path,
)
from mixserve.error_boundary import WrongRecord
from mixserve.sources.kinds.files import find_files
from mixserve_client.errors import InvalidRequest
from mixserve_client.schema.dtypes import dtype_named
from mixserve_client.schema.text import describe_error

_FAULTS = (OSError, ValueError, TypeError, ImportError, KeyError, EOFError, WrongRecord, RuntimeError, tarfile.TarError)


def propose_mix(
    mix: Mix, listed: Sequence[Listed], places: Places, folder: Path, *, length: int | None, dtype: str | None
) -> list[Proposal]:
    """The sources of one mixture, with one spec; paths are relative to `folder`.

    Raises InvalidRequest, which names the source's place in the list, if its data are not here or cannot be served.
    """
    _check_weights(listed)
    made = [_start(mix.kind, one, places, folder) for one in listed]
    asked = length or mix.sequence_length
    if mix.kind == "megatron":
        _propose_megatron(made, listed, folder, asked)
    elif mix.kind == "tokens":
        _propose_tokens(made, listed, folder, asked, dtype or mix.dtype)
    else:
        _propose_records(made, listed, asked)
    return made


def _check_weights(listed: Sequence[Listed]) -> None:
    weights = [one.weight for one in listed]
    if all(weight == 0 for weight in weights):
        raise InvalidRequest(f"{listed[0].where}: all weights are 0")


@contextmanager
def _naming(listed: Listed) -> Iterator[None]:
    try:
        yield
    except _FAULTS as error:
        if isinstance(error, InvalidRequest):
            raise
        raise InvalidRequest(f"{listed.where}: {describe_error(error, 500)}") from error


def _start(kind: str, listed: Listed, places: Places, folder: Path) -> Proposal:
    """The source with its paths, and the files that they match."""
    ending = ".idx" if kind == "megatron" else ""
    with _naming(listed):
        here = [places.local(path, listed.place_of(number)) for number, path in enumerate(listed.paths)]
        for number, path in enumerate(here):
            if not has_magic(str(path)) and not Path(f"{path}{ending}").exists():
                raise InvalidRequest(f"{listed.place_of(number)}: there is no {path}{ending}")
        found = find_files([f"{path.absolute()}{ending}" for path in here], folder, or_folders=kind == "mds")
    group = Group(kind, found[0].parent, found, [])
    made = Proposal(group, [written_path(path, folder) for path in here], listed.name)
    if listed.weight is not None:
        made.weight, made.comments["weight"] = _show_number(listed.weight), ""
    return made


def _propose_megatron(made: Sequence[Proposal], listed: Sequence[Listed], folder: Path, length: int | None) -> None:
    for source in made:
        source.options |= {"sequence_length": str(length or DEFAULT_LENGTH + 1), "overlap": "1"}
        source.comments["sequence_length"] = "Megatron's --seq-length plus 1"
    opened = [_open_tokens(source, one, folder) for source, one in zip(made, listed, strict=True)]
    dtypes = {source.stored_dtype for source in opened}
    for source in made:
        if len(dtypes) > 1:
            source.options["as"] = np.result_type(*dtypes).name
            source.comments["as"] = "since data sets of this blend are stored in several dtypes"
        source.options["# order"] = "{seed: 1234}"
        source.comments["# order"] = "the windows of Megatron's first epoch with --seed 1234"


def _propose_tokens(
    made: Sequence[Proposal], listed: Sequence[Listed], folder: Path, length: int | None, dtype: str | None
) -> None:
    comment = ""
    if dtype is None:
        files = [file for source in made for file in source.group.paths]
        with _naming(listed[0]):
            dtype, reason = guess_dtype(files, [file.stat().st_size for file in files])
        comment = f"a guess: {reason}; --dtype says it"
    else:
        with _naming(listed[0]):
            dtype = dtype_named(dtype).name
    for source, one in zip(made, listed, strict=True):
        source.options |= {
            "dtype": dtype,
            "sequence_length": str(length or DEFAULT_LENGTH),
            "windows": "per_file",
            "# eod": "100257",
        }
        source.comments |= {"dtype": comment, "windows": "as OLMo cuts them"}
        source.comments["# eod"] = "the tokeniser's end of text; with `segments: true` for document masks"
        _open_tokens(source, one, folder)


def _open_tokens(source: Proposal, listed: Listed, folder: Path) -> Any:
    """The opened source, whose number of records is its weight if it has no other."""
    with _naming(listed):
        opened = open_proposed(source, folder)
        source.ids = len(opened)
        _weigh(source, listed, len(opened))
    return opened


def _weigh(source: Proposal, listed: Listed, records: int) -> None:
    if listed.weight is None:
        source.weight = _show_number(records * listed.repeat)
        times = f": {records:,}, times repeat {listed.repeat}" if listed.repeat != 1 else ""
        source.comments["weight"] = f"its number of records{times}"


def _show_number(number: float) -> str:
    """The number as YAML reads it: `1e-07` would be a text."""
    return format(Decimal(repr(number)), "f")


def _propose_records(made: Sequence[Proposal], listed: Sequence[Listed], length: int | None) -> None:
    """Fields that fit the records of all sources, by a sample of each."""
    samples: list[Sample] = []
    for source, one in zip(made, listed, strict=True):
        with _naming(one):
            samples.append(sample_of(source.group))
            if (samples[-1].kind, samples[-1].columns) != (samples[0].kind, samples[0].columns):
                first = samples[0].columns or samples[0].kind
                raise ValueError(
                    f"its records are {samples[-1].columns or samples[-1].kind}, and those of {listed[0].name} {first}"
                )
    records = [record for sample in samples for record in sample.records]
    with _naming(listed[0]):
        seen = see_records(samples[0].decoder, records)
        fields = propose(seen, records=len(records), length=length, any_dtype=made[0].group.kind != "mds")
        if not any(one.spec for one in fields):
            raise ValueError("no field of its records can be served")
    for source, one, sample in zip(made, listed, samples, strict=True):
        source.fields = fields
        set_record_kind(source, sample)
        _weigh(source, one, sample.total)

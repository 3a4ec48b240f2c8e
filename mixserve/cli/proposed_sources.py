"""Groups of files -> what to write of them in a configuration file, checked as far as that is cheap."""

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from tarfile import TarError
from tarfile import open as open_tar
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np

from mixserve.cli.data_files import Group, pattern_of
from mixserve.cli.proposed_fields import Proposed, Spec, propose, see_columns, see_records
from mixserve.error_boundary import WrongRecord
from mixserve.mixture.id_patterns import find_pattern
from mixserve.sources.decoders import Decoder
from mixserve.sources.registry import KINDS
from mixserve.sources.tar_index import split_name
from mixserve_client.schema.text import describe_error
from mixserve_client.schema.tree import flatten

DEFAULT_LENGTH = 2048
_SAMPLE = 64
_MOST_ALONE = 200
_HEAD_BYTES = 4 << 20
_RAW_IDS_BYTES = 64 << 10


@dataclass
class Proposal:
    """A source to write. `options` are keys and values as YAML has them, `comments` are by key."""

    group: Group
    path: list[str] | dict[str, str]  # by field, if each field has a folder of its own
    name: str
    options: dict[str, str] = field(default_factory=dict[str, str])
    comments: dict[str, str] = field(default_factory=dict[str, str])
    fields: list[Proposed] = field(default_factory=list[Proposed])
    spec: Spec = field(default_factory=Spec)
    ids: int | None = None  # of files of tokens: all in them, of which records can be cut
    weight: str = "1"


class NotServed(ValueError):
    """Why a group of files cannot be served."""


def propose_sources(group: Group, folder: Path, length: int | None) -> tuple[list[Proposal], list[tuple[str, str]]]:
    """The source of a group, without files that cannot be served, or a source for each file if the files differ; and
    what is not served, with the reason. Paths are relative to `folder`."""
    try:
        return [_propose(group, folder, length)], []
    except NotServed as error:
        if len(group.paths) == 1 or group.what == "npy":
            more = f" and {len(group.paths) - 1:,} more" if len(group.paths) > 1 else ""
            return [], [(f"{group.paths[0]}{more} ({group.kind})", str(error))]
    alone: list[Proposal] = []
    unknown: list[tuple[str, str]] = []
    for path in group.paths[:_MOST_ALONE]:
        found, said = propose_sources(replace(group, paths=[path]), folder, length)
        alone += found
        unknown += said
    if len(alone) > 1 and unknown:
        with suppress(NotServed):
            good = replace(group, paths=[path for one in alone for path in one.group.paths])
            return [_propose(good, folder, length)], unknown
    return alone, unknown


def _propose(given: Group, folder: Path, length: int | None) -> Proposal:
    """The source of a group. Raises NotServed."""
    group = replace(given)
    path = [written_path(group.folder / name, folder) for name in pattern_of(group)]
    made = Proposal(group, path, _name(group))
    try:
        if group.kind in ("tokens", "megatron") or (group.what == "npy" and _are_tokens(group)):
            _propose_tokens(made, folder, length)
        elif group.what in ("npz", "npy"):
            _propose_arrays(made, folder)
        elif group.kind in ("hf", "parquet"):
            _propose_columns(made, length)
        elif group.kind in ("array_record", "tfrecord", "webdataset", "mds"):
            _propose_records(made, length)
        else:
            if group.what == "zarr array":
                made.path = {made.name: path[0]}
            made.spec = _spec_of(open_proposed(made, folder))
    except (
        OSError,
        ValueError,
        TypeError,
        ImportError,
        KeyError,
        EOFError,
        RecursionError,
        TarError,
        BadZipFile,
    ) as error:
        raise NotServed(describe_error(error, 300)) from error
    if made.fields:
        made.spec = {name: leaf for one in made.fields for name, leaf in one.spec.items()}
        if not made.spec:
            raise NotServed("no field of its records can be served")
    return made


def set_length(proposal: Proposal, length: int, asked: int | None) -> None:
    """Cut the tokens into records of `length`."""
    proposal.options["sequence_length"] = str(length)
    proposal.spec = {"tokens": (proposal.spec["tokens"][0], (length,))}
    proposal.comments["sequence_length"] = (
        "for N inputs and as many targets, shifted by one, take N + 1"
        if asked is None
        else ""
        if length == asked
        else f"the files have too few ids for {asked:,}"
    )


def _propose_tokens(made: Proposal, folder: Path, length: int | None) -> None:
    group = made.group
    if group.kind == "megatron":
        sizes = [path.with_suffix(".bin").stat().st_size for path in group.paths]
    else:
        group.kind = "tokens"
        sizes = [path.stat().st_size for path in group.paths]
        if group.what == "plain":
            dtype, reason = guess_dtype(group.paths, sizes)
            made.options["dtype"] = dtype
            made.comments["dtype"] = f"a guess: {reason}"
    made.options["sequence_length"] = "1"
    source = open_proposed(made, folder)
    ids = source.stored_dtype
    made.ids = len(source)
    if group.kind == "megatron":  # a record has tokens of one data set
        made.ids = max(size // ids.itemsize for size in sizes)
    made.spec = {"tokens": (ids.name, (1,))}
    largest = source.largest_id()
    if largest is not None:
        made.comments["path"] = f"the largest id of a sample is {largest:,}"
    set_length(made, min(length or DEFAULT_LENGTH, int(made.ids or 1)), length)


def guess_dtype(files: list[Path], sizes: list[int]) -> tuple[str, str]:
    """The dtype of ids in files without a header, and why it is likely."""
    file = files[len(files) // 2]
    with file.open("rb") as opened:
        opened.seek(file.stat().st_size // 2 // 64 * 64)
        data = opened.read(_RAW_IDS_BYTES)
    if any(size % 2 for size in sizes):
        raise ValueError("it has an odd number of bytes, so it is not of ids without a header")
    width = len(data) // 64 * 64
    rows = np.frombuffer(data[:width] or data[: len(data) // 2 * 2], "<u2").reshape(max(1, width // 64), -1)
    found = find_pattern(rows, np.dtype(np.uint16))
    if found is None:
        return "uint16", "nothing in a sample looks like wider ids"
    dtype = found.rpartition(" ")[2].removesuffix("?")
    if any(size % np.dtype(dtype).itemsize for size in sizes):
        return "uint16", f"{found.partition(':')[0]}, but the size is not that of {dtype}"
    return dtype, f"read as uint16, {found.partition(':')[0]}"


def _are_tokens(group: Group) -> bool:
    """Whether the .npy files are flat ids, and not the fields of records."""
    headers = {path.stem: _npy_header(path) for path in group.paths}
    if any(len(shape) != 1 or dtype.kind not in "iu" for shape, dtype in headers.values()):
        return False
    alike = {stem.translate(str.maketrans("", "", "0123456789")) for stem in headers}
    lengths = {shape for shape, _ in headers.values()}
    return len(alike) == 1 or len(lengths) > 1


def _npy_header(file: Path | Any) -> tuple[tuple[int, ...], np.dtype]:
    with file.open("rb") if isinstance(file, Path) else file as opened:
        version = np.lib.format.read_magic(opened)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(opened)
    return shape, dtype


def _propose_arrays(made: Proposal, folder: Path) -> None:
    """`.npz` files, whose arrays are not read, or a folder of `.npy` files."""
    group = made.group
    if group.what == "npy":
        others = [name for name in group.beside if name.endswith(".npy")]
        if len(others) != len(group.paths):
            raise ValueError("give the folder: each .npy file is a field of its records")
        headers = [{path.stem: _npy_header(path) for path in group.paths}]
        made.path, group.paths = [written_path(group.folder, folder)], [group.folder]
        made.name = group.folder.resolve().name or "data"
    else:
        headers = [dict(_zip_headers(path)) for path in group.paths]
    unnamed = [name for name, (_, dtype) in headers[0].items() if dtype.kind == "V" and dtype.names is None]
    for number, fields in enumerate(headers):
        if len({shape[:1] for shape, _ in fields.values()}) != 1 or any(not shape for shape, _ in fields.values()):
            raise ValueError(f"its arrays have no common number of rows: {_show(fields)}")
        if any(dtype.kind not in "biufc" and name not in unnamed for name, (_, dtype) in fields.items()):
            raise ValueError(f"it has arrays that are not of numbers: {_show(fields)}")
        if {n: (s[1:], d) for n, (s, d) in fields.items()} != {n: (s[1:], d) for n, (s, d) in headers[0].items()}:
            raise ValueError(f"{group.paths[number]} has other fields than {group.paths[0]}")
    if not headers[0]:
        raise ValueError("it holds no arrays")
    names = {2: "bfloat16", 1: "float8_e4m3fn"}
    dtypes = {name: names[headers[0][name][1].itemsize] for name in unnamed}
    if dtypes:
        made.options["dtypes"] = "{" + ", ".join(f"{json.dumps(n)}: {d}" for n, d in dtypes.items()) + "}"
        made.comments["dtypes"] = "a guess: NumPy's format does not name them"
    made.spec = {n: (dtypes.get(n, d.name), s[1:]) for n, (s, d) in headers[0].items()}


def _zip_headers(path: Path) -> Iterator[tuple[str, tuple[tuple[int, ...], np.dtype]]]:
    with ZipFile(path) as archive:
        for name in archive.namelist():
            if not name.endswith(".npy"):
                raise ValueError(f"it is a zip archive that holds {name!r:.100}, not an .npz file")
            yield name.removesuffix(".npy"), _npy_header(archive.open(name))


def _show(fields: dict[str, tuple[tuple[int, ...], np.dtype]]) -> str:
    return ", ".join(f"{name}: {dtype}{list(shape)}" for name, (shape, dtype) in fields.items())[:200]


def _propose_columns(made: Proposal, length: int | None) -> None:
    """Data sets of Arrow or Parquet: the schema, and the lengths in the first batch."""
    from mixserve.sources.arrow import import_arrow, stored_fields

    arrow, compute = import_arrow(), import_arrow("pyarrow.compute")
    if made.group.kind == "hf":
        state: Any = json.loads((made.group.paths[0] / "state.json").read_text("utf-8"))
        with arrow.memory_map(str(made.group.paths[0] / state["_data_files"][0]["filename"])) as mapped:
            reader = arrow.ipc.open_stream(mapped)
            schema, batch = reader.schema, next(iter(reader), None)
    else:
        from mixserve.sources.parquet_files import ParquetFile

        parquet = ParquetFile(made.group.paths[0])
        schema, batch = parquet.schema, next(iter(parquet.batches(parquet.schema.names)), None)

    def measure(name: str) -> tuple[list[int], bool]:
        column = None if batch is None else batch.column(batch.schema.get_field_index(name))
        if column is None:
            return [], False
        is_list = hasattr(column.type, "value_type") and not hasattr(column.type, "index_type")
        is_text = any(word in str(column.type) for word in ("string", "binary")) and not is_list
        of_rows = compute.list_value_length if is_list else compute.binary_length
        lengths: list[int | None] = of_rows(column).to_pylist() if is_list or is_text else []
        nulls = column.null_count + (column.flatten().null_count if is_list else 0)
        return [size for size in lengths if size is not None], nulls > 0

    made.fields = propose(see_columns(stored_fields(schema), measure), records=None, length=length, any_dtype=False)


def _propose_records(made: Proposal, length: int | None) -> None:
    """Formats of records that are decoded: a sample of the records of the first file."""
    sample = sample_of(made.group)
    set_record_kind(made, sample)
    seen = see_records(sample.decoder, sample.records)
    made.fields = propose(seen, records=len(sample.records), length=length, any_dtype=made.group.kind != "mds")


@dataclass
class Sample:
    """The first records of a group; `kind` is what its records are, if its kind of files leaves that open."""

    kind: str | None
    decoder: Decoder
    records: list[Any]
    columns: list[str] = field(default_factory=list[str])  # of MDS: name and encoding
    total: int = 0  # of MDS: all records


def sample_of(group: Group) -> Sample:
    """Raises ValueError or OSError if there are no records, or they cannot be read."""
    from mixserve.sources.decoded_source import decoder_of
    from mixserve.sources.mds_source import ColumnsDecoder, MDSSamples
    from mixserve.sources.webdataset_source import MembersDecoder

    if group.kind == "mds":
        samples = MDSSamples(group.paths)
        columns = [f"{column.name}: {column.encoding}" for column in samples.columns]
        records = samples.read(range(min(_SAMPLE, len(samples))))
        sample = Sample(None, ColumnsDecoder(samples.columns), records, columns, len(samples))
    elif group.kind == "webdataset":
        sample = Sample(None, MembersDecoder(), list(_tar_samples(group.paths[0])))
    else:
        records = _array_records(group.paths[0]) if group.kind == "array_record" else _tfrecords(group.paths[0])
        kind = _record_kind(records)
        sample = Sample(kind, decoder_of(kind, None), records)
    if not sample.records:
        raise ValueError("it holds no records, or the first one is too large to look at")
    return sample


def set_record_kind(made: Proposal, sample: Sample) -> None:
    """Say in the options what the records are, unless they are Examples."""
    if sample.kind not in (None, "example"):
        made.options["record"] = sample.kind
        made.comments["record"] = "a guess" if sample.kind == "bytes" else ""


def _record_kind(records: list[bytes]) -> str:
    """What the records are: the first of these that can be decoded."""
    from mixserve.sources.decoded_source import decoder_of

    for kind in ("npy", "json", "example"):
        try:
            if see_records(decoder_of(kind, None), records):
                return kind
        except (ValueError, WrongRecord):
            continue
    return "bytes"


def _array_records(path: Path) -> list[bytes]:
    from mixserve.sources.array_record_source import ArrayRecords

    records = ArrayRecords([path])
    return records.read(range(min(_SAMPLE, len(records))))


def _tfrecords(path: Path) -> list[bytes]:
    with path.open("rb") as file:
        data = file.read(_HEAD_BYTES)
    records: list[bytes] = []
    at = 0
    while len(records) < _SAMPLE and at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 8], "little")
        if end + 4 > len(data):
            break
        records.append(data[at + 12 : end])
        at = end + 4
    return records


def _tar_samples(path: Path) -> Iterator[dict[str, bytes]]:
    sample: dict[str, bytes] = {}
    last, count, size = None, 0, 0
    with open_tar(path, "r:") as archive:
        for member in archive:
            key, extension = split_name(member.name)
            if not member.isfile() or not extension:
                continue
            if key != last and sample:
                yield sample
                sample, count = {}, count + 1
                if count == _SAMPLE:
                    return
            last, size = key, size + member.size
            if size > 16 * _HEAD_BYTES:  # before it is read; the samples before it say enough, if there are any
                return
            opened = archive.extractfile(member)
            sample[extension] = opened.read() if opened is not None else b""
    if sample:
        yield sample


def open_proposed(made: Proposal, folder: Path) -> Any:
    """The source, opened as the server does, but without fields. Raises what opening it does."""
    section: dict[str, Any] = {"kind": made.group.kind, "path": made.path, "weight": 1}
    section |= {key: made.options[key] for key in ("dtype", "windows") if key in made.options}
    section |= {key: int(made.options[key]) for key in ("sequence_length", "overlap") if key in made.options}
    return KINDS[made.group.kind].model_validate(section).open(folder)


def _spec_of(source: Any) -> Spec:
    return {
        name: (np.dtype(leaf.dtype).name, tuple(leaf.shape)) for name, leaf in flatten(source.element_spec()).items()
    }


def written_path(path: Path, folder: Path) -> str:
    """The path as it is written in a file in `folder`: relative, if it lies below."""
    absolute, base = (Path(os.path.normpath(one.absolute())) for one in (path, folder))
    return str(absolute.relative_to(base) if absolute.is_relative_to(base) else absolute)


def _name(group: Group) -> str:
    """A name for the source: that of its folder if it has all files of it, else that of the file."""
    if len(group.paths) == 1:
        name = group.paths[0].name
        return name.partition(".")[0] or name
    return group.folder.resolve().name or "data"

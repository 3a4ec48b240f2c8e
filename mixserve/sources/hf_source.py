"""Folders that `save_to_disk` of Hugging Face's `datasets` wrote -> a source: Arrow streams, memory-mapped."""

import json
from collections.abc import Iterable, Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, cast

import numpy as np

from mixserve.sources.arrow import Arrow, find_piece, import_arrow, layout_of, stored_fields
from mixserve.sources.column import Column, Piece
from mixserve.sources.column_source import ColumnSource, Shard
from mixserve.sources.digest import digest_files
from mixserve.sources.fields import FieldSpec, Served, serve_fields
from mixserve.sources.magic import ARROW
from mixserve.sources.memory import Memory, address_of
from mixserve.sources.open_file import OpenFile
from mixserve.sources.reopened import Arguments, reduce_to_paths
from mixserve_client.schema.text import show, show_names

Folder = str | PathLike[str]


class HfSource(ColumnSource):
    """Record r is the row r of the data sets in `folders`, which `Dataset.save_to_disk` wrote, one after another.

    `fields` are those to serve (default: all columns that have a fixed shape). Files are memory-mapped and read without
    `datasets`; a pickle has their paths. `dictionaries` has the strings of columns that are served as codes.
    """

    def __init__(
        self,
        folders: Folder | Iterable[Folder],
        fields: Sequence[FieldSpec] | None = None,
        *,
        name: str | None = None,
    ):
        """Raises ImportError without pyarrow, ValueError if a folder or file is not as `save_to_disk` writes it or a
        field cannot be served, OSError if a file cannot be read. All but the first name the file."""
        given = [folders] if isinstance(folders, str | PathLike) else list(folders)
        paths = [file for folder in given for file in _files_of(Path(folder))]
        if not paths:
            raise ValueError(f"{given[0] if given else 'the list of folders'} holds no records")
        loading = _Loading(fields)
        for path in paths:
            loading.load(path)
        memory = Memory(loading.maps)
        columns = {
            source: Column(layout_of(loading.types[source]), pieces, memory)
            for source, pieces in loading.pieces.items()
        }
        super().__init__(columns, loading.served, memory, loading.shards, name=name)
        self._files, self._heads = loading.files, loading.heads
        self.dictionaries: dict[str, list[str]] = {
            served.spec.name: loading.dictionaries[served.spec.source].to_pylist()
            for served in loading.served
            if served.spec.source in loading.dictionaries
        }
        self._arguments: Arguments = [[str(folder) for folder in given]], {"fields": fields, "name": name}

    def content_digest(self) -> bytes:
        """The identity of the content in a mixture's fingerprint."""
        rows = np.diff(self._shard_starts).tolist()
        options = {"kind": "hf", "fields": [field.description for field in self._served], "rows": rows}
        return digest_files(self._files, options, self._heads)

    def __reduce__(self) -> Any:
        return reduce_to_paths(self, self._arguments)


def _files_of(folder: Path) -> list[Path]:
    """The Arrow files of the data set in `folder`, in order. Raises ValueError if there is none."""
    state = folder / "state.json"
    if not state.is_file():
        raise ValueError(f"{folder} {_no_data_set(folder)}")
    try:
        found = cast(Any, json.loads(state.read_text("utf-8")))
        names = [entry["filename"] for entry in found["_data_files"]]
        indices = found.get("_indices_data_files") or found.get("_indices_files")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{state} is not as save_to_disk writes it: it must list _data_files "
            f"({type(error).__name__}: {error!s:.200})"
        ) from error
    if indices:
        raise ValueError(
            f"{state} lists files of indices, as old versions of datasets wrote: load the data set, flatten_indices(), "
            "and save it again"
        )
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise ValueError(f"{state} must list files beside it, got {show(name)}")
    return [folder / name for name in names]


def _no_data_set(folder: Path) -> str:
    if (splits := folder / "dataset_dict.json").is_file():
        try:
            names = list(json.loads(splits.read_text("utf-8"))["splits"])
        except (ValueError, TypeError, KeyError, RecursionError):
            names = []
        one = folder / str([*names, "train"][0])
        named = f", {show_names(names)}" if names else ""
        return f"holds several data sets{named}; give the path of one, such as {one}"
    if folder.is_file():
        return "is a file; give the folder that save_to_disk of Hugging Face's datasets wrote"
    if not folder.exists():
        return "does not exist"
    return "is not a folder that save_to_disk of Hugging Face's datasets wrote: it has no state.json"


class _Loading:
    """What is known of the files so far: their maps, and the types, pieces and dictionaries of the served columns."""

    def __init__(self, wanted: Sequence[FieldSpec] | None):
        self._wanted = wanted
        self._nulls: dict[str, bool] = {}  # by column, whether null values are replaced in each of its fields
        self.maps: list[np.ndarray] = []
        self.files: list[OpenFile] = []
        self.shards: list[Shard] = []
        self.heads: list[bytes] = []
        self.served: list[Served] = []
        self.types: dict[str, Arrow] = {}
        self.pieces: dict[str, list[Piece]] = {}
        self.dictionaries: dict[str, Arrow] = {}

    def load(self, path: Path) -> None:
        """Add the file's batches. Raises ValueError, which names the file, or OSError."""
        arrow = import_arrow()
        file = OpenFile(path)
        mapped = file.map()
        try:
            schema, _ = _read_stream(mapped, None)
            self._choose(schema)
            rows: list[int] = []
            first, low = 0, address_of(mapped)
            for batch in _read_stream(mapped, [schema.get_field_index(name) for name in self.types])[1]:
                self._add(batch, range(low, low + len(mapped)), first)
                rows.append(batch.num_rows)
                first += batch.num_rows
        except (arrow.ArrowException, OSError) as error:  # pyarrow raises OSError if a stream ends in a message
            raise ValueError(f"{path} cannot be read as an Arrow stream: {error!s:.500}") from error
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        except SystemError as error:  # pyarrow's for a negative number of rows
            raise ValueError(f"{path} cannot be read as an Arrow stream: it is damaged") from error
        self.maps.append(mapped)
        strings = {name: found.to_pylist() for name, found in self.dictionaries.items()}
        head = [[name, str(kind), strings.get(name)] for name, kind in sorted(self.types.items())]
        self.heads.append(json.dumps(head).encode())
        self.files.append(file)
        self.shards.append(Shard(path, rows))

    def _choose(self, schema: Arrow) -> None:
        """Choose the served columns by the first file's schema. Raises ValueError if this file has other types."""
        twice = {name for name in schema.names if schema.names.count(name) > 1}
        if twice:
            raise ValueError(f"the columns {show_names(sorted(twice))} occur twice")
        if not self.files:
            self.served = serve_fields(stored_fields(schema), self._wanted)
            self.types = {served.spec.source: schema.field(served.spec.source).type for served in self.served}
            self.pieces = {name: [] for name in self.types}
            for served in self.served:
                known = self._nulls.get(served.spec.source, True)
                self._nulls[served.spec.source] = known and served.spec.null is not None
        for name, kind in self.types.items():
            found = schema.field(name).type if name in schema.names else "not there"
            if found != kind:
                raise ValueError(f"the field {name!r:.100} is {found}, and {kind} in the files before")

    def _add(self, batch: Arrow, addresses: range, first_row: int) -> None:
        """Add the columns of a batch, whose rows are those from `first_row` on of the file mapped to `addresses`."""
        for name in self.types:
            array = batch.column(batch.schema.get_field_index(name))
            piece = find_piece(name, array, first_row, nulls=self._nulls[name])
            found = (piece.values, piece.offsets, piece.valid, piece.item_valid)
            if not all(address in addresses for address in found if address):
                raise ValueError(
                    f"the field {name!r:.100} is compressed, or stored in another byte order; load the data set and "
                    "save it again with save_to_disk"
                )
            self.pieces[name].append(piece)
            if hasattr(array, "dictionary"):
                self._check_dictionary(name, array.dictionary)

    def _check_dictionary(self, name: str, found: Arrow) -> None:
        known = self.dictionaries.get(name)
        if known is not None and _address(known) == _address(found):
            return
        found.validate(full=True)
        self.dictionaries.setdefault(name, found)
        if known is not None and not known.equals(found):
            raise ValueError(
                f"the field {name!r:.100} has codes of several dictionaries, so a code means other strings in other "
                "rows; save the column as strings or as a ClassLabel"
            )


def _address(dictionary: Arrow) -> int:
    return dictionary.buffers()[1].address


def _read_stream(mapped: np.ndarray, columns: Sequence[int] | None) -> tuple[Arrow, Iterator[Arrow]]:
    """The schema, and the batches with only these columns. Raises ValueError, or an error of pyarrow's."""
    arrow = import_arrow()
    if not len(mapped):
        raise ValueError("the file is empty")
    if bytes(mapped[: len(ARROW)]) == ARROW:
        raise ValueError("this is a file in Arrow's file format, and save_to_disk writes streams")
    options = arrow.ipc.IpcReadOptions(included_fields=columns, use_threads=False)
    input_ = arrow.BufferReader(arrow.py_buffer(mapped))
    reader = arrow.ipc.open_stream(input_, options=options)
    return reader.schema, _read_batches(reader, input_)


def _read_batches(reader: Arrow, input_: Arrow) -> Iterator[Arrow]:
    end = input_.tell()
    for batch in reader:
        yield batch
        end = input_.tell()
    # To pyarrow, a stream that is cut between two messages has ended. A whole one has a mark of 8 bytes there.
    if input_.tell() == end:
        raise ValueError(f"it is cut after {end:,} bytes: the mark of a stream's end is missing")

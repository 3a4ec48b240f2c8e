"""Arrays in files that a format's own library reads, mostly in chunks -> a source whose records are their rows."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from mixserve.sources.digest import digest_files
from mixserve.sources.fields import FieldSpec, Served, Stored, leaf_name, serve_fields
from mixserve.sources.file_rows import FileRows
from mixserve.sources.open_file import OpenFile
from mixserve.sources.reopened import Arguments, reduce_to_paths
from mixserve.sources.source import ElementSpec, RecordIds, Records
from mixserve.sources.undecodable import UnreadRecord
from mixserve_client.errors import MixserveError
from mixserve_client.schema.text import describe_error, show_names
from mixserve_client.schema.tree import unflatten


class StoredArray(Protocol):
    """An array in a file. May be read by many threads at once."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def mapped(self) -> np.ndarray | None:
        """The array as a view of the mapped file, if it lies in it as in memory."""
        ...

    def begin_read(self, rows: np.ndarray) -> Callable[[], np.ndarray]:
        """Begin to read these rows, which rise strictly; returns a function that waits for them.

        Both raise OSError or ValueError, which say what is wrong, if the rows cannot be read.
        """
        ...


class Shard(NamedTuple):
    """A file or folder of arrays; for an array that cannot be served, `arrays` says why."""

    label: str
    files: Sequence[OpenFile]
    arrays: Mapping[str, StoredArray | str]


class ChunkedSource:
    """Record r is the row r of the served arrays of the shards, one after another.

    Array-backed if all served arrays are mapped (`blocks` is not None).
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        fields: Sequence[FieldSpec] | None,
        *,
        kind: str,
        name: str | None,
        arguments: Arguments,
    ):
        """`arguments` of the subclass open the same source again. Raises ValueError, which names the file, if there are
        no records, the served arrays have different lengths, shards differ, or fields cannot be served."""
        self.name = name
        self._kind, self._arguments = kind, arguments
        self._served = _serve(shards[0], fields)
        self._arrays = [_arrays(shard, self._served, shards[0].label) for shard in shards]
        # Without the other arrays, which would keep their files open.
        self._shards = [shard._replace(arrays={}) for shard in shards]
        self._rows = FileRows([arrays[0].shape[0] for arrays in self._arrays])
        if not len(self):
            raise ValueError(f"{shards[0].label} holds no records")
        self._leaves = [leaf_name(field.spec.name) for field in self._served]

    def __len__(self) -> int:
        return len(self._rows)

    def element_spec(self) -> ElementSpec:
        return unflatten(self._specs())

    def take(self, record_ids: RecordIds) -> Records:
        ids: list[int] = record_ids.tolist()
        if ids and (min(ids) < 0 or max(ids) >= len(self)):
            raise IndexError(f"record ids must be in 0..{len(self) - 1}, got {min(ids)} to {max(ids)}")
        out = {name: np.empty((len(ids), *spec.shape), spec.dtype) for name, spec in self._specs().items()}
        try:
            self._read(ids, out)
        except (OSError, ValueError) as error:
            self._raise_first(ids, error)
        return unflatten(out)

    @property
    def blocks(self) -> Callable[[], Sequence[Mapping[str, np.ndarray]]] | None:
        """The method that `ArrayBacked` has, or None if an array is not mapped."""
        is_mapped = all(array.mapped is not None for arrays in self._arrays for array in arrays)
        return self._blocks if is_mapped else None

    def files(self) -> Sequence[OpenFile]:
        """The open files whose changes are noticed."""
        return [file for shard in self._shards for file in shard.files]

    def locate(self, record_id: int) -> str:
        """The file or folder of the record, and the row in it."""
        if not 0 <= record_id < len(self):
            raise IndexError(f"record_id must be in 0..{len(self) - 1}, got {record_id}")
        number, row = self._rows.place(record_id)
        return f"{self._shards[number].label}, row {row:,}"

    def content_digest(self) -> bytes:
        """The identity of the content in a mixture's fingerprint."""
        return digest_files(self.files(), self._options(), self._heads())

    def __reduce__(self) -> Any:
        return reduce_to_paths(self, self._arguments)

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}: {spec.dtype.name}{list(spec.shape)}" for name, spec in self._specs().items())
        return f"{type(self).__name__}({{{fields}}}, length={len(self)})"

    def _heads(self) -> Sequence[bytes]:
        """What a subclass adds to the digest."""
        return ()

    def _options(self) -> Mapping[str, Any]:
        shapes = [[array.shape for array in arrays] for arrays in self._arrays]
        return {"kind": self._kind, "fields": [field.description for field in self._served], "shapes": shapes}

    def _specs(self) -> dict[str, jax.ShapeDtypeStruct]:
        return {
            leaf: jax.ShapeDtypeStruct(field.shape, field.dtype)
            for leaf, field in zip(self._leaves, self._served, strict=True)
        }

    def _blocks(self) -> Sequence[Mapping[str, np.ndarray]]:
        mapped = [[array.mapped for array in arrays] for arrays in self._arrays]
        return [
            {leaf: array for leaf, array in zip(self._leaves, arrays, strict=True) if array is not None}
            for arrays in mapped
        ]

    def _read(self, ids: Sequence[int], out: Mapping[str, np.ndarray]) -> None:
        """Fill `out`. All reads begin before the first one is waited for."""
        waits: list[tuple[np.ndarray, list[int], np.ndarray, Callable[[], np.ndarray]]] = []
        for number, rows, places in self._rows.group(ids):
            # Once each and in order: libraries refuse others, and a chunk that is needed twice is decoded once.
            unique, where = np.unique(np.asarray(rows, np.int64), return_inverse=True)
            for leaf, array in zip(self._leaves, self._arrays[number], strict=True):
                waits.append((out[leaf], places, where, array.begin_read(unique)))
        for target, places, where, wait in waits:
            target[places] = wait()[where]

    def _raise_first(self, ids: Sequence[int], error: Exception) -> None:
        """Raise the error of the first record that cannot be read alone, or SourceChanged if a file has changed."""
        if isinstance(error, MixserveError):  # it is of no record
            raise error
        for file in self.files():
            file.check_unchanged()
        for record_id in ids:
            number, row = self._rows.place(record_id)
            for field, array in zip(self._served, self._arrays[number], strict=True):
                try:
                    array.begin_read(np.array([row]))()
                except (OSError, ValueError) as alone:
                    raise UnreadRecord(
                        f"the field {field.spec.source!r:.100} of the record {record_id} cannot be read: "
                        f"{describe_error(alone, 500)}; {self.locate(record_id)}"
                    ) from alone
        raise error


def _serve(shard: Shard, fields: Sequence[FieldSpec] | None) -> list[Served]:
    stored = {name: _stored(array) for name, array in shard.arrays.items()}
    if not stored:
        raise ValueError(f"{shard.label} holds no arrays")
    try:
        if fields is None and (strange := [f"{name}: {why}" for name, why in stored.items() if isinstance(why, str)]):
            raise ValueError(f"choose what to serve with fields:, since not all can be: {'; '.join(strange[:3])}")
        return serve_fields(stored, fields)
    except ValueError as error:
        raise ValueError(f"{shard.label}: {error}") from error


def _stored(array: StoredArray | str) -> Stored | str:
    if isinstance(array, str):
        return array
    return Stored(array.dtype, array.shape[1:]) if array.shape else "it is a single number, without rows"


def _arrays(shard: Shard, served: Sequence[Served], first: str) -> list[StoredArray]:
    """The arrays of the served fields. Raises ValueError if one differs from that of the shard `first`."""
    found: list[StoredArray] = []
    for field in served:
        array, source = shard.arrays.get(field.spec.source, "it is not there"), field.spec.source
        if isinstance(array, str) or _stored(array) != field.stored:
            is_here = array if isinstance(array, str) else f"it is {array.dtype}{list(array.shape)}"
            raise ValueError(
                f"{shard.label}: the field {source!r:.100} must have rows of {field.stored.dtype}"
                f"{list(field.stored.shape)}, as in {first}; {is_here}"
            )
        found.append(array)
    lengths = {field.spec.source: array.shape[0] for field, array in zip(served, found, strict=True)}
    if len(set(lengths.values())) > 1:
        said = show_names(f"{name}: {length:,}" for name, length in lengths.items())
        raise ValueError(
            f"{shard.label}: the served arrays have different numbers of rows ({said}); choose those of one length "
            "with fields:"
        )
    return found

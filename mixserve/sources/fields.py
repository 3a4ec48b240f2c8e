"""What a source serves of what it stores: which fields, under which names and dtypes, and how it fits ragged ones."""

import dataclasses
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mixserve.error_boundary import WrongRecord
from mixserve.sources.undecodable import LongRecord
from mixserve_client.schema.dtypes import dtype_name
from mixserve_client.schema.text import show_names
from mixserve_client.schema.tree import flatten

_LENGTHS = np.dtype(np.int32)


@dataclass(frozen=True)
class Stored:
    """A stored field: its dtype, and its shape in a record. `is_ragged`: its first axis, which `shape` leaves out, has
    another length in every record. `is_text`: its values are the bytes of a text or of other data, and no numbers, in
    formats whose records may have either."""

    dtype: np.dtype
    shape: tuple[int, ...] = ()
    is_ragged: bool = False
    is_text: bool = False


@dataclass(frozen=True)
class FieldSpec:
    """A served field: the stored field `source`, widened to `dtype`.

    A ragged field is padded with `pad` to `length` values; a longer one is refused or cut, as `long` says. `lengths` is
    the name of a field of its own, int32, that has the number of values before padding.
    Null values become `null`, and are refused if that is None; formats that know no nulls leave it alone.

    `default` is for sources whose records may lack the field: the number of which it then consists, or () for a ragged
    field, which then has no values. None: such a record is refused.
    """

    name: str
    source: str
    dtype: np.dtype | None = None
    length: int | None = None
    pad: float = 0
    lengths: str | None = None
    long: Literal["refuse", "cut"] = "refuse"
    default: float | tuple[()] | None = None
    null: float | None = None


@dataclass(frozen=True)
class Served:
    """A served field whose stored field is known."""

    spec: FieldSpec
    stored: Stored
    dtype: np.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape in a record."""
        return (self.spec.length, *self.stored.shape) if self.spec.length is not None else self.stored.shape

    @property
    def options(self) -> dict[str, Any]:
        """What the field's records depend on, as JSON has it, for digests. Options that have their defaults are left
        out, so that later versions may have more of them."""
        given = {field.name: getattr(self.spec, field.name) for field in dataclasses.fields(self.spec)}
        defaults = {field.name: field.default for field in dataclasses.fields(self.spec)}
        return {key: value for key, value in given.items() if value != defaults[key]} | {"dtype": self.dtype.name}

    @property
    def description(self) -> dict[str, Any]:
        """The options, and what is stored, for the digests of all sources that have fields."""
        stored = self.stored
        return self.options | {"stored": [stored.dtype.name, stored.shape, stored.is_ragged]}

    def fit(self, rows: Sequence[np.ndarray], record_ids: Iterable[int]) -> dict[str, np.ndarray]:
        """The field, and the field of its lengths if it has one, of records whose stored values are `rows`.

        Raises WrongRecord, which names the field and the record, for other dtypes or shapes than stored, and LongRecord
        for values that are too long.
        """
        stored, shape = self.stored, self.shape
        # All of them at once first: a test per record costs more than its copy.
        if {row.dtype for row in rows} - {stored.dtype} or {row.shape[stored.is_ragged :] for row in rows} - {
            stored.shape
        }:
            self._raise_first(rows, record_ids)
        if not stored.is_ragged:
            return {self.spec.name: _join(rows, shape, self.dtype)}
        room, counts = shape[0], [len(row) for row in rows]
        if max(counts, default=0) > room:
            for count, record_id in zip(counts, record_ids, strict=True):
                self.check_length(count, record_id)
            rows, counts = [row[:room] for row in rows], [min(count, room) for count in counts]
        if min(counts, default=room) == room:
            out = _join(rows, shape, self.dtype)
        else:
            out = np.full((len(rows), *shape), self.spec.pad, self.dtype)
            for target, row, count in zip(out, rows, counts, strict=True):
                target[:count] = row
        made = {self.spec.name: out}
        return made if self.spec.lengths is None else made | {self.spec.lengths: np.array(counts, _LENGTHS)}

    def _raise_first(self, rows: Sequence[np.ndarray], record_ids: Iterable[int]) -> None:
        """Raise WrongRecord for the first row that is of another dtype or shape than stored."""
        stored = self.stored
        for row, record_id in zip(rows, record_ids, strict=True):
            if row.dtype != stored.dtype or row.shape[stored.is_ragged :] != stored.shape:
                raise WrongRecord(
                    f"the field {self.spec.source!r:.100} of record {record_id} is {row.dtype}{list(row.shape)}, and "
                    f"the source has {stored.dtype}{list(stored.shape)} there"
                )

    def check_length(self, length: int, record_id: int) -> None:
        """Raises LongRecord if so many values are more than the field has room for, and must not be cut."""
        if self.spec.long == "refuse" and length > self.shape[0]:
            raise LongRecord(
                f"the field {self.spec.source!r:.100} of the record {record_id} has {length} values, more than its "
                f"length {self.shape[0]}: give a larger length, or long: cut"
            )

    @property
    def specs(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Shape and dtype of the field, and of the field of its lengths if it has one, by name."""
        made = {self.spec.name: (self.shape, self.dtype)}
        return made if self.spec.lengths is None else made | {self.spec.lengths: ((), _LENGTHS)}


def choose_names(stored: Iterable[str], wanted: Collection[str] | None, where: object) -> list[str]:
    """The names that are `wanted`, or all if None. Raises ValueError if one is not stored in the file `where`."""
    names = list(stored)
    unknown = [] if wanted is None else sorted(set(wanted) - set(names))
    if unknown:
        raise ValueError(f"fields: {where} has the fields {show_names(sorted(names))}, not {show_names(unknown)}")
    return [name for name in names if wanted is None or name in wanted]


def leaf_name(field: str) -> str:
    """The name of the leaf that the key `field` of a flat record is."""
    return next(iter(flatten({field: None})))


def serve_fields(stored: Mapping[str, Stored | str], wanted: Sequence[FieldSpec] | None) -> list[Served]:
    """The `wanted` fields of those that are `stored`, or all that have a fixed shape if None.

    For a stored field that cannot be served, `stored` says why. Raises ValueError, which names the field.
    """
    if wanted is None:
        wanted = [
            FieldSpec(name, name) for name, kind in stored.items() if isinstance(kind, Stored) and not kind.is_ragged
        ]
        if not wanted:
            raise ValueError(
                f"fields: none of the stored fields {show_names(stored)} has a fixed shape; name those to serve, with "
                "a length for ragged ones, such as fields: {tokens: {from: input_ids, length: 2048}}"
            )
    served = [_serve(stored, spec) for spec in wanted]
    names = [name for field in served for name in field.specs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"fields: {show_names(twice)} would be served twice; rename one")
    return served


def _serve(stored: Mapping[str, Stored | str], spec: FieldSpec) -> Served:
    kind = stored.get(spec.source)
    where = f"fields.{spec.name}"
    if kind is None:
        raise ValueError(f"{where}: no field {spec.source!r:.100} is stored; there are {show_names(stored)}")
    if isinstance(kind, str):
        raise ValueError(f"{where}: the field {spec.source!r:.100} cannot be served: {kind}")
    dtype = spec.dtype or kind.dtype
    try:
        dtype_name(dtype)
    except TypeError as error:
        raise ValueError(f"{where}: {error}") from None
    if not np.can_cast(kind.dtype, dtype):
        raise ValueError(f"{where}: values of {kind.dtype} do not all fit into as: {dtype}; choose a wider one")
    if kind.is_ragged != (spec.length is not None):
        raise ValueError(
            f"{where}: the field {spec.source!r:.100} is ragged, and needs a length"
            if kind.is_ragged
            else f"{where}: length is for ragged fields, and {spec.source!r:.100} has the shape {list(kind.shape)}"
        )
    if spec.length is not None:
        _check_value(where, "pad", spec.pad, dtype)
    if spec.null is not None:
        _check_value(where, "null", spec.null, dtype)
    return Served(spec, kind, dtype)


def _check_value(where: str, key: str, value: float, dtype: np.dtype) -> None:
    if not has_value(dtype, value):
        raise ValueError(f"{where}: {key}: {value} is not a value of {dtype}")


def has_value(dtype: np.dtype, value: float) -> bool:
    """Whether the dtype has the value, or one to which it is rounded, such as 0.1 of float32."""
    try:
        with np.errstate(all="ignore"):
            given = np.array(value)
            found = given.astype(dtype)
            is_same = dtype.kind not in "fc" and bool(found.astype(given.dtype) == given)
    except OverflowError:  # an integer of more than 64 bits
        return False
    if dtype.kind in "fcV" and np.isnan(found):
        return bool(np.isnan(value))
    return is_same or bool(dtype.kind in "fc" and (np.isfinite(found) or math.isinf(value)))


def _join(rows: Sequence[np.ndarray], shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Rows of this shape as one array of (rows, *shape)."""
    out = np.empty((len(rows), *shape), dtype)
    if rows and shape:
        np.concatenate(rows, out=out.reshape(-1, *shape[1:]))
    elif rows:
        out[:] = rows
    return out

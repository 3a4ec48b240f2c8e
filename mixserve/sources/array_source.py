"""Arrays of equal leading length -> a source whose records are their rows."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

import jax
import numpy as np

from mixserve.sources.array_like import is_array, to_arrays
from mixserve.sources.digest import digest_blocks
from mixserve.sources.fields import FieldSpec, Stored, leaf_name, serve_fields
from mixserve.sources.location import file_location
from mixserve.sources.source import ElementSpec, RecordIds, Records
from mixserve_client.schema.dtypes import dtype_name
from mixserve_client.schema.text import show, show_names
from mixserve_client.schema.tree import flatten, unflatten


class ArraySource:
    """The rows of a dict of arrays, nested to any depth: NumPy, JAX or memory-mapped, of any dtype of the wire.

    One array alone is allowed; its rows are then the records. A list of numbers counts as an array.
    The arrays must not change while a mixture holds them: only arrays whose rows are not C-contiguous are copied.
    `more` are further dicts of the same fields whose rows follow those of `arrays`, so that shards need not be joined
    in memory. `fields` selects and renames arrays of dicts that are not nested, and widens their dtypes.
    """

    def __init__(
        self,
        arrays: Any,
        *more: Any,
        name: str | None = None,
        origins: Sequence[str] = (),
        fields: Sequence[FieldSpec] | None = None,
    ):
        """`origins` names the dicts for `locate`, such as by the files that they came from.

        Raises ValueError if a dict is empty, lengths differ, shards differ in fields, shapes or dtypes, or `fields`
        cannot be served; TypeError for what is not an array, and for a dtype that the wire does not have."""
        self.name = name
        self._origins = tuple(origins)
        self._blocks = tuple(
            _check_block(block, f" in {self._label(place)}" if more or origins else "", fields)
            for place, block in enumerate((arrays, *more))
        )
        self._starts = np.cumsum([0, *(len(next(iter(block.values()))) for block in self._blocks)])
        stored = _spec(self._blocks[0])
        for place, block in enumerate(self._blocks):
            if _spec(block) != stored:
                raise ValueError(
                    f"all dicts of an ArraySource must have the fields of the first, {_show_fields(stored)} in "
                    f"{self._label(0)}, got {_show_fields(_spec(block))} in {self._label(place)}"
                )
        self._spec = stored if fields is None else _serve(stored, fields)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def element_spec(self) -> ElementSpec:
        return unflatten(self._spec)

    def take(self, record_ids: RecordIds) -> Records:
        block_ids = np.searchsorted(self._starts, record_ids, side="right") - 1
        out = {name: np.empty((len(record_ids), *spec.shape), spec.dtype) for name, spec in self._spec.items()}
        for block_id in np.unique(block_ids):
            here = block_ids == block_id
            for name, array in self._blocks[block_id].items():
                out[name][here] = array[record_ids[here] - self._starts[block_id]]
        return unflatten(out)

    def locate(self, record_id: int) -> str:
        """The files and bytes where the record begins, or else the row of its dict."""
        block_id = int(np.searchsorted(self._starts, record_id, side="right")) - 1
        row = record_id - int(self._starts[block_id])
        places = {name: file_location(array, row) for name, array in self._blocks[block_id].items()}
        if any(places.values()):
            label = "{}: {}" if len(places) > 1 else "{1}"
            return "; ".join(label.format(name, place) for name, place in places.items() if place)
        origin = self._origins[block_id] if self._origins else f"dict {block_id}" if len(self._blocks) > 1 else ""
        return f"{origin}, row {row:,}" if origin else ""

    def blocks(self) -> Sequence[Mapping[str, np.ndarray]]:
        return self._blocks

    def content_digest(self) -> bytes:
        """The identity of the content in a mixture's fingerprint."""
        digest = digest_blocks(self._blocks)
        stored = self._blocks[0]
        widened = {name: spec.dtype.name for name, spec in self._spec.items() if spec.dtype != stored[name].dtype}
        return hashlib.sha256(digest + json.dumps(widened, sort_keys=True).encode()).digest() if widened else digest

    def _label(self, place: int) -> str:
        return self._origins[place] if place < len(self._origins) else f"dict {place}"

    def __repr__(self) -> str:
        return f"ArraySource({_show_fields(self._spec)}, length={len(self)})"


def _show_fields(fields: Mapping[str, jax.ShapeDtypeStruct]) -> str:
    shown = {name: f"{spec.dtype.name}{list(spec.shape)}" for name, spec in fields.items()}
    return shown.get("") or "{" + ", ".join(f"{name}: {field}" for name, field in shown.items()) + "}"


def _check_block(arrays: Any, where: str, fields: Sequence[FieldSpec] | None) -> dict[str, np.ndarray]:
    """The arrays by name, only those of `fields` if there are some; `where` names the file in errors."""
    if fields is not None:
        arrays = _select(arrays, fields, where)
    is_alone = is_array(arrays)
    if not is_alone and not isinstance(arrays, Mapping | list | tuple):
        raise TypeError(f"an ArraySource needs a dict of arrays, or one array, got {show(arrays)}{_hint(arrays)}")
    if not is_alone and not arrays:
        raise ValueError(f"an ArraySource needs at least one array, got {show(arrays)}")
    # `flatten` gives an array alone the name "".
    block = {name: np.asarray(array) for name, array in flatten(to_arrays(arrays)).items()}
    for name, array in block.items():
        if array.dtype.kind in "USO":
            raise TypeError(
                f"the field {name!r}{where} must be an array of numbers, got {array.dtype}, such as "
                f"{show(array.flat[:1])}: turn text into token ids first; a list of records goes into a "
                "RandomAccessSource"
            )
        if array.ndim == 0:
            raise ValueError(
                f"the field {name!r}{where} needs a leading dimension of records, got the single number "
                f"{show(array[()])}; a list of records goes into a RandomAccessSource"
            )
        try:
            dtype_name(array.dtype)
        except TypeError as error:
            raise TypeError(f"the field {name!r}{where} cannot be served: {error}") from None
    lengths = {name: len(array) for name, array in block.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"all arrays of an ArraySource must have one leading length, got {lengths}{where}")
    return {name: _with_contiguous_rows(array) for name, array in block.items()}


def _select(arrays: Any, fields: Sequence[FieldSpec], where: str) -> dict[str, Any]:
    """The arrays that `fields` names, by their new names."""
    if not isinstance(arrays, Mapping):
        raise TypeError(f"fields of an ArraySource need dicts of arrays, got {show(arrays)}{where}")
    by_name = cast(Mapping[str, Any], arrays)
    twice = sorted({field.name for field in fields if [other.name for other in fields].count(field.name) > 1})
    if twice or not fields:
        what = f"{show_names(twice)} would be served twice; rename one" if twice else "name at least one"
        raise ValueError(f"fields: {what}")
    for field in fields:
        if field.source not in by_name:
            there = show_names(sorted(by_name))
            raise ValueError(f"fields.{field.name}: no field {field.source!r:.100} is stored{where}; there are {there}")
    return {field.name: by_name[field.source] for field in fields}


def _serve(stored: Mapping[str, jax.ShapeDtypeStruct], fields: Sequence[FieldSpec]) -> dict[str, jax.ShapeDtypeStruct]:
    """The spec of the selected arrays, with the dtypes that `fields` names. Raises ValueError if one is too narrow."""
    specs = {field.name: stored[leaf_name(field.name)] for field in fields}
    known = {field.source: Stored(specs[field.name].dtype, specs[field.name].shape) for field in fields}
    return {
        leaf_name(field.spec.name): jax.ShapeDtypeStruct(field.shape, field.dtype)
        for field in serve_fields(known, fields)
    }


def _hint(arrays: Any) -> str:
    if isinstance(arrays, str):
        return "; to name the source pass name=, and to serve a file load it with np.load(path, mmap_mode='r')"
    if hasattr(arrays, "__len__") and hasattr(arrays, "__getitem__"):
        return "; an object with records by number goes into a RandomAccessSource"
    return ""


def _with_contiguous_rows(array: np.ndarray) -> np.ndarray:
    # Copies only if the bytes of a row are not adjacent; slices and reversals of rows stay views.
    return array if len(array) == 0 or array[0].flags.c_contiguous else np.ascontiguousarray(array)


def _spec(block: Mapping[str, np.ndarray]) -> dict[str, jax.ShapeDtypeStruct]:
    return {name: jax.ShapeDtypeStruct(array.shape[1:], array.dtype) for name, array in block.items()}

"""An object with `__len__` and `__getitem__` whose items are records -> a source."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from os import PathLike
from typing import Any, Protocol, cast

import jax
import numpy as np

from mixserve.error_boundary import WrongRecord
from mixserve.sources.array_like import to_arrays
from mixserve.sources.location import locate
from mixserve.sources.source import ElementSpec, RecordIds, Records
from mixserve_client.forks import PerProcess
from mixserve_client.schema.checks import check_integer
from mixserve_client.schema.text import show
from mixserve_client.schema.tree import flatten, unflatten


class RandomAccess(Protocol):
    """The methods that data sets of Grain, PyTorch and Hugging Face share with lists."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class RandomAccessSource:
    """The items of `data`: dicts, or other nested containers, of arrays and numbers.

    A list of numbers in an item is an array: int64 or float64, as NumPy makes it. It reads items through the object's
    batched hook if there is one (`_getitems` of Grain, `__getitems__` of PyTorch and Hugging Face), else in up to
    `threads` threads. In batches, all items must have the spec of the first one. Items that hold strings or other
    objects can only be iterated.
    """

    def __init__(self, data: RandomAccess, *, name: str | None = None, threads: int = 8, content_id: str | None = None):
        """`content_id` identifies the data in the fingerprint: a string that changes when they do (default:
        `data.content_id`, if there is one).

        Raises TypeError if `data` is not indexed by numbers, ValueError if it has no items or `threads` is below 1.
        """
        _check_data(data)
        check_integer("threads", threads, 1)
        self.name = name
        self.content_id: str | None = content_id or getattr(data, "content_id", None)
        self._data = data
        self._thread_count = threads
        # A pool's threads do not exist in a forked process, which therefore gets its own.
        self._threads = PerProcess(partial(ThreadPoolExecutor, threads, "mixserve-read"))
        self._batched = getattr(data, "__getitems__", None) or getattr(data, "_getitems", None)

    def __len__(self) -> int:
        return len(self._data)

    def _getitems(self, indices: Sequence[int]) -> Sequence[Any]:
        """Grain's batched hook: the items, with arrays in place of lists of numbers if the source has batches.

        None means that a filter has dropped the record.
        """
        items = self._items(list(indices))
        return [to_arrays(item) for item in items] if self._has_batches else items

    def element_spec(self) -> ElementSpec:
        return unflatten(self._spec)

    def take(self, record_ids: RecordIds) -> Records:
        ids = record_ids.tolist()
        rows = [_arrays(item) for item in self._items(ids)]
        for record_id, row in zip(ids, rows, strict=True):
            if _spec(row) != self._spec:
                raise WrongRecord(
                    f"all items of {self!r} must have the spec of the first, {self._spec}; "
                    f"record {record_id} has {_spec(row)}"
                )
        return unflatten({name: np.stack([row[name] for row in rows]) for name in self._spec})

    def locate(self, record_id: int) -> str:
        """Where the record lies, if `data` has a `locate` that says it; otherwise empty."""
        return locate(self._data, record_id)

    def __reduce__(self) -> Any:
        return partial(RandomAccessSource, name=self.name, threads=self._thread_count, content_id=self.content_id), (
            self._data,
        )

    def __repr__(self) -> str:
        return f"RandomAccessSource({type(self._data).__name__}, length={len(self)})"

    @cached_property
    def _spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        return _spec(_arrays(self._items([0])[0]))

    @cached_property
    def _has_batches(self) -> bool:
        try:
            return not any(spec.dtype.kind in "OUSMm" for spec in self._spec.values())
        except Exception:  # of the user's `data`, which a mixture reports when it asks for the spec
            return False

    def _items(self, ids: list[int]) -> Sequence[Any]:
        if self._batched is not None:
            return self._batched(ids)
        if len(ids) == 1 or self._thread_count == 1:
            return [self._data[record_id] for record_id in ids]
        return list(self._threads.here.map(self._data.__getitem__, ids))


def _check_data(data: Any) -> None:
    hint = ""
    if isinstance(data, Mapping):
        hint = ", which is indexed by keys: use ArraySource for a dict of arrays, and a list for items"
    elif isinstance(data, str | bytes | PathLike):
        hint = f" ({show(data, 80)}): open the file, and pass the object that has its records"
    elif not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
        hint = ": make a list of it, or pass a data set with random access"
    if hint:
        raise TypeError(f"data must have __len__ and __getitem__ by number, got a {type(data).__name__}{hint}")
    if len(cast(RandomAccess, data)) == 0:
        raise ValueError(f"a RandomAccessSource needs at least one item, which has its spec, got {show(data)}")


def _arrays(item: Any) -> dict[str, np.ndarray]:
    return {name: np.asarray(leaf) for name, leaf in flatten(to_arrays(item)).items()}


def _spec(row: dict[str, np.ndarray]) -> dict[str, jax.ShapeDtypeStruct]:
    return {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in row.items()}

"""Single records -> the arrays of a batch."""

from typing import Any

import jax
import numpy as np

from mixserve.error_boundary import WrongRecord, user_code
from mixserve.failed_read import Read, at_index


class Rows:
    """Records in the order in which they were read, and where each is from."""

    def __init__(self) -> None:
        self._records = list[Any]()
        self._reads = list[Read | None]()

    def __len__(self) -> int:
        return len(self._records)

    def add(self, record: Any, read: Read | None) -> None:
        self._records.append(record)
        self._reads.append(read)

    def stack(self, first: int) -> Any:
        """Arrays of shape (rows, *field shape), per field. `first` is the index of the first record in the epoch.

        Raises WrongRecord, which names a record, if fields or shapes of the records differ.
        """
        with user_code("stacking records"):
            try:
                return _stack(*self._records)
            except ValueError as error:
                self._explain(first, error)
                raise

    def _explain(self, first: int, error: ValueError) -> None:
        """Raises WrongRecord for the first record that does not go with the one before it."""
        for place in range(1, len(self)):
            try:
                _stack(*self._records[place - 1 : place + 1])
            except ValueError as found:
                said = _difference(self._records[place - 1], self._records[place]) or f"{found!s:.300}"
                where = at_index(first + place, self._reads[place])
                wrong = WrongRecord(f"{where} cannot be stacked on the record before it: {said}")
                wrong.read, wrong.position = self._reads[place], first + place
                try:
                    raise wrong from error
                finally:
                    del wrong  # as in error_boundary: its traceback leads to this frame


def _stack(*records: Any) -> Any:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *records)


def _difference(before: Any, here: Any) -> str:
    """The first field that only one of two records has, or whose shapes differ; empty if there is none."""
    one, other = _shapes(before), _shapes(here)
    for path in one | other:
        if path not in one or path not in other:
            return f"only {'that one' if path in one else 'this one'} has the field {path:.100}"
        if one[path] != other[path]:
            return f"the field {path:.100} has the shapes {list(one[path])} and {list(other[path])}"
    return ""


def _shapes(record: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree.leaves_with_path(record)
    return {jax.tree_util.keystr(path): np.shape(leaf) for path, leaf in leaves}

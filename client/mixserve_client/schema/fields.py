"""The fields of a row, and its provenance."""

from dataclasses import dataclass
from enum import IntEnum
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from mixserve_client.schema.dtypes import DType

# A flat batch, as nearly all are. Cast the type of others: nested batches hold dicts, tuples or lists in place of
# arrays, and a mixture whose records are single arrays has arrays as batches.
Batch = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Field:
    """One field of an element; in a batch its array has the shape (size, *shape)."""

    name: str
    dtype: DType
    shape: tuple[int, ...]

    def __hash__(self) -> int:
        return hash(self.name)  # fields are looked up with every batch, and those of one mixture have distinct names

    @property
    def nbytes(self) -> int:
        """The bytes of this field in one row."""
        return prod(self.shape) * self.dtype.itemsize


class Content(IntEnum):
    """The content of a row: the record, its provenance, or both."""

    RECORDS = 0
    RECORDS_AND_PROVENANCE = 1
    PROVENANCE = 2


# The fields of provenance.
PROVENANCE = (Field("source_id", np.dtype(np.int32), ()), Field("record_id", np.dtype(np.int64), ()))


def content_fields(fields: tuple[Field, ...], content: Content) -> tuple[Field, ...]:
    """The fields of a row with that content; `fields` are those of the mixture's records."""
    records = () if content == Content.PROVENANCE else fields
    return records if content == Content.RECORDS else (*records, *PROVENANCE)


def provenance_obstacle(fields: tuple[Field, ...]) -> str | None:
    """Why `source_id` and `record_id` cannot be added to records with these fields; None if they can."""
    names = {field.name.partition("/")[0] for field in fields}
    taken = sorted(field.name for field in PROVENANCE if field.name in names)
    if taken:
        return f"records already have the fields {taken}; rename them, or request no provenance"
    if any(name == "" or name.startswith(("~t", "~l")) for name in names):
        return "provenance can only be added to records that are dicts: request it alone, with get_plan_at"
    return None

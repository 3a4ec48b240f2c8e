"""Descriptions of mixtures: fields, sources, fingerprint and limits."""

from dataclasses import dataclass

from mixserve_client.schema.fields import Field
from mixserve_client.schema.schedule import ScheduleEntry


@dataclass(frozen=True, slots=True)
class SourceDescription:
    """A source: its name, its number of records, and its share of the mixture, in 0..1, from position 0 on.

    `pass_end`: in epoch mode, the number of positions that hold the first pass over the source, to within a block; None
    if the pass never ends. `content_unknown`: whether the records can change without changing the fingerprint.
    """

    name: str
    length: int
    weight: float
    pass_end: int | None = None
    content_unknown: bool = False


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits on one request: rows, and bytes of array data in one reply."""

    size: int
    reply_bytes: int


@dataclass(frozen=True, slots=True)
class MixtureDescription:
    """A mixture as its server describes it; equal fingerprints mean equal batches.

    `end` is the first position after the end, None if the mixture is endless. `schedule` has weights, each with the
    position from which they apply. `leaves` are the names of the sources; `source_id` is an index into them.
    """

    name: str
    fingerprint: str
    fields: tuple[Field, ...]
    sources: tuple[SourceDescription, ...]
    limits: Limits
    placement: str
    sampling: str
    block_size: int = 0
    stop: str = "never"
    end: int | None = None
    schedule: tuple[ScheduleEntry, ...] = ()
    leaves: tuple[str, ...] = ()

    @property
    def element_spec(self) -> dict[str, Field]:
        """The fields of a record, by name."""
        return {field.name: field for field in self.fields}

    @property
    def weights(self) -> tuple[float, ...]:
        """The shares of the sources at position 0, in their order; they sum to 1."""
        return tuple(source.weight for source in self.sources)

    @property
    def row_bytes(self) -> int:
        """The bytes of one row, over all fields."""
        return sum(field.nbytes for field in self.fields)

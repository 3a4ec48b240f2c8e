"""What a mixture holds: its fields, sources, fingerprint and limits."""

from dataclasses import dataclass

from mixserve_client.schema.fields import Field
from mixserve_client.schema.schedule import ScheduleEntry


@dataclass(frozen=True, slots=True)
class SourceDescription:
    """A source: its name, its number of records, and its share of the mixture in 0..1, from position 0 on.

    `pass_end`: in epoch mode, the positions that hold the first pass over it, to within a block; None where it never
    ends. `content_unknown`: the fingerprint cannot tell when the records of this source change.
    """

    name: str
    length: int
    weight: float
    pass_end: int | None = None
    content_unknown: bool = False


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may ask for: rows, and bytes of array data in its reply."""

    size: int
    reply_bytes: int


@dataclass(frozen=True, slots=True)
class MixtureDescription:
    """A mixture as its server describes it; equal fingerprints mean equal batches.

    `end` is the first position that does not exist, None where there is no end. `schedule` has the weights by the
    position from which on they hold. `leaves` are the names that the `source_id` of a row counts.
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
        """The fields by name."""
        return {field.name: field for field in self.fields}

    @property
    def weights(self) -> tuple[float, ...]:
        """The shares of the sources, in their order; they sum to 1."""
        return tuple(source.weight for source in self.sources)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row over all fields."""
        return sum(field.nbytes for field in self.fields)

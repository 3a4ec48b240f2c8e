"""A source of a server, as a client that reads its records by their ids knows it."""

from dataclasses import dataclass

from mixserve_client.schema.fields import Field


@dataclass(frozen=True, slots=True)
class RecordSource:
    """The source `name` of a mixture.

    `content` is what identifies its records in the fingerprint of a mixture, empty if that is unknown. `fingerprint` is
    that of the source alone: it covers fields, length and content. `content_sampled`: whether records that are not in a
    sample of 66 can change without changing both.
    """

    mixture: str
    name: str
    fields: tuple[Field, ...]
    length: int
    content: bytes
    fingerprint: str
    content_sampled: bool = False

    @property
    def row_bytes(self) -> int:
        """The bytes of one record, over all fields."""
        return sum(field.nbytes for field in self.fields)

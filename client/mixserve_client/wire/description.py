"""What a mixture holds <-> bytes: its fields, sources, fingerprint and limits."""

from dataclasses import dataclass
from math import prod

import numpy as np
from google.protobuf.message import DecodeError

from mixserve_client.errors import CorruptReply
from mixserve_client.wire._generated import mix_pb2
from mixserve_client.wire.dtypes import DType, dtype_name, dtype_named
from mixserve_client.wire.request import Content
from mixserve_client.wire.schedule import ScheduleEntry, entry_message, entry_of


@dataclass(frozen=True, slots=True)
class Field:
    """One field of an element; in a batch its array has the shape (size, *shape)."""

    name: str
    dtype: DType
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of one row of this field."""
        return prod(self.shape) * self.dtype.itemsize


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


# What a row's provenance consists of.
PROVENANCE = (Field("source_id", np.dtype(np.int32), ()), Field("record_id", np.dtype(np.int64), ()))


def content_fields(fields: tuple[Field, ...], content: Content) -> tuple[Field, ...]:
    """The fields of a row with that content, of a mixture with these fields."""
    records = () if content == Content.PROVENANCE else fields
    return records if content == Content.RECORDS else (*records, *PROVENANCE)


def provenance_obstacle(fields: tuple[Field, ...]) -> str | None:
    """Why `source_id` and `record_id` cannot stand beside these fields; None where they can."""
    names = {field.name.partition("/")[0] for field in fields}
    taken = sorted(field.name for field in PROVENANCE if field.name in names)
    if taken:
        return f"records have fields {taken} of their own; rename them, or leave provenance out"
    if any(name == "" or name.startswith(("~t", "~l")) for name in names):
        return "provenance is added to records that are dicts, and these are none: ask for it alone, with get_plan_at"
    return None


def encode_mixture(mixture: MixtureDescription) -> bytes:
    """The Mixture message."""
    return mix_pb2.Mixture(
        name=mixture.name,
        fingerprint=mixture.fingerprint,
        fields=[mix_pb2.Field(name=f.name, dtype=dtype_name(f.dtype), shape=f.shape) for f in mixture.fields],
        sources=[
            mix_pb2.Source(
                name=s.name,
                length=s.length,
                weight=s.weight,
                pass_end=s.pass_end or 0,
                content_unknown=s.content_unknown,
            )
            for s in mixture.sources
        ],
        limits=mix_pb2.Limits(size=mixture.limits.size, reply_bytes=mixture.limits.reply_bytes),
        placement=mixture.placement,
        sampling=mixture.sampling,
        block_size=mixture.block_size,
        stop=mixture.stop,
        end=mixture.end or 0,
        schedule=map(entry_message, mixture.schedule),
        leaves=mixture.leaves,
    ).SerializeToString()


def decode_mixture(data: bytes) -> MixtureDescription:
    """The mixture described by a Mixture message. Raises CorruptReply."""
    try:
        message = mix_pb2.Mixture.FromString(data)
        fields = tuple(Field(f.name, dtype_named(f.dtype), tuple(f.shape)) for f in message.fields)
    except (DecodeError, KeyError) as error:
        raise CorruptReply(f"the server's description of the mixture cannot be read: {error}") from error
    if message.limits.size < 1 or any(dim < 0 for field in fields for dim in field.shape):
        raise CorruptReply(f"the server describes a mixture with impossible limits or shapes: {message}")
    return MixtureDescription(
        name=message.name,
        fingerprint=message.fingerprint,
        fields=fields,
        sources=tuple(
            SourceDescription(s.name, s.length, s.weight, s.pass_end or None, s.content_unknown)
            for s in message.sources
        ),
        limits=Limits(message.limits.size, message.limits.reply_bytes),
        placement=message.placement,
        sampling=message.sampling,
        block_size=message.block_size,
        stop=message.stop,
        end=message.end or None,
        schedule=tuple(map(entry_of, message.schedule)),
        leaves=tuple(message.leaves),
    )


def encode_names(names: tuple[str, ...]) -> bytes:
    """The ListMixturesReply message."""
    return mix_pb2.ListMixturesReply(names=names).SerializeToString()


def decode_names(data: bytes) -> tuple[str, ...]:
    """The names of the mixtures that a server holds. Raises CorruptReply."""
    try:
        return tuple(mix_pb2.ListMixturesReply.FromString(data).names)
    except DecodeError as error:
        raise CorruptReply(f"the server's list of mixtures cannot be read: {error}") from error

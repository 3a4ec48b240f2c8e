"""Descriptions of mixtures <-> bytes."""

import math
import re
from collections.abc import Collection, Sequence
from math import prod

from mixserve_client.errors import CorruptReply
from mixserve_client.schema.dtypes import dtype_name, dtype_named
from mixserve_client.schema.fields import Field
from mixserve_client.schema.mixture import Limits, MixtureDescription, SourceDescription
from mixserve_client.schema.positions import POSITION_LIMIT
from mixserve_client.schema.schedule import ScheduleEntry
from mixserve_client.schema.tree import unflatten
from mixserve_client.wire._generated import mix_pb2
from mixserve_client.wire.reply import parse_reply
from mixserve_client.wire.schedule import entry_message, entry_of

_FINGERPRINT = re.compile(r"([0-9a-f]{2}){1,64}", re.ASCII)
# protobuf has no larger messages, and NumPy at most 64 dimensions, of which one is for the batch.
_ROW_BYTES, _DIMENSIONS = 1 << 31, 63
_FIELDS, _SOURCES, _LEAVES, _NAMES = 1 << 16, 1 << 20, 1 << 22, 1 << 20
_LEVELS, _ALL_LEVELS = 1000, 1 << 18  # of one name, and of all together
_LARGEST_BLOCK = 1 << 32
_SUM_ERROR = 1e-3


def encode_mixture(mixture: MixtureDescription) -> bytes:
    """The Mixture message."""
    # On the wire, 0 stands for None in `pass_end` and `end`.
    return mix_pb2.Mixture(
        name=mixture.name,
        fingerprint=mixture.fingerprint,
        fields=field_messages(mixture.fields),
        sources=[
            mix_pb2.Source(
                name=s.name,
                length=s.length,
                weight=s.weight,
                pass_end=s.pass_end or 0,
                content_unknown=s.content_unknown,
                content_sampled=s.content_sampled,
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
    """The description in a Mixture message. Raises CorruptReply if it describes no mixture that can exist."""
    message = parse_reply(mix_pb2.Mixture, data)
    try:
        fields = read_fields(message.fields)
        sources = _sources(message.sources)
        if not message.name or not _FINGERPRINT.fullmatch(message.fingerprint):
            raise ValueError(f"a mixture must have a name and a fingerprint, got {message.fingerprint!r:.100}")
        limits = Limits(message.limits.size, message.limits.reply_bytes)
        if limits.size < 1 or limits.reply_bytes < 0:
            raise ValueError(f"limits must be positive, got {limits}")
        if not 0 <= message.block_size <= _LARGEST_BLOCK or message.end < 0:
            raise ValueError(f"block_size {message.block_size} must be in 0..2^32, end {message.end} at least 0")
        if len(message.leaves) > _LEAVES:
            raise ValueError(f"a mixture has at most {_LEAVES} leaves, got {len(message.leaves)}")
        schedule = _schedule(message.schedule, len(sources))
    except (ValueError, KeyError) as error:
        raise CorruptReply(f"the server's description of the mixture is invalid: {error!s:.500}") from error
    return MixtureDescription(
        name=message.name,
        fingerprint=message.fingerprint,
        fields=fields,
        sources=sources,
        limits=limits,
        placement=message.placement,
        sampling=message.sampling,
        block_size=message.block_size,
        stop=message.stop,
        end=message.end or None,
        schedule=schedule,
        leaves=tuple(message.leaves),
    )


def field_messages(fields: Collection[Field]) -> list[mix_pb2.Field]:
    """The Field messages."""
    return [mix_pb2.Field(name=field.name, dtype=dtype_name(field.dtype), shape=field.shape) for field in fields]


def read_fields(messages: Collection[mix_pb2.Field]) -> tuple[Field, ...]:
    """Raises ValueError or KeyError if these cannot be the fields of a record."""
    if not 1 <= len(messages) <= _FIELDS:
        raise ValueError(f"a record has 1 to {_FIELDS} fields, got {len(messages)}")
    found, levels = dict[str, Field](), 0
    for one in messages:  # the first that cannot be ends it: there may be many, and each takes some microseconds
        if len(one.shape) > _DIMENSIONS or any(dim < 0 for dim in one.shape):
            raise ValueError(f"the field {one.name!r:.100} cannot have the shape {list(one.shape[:9])!r:.100}")
        depth = one.name.count("/")
        levels += depth
        if one.name in found or depth > _LEVELS or levels > _ALL_LEVELS:
            raise ValueError(f"the names of fields must be different and at most {_LEVELS} levels deep")
        found[one.name] = Field(one.name, dtype_named(one.dtype), tuple(one.shape))
    fields = tuple(found.values())
    # Zeros count as ones: NumPy cannot make arrays of huge shapes even if a dimension of 0 makes them empty.
    size = sum(field.dtype.itemsize * prod(max(1, dim) for dim in field.shape) for field in fields)
    if size > _ROW_BYTES:
        raise ValueError(f"a record must have at most {_ROW_BYTES} bytes, got {size:.3g}")
    try:
        unflatten(dict.fromkeys(found))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the fields do not make up a record: {error!s:.200}") from error
    return fields


def _sources(messages: Collection[mix_pb2.Source]) -> tuple[SourceDescription, ...]:
    """Raises ValueError if these cannot be the sources of a mixture."""
    if not 1 <= len(messages) <= _SOURCES:
        raise ValueError(f"a mixture has 1 to {_SOURCES} sources, got {len(messages)}")
    found = dict[str, SourceDescription]()
    for s in messages:  # as of fields
        if s.name in found:
            raise ValueError("the names of sources must be different")
        if s.length < 0 or s.pass_end < 0:
            raise ValueError("length and pass_end of a source must be at least 0")
        found[s.name] = SourceDescription(
            s.name, s.length, s.weight, s.pass_end or None, s.content_unknown, s.content_sampled
        )
    sources = tuple(found.values())
    total = math.fsum(_check_weights([source.weight for source in sources]))
    if not abs(total - 1) <= _SUM_ERROR:
        raise ValueError(f"the weights of the sources must sum to 1, got {total:g}")
    return sources


def _schedule(messages: Collection[mix_pb2.ScheduleEntry], sources: int) -> tuple[ScheduleEntry, ...]:
    """Raises ValueError if these cannot be the schedule of so many sources."""
    if any(len(one.weights) != sources for one in messages):
        raise ValueError(f"an entry of the schedule must have {sources} weights")
    entries = tuple(map(entry_of, messages))
    before = -1
    for start, weights in entries:
        if not before < start < POSITION_LIMIT:
            raise ValueError(f"the starts of a schedule must be strictly increasing, got {start} after {before}")
        before = start
        if not 0 < sum(_check_weights(weights)) < math.inf:
            raise ValueError("the weights of an entry of the schedule must have a positive, finite sum")
    return entries


def _check_weights(weights: Sequence[float]) -> Sequence[float]:
    for weight in weights:
        if not 0 <= weight < math.inf:
            raise ValueError(f"weights must be finite and at least 0, got {weight}")
    return weights


def encode_names(names: tuple[str, ...]) -> bytes:
    """The ListMixturesReply message."""
    return mix_pb2.ListMixturesReply(names=names).SerializeToString()


def decode_names(data: bytes) -> tuple[str, ...]:
    """The names of a server's mixtures. Raises CorruptReply."""
    found = parse_reply(mix_pb2.ListMixturesReply, data).names
    if len(found) > _NAMES:
        raise CorruptReply(f"a server has at most {_NAMES} mixtures, got the names of {len(found)}")
    names = tuple(found)
    if not all(names) or len(set(names)) < len(names):
        raise CorruptReply("the names of the server's mixtures must be different and not empty")
    return names

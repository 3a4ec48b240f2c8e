"""A node under a name, and how the server describes it to clients."""

from functools import cached_property

from mixserve.mixture.mixture import SAMPLING
from mixserve.node import MixDataSourcesNode
from mixserve.sources import is_array_backed
from mixserve_client.wire.description import Limits, MixtureDescription, SourceDescription

_REPLY_BYTES = 16 << 20
_SIZE = 1 << 16
# A reply is one protobuf message, which cannot pass 2 GiB.
_LARGEST_ROW_BYTES = 1 << 30


class HostedMixture:
    """What a server knows of one mixture."""

    def __init__(self, name: str, node: MixDataSourcesNode):
        """Raises ValueError where a record is too large for a reply."""
        self.name = name
        self.node = node
        self.row_bytes = sum(field.nbytes for field in node.mixture.fields)
        if self.row_bytes > _LARGEST_ROW_BYTES:
            raise ValueError(f"a record must be at most 2^30 bytes, got {self.row_bytes} in the mixture {name!r}")
        self.is_array_backed = all(map(is_array_backed, node.mixture.leaves))
        self.is_gathered_by_copying = self.is_array_backed and node.placement == "host"

    @cached_property
    def description(self) -> MixtureDescription:
        """Fields, sources, fingerprint and limits; the first use reads the sources for the fingerprint."""
        mixture = self.node.mixture
        described = zip(mixture.names, mixture.lengths, mixture.shares, strict=True)
        return MixtureDescription(
            name=self.name,
            fingerprint=mixture.fingerprint,
            fields=mixture.fields,
            sources=tuple(SourceDescription(*source) for source in described),
            limits=Limits(max(1, min(_SIZE, _REPLY_BYTES // max(1, self.row_bytes))), _REPLY_BYTES),
            placement=self.node.placement,
            sampling=SAMPLING,
        )

    def warm_up(self) -> None:
        """Compute the description, and compile what batches need."""
        self.node.warm_up(self.description.limits.size)

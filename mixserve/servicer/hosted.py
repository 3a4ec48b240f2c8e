"""A node under a name, and its description for clients."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from mixserve.failed_read import FailedRead, position_at
from mixserve.metrics.clients import ClientNames
from mixserve.metrics.replies import MixtureFigures, ReplyNotes
from mixserve.mixture.blocks import PlanBlocks
from mixserve.mixture.content import SAMPLED_RECORDS
from mixserve.mixture.gather import SourceReader
from mixserve.mixture.leaves import AnyPlanner
from mixserve.mixture.sampling import EPOCH
from mixserve.mixture.schedule import Schedule
from mixserve.node import MixDataSourcesNode, PendingRows
from mixserve.sources import is_array_backed
from mixserve_client.schema.fields import Content, Field, content_fields
from mixserve_client.schema.keys import KeyWords
from mixserve_client.schema.mixture import Limits, MixtureDescription, SourceDescription
from mixserve_client.schema.positions import Range
from mixserve_client.schema.requests import Sender
from mixserve_client.schema.schedule import ScheduleEntry
from mixserve_client.schema.text import show_names
from mixserve_client.wire.mixture import encode_mixture

_logger = logging.getLogger("mixserve")

_REPLY_BYTES = 16 << 20
_SIZE = 1 << 16
# Every source adds a draw to each position; 2^20 draws take about 30 ms. 256 positions are always allowed, so that a
# mixture of very many sources still serves batches.
_PLANNED_DRAWS, _LEAST_SIZE = 1 << 20, 256
# A reply is one protobuf message, which cannot pass 2 GiB.
_LARGEST_ROW_BYTES = 1 << 30


def plan_limit(planner: AnyPlanner) -> int:
    """How many positions to plan in one go: about 30 ms, for which other readers wait."""
    return max(_LEAST_SIZE, _PLANNED_DRAWS // planner.cost)


class HostedMixture:
    """What a server knows of one mixture."""

    def __init__(self, name: str, node: MixDataSourcesNode, clients: ClientNames | None = None):
        """`clients` are the names of those who read (None: of this mixture alone).

        Raises ValueError if a record is too large for a reply.
        """
        self.name = name
        self.node = node
        row_bytes = sum(field.nbytes for field in node.mixture.fields)
        if row_bytes > _LARGEST_ROW_BYTES:
            raise ValueError(f"a record must be at most 2^30 bytes, got {row_bytes} in the mixture {name!r}")
        self._row_bytes = row_bytes
        self.figures = MixtureFigures(node.mixture.leaf_names, node.mixture.leaf_shares, clients or ClientNames())
        self.is_array_backed = all(map(is_array_backed, node.mixture.leaves))
        # Arrays on a device are gathered there, asynchronously: streams overlap that with their copies.
        self.is_gathered_by_copying = self.is_array_backed and node.placement == "host"

    @property
    def only_copies(self) -> bool:
        """Whether no record is read by code of a source: all are rows of arrays, on the host or on a device."""
        return self.is_array_backed

    def is_cold(self) -> bool:
        """Whether records are being read from disks now."""
        return self.node.mixture.host_gather.is_cold()

    @cached_property
    def description(self) -> MixtureDescription:
        """Fields, sources, fingerprint and limits. The first use reads the sources, for the fingerprint."""
        mixture, sampling = self.node.mixture, self.node.mixture.sampling
        sources = zip(
            mixture.names,
            mixture.lengths,
            mixture.shares,
            mixture.pass_ends(),
            mixture.unknown_contents(),
            mixture.sampled_contents(),
            strict=True,
        )
        return MixtureDescription(
            name=self.name,
            fingerprint=mixture.fingerprint,
            fields=mixture.fields,
            sources=tuple(SourceDescription(*source) for source in sources),
            limits=Limits(
                max(1, min(_SIZE, _REPLY_BYTES // max(1, self._row_bytes), plan_limit(mixture.planner))),
                _REPLY_BYTES,
            ),
            placement=self.node.placement,
            sampling=sampling.mode,
            block_size=sampling.block_size if sampling.mode == EPOCH else 0,
            stop=sampling.stop,
            end=mixture.planner.end,
            schedule=tuple(ScheduleEntry(*entry) for entry in sampling.schedule.entries),
            leaves=mixture.leaf_names,
        )

    @cached_property
    def encoded_description(self) -> bytes:
        """The Mixture message. Encoded once: with a schedule of 2^20 weights it has 8 MiB."""
        return encode_mixture(self.description)

    def warm_up(self) -> None:
        """Compute the description, and compile the programs that the first batches need.

        Logs a warning if the fingerprint covers only samples of some sources.
        """
        sampled = [source.name for source in self.description.sources if source.content_sampled]
        if sampled:
            _logger.warning(
                "the fingerprint of the mixture %r covers only %d records of each of these sources: %s. Changes of "
                "other records, and differences between replicas, will go unnoticed; give the sources a content_id",
                self.name,
                SAMPLED_RECORDS,
                show_names(sampled),
            )
        self.node.warm_up(self.description.limits.size, first=True)


@dataclass(frozen=True)
class ServedSelection:
    """What one request's positions refer to: a mixture, planned by the `blocks` of `schedule` (empty: its own), which
    has these `weights`."""

    mixture: HostedMixture
    blocks: PlanBlocks
    schedule: str
    content: Content
    weights: Schedule

    @cached_property
    def fields(self) -> tuple[Field, ...]:
        """The fields of a row."""
        return content_fields(self.mixture.description.fields, self.content)

    @cached_property
    def row_bytes(self) -> int:
        """Bytes of one row over all fields."""
        return sum(field.nbytes for field in self.fields)

    @property
    def fingerprint(self) -> str:
        """The mixture's fingerprint."""
        return self.mixture.description.fingerprint

    @property
    def is_array_backed(self) -> bool:
        """Whether rows are copied from arrays, or need no data at all."""
        return self.mixture.is_array_backed or self.content == Content.PROVENANCE

    @property
    def is_gathered_by_copying(self) -> bool:
        """As that of the mixture."""
        return self.mixture.is_gathered_by_copying

    def identity(self, key: KeyWords) -> tuple[object, ...]:
        """Selections with equal identities have equal rows at equal positions."""
        # The mixture itself, not its fingerprint: a source without a content_digest adds none of its content to that,
        # so two mixtures of one server would get each other's records.
        return self.mixture, self.schedule, self.content, key.tobytes()

    def notes(self, sender: Sender, key: KeyWords) -> ReplyNotes:
        """Takes notes of the replies to a request of `sender`."""
        figures = self.mixture.figures
        reader = figures.readers.note_request(sender, (key.tobytes(), self.schedule))
        return ReplyNotes(figures, reader, self.row_bytes, self.weights)

    def locate(self, failed: FailedRead, ranges: Sequence[Range]) -> FailedRead:
        """`failed`, with the position in front; `ranges` are those that were read."""
        return failed.at(position_at(ranges, failed.slot))

    def begin_read(self, ranges: Sequence[Range], key: KeyWords, reader: SourceReader | None = None) -> PendingRows:
        """Plan the rows of `ranges`, and begin to gather them; `reader` reads sources that need that (None: the thread
        that waits for the rows). Raises OutOfRange."""
        return self.mixture.node.begin_read(key, ranges, self.blocks, self.content, reader)

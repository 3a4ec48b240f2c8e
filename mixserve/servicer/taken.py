"""A source of a hosted mixture whose records are taken by their ids, in place of positions."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
from jaxtyping import Int

from mixserve.failed_read import FailedRead
from mixserve.metrics.replies import ReplyNotes
from mixserve.mixture.fingerprint import records_fingerprint
from mixserve.mixture.gather import SourceReader
from mixserve.mixture.leaves import Plan
from mixserve.node import PendingRows
from mixserve.servicer.hosted import HostedMixture
from mixserve.sources import is_array_backed, is_keyed
from mixserve.sources.hops import passing_on
from mixserve_client.errors import FingerprintMismatch, InvalidRequest, OutOfRange, UnknownSource
from mixserve_client.schema.fields import Content, Field
from mixserve_client.schema.keys import KeyWords
from mixserve_client.schema.positions import Range
from mixserve_client.schema.records import RecordSource
from mixserve_client.schema.requests import RecordsRequest, Sender
from mixserve_client.schema.text import show, show_names

NO_KEY: KeyWords = np.zeros(2, np.uint32)  # records depend on their ids alone


class TakenSources:
    """The sources of one mixture, as others read them by their ids."""

    def __init__(self, mixture: HostedMixture):
        self._mixture = mixture
        self._numbers = {name: number for number, name in enumerate(mixture.node.mixture.leaf_names)}
        self._known: dict[int, RecordSource] = {}  # each at its first use: a mixture may have 2^20

    def number(self, name: str) -> int:
        """The number of the source called `name`, which may be empty if there is only one.

        Raises UnknownSource, and InvalidRequest for an empty name if there are several, and for a source whose records
        depend on a key.
        """
        number = self._numbers.get(name, 0 if not name and len(self._numbers) == 1 else -1)
        known = f"one of {show_names(self._numbers)}, got {show(name, 100)}"
        if number < 0:
            if not name:
                raise InvalidRequest(f"source is required: this mixture has several; it must be {known}")
            raise UnknownSource(f"source must be {known}: the mixture {self._mixture.name!r} has no other")
        if is_keyed(self._mixture.node.mixture.leaves[number]):
            raise InvalidRequest(
                f"the records of the source {show(name, 100)} depend on a key too, so they cannot be taken by their ids"
            )
        return number

    def describe(self, number: int) -> RecordSource:
        """The source of that number."""
        found = self._known.get(number)
        if found is None:
            mixture = self._mixture.node.mixture
            length, fields = len(mixture.leaves[number]), mixture.fields
            content, is_sampled = mixture.leaf_content(number)
            print_ = records_fingerprint(fields, length, content)
            name = mixture.leaf_names[number]
            found = RecordSource(self._mixture.name, name, fields, length, content, print_, is_sampled)
            self._known[number] = found
        return found

    def select(self, wanted: RecordsRequest) -> "TakenSelection":
        """What the record ids of a request refer to. Raises as `number` does, FingerprintMismatch, and OutOfRange."""
        number = self.number(wanted.source)
        source = self.describe(number)
        if wanted.expected_fingerprint not in ("", source.fingerprint):
            raise FingerprintMismatch(
                f"the source {source.name!r:.100} of the mixture {source.mixture!r:.100} has the fingerprint "
                f"{source.fingerprint}, expected {wanted.expected_fingerprint:.100}: its records would differ; ask "
                "GetSource for its description"
            )
        least, most = int(wanted.record_ids.min()), int(wanted.record_ids.max())
        if least < 0 or most >= source.length:
            raise OutOfRange(
                f"record_ids must be in 0..{source.length - 1}, the records of the source {source.name!r:.100}, got "
                f"{least if least < 0 else most}"
            )
        return TakenSelection(self._mixture, number, source, wanted.hops)


@dataclass(frozen=True)
class TakenSelection:
    """What the record ids of one request refer to: the source with that number."""

    mixture: HostedMixture
    number: int
    source: RecordSource
    hops: int

    @property
    def fields(self) -> tuple[Field, ...]:
        """The fields of a record."""
        return self.source.fields

    @cached_property
    def row_bytes(self) -> int:
        """Bytes of one record over all fields."""
        return self.source.row_bytes

    @property
    def fingerprint(self) -> str:
        """That of the source."""
        return self.source.fingerprint

    @cached_property
    def is_array_backed(self) -> bool:
        """Whether records are copied from arrays."""
        return is_array_backed(self.mixture.node.mixture.leaves[self.number])

    @property
    def is_gathered_by_copying(self) -> bool:
        """As `is_array_backed`: records are copied on the host, also if a device has the mixture's."""
        return self.is_array_backed

    def identity(self, key: KeyWords) -> tuple[object, ...]:  # noqa: ARG002
        """Selections with equal identities have equal rows for equal ids."""
        # With the hops: in a circle of servers a request must not wait for the reply that it is made for.
        return self.mixture, "records", self.number, self.hops

    def notes(self, sender: Sender, key: KeyWords) -> ReplyNotes:  # noqa: ARG002
        """Takes notes of the replies to a request of `sender`."""
        figures = self.mixture.figures
        reader = figures.readers.note_request(sender, ("records", self.number))
        return ReplyNotes(figures, reader, self.row_bytes, None)

    def locate(self, failed: FailedRead, ranges: Sequence[Range]) -> FailedRead:  # noqa: ARG002
        """The error for a record that cannot be read, which names it already."""
        return failed

    def begin_read(
        self,
        ranges: Sequence[Range],
        key: KeyWords,  # noqa: ARG002
        reader: SourceReader | None = None,
    ) -> PendingRows:
        """Begin to gather the records of `ranges`; `reader` is as in `ServedSelection.begin_read`."""
        record_ids = _expand(ranges)
        plan = Plan(np.full(len(record_ids), self.number, np.int32), record_ids)
        begin = partial(self.mixture.node.mixture.host_gather.begin, reader=reader)
        with passing_on(self.hops):
            return PendingRows(plan, Content.RECORDS, self.fields, begin)


def _expand(ranges: Sequence[Range]) -> Int[np.ndarray, " size"]:
    """The record ids of (first, size) ranges, one after another."""
    pairs = np.array(ranges, np.int64)
    firsts, sizes = pairs[:, 0], pairs[:, 1]
    ends = np.cumsum(sizes)
    return np.repeat(firsts - (ends - sizes), sizes) + np.arange(int(ends[-1]), dtype=np.int64)

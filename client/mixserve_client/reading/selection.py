"""What a position means: a mixture, a key, a schedule, and the content of a row."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mixserve_client.errors import FingerprintMismatch, InvalidRequest
from mixserve_client.reading.schedule import Schedule
from mixserve_client.reading.source_list import describe_sources
from mixserve_client.rpc.asking import Asking
from mixserve_client.schema.fields import PROVENANCE, Batch, Content, Field, content_fields, provenance_obstacle
from mixserve_client.schema.keys import KeyWords
from mixserve_client.schema.mixture import MixtureDescription, differences
from mixserve_client.schema.positions import Positions
from mixserve_client.schema.requests import BatchRequest, PositionsRequest, Sender
from mixserve_client.schema.tree import unflatten
from mixserve_client.wire import methods
from mixserve_client.wire.request import encode_batch_request, encode_positions_request


@dataclass(frozen=True)
class Selection:
    """Everything in a request for batches except positions.

    Raises InvalidRequest if the records cannot carry provenance, or if the server is too old for the selection.
    """

    mixture: MixtureDescription
    words: KeyWords
    schedule: Schedule
    content: Content = Content.RECORDS

    def __post_init__(self) -> None:
        mixture, obstacle = self.mixture, None
        if self.content == Content.RECORDS_AND_PROVENANCE:
            obstacle = provenance_obstacle(mixture.fields)
        # Newer servers describe at least one entry. An older one would skip the unknown fields of a request, and answer
        # with other batches.
        if not mixture.schedule and (self.content != Content.RECORDS or self.schedule.entries):
            obstacle = "this server is older than schedules and provenance, and would ignore them; update it"
        if obstacle is not None:
            raise InvalidRequest(obstacle)

    @property
    def fingerprint(self) -> str:
        """The mixture's fingerprint."""
        return self.mixture.fingerprint

    @cached_property
    def sources(self) -> str:
        """The mixture's sources as a state holds them."""
        return describe_sources(self.mixture.sources)

    @cached_property
    def asking(self) -> Asking:
        """What all requests for it have in common."""
        return Asking(self.schedule.definitions, self.fingerprint, mixture=self.mixture.name)

    @cached_property
    def fields(self) -> tuple[Field, ...]:
        """The fields of a row."""
        return content_fields(self.mixture.fields, self.content)

    @cached_property
    def row_bytes(self) -> int:
        """Bytes of one row over all fields."""
        return sum(field.nbytes for field in self.fields)

    @cached_property
    def request_without_rows(self) -> bytes:
        """The encoded request for one batch, to which `with_rows` adds the rows."""
        return encode_batch_request(self.request(0, 0))

    def request(self, start: int, size: int) -> BatchRequest:
        """The request for the rows [start, start + size)."""
        mixture = self.mixture
        return BatchRequest(mixture.name, start, size, self.words, mixture.fingerprint, self.schedule.id, self.content)

    @property
    def method_of_lists(self) -> str:
        """The path of the method for `list_request`."""
        return methods.STREAM_POSITIONS

    def list_request(self, positions: Positions, reply_rows: int, sender: Sender) -> bytes:
        """The encoded request for the rows at any positions."""
        mixture, schedule = self.mixture, self.schedule.id
        request = PositionsRequest(
            mixture.name,
            positions,
            self.words,
            reply_rows,
            mixture.fingerprint,
            schedule,
            self.content,
            sender=sender,
        )
        return encode_positions_request(request)

    def check_fingerprint(self, fingerprint: str) -> None:
        """Raises FingerprintMismatch if rows of a mixture with that fingerprint are of another one."""
        check_fingerprint(self.mixture, fingerprint)

    def record(self, batch: dict[str, Any]) -> Batch:
        """The batch, nested as the records on the server are, with the provenance beside their outermost fields."""
        if self.content == Content.RECORDS:
            return unflatten(batch)
        added: Mapping[str, Any] = {field.name: batch.pop(field.name) for field in PROVENANCE}
        return unflatten(batch) | added if batch else added


def check_fingerprint(known: MixtureDescription, fingerprint: str, now: MixtureDescription | None = None) -> None:
    """Raises FingerprintMismatch if a server's mixture is not the known one, with what differs from it `now`."""
    if fingerprint != known.fingerprint:
        changed = "" if now is None else f" What has changed: {differences(known, now)}."
        raise FingerprintMismatch(
            f"the mixture {known.name!r} has the fingerprint {fingerprint:.100}, expected {known.fingerprint}: its "
            f"batches would differ.{changed} Connect a new client to use the mixture as it is now"
        )

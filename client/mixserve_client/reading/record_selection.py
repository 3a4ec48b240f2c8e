"""What record ids refer to: a source, and for how many servers its records are read."""

from dataclasses import dataclass
from functools import cached_property

from mixserve_client.errors import FingerprintMismatch
from mixserve_client.rpc.asking import Asking
from mixserve_client.schema.fields import Field
from mixserve_client.schema.positions import Positions
from mixserve_client.schema.records import RecordSource
from mixserve_client.schema.requests import RecordsRequest, Sender
from mixserve_client.wire import methods
from mixserve_client.wire.request import encode_records_request


@dataclass(frozen=True)
class RecordSelection:
    """Everything in a request for records of a source except their ids."""

    source: RecordSource
    hops: int

    @property
    def fingerprint(self) -> str:
        """The source's fingerprint."""
        return self.source.fingerprint

    @property
    def fields(self) -> tuple[Field, ...]:
        """The fields of a record."""
        return self.source.fields

    @cached_property
    def row_bytes(self) -> int:
        """Bytes of one record over all fields."""
        return self.source.row_bytes

    @cached_property
    def asking(self) -> Asking:
        """What all requests for it have in common."""
        return Asking(fingerprint=self.source.fingerprint, mixture=self.source.mixture)

    @property
    def method_of_lists(self) -> str:
        """The path of the method for `list_request`."""
        return methods.TAKE_RECORDS

    def list_request(self, positions: Positions, reply_rows: int, sender: Sender) -> bytes:
        """The encoded request for the records of these ids."""
        source, hops = self.source, self.hops
        request = RecordsRequest(
            source.mixture, source.name, positions, reply_rows, source.fingerprint, hops, sender=sender
        )
        return encode_records_request(request)

    def check_fingerprint(self, fingerprint: str) -> None:
        """Raises FingerprintMismatch if records with that fingerprint are of another source."""
        if fingerprint != self.fingerprint:
            raise FingerprintMismatch(
                f"the source {self.source.name!r:.100} has the fingerprint {fingerprint:.100}, expected "
                f"{self.fingerprint}: its records would differ"
            )

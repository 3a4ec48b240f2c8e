"""Rows of a node in flight: planned, being gathered, and finally written into host arrays."""

from collections.abc import Callable

from mixserve.mixture.gather import Buffers
from mixserve.mixture.leaves import Plan
from mixserve_client.schema.fields import PROVENANCE, Content, Field


class PendingRows:
    """The rows of a plan. Gathering their records has begun, unless `content` leaves records out."""

    __slots__ = ("_content", "_record_fields", "_write_records", "plan")

    def __init__(
        self,
        plan: Plan,
        content: Content,
        fields: tuple[Field, ...],
        begin_gather: Callable[[Plan], Callable[[Buffers], None]],
    ):
        """`fields` are those of a record, without provenance."""
        self.plan = plan
        self._content = content
        self._record_fields = () if content == Content.PROVENANCE else fields
        self._write_records = None if content == Content.PROVENANCE else begin_gather(plan)

    def write(self, buffers: Buffers) -> None:
        """Wait for the rows, and write them into host arrays of the stored dtypes, one per field. May be repeated."""
        if self._content != Content.RECORDS:
            source_id, record_id = (buffers[field.name] for field in PROVENANCE)
            source_id[:], record_id[:] = self.plan.source_ids, self.plan.record_ids
            buffers = {field.name: buffers[field.name] for field in self._record_fields}
        if self._write_records is not None:
            self._write_records(buffers)

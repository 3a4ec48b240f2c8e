"""`next` within a span."""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mixserve_client.reading.batches import Batches
from mixserve_client.schema.fields import Batch

if TYPE_CHECKING:
    from mixserve_client.spans import Spans


def next_in_span(spans: "Spans", batches: Batches) -> Batch:
    """`batches.next()`, within a span of its own. What is requested meanwhile belongs to it.

    A batch that was requested before has come by requests of an earlier span, to which this one has links.
    """
    with spans.next() as span:
        if not span.is_recording():
            return batches.next()
        prefetched, since = batches.first_in_flight(), time.perf_counter()
        batch = batches.next()
        wait_s = time.perf_counter() - since
        requests = [stream.request for stream in prefetched]
        spans.took(span, batches.mixture_name, batches.checkpoint.group, _rows(batch), wait_s, requests)
    return batch


def _rows(batch: Mapping[str, Any]) -> int:
    found: Any = batch
    while isinstance(found, Mapping):
        found = next(iter(found.values()))  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    return len(found)  # pyright: ignore[reportUnknownArgumentType]

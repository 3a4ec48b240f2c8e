"""The former place of `BatchIterator`; pickles of older clients name this module."""

from typing import Any

from mixserve_client.options import BatchOptions
from mixserve_client.reading.batches import Batches
from mixserve_client.reading.iterator import BatchIterator
from mixserve_client.reading.state import StreamCheckpoint

__all__ = ["BatchIterator"]


def _unpickled(  # pyright: ignore[reportUnusedFunction]
    client: Any,
    options: dict[str, Any],
    own_skips: Any,
    beginning: tuple[Any, ...],
    group: int | None,
    closed: bool,
    short: int | None = None,  # the oldest pickles lack this one
) -> BatchIterator:
    start, key, schedule, skips = beginning
    first = BatchOptions(**options | {"start": start, "key": key, "schedule": schedule, "skip": skips.plain})
    checkpoint = StreamCheckpoint(options["start"], group, short)
    batches = Batches.at(client.catalog, BatchOptions(**options), first, own_skips, checkpoint)
    return BatchIterator(batches, closed=closed)

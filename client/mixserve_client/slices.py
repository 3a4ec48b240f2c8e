"""A batch cut into requests: pure arithmetic on positions."""

from collections.abc import Iterator

from mixserve_client.wire.description import MixtureDescription

# Measured: replies of 1-4 MB, a few in flight, move the most bytes per second over gRPC.
_REPLY_BYTES = 2 << 20


def slices(mixture: MixtureDescription, size: int) -> Iterator[tuple[int, int]]:
    """(offset, rows) of the requests that make up a batch of `size` rows, in order.

    No slice passes the mixture's limits; all but the last have equal sizes.
    """
    rows = min(mixture.limits.size, max(1, _REPLY_BYTES // max(1, mixture.row_bytes)))
    for offset in range(0, size, rows):
        yield offset, min(rows, size - offset)


def shard_rows(size: int, shard: tuple[int, int]) -> tuple[int, int]:
    """(offset, rows) of shard (i, n) in a batch of `size` rows: the rows [i*size//n, (i+1)*size//n)."""
    index, count = shard
    first, last = index * size // count, (index + 1) * size // count
    return first, last - first

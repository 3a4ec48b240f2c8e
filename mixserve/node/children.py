"""What a node is given as sources -> what a mixture reads, and Grain's data set of their single records."""

from collections.abc import Sequence
from typing import Any

import grain

from mixserve.error_boundary import user_code
from mixserve.sources import AnySource, FollowsReference, ReferenceSource, Source, read_record

_LEAST_SHARE = 1e-300  # Grain counts in multiples of the least share, which must be a float


def as_source(source: Any) -> AnySource:
    """`source` itself, or an adapter over a source of the reference's protocol. Raises TypeError for anything else."""
    if isinstance(source, Source):
        return source
    if isinstance(source, FollowsReference):
        return ReferenceSource(source)
    raise TypeError(
        "a source needs __len__, element_spec() and take(record_ids) or get_batch_at(start, size, key), "
        f"got {source!r}; wrap what has __len__ and __getitem__ in a RandomAccessSource"
    )


def mixed_records(sources: Sequence[Any], shares: Sequence[float]) -> grain.IterDataset:
    """The records of all sources that have a share, one by one, interleaved by Grain."""
    drawn = [(source, share) for source, share in zip(sources, shares, strict=True) if share > 0]
    least = min(share for _, share in drawn)
    if least < _LEAST_SHARE:
        raise ValueError(f"to iterate, the least weight must be at least {_LEAST_SHARE} of all, or 0, got {least}")
    return grain.IterDataset.mix([_records(source) for source, _ in drawn], [share for _, share in drawn])


def _records(source: Any) -> grain.IterDataset:
    if hasattr(source, "to_grain_iter_dataset"):
        with user_code("to_grain_iter_dataset of {!r:.200}", source):
            return source.to_grain_iter_dataset()
    # Grain's default is 16 threads per source.
    return grain.MapDataset.source(_Records(source)).to_iter_dataset(grain.ReadOptions(0, 0))


class _Records:
    """A source as Grain's random access."""

    def __init__(self, source: Any):
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Any:
        return read_record(self._source, index)

    def __repr__(self) -> str:
        return repr(self._source)

"""The configuration of a mixing node."""

import warnings
from collections.abc import Iterable, Mapping, Set
from dataclasses import KW_ONLY, dataclass, replace
from numbers import Integral
from typing import Any

import jax
import numpy as np

from mixserve.mixture.programs import PLAN_SIZES
from mixserve.mixture.sampling import BLOCK_SIZE, CATEGORICAL, EPOCH, NEVER, Sampling, round_up
from mixserve.mixture.schedule import Entry, Schedule, Shares, normalised
from mixserve.module import StructuralConfig
from mixserve_client.schema.positions import POSITION_LIMIT
from mixserve_client.schema.text import show

_LARGEST_PLAN = 1 << 16
PLACEMENTS = ("auto", "host", "device")


@dataclass(frozen=True, eq=False)
class MixDataSourcesConfig(StructuralConfig):
    """How sources are mixed: `num_sources` of them, drawn in proportion to `weights`, each positive or zero.

    `weights` are normalised to shares that sum to 1.

    `sampling` is `categorical`, with replacement, or `epoch`: exact shares in every block of `block_size` positions,
    and no record repeats before the pass over its source ends. In epoch mode `stop` is `never`, `first_exhausted` or
    `all_exhausted`. `schedule` has the weights of later positions: pairs (from position, weights), ascending. In epoch
    mode they begin at the next block boundary.

    `placement` is where rows are gathered: `host`, `device`, or `auto`, which chooses by size and backend.
    `source_names` replace the sources' own names. `content_ids` identify the content of the sources in the fingerprint:
    per source a string that changes when its content does, or None to leave it to the source.

    Batches are planned in buckets of `plan_sizes` positions, ascending; each size is a program that is compiled once.
    The sizes do not affect the bytes of a batch: with fewer, a first start is faster, but more positions are planned in
    vain.

    `stochastic=True` is set to False, and `stream_name` to None, with a warning.

    Raises ValueError, which names the field, if a field is missing, not allowed, or does not fit another one.
    """

    num_sources: int | None = None
    weights: tuple[float, ...] | None = None
    _: KW_ONLY
    sampling: str = CATEGORICAL
    block_size: int = BLOCK_SIZE
    stop: str = NEVER
    schedule: tuple[tuple[int, tuple[float, ...]], ...] = ()
    placement: str = "auto"
    source_names: tuple[str, ...] | None = None
    content_ids: tuple[str | None, ...] | None = None
    plan_sizes: tuple[int, ...] = PLAN_SIZES

    def __post_init__(self) -> None:
        super().__post_init__()
        # The dataclass is frozen, so fields are set past its own __setattr__.
        if self.stochastic:
            # As the reference does: code that makes all its configurations in one way passes both.
            warnings.warn(
                "a mixture is never stochastic, since every batch follows from its key: stochastic is set to False, "
                "and stream_name to None",
                stacklevel=3,
            )
            object.__setattr__(self, "stochastic", False)
            object.__setattr__(self, "stream_name", None)
        if self.num_sources is None or self.weights is None:
            raise ValueError(f"num_sources and weights are required, got {self.num_sources} and {self.weights}")
        if isinstance(self.num_sources, bool) or not isinstance(self.num_sources, Integral):
            raise ValueError(f"num_sources must be an integer, got {self.num_sources!r}")
        object.__setattr__(self, "num_sources", int(self.num_sources))
        if self.num_sources < 1:
            raise ValueError(f"num_sources must be at least 1, got {self.num_sources}")
        object.__setattr__(self, "weights", _weights("weights", self.weights, self.num_sources))
        if self.source_names is not None:
            names = self.source_names
            if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
                raise ValueError(f"source_names must be a tuple of strings, got {names!r}")
            if len(names) != self.num_sources:
                raise ValueError(f"source_names must be num_sources = {self.num_sources} names, got {names}")
            object.__setattr__(self, "source_names", tuple(names))
        if self.content_ids is not None:
            ids = self.content_ids
            if not isinstance(ids, list | tuple) or len(ids) != self.num_sources:
                raise ValueError(
                    f"content_ids must be num_sources = {self.num_sources} strings or None, got {ids!r:.300}"
                )
            object.__setattr__(self, "content_ids", tuple(ids))
        object.__setattr__(self, "schedule", self._check_schedule())
        object.__setattr__(self, "plan_sizes", _plan_sizes(self.plan_sizes))
        _ = self.how_to_sample  # raises now, and not when a node is made
        if self.placement not in PLACEMENTS:
            raise ValueError(f"placement must be one of {', '.join(PLACEMENTS)}, got {self.placement!r}")

    @property
    def how_to_sample(self) -> Sampling:
        """The sampling that these fields describe. Raises ValueError if they do not fit together."""
        assert isinstance(self.weights, Shares)
        sampling = Sampling(Schedule((Entry(0, self.weights),)), self.sampling, self.block_size, self.stop)
        entries = list(sampling.schedule.entries)
        for place, (start, weights) in enumerate(self.schedule):
            begin = round_up(start, sampling.block_size) if self.sampling == EPOCH else start
            if not entries[-1].start < begin < POSITION_LIMIT:
                raise ValueError(
                    f"schedule[{place}] must start after the entry before it, which starts at {entries[-1].start}, and "
                    f"before 2^63 - 1, got {begin}"
                )
            entries.append(Entry(begin, normalised(weights)))
        return replace(sampling, schedule=Schedule(tuple(entries)))

    def _check_schedule(self) -> tuple[tuple[int, Shares], ...]:
        if not isinstance(self.schedule, list | tuple) or not all(
            isinstance(entry, list | tuple) and len(entry) == 2 for entry in self.schedule
        ):
            raise ValueError(f"schedule must be a list of pairs (from position, weights), got {self.schedule!r:.200}")
        found: list[tuple[int, Shares]] = []
        for place, (start, weights) in enumerate(self.schedule):
            if isinstance(start, bool) or not isinstance(start, Integral) or not 0 < start < POSITION_LIMIT:
                raise ValueError(
                    f"schedule[{place}] must start at a position in 1..2^63 - 2, got {start!r}; until the first entry "
                    "`weights` holds"
                )
            assert self.num_sources is not None
            found.append((int(start), _weights(f"schedule[{place}]", weights, self.num_sources)))
        return tuple(found)


def _plan_sizes(sizes: Any) -> tuple[int, ...]:
    """`sizes` as integers. Raises ValueError unless they ascend and are in 1..65536, and there is at least one."""
    if isinstance(sizes, list | tuple) and all(isinstance(s, Integral) and not isinstance(s, bool) for s in sizes):
        found = tuple(map(int, sizes))
        if found and found == tuple(sorted(set(found))) and found[0] >= 1 and found[-1] <= _LARGEST_PLAN:
            return found
    raise ValueError(f"plan_sizes must be ascending integers in 1..{_LARGEST_PLAN}, at least one, got {sizes!r:.200}")


def _weights(name: str, weights: Any, count: int) -> Shares:
    """The shares of `count` sources. Raises ValueError, which names the field."""
    if isinstance(weights, np.ndarray | jax.Array):
        weights = np.asarray(weights).tolist()
    # Iterables all the same, but of characters, of keys, or in no order.
    if isinstance(weights, str | bytes | Mapping | Set) or not isinstance(weights, Iterable):
        raise ValueError(
            f"{name} must be a tuple, list or array of numbers, in the order of the sources, got {show(weights)}"
        )
    weights = weights if isinstance(weights, tuple) else tuple(weights)
    if len(weights) != count:
        raise ValueError(f"{name} must be num_sources = {count} numbers, got {len(weights)}")
    return normalised(weights)

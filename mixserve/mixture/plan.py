"""Which record fills which slot: (key, positions, weights, lengths) -> (source ids, record ids). Integers, no I/O.

`draw` has the arithmetic. If a child of a mixture is itself a mixture, the record drawn from it is a position of the
child, and `fetch_key` is the child's key there. So plans refer to *leaves*: the sources that are not mixtures, numbered
through the whole tree. Without nested mixtures leaves and sources are the same.
"""

# JAX's own signatures have types in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Int32, UInt32

from mixserve.forked import check_jax
from mixserve.mixture.draw import Parts, draw, in_a_clean_thread, log_shares, on_cpu, padded_count, pinned_semantics
from mixserve.mixture.few import FewDraws
from mixserve.mixture.leaves import AnyKeys, AnyPlanner, Leaves, Plan
from mixserve.mixture.programs import (
    PLAN_SIZES,
    ProgramName,
    draws,
    first_sizes,
    is_being_made,
    is_ready,
    program,
    ready_program,
)
from mixserve.mixture.sampling import CATEGORICAL
from mixserve_client.errors import InvalidRequest

_WORD = 0xFFFFFFFF
_LONGEST_INT32 = 2**31 - 1


class Planner:
    """Draws the plans of one mixture, with replacement.

    `shares` are weights that sum to 1, `lengths` the numbers of records. `nested` has the planners of the children that
    are mixtures, by their number; `keyed` says whether any source takes keys. Positions are planned in buckets of
    `sizes`, ascending, so that no request size compiles a program of its own.
    """

    mode = CATEGORICAL
    block_size = 1
    end: int | None = None

    def __init__(
        self,
        shares: Sequence[float],
        lengths: Sequence[int],
        nested: Mapping[int, AnyPlanner] | None = None,
        *,
        keyed: bool = False,
        sizes: Sequence[int] = PLAN_SIZES,
    ):
        self.sizes = tuple(sizes)
        # A program takes int32 lengths. Records of longer sources are drawn from 64 bits, and worked out in NumPy.
        self.lengths = np.asarray([min(length, _LONGEST_INT32) for length in lengths], np.int32)
        self._long_lengths = np.asarray([length if length > _LONGEST_INT32 else 0 for length in lengths], np.uint64)
        self.source_count = len(shares)
        self._leaves = Leaves(self.source_count, nested or {})
        self.leaf_count = self._leaves.count
        self.cost = self.source_count + self._leaves.cost
        # By leaf, for traced plans. Nested mixtures have 0 everywhere: `_draw_traced` refuses long sources in them.
        self._leaf_long_lengths = np.zeros(self.leaf_count, np.uint64)
        self._leaf_long_lengths[self._leaves.first] = self._long_lengths
        for source_id, planner in self._leaves.nested.items():
            first = self._leaves.first[source_id]
            self._leaf_long_lengths[first : first + planner.leaf_count] = 0
        self.parts = Parts(long=bool(self._long_lengths.any()), fetch=keyed or bool(self._leaves.nested))
        self._padded_count = padded_count(self.source_count)
        self._padding = self._padded_count - self.source_count
        lengths_and_padding = np.pad(self.lengths, (0, self._padding))
        self._length_list: list[int] = self.lengths.tolist()
        self._padded_lengths = in_a_clean_thread(lambda: on_cpu(lengths_and_padding))
        in_a_clean_thread(lambda: self._weigh(shares))

    def _weigh(self, shares: Sequence[float]) -> None:
        self.log_weights = log_shares(shares)
        self._few = FewDraws(self.log_weights, self._length_list, self.parts)
        self._padded_weights = on_cpu(np.pad(self.log_weights, (0, self._padding), constant_values=-np.inf))

    def reweight(self, all_shares: Sequence[Sequence[float]]) -> Sequence["Planner"]:
        """A planner of the same sources for each of these shares; many take little longer than one."""
        made = [copy(self) for _ in all_shares]

        def weigh() -> None:
            for planner, shares in zip(made, all_shares, strict=True):
                planner._weigh(shares)

        in_a_clean_thread(weigh)
        return made

    def programs(self, *, first: bool) -> set[ProgramName]:
        own = draws(self.source_count, self.parts, first_sizes(self.sizes) if first else self.sizes)
        return own.union(*(planner.programs(first=first) for planner in self._leaves.nested.values()))

    def plan(self, key: UInt32[np.ndarray, "2"], start: int, size: int) -> Plan:
        """The plan of the positions [start, start + size); `start + size` at most 2^63 - 1."""
        return self.plan_each(key, np.arange(start, start + size, dtype=np.uint64))

    def plan_each(self, keys: AnyKeys, positions: Int[np.ndarray, " size"]) -> Plan:
        return self.begin_each(keys, positions)()

    def begin_each(self, keys: AnyKeys, positions: Int[np.ndarray, " size"]) -> Callable[[], Plan]:
        if len(positions) <= self._few.most:
            check_jax()  # as programs do: that a fork can plan must not depend on how many positions it asks for
            few = self._few.draw(keys, positions)
            if few is not None:
                return lambda: self._leaves.resolve(self._read(few, self._long_lengths))
        size, cuts = len(positions), buckets(len(positions), self.sizes)
        # Key and position as one array: each argument of a compiled program is a transfer of its own. It covers whole
        # buckets; rows after `size` are planned in vain.
        places = np.zeros((sum(cuts[-1]), 4), np.uint32)
        places[:size, :2] = keys
        places[:size, 2] = (numbers := positions.astype(np.uint64)) >> 32
        places[:size, 3] = numbers & _WORD
        drawn: list[tuple[Array, int]] = []
        for at, bucket in cuts:
            here, made = places[at : at + bucket], ready_program(self._program(bucket))
            if made is None:
                at_once = self._size_at_once(bucket)
                here, made = np.pad(here, ((0, at_once - bucket), (0, 0))), program(self._program(at_once))
            # The caller's guard is not meant for a few words on the CPU. Of all guards only this one looks at them; to
            # set the others too would take longer than the draw.
            with jax.transfer_guard_host_to_device("allow"):
                drawn.append((made(here, self._padded_weights, self._padded_lengths), bucket))
        return lambda: self._finish(drawn, size)

    def plan_traced(
        self, key: UInt32[Array, "2"], start: int | Int[Array, ""], size: int
    ) -> Int32[Array, "rows {size}"]:
        """The rows of `draw`, by leaf, inside the caller's own program. A traced `start` needs start + size <= 2^32."""
        hi, lo = _traced_halves(start)
        los = lo + jax.lax.iota(jnp.uint32, size)
        his = hi + (los < lo).astype(jnp.uint32)  # the carry: the low word wrapped
        with pinned_semantics():
            return self._draw_traced(jnp.broadcast_to(key, (size, 2)), jnp.stack([his, los], axis=1))

    def from_rows(self, rows: Int32[np.ndarray, "rows size"]) -> Plan:
        """The plan that the rows of `plan_traced` hold."""
        return self._read(rows, self._leaf_long_lengths)

    def score_words(self, key: UInt32[np.ndarray, "2"], size: int) -> bytes:
        """The bits of the floats that are compared to choose the sources of the first `size` positions."""
        # Not the chosen sources: another CPU changed 0.2 % of these words, but none of 12 million choices.
        return self.score_words_of([self], key, size)

    @staticmethod
    def score_words_of(planners: "Sequence[Planner]", key: UInt32[np.ndarray, "2"], size: int) -> bytes:
        """The score words of all `planners`, in order; they must have the same sources."""
        places = np.zeros((size, 4), np.uint32)
        places[:, :2], places[:, 3] = key, np.arange(size)
        sources = planners[0].source_count
        made = program(ProgramName(planners[0]._padded_count, size, None))

        def words() -> bytes:
            scores = [np.asarray(made(places, planner._padded_weights)) for planner in planners]
            return b"".join(found[:, :sources].tobytes() for found in scores)

        return in_a_clean_thread(words)  # checks that a user has enabled would stop at -inf, the score of a weight 0

    def _program(self, size: int) -> ProgramName:
        return ProgramName(self._padded_count, size, self.parts)

    def _size_at_once(self, bucket: int) -> int:
        """`bucket`; while its program is being made, the next larger size whose program is ready, if there is one."""
        if not is_being_made(self._program(bucket)):
            return bucket
        larger = (size for size in self.sizes if size > bucket and is_ready(self._program(size)))
        return next(larger, bucket)

    def _finish(self, drawn: list[tuple[Array, int]], size: int) -> Plan:
        check_jax()  # a program that the parent began before a fork never ends here
        columns = [np.asarray(rows)[:, :bucket] for rows, bucket in drawn]
        rows = columns[0] if len(columns) == 1 else np.concatenate(columns, axis=1)
        return self._leaves.resolve(self._read(rows[:, :size], self._long_lengths))

    def _read(self, rows: Int32[np.ndarray, "rows size"], long_lengths: np.ndarray) -> Plan:
        """The plan in the rows, with the records of long sources computed from their words."""
        source_ids, record_ids = rows[0], rows[1]
        keys = np.ascontiguousarray(rows[-2:].T).view(np.uint32) if self.parts.fetch else None
        if self.parts.long:
            lengths = long_lengths[source_ids]
            hi, lo = rows[2:4].view(np.uint32).astype(np.uint64)
            long_ids = _scale(hi, lo, lengths).astype(np.int64)
            record_ids = np.where(lengths > 0, long_ids, record_ids.astype(np.int64))
        return Plan(source_ids, record_ids, keys)

    def _draw_traced(
        self, keys: UInt32[Array, "size 2"], positions: UInt32[Array, "size 2"]
    ) -> Int32[Array, "rows size"]:
        places = jnp.concatenate([keys, positions], axis=1)
        rows = draw(places, jnp.asarray(self.log_weights), jnp.asarray(self.lengths), self.parts)
        if not self._leaves.nested:
            return rows
        sources, records, words = rows[0], rows[1], rows[-2:]
        leaves = jnp.asarray(self._leaves.first)[sources]
        inner_keys = jax.lax.bitcast_convert_type(words.T, jnp.uint32)
        inner_positions = jnp.stack([jnp.zeros_like(records), records], axis=1).astype(jnp.uint32)
        for source_id, planner in self._leaves.nested.items():
            if np.isneginf(self.log_weights[source_id]):
                continue  # never drawn
            if self._long_lengths[source_id]:
                raise ValueError(
                    "a nested mixture of more than 2^31 - 1 records cannot be drawn inside a compiled program; "
                    "call get_batch_at outside of it and pass the batch in"
                )
            # For all positions, since shapes in a program are fixed; `here` selects afterwards.
            here = sources == source_id
            inner = traceable(planner)._draw_traced(inner_keys, inner_positions)
            leaves = leaves + jnp.where(here, inner[0], 0)
            records = jnp.where(here, inner[1], records)
            if traceable(planner).parts.fetch:
                words = jnp.where(here, inner[-2:], words)
        return jnp.concatenate([leaves[None], records[None], rows[2:-2], words])


def traceable(planner: AnyPlanner) -> Planner:
    """The planner, typed as one that can draw inside a compiled program. Raises InvalidRequest if it cannot."""
    if isinstance(planner, Planner):
        return planner
    what = "a mixture with a weight schedule" if planner.mode == CATEGORICAL else f"sampling={planner.mode!r}"
    raise InvalidRequest(
        f"{what} plans on the host and cannot be drawn inside a compiled program: call get_batch_at outside of it and "
        "pass the batch in"
    )


def _traced_halves(start: int | Int[Array, ""]) -> tuple[UInt32[Array, ""], UInt32[Array, ""]]:
    if isinstance(start, int):
        return jnp.asarray(np.uint32(start >> 32)), jnp.asarray(np.uint32(start & _WORD))
    hi = start >> 32 if start.dtype.itemsize > 4 else np.uint32(0)
    return jnp.asarray(hi).astype(jnp.uint32), start.astype(jnp.uint32)


def _scale(hi: np.ndarray, lo: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """(hi << 32 | lo) * length >> 64, per element, for lengths below 2^63."""
    # Schoolbook multiplication in halves, since NumPy has no integers of 128 bits.
    word, half = np.uint64(_WORD), np.uint64(32)
    length_hi, length_lo = lengths >> half, lengths & word
    low, middle, other = lo * length_lo, lo * length_hi, hi * length_lo
    carried = (low >> half) + (middle & word) + (other & word)
    return hi * length_hi + (middle >> half) + (other >> half) + (carried >> half)


@lru_cache(maxsize=1024)
def buckets(size: int, sizes: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """(offset, one of `sizes`) of the buckets that cover `size` positions.

    With the default sizes, each 4 times the one before, they hold at most twice `size` positions, or the smallest one.
    """
    found, at = list[tuple[int, int]](), 0
    while at < size:
        left = size - at
        fitting = [bucket for bucket in sizes if left <= bucket <= 2 * left]
        below = [bucket for bucket in sizes if bucket <= left]
        bucket = fitting[0] if fitting else below[-1] if below else sizes[0]
        found.append((at, bucket))
        at += bucket
    return tuple(found)

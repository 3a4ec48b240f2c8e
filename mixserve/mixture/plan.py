"""Which record fills which slot: (key, positions, weights, lengths) -> (source ids, record ids). Integers, no I/O.

Per position p, as the reference's `get_batch_at` draws it:

1. `pos_key = fold_in(key, p)`;  2. `src_key, idx_key, fetch_key = split(pos_key, 3)`;
3. `source = categorical(src_key, log_weights)`;  4. `record = randint(idx_key, (), 0, length[source], int32)`.

A source of more than 2^31 - 1 records draws `record` from `bits(idx_key, (2,), uint32)`, taken as the (hi, lo) words of
a fraction of 2^64, by multiply and shift.

Positions have 64 bits: `fold64(key, p) = threefry_2x32(key, [p >> 32, p & 0xffffffff])`, which is `fold_in` below
2^32. Plans run on the host's CPU whatever else the machine has, so that every replica chooses the same records.
"""

# JAX's own signatures are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import threefry_2x32
from jaxtyping import Array, Float, Int, Int32, UInt32

# A request is planned in pieces of these sizes, so that no request size compiles a program of its own.
RUNGS = (16, 64, 256, 1024, 4096)
_LEAST_SOURCES = 8
_WORD = 0xFFFFFFFF
_LONGEST_INT32 = 2**31 - 1

T = TypeVar("T")


class Plan(NamedTuple):
    """The source and the record of every position."""

    source_ids: Int[np.ndarray, " size"]
    record_ids: Int[np.ndarray, " size"]


class Planner:
    """Draws the plans of one mixture; `shares` are weights that sum to 1, `lengths` numbers of records."""

    def __init__(self, shares: Sequence[float], lengths: Sequence[int]):
        self.source_count = len(shares)
        self.log_weights = log_shares(shares)
        self.lengths = np.asarray([min(length, _LONGEST_INT32) for length in lengths], np.int32)
        self._long_lengths = np.asarray([length if length > _LONGEST_INT32 else 0 for length in lengths], np.uint64)
        self.has_long_sources = bool(self._long_lengths.any())
        padding = _padded(self.source_count) - self.source_count
        padded = np.pad(self.log_weights, (0, padding), constant_values=-np.inf), np.pad(self.lengths, (0, padding))
        self._padded_weights, self._padded_lengths = _in_a_clean_thread(lambda: jax.tree.map(_on_cpu, padded))

    def warm_up(self) -> None:
        """Compile every program that `plan` may need."""
        for rung in RUNGS:
            _program(_padded(self.source_count), rung, self.has_long_sources)

    def plan(self, key: UInt32[np.ndarray, "2"], start: int, size: int) -> Plan:
        """The plan of the positions [start, start + size); `start + size` at most 2^63 - 1."""
        drawn: list[Any] = []
        for at, rung in pieces(size):
            program = _program(_padded(self.source_count), rung, self.has_long_sources)
            hi, lo = np.uint32((start + at) >> 32), np.uint32((start + at) & _WORD)
            with jax.transfer_guard("allow"):  # of a few words, on the CPU
                drawn.append(program(key, hi, lo, self._padded_weights, self._padded_lengths))
        rows = np.asarray(drawn[0]) if len(drawn) == 1 else np.concatenate(drawn, axis=1)
        return self.from_rows(rows[:, :size])

    def from_rows(self, rows: Int32[np.ndarray, "rows size"]) -> Plan:
        """The plan that `draw` drew: its rows, with the records of long sources worked out from their words."""
        plan = Plan(rows[0], rows[1])
        if not self.has_long_sources:
            return plan
        lengths = self._long_lengths[plan.source_ids]
        hi, lo = rows[2:].view(np.uint32).astype(np.uint64)
        long_ids = _scaled(hi, lo, lengths).astype(np.int64)
        return Plan(plan.source_ids, np.where(lengths > 0, long_ids, plan.record_ids.astype(np.int64)))

    def plan_traced(
        self, key: UInt32[Array, "2"], start: int | Int[Array, ""], size: int
    ) -> Int32[Array, "rows {size}"]:
        """What `draw` draws inside the caller's own program; a traced `start` must be below 2^32 - size."""
        hi, lo = _traced_halves(start)
        weights, lengths = jnp.asarray(self.log_weights), jnp.asarray(self.lengths)
        with _pinned_semantics():
            return draw(key, hi, lo, weights, lengths, size, long=self.has_long_sources)

    def score_words(self, key: UInt32[np.ndarray, "2"], size: int) -> bytes:
        """The float bits that the choices of the first `size` positions compare: a probe of this machine's numbers."""

        def score() -> np.ndarray:
            return np.asarray(jax.jit(_scores)(key, np.arange(size, dtype=np.uint32), self._padded_weights))

        return _in_a_clean_thread(score)[:, : self.source_count].tobytes()


def log_shares(shares: Sequence[float]) -> Float[np.ndarray, " sources"]:
    """float32 logarithms of the shares: cast, then one eager `jnp.log` on the CPU.

    Eager, compiled and NumPy logarithms differ in their last bits, so this is the only place that takes them.
    """
    return _in_a_clean_thread(lambda: np.asarray(jnp.log(jnp.asarray(np.asarray(shares, np.float32)))))


def draw(
    key: UInt32[Array, "2"],
    hi: UInt32[Array, ""],
    lo: UInt32[Array, ""],
    log_weights: Float[Array, " sources"],
    lengths: Int32[Array, " sources"],
    size: int,
    long: bool,
) -> Int32[Array, "rows {size}"]:
    """Steps 1 to 4 for `size` positions from (hi << 32 | lo) on: source ids and record ids as rows.

    With `long`, two more rows are the bits of the words that records of long sources are drawn from.
    """
    offsets = jax.lax.iota(jnp.uint32, size)
    los = lo + offsets
    his = hi + (los < lo).astype(jnp.uint32)

    def one(position_hi: UInt32[Array, ""], position_lo: UInt32[Array, ""]) -> Int32[Array, " rows"]:
        source_key, record_key, _ = _keys_at(key, position_hi, position_lo)
        source = jax.random.categorical(source_key, log_weights, mode="low").astype(jnp.int32)
        record = jax.random.randint(record_key, (), 0, lengths[source], dtype=jnp.int32)
        if not long:
            return jnp.stack([source, record])
        words = jax.lax.bitcast_convert_type(jax.random.bits(record_key, (2,), jnp.uint32), jnp.int32)
        return jnp.concatenate([jnp.stack([source, record]), words])

    return jax.vmap(one, out_axes=1)(his, los)


def _traced_halves(start: int | Int[Array, ""]) -> tuple[UInt32[Array, ""], UInt32[Array, ""]]:
    if isinstance(start, int):
        return jnp.asarray(np.uint32(start >> 32)), jnp.asarray(np.uint32(start & _WORD))
    hi = start >> 32 if start.dtype.itemsize > 4 else np.uint32(0)
    return jnp.asarray(hi).astype(jnp.uint32), start.astype(jnp.uint32)


def _keys_at(key: Array, hi: Array, lo: Array) -> Array:
    """Steps 1 and 2: the three keys of a position."""
    position_key = threefry_2x32(key, jnp.stack([hi, lo]))
    return jax.random.split(jax.random.wrap_key_data(position_key, impl="threefry2x32"), 3)


def _scores(key: Array, positions: Array, log_weights: Array) -> Array:
    def one(position: Array) -> Array:
        source_key = _keys_at(key, jnp.zeros((), jnp.uint32), position)[0]
        return jax.random.gumbel(source_key, log_weights.shape, jnp.float32, mode="low") + log_weights

    return jax.vmap(one)(positions)


@cache
def _program(sources: int, rung: int, long: bool) -> jax.stages.Compiled:
    """`draw` for `rung` positions, compiled once per process and shared by all mixtures of as many sources."""
    word = np.uint32(0)
    args = (np.zeros(2, np.uint32), word, word, np.zeros(sources, np.float32), np.ones(sources, np.int32))

    def compiled() -> jax.stages.Compiled:
        on_cpu = jax.tree.map(_on_cpu, args)
        return jax.jit(draw, static_argnames=("size", "long")).lower(*on_cpu, size=rung, long=long).compile()

    return _in_a_clean_thread(compiled)


def _scaled(hi: np.ndarray, lo: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """(hi << 32 | lo) * length >> 64, per element, in uint64 throughout: lengths are below 2^63."""
    word, half = np.uint64(_WORD), np.uint64(32)
    length_hi, length_lo = lengths >> half, lengths & word
    low, middle, other = lo * length_lo, lo * length_hi, hi * length_lo
    carried = (low >> half) + (middle & word) + (other & word)
    return hi * length_hi + (middle >> half) + (other >> half) + (carried >> half)


def pieces(size: int) -> list[tuple[int, int]]:
    """(offset, rung) of the pieces that cover `size` positions, with at most as many again planned in vain."""
    found, at = list[tuple[int, int]](), 0
    while at < size:
        left = size - at
        fitting = [rung for rung in RUNGS if left <= rung <= 2 * left]
        below = [rung for rung in RUNGS if rung <= left]
        rung = fitting[0] if fitting else below[-1] if below else RUNGS[0]
        found.append((at, rung))
        at += rung
    return found


def _padded(sources: int) -> int:
    """Mixtures are padded with sources that are never drawn, so that few programs serve all: exact, since each
    source's draw has a counter of its own."""
    return max(_LEAST_SOURCES, 1 << (sources - 1).bit_length())


def _in_a_clean_thread(task: Callable[[], T]) -> T:
    """What `task` gives on the CPU under the settings that decide bits.

    The caller may be tracing a program, or have set a mesh or a transfer guard: none of them reaches another thread.
    """

    def pinned() -> T:
        with _pinned_semantics(), jax.default_device(_cpu()):
            return task()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(pinned).result()


@contextmanager
def _pinned_semantics() -> Generator[None, None, None]:
    """The settings of JAX that decide bits, whatever the process has set."""
    with ExitStack() as stack:
        stack.enter_context(jax.enable_x64(False))
        stack.enter_context(jax.threefry_partitionable(True))
        stack.enter_context(jax.numpy_rank_promotion("allow"))
        stack.enter_context(jax.numpy_dtype_promotion("standard"))
        yield


def _cpu() -> Any:
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError as error:
        raise RuntimeError(
            "mixserve plans on the CPU, and JAX was told not to have one: add cpu to JAX_PLATFORMS, as in cuda,cpu"
        ) from error


def _on_cpu(array: np.ndarray | np.generic) -> jax.Array:
    return jax.device_put(array, _cpu())

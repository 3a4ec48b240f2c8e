"""The arithmetic of a draw, in JAX: keys and positions -> rows of source ids, record ids and words.

Per position p, as in the reference's `get_batch_at`:

1. `pos_key = fold_in(key, p)`;  2. `src_key, idx_key, fetch_key = split(pos_key, 3)`;
3. `source = categorical(src_key, log_weights)`;  4. `record = randint(idx_key, (), 0, length[source], int32)`.

For a source of more than 2^31 - 1 records, `bits(idx_key, (2,), uint32)` are the (hi, lo) words of a fraction of 2^64;
multiply and shift give `record`.

Positions have 64 bits: `fold64(key, p) = threefry_2x32(key, [p >> 32, p & 0xffffffff])`, which is `fold_in` below
2^32. Draws run on the host's CPU even if the machine has an accelerator, so that all replicas choose the same records.
"""

# JAX's own signatures have types in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, UInt32

from mixserve.mixture.threefry import SPELLED_OUT, hash_words

_LEAST_SOURCES = 8

T = TypeVar("T")


class Parts(NamedTuple):
    """The optional rows of a draw, besides source ids and record ids: two rows of words each, as the bits of int32.

    `long` adds the words that choose records of long sources, `fetch` those of `fetch_key`.
    """

    long: bool
    fetch: bool


def draw(
    places: UInt32[Array, "size 4"],
    log_weights: Float[Array, " sources"],
    lengths: Int32[Array, " sources"],
    parts: Parts,
) -> Int32[Array, "rows size"]:
    """Steps 1 to 4 for `places`: two words of a key, then the high and low word of a position. One column per place."""

    def one(place: UInt32[Array, "4"]) -> Int32[Array, " rows"]:
        source_words, record_words, fetch_words = _keys_at(place)
        source = jax.random.categorical(_source_key(source_words), log_weights, mode="low").astype(jnp.int32)
        record_key = jax.random.wrap_key_data(record_words, impl=SPELLED_OUT)
        record = jax.random.randint(record_key, (), 0, lengths[source], dtype=jnp.int32)
        rows = [jnp.stack([source, record])]
        if parts.long:
            rows.append(_bits(jax.random.bits(record_key, (2,), jnp.uint32)))
        if parts.fetch:
            rows.append(_bits(fetch_words))
        return jnp.concatenate(rows)

    return jax.vmap(one, out_axes=1)(places)


def padded_count(sources: int) -> int:
    """The number of sources after padding with sources that are never drawn: a power of two, at least 8."""
    # So few programs serve all mixtures. Padding changes no bits: each source's draw has its own counter.
    return max(_LEAST_SOURCES, 1 << (sources - 1).bit_length())


def log_shares(shares: Sequence[float]) -> Float[np.ndarray, " sources"]:
    """float32 logarithms of the shares: cast, then one eager `jnp.log`. Call it in a clean thread."""
    # Eager, compiled and NumPy logarithms differ in their last bits, so no other code takes them.
    return np.asarray(jnp.log(jnp.asarray(np.asarray(shares, np.float32))))


def scores(places: UInt32[Array, "size 4"], log_weights: Float[Array, " sources"]) -> Float[Array, "size sources"]:
    """The floats that are compared to choose each position's source."""

    def one(place: UInt32[Array, "4"]) -> Array:
        source_key = _source_key(_keys_at(place)[0])
        return jax.random.gumbel(source_key, log_weights.shape, jnp.float32, mode="low") + log_weights

    return jax.vmap(one)(places)


def in_a_clean_thread(task: Callable[[], T]) -> T:
    """The result of `task`, run on the CPU, in a new thread, under the settings that decide bits."""

    # The caller may be tracing a program, or have set a mesh or a transfer guard; these belong to its thread.

    def pinned() -> T:
        with pinned_to_cpu():
            return task()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(pinned).result()


@contextmanager
def pinned_to_cpu() -> Generator[None, None, None]:
    """The settings that decide bits, on the host's CPU. The thread's other JAX settings must be the defaults."""
    with pinned_semantics(), jax.default_device(cpu()):
        yield


@contextmanager
def pinned_semantics() -> Generator[None, None, None]:
    """The settings of JAX that decide bits, whatever else the process has set."""
    with ExitStack() as stack:
        stack.enter_context(jax.enable_x64(False))
        stack.enter_context(jax.threefry_partitionable(True))
        stack.enter_context(jax.numpy_rank_promotion("allow"))
        stack.enter_context(jax.numpy_dtype_promotion("standard"))
        # Off: these checks would stop at -inf, the score of a weight 0, and at the words of long sources.
        stack.enter_context(jax.debug_infs(False))
        stack.enter_context(jax.debug_key_reuse(False))
        stack.enter_context(jax.disable_jit(False))
        yield


def on_cpu(array: np.ndarray) -> Array:
    """`array` as a JAX array on the host's CPU."""
    return jax.device_put(array, cpu())


def _keys_at(place: UInt32[Array, "4"]) -> list[UInt32[Array, "2"]]:
    """Steps 1 and 2: the words of a position's three keys."""
    # `split(key, 3)[i]` is `fold_in(key, i)`. Both words of a position go into one hash: if the high word were folded
    # in first, keys of high positions would collide with those of low ones.
    position_key = hash_words((place[0], place[1]), (place[2], place[3]))
    return [jnp.stack(hash_words(position_key, (jnp.uint32(0), jnp.uint32(i)))) for i in range(3)]


def _source_key(words: UInt32[Array, "2"]) -> Array:
    # JAX's own implementation, since it draws one word per source: for many words its loop is faster than SPELLED_OUT.
    return jax.random.wrap_key_data(words, impl="threefry2x32")


def _bits(words: UInt32[Array, " n"]) -> Int32[Array, " n"]:
    return jax.lax.bitcast_convert_type(words, jnp.int32)


def cpu() -> Any:
    """The host's CPU as a JAX device. Raises RuntimeError if JAX_PLATFORMS leaves it out."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError as error:
        raise RuntimeError(
            "mixserve plans on the CPU, which JAX_PLATFORMS leaves out: add cpu to it, as in cuda,cpu"
        ) from error

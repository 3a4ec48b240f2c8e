"""The reference's algorithm as specified: one position at a time, in plain jax.random; nothing of mixserve."""

import jax
import jax.numpy as jnp
import numpy as np


def draw(
    weights: tuple[float, ...], lengths: list[int], key: jax.Array, start: int, size: int
) -> list[tuple[int, int]]:
    """(source, record) of every position in [start, start + size), start + size at most 2^32."""
    total = sum(weights)
    log_weights = jnp.log(jnp.asarray(np.asarray([weight / total for weight in weights]).astype(np.float32)))
    drawn = []
    for position in range(start, start + size):
        source, record = _draw_one(key, np.uint32(position), log_weights, np.asarray(lengths, np.int32))
        drawn.append((int(source), int(record)))
    return drawn


def _draw_one(key, position, log_weights, lengths):
    position_key = jax.random.fold_in(key, position)
    source_key, record_key, _ = jax.random.split(position_key, 3)
    source = jax.random.categorical(source_key, log_weights)
    return source, jax.random.randint(record_key, (), 0, lengths[source], dtype=jnp.int32)


draw_one_eagerly = _draw_one
_draw_one = jax.jit(_draw_one)

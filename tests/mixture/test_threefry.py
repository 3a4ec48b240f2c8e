"""Our Threefry gives the same words as JAX's, for everything that `jax.random` draws from its keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.extend.random import threefry_2x32

from mixserve.mixture.threefry import SPELLED_OUT, threefry
from tests.profiles import examples

words = st.integers(0, 2**32 - 1)


@settings(max_examples=examples(60), deadline=None)
@given(words, words, words, words)
def test_words_are_those_of_jax(k0, k1, c0, c1):
    key, counter = jnp.array([k0, k1], jnp.uint32), jnp.array([c0, c1], jnp.uint32)
    ours = threefry((key[0], key[1]), (counter[0], counter[1]))
    assert [int(word) for word in ours] == threefry_2x32(key, counter).tolist()


def test_words_are_those_of_the_published_vector():
    # Known answers of Random123, for 20 rounds.
    ones = jnp.uint32(0xFFFFFFFF)
    assert [hex(int(word)) for word in threefry((ones, ones), (ones, ones))] == ["0x1cb996fc", "0xbb002be7"]


@settings(max_examples=examples(10), deadline=None)
@given(seed=words, low=st.integers(-(2**31), 2**31 - 2), data=st.data())
def test_draws_are_those_of_jax(seed, low, data):
    high = data.draw(st.integers(low + 1, 2**31 - 1))
    drawn = []
    for impl in ("threefry2x32", SPELLED_OUT):
        key = jax.random.wrap_key_data(np.array([seed ^ 77, seed], np.uint32), impl=impl)
        drawn.append(
            [
                jax.random.randint(key, (3, 5), low, high, jnp.int32),
                jax.random.bits(key, (7,), jnp.uint32),
                jax.random.key_data(jax.random.split(key, (2, 3))),
                jax.random.key_data(jax.random.fold_in(key, seed // 2)),
                jax.random.gumbel(key, (4,), jnp.float32, mode="low"),
            ]
        )
    for ours, theirs in zip(*drawn, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_other_widths_are_refused():
    with pytest.raises(NotImplementedError, match="bit_width must be 32, got 8"):
        jax.random.bits(jax.random.wrap_key_data(np.zeros(2, np.uint32), impl=SPELLED_OUT), (1,), jnp.uint8)


def test_a_seed_is_its_word():
    assert jax.random.key_data(jax.random.key(7, impl=SPELLED_OUT)).tolist() == [0, 7]

"""A keyed bijection of [0, length): the order of one pass over a source, computed per record, without a table.

A generalised Feistel network with cycle walking: a value is a pair (left, right) in a grid of `sides`, nearly square
and just large enough; each round adds a hash of one half to the other, modulo its side; a value that ends outside the
length goes through the rounds again. On a grid of 3 x 3 the rounds give even permutations only, so that half of
all orders of, say, nine records would never occur; therefore the last bit of the key swaps the first two records.

Source: Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002, their generalised Feistel construction
and cycle walking; the hash is MurmurHash3's finaliser.
"""

import math

import numpy as np
from jaxtyping import UInt32, UInt64

# Chi-square over all orders rejects 8 rounds at 5 records and 12 rounds at 8 records, but not 16.
_ROUNDS = 16

Words = UInt64[np.ndarray, " size"]


def sides(length: int) -> tuple[int, int]:
    """The sides of the grid for values below `length`, at least 1."""
    left = math.isqrt(length - 1) + 1
    return left, -(-length // left)


def permute(
    values: Words, lengths: Words, grid: tuple[Words, Words], keys: UInt32[np.ndarray, "size 2"]
) -> UInt64[np.ndarray, " size"]:
    """The image of each value, which is below its length, under its key. `grid` has the two sides for each length."""
    key, step = keys[:, 0], keys[:, 1]
    found = _walk(values, grid, key, step)
    # Ends soon: the grid has at most one row more than needed, so few values leave the length.
    outside = np.flatnonzero(found >= lengths)
    while len(outside):
        here = grid[0][outside], grid[1][outside]
        found[outside] = _walk(found[outside], here, key[outside], step[outside])
        outside = outside[found[outside] >= lengths[outside]]
    swapped = (step & np.uint32(1)).astype(np.uint64)
    return np.where((found < 2) & (lengths > 1), found ^ swapped, found)


def _walk(
    values: Words, grid: tuple[Words, Words], key: UInt32[np.ndarray, " size"], step: UInt32[np.ndarray, " size"]
) -> Words:
    side, other = grid
    left = values // other
    right = values - left * other
    step = step | np.uint32(1)
    for _ in range(_ROUNDS):
        # hash * side >> 32 is below `side`, without the division of a modulo.
        moved = _hash(right.astype(np.uint32) ^ key).astype(np.uint64)
        moved *= side
        moved >>= np.uint64(32)
        moved += left
        left, right = right, np.minimum(moved, moved - side)  # modulo: a negative difference wraps to a large number
        side, other = other, side
        key = key + step
    return left * other + right


def _hash(words: UInt32[np.ndarray, " size"]) -> UInt32[np.ndarray, " size"]:
    """MurmurHash3's finaliser of the words, in place."""
    words ^= words >> np.uint32(16)
    words *= np.uint32(0x85EBCA6B)
    words ^= words >> np.uint32(13)
    words *= np.uint32(0xC2B2AE35)
    words ^= words >> np.uint32(16)
    return words

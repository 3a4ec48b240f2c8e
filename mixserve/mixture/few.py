"""Draws of a few positions in Python's integers and floats: the rows of `draw`, sooner than a program can be called.

To call a compiled program takes longer than a few draws do, above all in a server that does much else between two
calls. Here all steps but one are integers, and exact (`lanes.py`). The one is the choice of a source: the largest of
the scores `log(weight) - log(-log(u))`, which the program computes in float32, and this in float64. If the two largest
scores are closer than MARGIN, the program decides; otherwise both choose the same source, since the program's scores
are off by less than MARGIN / 2:

- u is one of 2^23 numbers, exact in float32. XLA's logarithm is within 4 units in the last place. So -log(u) is off by
  at most 2^-21 of itself, and the logarithm of that by 2^-21, besides its own error.
- That logarithm is below 16, so 4 of its units are at most 2^-18. The sum with log(weight), which is above -104, is
  rounded by at most 2^-18. All together is below 2^-16, an eighth of MARGIN / 2.

The tests compare the logarithms of all u; on the machine where they were first run none was off by 2^-20.
"""

from collections.abc import Sequence
from functools import lru_cache
from math import inf, log
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Int32

from mixserve.mixture.draw import Parts
from mixserve.mixture.lanes import LANE, WORD, pack, spread, threefry_lanes, unpack_lanes
from mixserve.mixture.leaves import AnyKeys

MARGIN = 2.0**-12
# Measured: with so many words in the longest step both ways take about as long in a loop. In a server, whose caches are
# cold at each call, a program takes longer.
_MOST_WORDS = 64
# u is a word's upper 23 bits by 2^23, but not 0: then it is float32's least normal number, this by 2^23.
_LEAST = 2.0**-103


class FewDraws:
    """The draws under one set of weights."""

    def __init__(self, log_weights: Float[np.ndarray, " sources"], lengths: Sequence[int], parts: Parts):
        """The arguments are those of `draw`."""
        drawn = np.flatnonzero(log_weights > -inf)
        # A single source needs no scores, and too many are left to a program.
        self.most = _MOST_WORDS // ((len(drawn) if len(drawn) > 1 else 0) + 2)  # positions that `draw` takes at a time
        self._sources: tuple[int, ...] = tuple(drawn.tolist()) if self.most else ()
        self._weights: list[float] = log_weights[drawn].tolist() if self.most else []
        self._scored = self._sources if len(self._sources) > 1 else ()
        self._lengths = lengths
        self._parts = parts

    def draw(self, keys: AnyKeys, positions: Int[np.ndarray, " size"]) -> Int32[np.ndarray, "rows size"] | None:
        """The rows of `draw` for 1 to `most` positions, under one key or each under its own.

        None if the program must choose a source.
        """
        size = len(positions)
        layout = _layout(size, self._scored, self._parts.fetch)
        ones, mask = layout.ones, layout.mask
        places = pack(positions.astype(np.uint64))
        if keys.ndim == 1:
            first, second = keys.tolist()
            key = first * ones, second * ones
        else:
            key = pack(keys[:, 0].astype(np.uint64)), pack(keys[:, 1].astype(np.uint64))
        left, right = threefry_lanes(key, (places >> 32 & mask, places & mask), ones)
        # The keys of the sources, those of the records, and those of the fetches.
        key = left * layout.keys, right * layout.keys
        left, right = threefry_lanes(key, (0, layout.key_counters), layout.key_ones)
        next_ones = LANE * size
        record_left, record_right = left >> next_ones & mask, right >> next_ones & mask
        fetch = left >> 2 * next_ones, right >> 2 * next_ones
        # The words of each source, and then the two words or keys of the records.
        scored = len(self._scored) * size
        key = (
            (left & mask) * layout.scored + (record_left * layout.pair << LANE * scored),
            (right & mask) * layout.scored + (record_right * layout.pair << LANE * scored),
        )
        left, right = threefry_lanes(key, (0, layout.counters), layout.counter_ones)
        words = unpack_lanes(left ^ right, scored + 2 * size)
        sources = self._choose(words[:scored], size)
        if sources is None:
            return None
        key = left >> LANE * scored, right >> LANE * scored
        left, right = threefry_lanes(key, (0, 0), layout.pair_ones)
        drawn = unpack_lanes(left ^ right, 2 * size)
        records = [
            _below(self._lengths[source], high, low)
            for source, high, low in zip(sources, drawn[:size], drawn[size:], strict=True)
        ]
        rows: list[Sequence[int]] = [sources, records]
        if self._parts.long:
            rows += [words[scored : scored + size], words[scored + size :]]
        if self._parts.fetch:
            rows += [unpack_lanes(fetch[0], size), unpack_lanes(fetch[1], size)]
        return np.array(rows, np.uint32).view(np.int32)

    def _choose(self, words: Sequence[int], size: int) -> list[int] | None:
        """The source of each position; `words` has those of all positions for one source after another."""
        if not self._scored:
            return [self._sources[0]] * size
        chosen = list[int]()
        for place in range(size):
            scores = [
                weight - log(-log((word >> 9 or _LEAST) * 2.0**-23))
                for weight, word in zip(self._weights, words[place::size], strict=True)
            ]
            best = max(scores)
            number = scores.index(best)
            scores[number] = -inf
            if best - max(scores) < MARGIN:
                return None
            chosen.append(self._sources[number])
        return chosen


class _Layout(NamedTuple):
    """Which lanes the steps use: integers to repeat the lanes of all positions with, counters, and a 1 in each lane."""

    ones: int
    mask: int
    keys: int
    key_counters: int
    key_ones: int
    scored: int
    pair: int
    counters: int
    counter_ones: int
    pair_ones: int


@lru_cache(maxsize=1024)
def _layout(size: int, scored: tuple[int, ...], has_fetch: bool) -> _Layout:
    ones, keys, counters = spread([1] * size), [0, 1, 2] if has_fetch else [0, 1], [*scored, 0, 1]
    return _Layout(
        ones=ones,
        mask=ones * WORD,
        keys=spread([1] * len(keys), size),
        key_counters=spread(keys, size) * ones,
        key_ones=spread([1] * len(keys), size) * ones,
        scored=spread([1] * len(scored), size),
        pair=spread([1, 1], size),
        counters=spread(counters, size) * ones,
        counter_ones=spread([1] * len(counters), size) * ones,
        pair_ones=spread([1, 1], size) * ones,
    )


def _below(length: int, high: int, low: int) -> int:
    """`jax.random.randint` in 0..length - 1 from its two words; its multiplications keep 32 bits."""
    factor = (1 << 16) % length
    factor = (factor * factor & WORD) % length
    return (high % length * factor + low % length & WORD) % length

"""A sample of ids -> what says that they were written in another dtype than they are read in."""

import numpy as np

_LEAST_IDS = 8
_HIGH = 16  # the upper half of an id of 32 bits is below it, in vocabularies of up to a million


def find_pattern(ids: np.ndarray, stored: np.dtype | None) -> str | None:
    """What is wrong with `ids`, of shape (records, ids), if most records have zeros in every second or fourth place.

    `stored` is the dtype that the user has chosen for the file, if there is one.
    """
    if ids.ndim != 2 or ids.shape[1] < _LEAST_IDS or not len(ids):
        return None
    is_full = ((ids >= _HIGH).mean(axis=1) > 1 / 5) & (ids.min(axis=1) >= 0)  # others may be padding, mostly
    for step, every in ((2, "second"), (4, "fourth")):
        # Records may begin at any place of the pattern. Ascending: the places with the smallest ids come first.
        largest = np.sort([ids[:, place::step].max(axis=1) for place in range(step)], axis=0)
        if ((largest[0] < _HIGH) & is_full).mean() >= 9 / 10:
            shown = "0" if largest[0].max() == 0 else f"below {_HIGH}"
            factor = 4 if step == 4 or _are_three_of_four_small(ids[is_full]) else 2
            return f"every {every} id is {shown}{_hint(stored, factor)}"
    return None


def _are_three_of_four_small(ids: np.ndarray) -> bool:
    largest = np.sort([ids[:, place::4].max(axis=1) for place in range(4)], axis=0)
    return bool((largest[2] < _HIGH).mean() > 9 / 10)


def _hint(stored: np.dtype | None, factor: int) -> str:
    """The dtype that is `factor` times as wide, as a question."""
    if stored is None or stored.itemsize * factor > 8:
        return ": were they written in a wider dtype?"
    size = stored.itemsize * factor * 8
    return f": is the dtype {'int64' if size == 64 else f'uint{size}'}?"

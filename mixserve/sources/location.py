"""Where a record lies, as text for people: the file and the byte at which it begins."""

from typing import Any

import numpy as np

from mixserve_client.schema.text import show


def locate(source: Any, record_id: int) -> str:
    """Where the record lies, as the source's own `locate(record_id)` says; empty if it does not know."""
    say = getattr(source, "locate", None)
    found = say(record_id) if callable(say) else None
    return found if isinstance(found, str) else "" if found is None else show(found)


def file_location(array: np.ndarray, row: int) -> str:
    """File and first byte of a row of a memory-mapped array, or of a view of one; empty for other arrays."""
    mapped: np.memmap | None = None
    base: Any = array
    while isinstance(base, np.ndarray):
        # The last one alone: NumPy copies the offset of a map to its views, which begin elsewhere.
        mapped = base if isinstance(base, np.memmap) else mapped
        base = base.base
    if mapped is None or mapped.filename is None:
        return ""
    begin = array[row:].__array_interface__["data"][0]
    byte = begin - mapped.__array_interface__["data"][0] + mapped.offset
    return f"{mapped.filename}, byte {byte:,}"

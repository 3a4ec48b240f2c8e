"""Where a record lies, as text for people: the file and the byte at which it begins."""

from typing import Any

import numpy as np

from mixserve.sources.open_file import map_of
from mixserve_client.schema.text import show


def locate(source: Any, record_id: int) -> str:
    """Where the record lies, as the source's own `locate(record_id)` says; empty if it does not know."""
    say = getattr(source, "locate", None)
    found = say(record_id) if callable(say) else None
    return found if isinstance(found, str) else "" if found is None else show(found)


def file_location(array: np.ndarray, row: int) -> str:
    """File and first byte of a row of a memory-mapped array, or of a view of one; empty for other arrays."""
    mapped = map_of(array)
    if mapped is None or mapped.filename is None:
        return ""
    begin = array[row:].__array_interface__["data"][0]
    byte = begin - mapped.__array_interface__["data"][0] + mapped.offset
    return f"{mapped.filename}, byte {byte:,}"

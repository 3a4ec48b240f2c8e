"""A user's value of any type -> a short text for an error message."""

from typing import Any


def shown(value: Any, limit: int = 100) -> str:
    """Up to `limit` characters of `repr(value)`."""
    try:
        return f"{value!r:.{limit}}"
    except ValueError:  # Python refuses to write integers of more than 4,300 digits
        if isinstance(value, int):
            return f"an integer of {value.bit_length()} bits"
        return f"a {type(value).__name__} of integers that are too long to show"

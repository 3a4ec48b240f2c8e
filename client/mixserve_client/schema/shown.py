"""A value of the user's -> a few words of an error message, whatever it is."""

from typing import Any


def shown(value: Any, limit: int = 100) -> str:
    """Up to `limit` characters of `repr(value)`. Python refuses to write integers of more than 4,300 digits."""
    try:
        return f"{value!r:.{limit}}"
    except ValueError:
        if isinstance(value, int):
            return f"an integer of {value.bit_length()} bits"
        return f"a {type(value).__name__} of integers that are too long to show"

"""Values and texts of any size -> short texts for error messages."""

import reprlib
from collections.abc import Iterable
from itertools import islice
from typing import Any

from mixserve_client.redaction import hide_tokens

VALUE_CHARACTERS = 200
MESSAGE_CHARACTERS = 2000
_NAME_CHARACTERS = 60
_MOST_NAMES = 10
_INTEGER_BITS = 512


def show(value: object, limit: int = VALUE_CHARACTERS) -> str:
    """The repr of `value`, in at most `limit` characters. Never raises, and never builds a long text first."""
    try:
        return shorten(hide_tokens(_Bounded(limit).repr(value)), limit)
    except BaseException:  # in a user's __repr__
        return f"a {type(value).__name__} without a repr"


def shorten(text: str, limit: int = MESSAGE_CHARACTERS) -> str:
    """`text`, without its middle if it is longer than `limit` characters."""
    # Both ends stay: a message often begins with the key and ends with what to do.
    if len(text) <= limit:
        return text
    cut = " … " if limit < 100 else f" …[{len(text) - limit:,} more characters]… "
    kept = max(0, limit - len(cut))
    return text[: kept - kept // 3] + cut + text[len(text) - kept // 3 :]


def escape_unprintable(text: str) -> str:
    """`text` with escapes in place of all that terminals act upon, apart from line breaks: it came from elsewhere."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char == "\n" else char.encode("unicode_escape").decode("ascii") for char in text
    )


def show_names(names: Iterable[object]) -> str:
    """The first ten names, separated by commas, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - _MOST_NAMES:,} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(shorten(str(name), _NAME_CHARACTERS) for name in islice(names, _MOST_NAMES)) + more


def describe_error(error: BaseException, limit: int = MESSAGE_CHARACTERS) -> str:
    """The message of `error`, or its class if it has none. Never raises."""
    try:
        # str() of a KeyError is the repr of its message.
        text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    except BaseException:  # in a user's __str__
        text = ""
    return shorten(text.strip(), limit) or type(error).__name__


class _Bounded(reprlib.Repr):
    def __init__(self, limit: int):
        super().__init__()
        self.maxlevel, self.maxlist, self.maxtuple, self.maxdict, self.maxset = 4, 8, 8, 8, 8
        self.maxstring = self.maxother = limit

    def repr_int(self, x: int, level: int) -> str:  # noqa: ARG002
        # Python refuses to convert integers of more than 4,300 digits.
        return str(x) if x.bit_length() <= _INTEGER_BITS else f"an integer of {x.bit_length():,} bits"

    def repr_bytes(self, x: bytes, level: int) -> str:  # noqa: ARG002
        return repr(x[: self.maxstring])

    def repr_bool(self, x: Any, level: int) -> str:  # noqa: ARG002
        return repr(x)

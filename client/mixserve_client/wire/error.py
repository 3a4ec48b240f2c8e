"""An error <-> what a failed call carries of it: a text that fits, and trailing metadata."""

import math
from collections.abc import Iterable, Mapping

from mixserve_client.errors import MixserveError, Overloaded, class_of, from_wire

ERROR_METADATUM = "mixserve-error"
RETRY_AFTER_METADATUM = "mixserve-retry-after-s"
# gRPC refuses trailers of more than 8 KiB with RESOURCE_EXHAUSTED; proxies on the way add some of their own.
_TEXT_BYTES = 4096
_LONGEST_RETRY_S = 3600.0
_CUT = " … "


def error_text(error: MixserveError) -> str:
    """What the error says, without its middle if that does not fit into a trailer."""
    return shorten(str(error))


def error_metadata(error: MixserveError) -> tuple[tuple[str, str], ...]:
    """The trailing metadata by which a client recognises the error."""
    named = (ERROR_METADATUM, class_of(error).__name__)
    if isinstance(error, Overloaded) and 0 <= error.retry_after_s <= _LONGEST_RETRY_S:
        return named, (RETRY_AFTER_METADATUM, f"{float(error.retry_after_s):.3f}")
    return (named,)


def error_of(code: str, text: str, metadata: Iterable[tuple[str, str | bytes]]) -> MixserveError:
    """The error that a failed call with this gRPC code and trailing metadata stands for."""
    found = dict(metadata)
    return from_wire(_word(found, ERROR_METADATUM), code, text, _seconds(_word(found, RETRY_AFTER_METADATUM)))


def shorten(text: str, most: int = _TEXT_BYTES) -> str:
    """`text`, of which the middle is left out if gRPC would need more than `most` bytes for it.

    The beginning says what came, the end what to do. gRPC percent-encodes what is not printable ASCII.
    """
    # No look at more than what can stay: a text may have megabytes. What UTF-8 cannot hold gRPC refuses to send.
    text = text if len(text) <= most else text[:most] + text[-most:]
    text = text.encode(errors="backslashreplace").decode()
    if sum(map(_bytes, text)) <= most:
        return text
    room = most - sum(map(_bytes, _CUT))
    first = _fitting(text, room * 3 // 4)
    last = _fitting(text[::-1], room - room * 3 // 4)
    return first + _CUT + last[::-1]


def _fitting(text: str, room: int) -> str:
    """As much of the beginning as gRPC sends in `room` bytes."""
    for at, char in enumerate(text):
        room -= _bytes(char)
        if room < 0:
            return text[:at]
    return text


def _bytes(char: str) -> int:
    return 1 if " " <= char <= "~" and char != "%" else 3 * len(char.encode())


def _word(metadata: Mapping[str, str | bytes], key: str) -> str | None:
    value = metadata.get(key)
    return value if isinstance(value, str) else None


def _seconds(word: str | None) -> float | None:
    """None where nothing was said that a client may believe."""
    try:
        number = math.nan if word is None else float(word)
    except ValueError:
        return None
    return number if 0 <= number <= _LONGEST_RETRY_S else None

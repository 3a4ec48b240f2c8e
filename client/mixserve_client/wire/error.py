"""Errors <-> the text and the trailing metadata of a failed call."""

import math
import re
from collections.abc import Iterable, Mapping

from mixserve_client.errors import MixserveError, Overloaded, class_of, from_wire
from mixserve_client.schema.text import describe_error, escape_unprintable

ERROR_METADATUM = "mixserve-error"
RETRY_AFTER_METADATUM = "mixserve-retry-after-s"
REQUEST_METADATUM = "mixserve-request"
# gRPC refuses trailers of more than 8 KiB with RESOURCE_EXHAUSTED, and proxies add trailers of their own.
_TEXT_BYTES = 4096
_LONGEST_RETRY_S = 3600.0
_CUT = " … "
_REQUEST_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)


def error_text(error: MixserveError) -> str:
    """The error's message; if it does not fit into a trailer, without its middle."""
    return shorten(describe_error(error, 2 * _TEXT_BYTES))  # a source may have raised it, and its __str__ may raise


def error_metadata(error: MixserveError) -> tuple[tuple[str, str], ...]:
    """The trailing metadata that tell a client the error's class, and the id of the request that it ends."""
    found = {ERROR_METADATUM: class_of(error).__name__}
    if error.request_id:
        found[REQUEST_METADATUM] = error.request_id
    if isinstance(error, Overloaded) and 0 <= error.retry_after_s <= _LONGEST_RETRY_S:
        found[RETRY_AFTER_METADATUM] = f"{float(error.retry_after_s):.3f}"
    return tuple(found.items())


def error_of(code: str, text: str, metadata: Iterable[tuple[str, str | bytes]]) -> MixserveError:
    """The error of a failed call with this gRPC code, text and trailing metadata."""
    found = dict(metadata)
    text = escape_unprintable(text)  # of a server that is not ours, perhaps
    error = from_wire(_text(found, ERROR_METADATUM), code, text, _seconds(_text(found, RETRY_AFTER_METADATUM)))
    request_id = _text(found, REQUEST_METADATUM) or ""
    if _REQUEST_ID.fullmatch(request_id):  # it goes into logs: not whatever a server that is not ours may send
        error.request_id = request_id
    return error


def shorten(text: str, most: int = _TEXT_BYTES) -> str:
    """`text`, without its middle if gRPC would need more than `most` bytes for it.

    A message's beginning says what came, and its end what to do. gRPC percent-encodes everything but printable ASCII.
    """
    # First cut to what can stay at most, since a text may have megabytes. gRPC fails to send lone surrogates.
    text = text if len(text) <= most else text[:most] + text[-most:]
    text = text.encode(errors="backslashreplace").decode()
    if sum(map(_bytes, text)) <= most:
        return text
    room = most - sum(map(_bytes, _CUT))
    first = _truncate(text, room * 3 // 4)
    last = _truncate(text[::-1], room - room * 3 // 4)
    return first + _CUT + last[::-1]


def _truncate(text: str, room: int) -> str:
    """The longest beginning that gRPC sends in `room` bytes."""
    for at, char in enumerate(text):
        room -= _bytes(char)
        if room < 0:
            return text[:at]
    return text


def _bytes(char: str) -> int:
    return 1 if " " <= char <= "~" and char != "%" else 3 * len(char.encode())


def _text(metadata: Mapping[str, str | bytes], key: str) -> str | None:
    value = metadata.get(key)
    return value if isinstance(value, str) else None


def _seconds(text: str | None) -> float | None:
    """The number in `text` if it is a plausible delay, otherwise None."""
    try:
        number = math.nan if text is None else float(text)
    except ValueError:
        return None
    return number if 0 <= number <= _LONGEST_RETRY_S else None

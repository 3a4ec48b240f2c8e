"""Reads what a certificate says of itself: names, issuer and dates."""

# By hand: Python decodes only certificates that it trusts, and these are shown because they are not trusted.
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import NamedTuple

_OID_NAMES = {b"\x55\x04\x03": "CN", b"\x55\x04\x0a": "O"}
_OID_SUBJECT_ALT_NAME = b"\x55\x1d\x11"
_OID_RSA, _OID_EC = bytes.fromhex("2a864886f70d010101"), bytes.fromhex("2a8648ce3d0201")
_CURVES = {
    bytes.fromhex("2a8648ce3d030107"): "P-256",
    bytes.fromhex("2b81040022"): "P-384",
    bytes.fromhex("2b81040023"): "P-521",
}
_SEQUENCE, _UTC_TIME, _OBJECT_ID, _VERSION, _EXTENSIONS = 0x30, 0x17, 0x06, 0xA0, 0xA3
_DNS, _ADDRESS = 0x82, 0x87
_TIME_FORMAT = "%Y-%m-%d %H:%M:%S UTC"
_MOST_NAMES = 10
_LONGEST = 100


class Certificate(NamedTuple):
    """A certificate in words."""

    subject: str
    issuer: str
    names: str
    not_before: str
    not_after: str


def decode(der: bytes) -> Certificate:
    """What the certificate `der` says. Raises ValueError and IndexError if it is damaged."""
    _serial, _algorithm, issuer, validity, subject, _public_key, *rest = _fields(der)
    not_before, not_after = _items(validity[1])
    names = [name for tag, value in rest if tag == _EXTENSIONS for name in _alternative_names(value)]
    return Certificate(
        _name(subject[1]),
        _name(issuer[1]),
        ", ".join(names[:_MOST_NAMES]) or "no host",
        _time(*not_before),
        _time(*not_after),
    )


def expiry(der: bytes) -> float:
    """When the certificate `der` ends, in seconds since 1970. Raises ValueError and IndexError if it is damaged."""
    _, (tag, value) = _items(_fields(der)[3][1])
    return datetime.strptime(_time(tag, value), _TIME_FORMAT).replace(tzinfo=UTC).timestamp()


def key_kind(der: bytes) -> str | None:
    """RSA, or the curve of the key of the certificate `der`; None for others. Raises ValueError and IndexError."""
    (_, algorithm), *parameters = _items(_items(_fields(der)[5][1])[0][1])
    if algorithm == _OID_RSA:
        return "RSA"
    return _CURVES.get(parameters[0][1]) if algorithm == _OID_EC and parameters else None


def _fields(der: bytes) -> list[tuple[int, bytes]]:
    """Serial number, algorithm, issuer, validity, subject, public key, and what there is more."""
    fields = _items(_items(_items(der)[0][1])[0][1])
    return fields[1:] if fields[0][0] == _VERSION else fields


def _items(data: bytes) -> list[tuple[int, bytes]]:
    """The tag and the content of each value in `data`, in DER."""
    found: list[tuple[int, bytes]] = []
    while data:
        tag, size, begin = data[0], data[1], 2
        if size & 0x80:
            begin += size & 0x7F
            size = int.from_bytes(data[2:begin])
        if begin + size > len(data):
            raise ValueError("the certificate ends within a value")
        found.append((tag, data[begin : begin + size]))
        data = data[begin + size :]
    return found


def _name(data: bytes) -> str:
    parts: list[str] = []
    for _, part in _items(data):
        (_, identifier), (_, value) = _items(_items(part)[0][1])
        if identifier in _OID_NAMES:
            parts.append(f"{_OID_NAMES[identifier]}={_text(value)}")
    return ", ".join(parts) or "no name"


def _alternative_names(data: bytes) -> list[str]:
    for _, extension in _items(_items(data)[0][1]):
        identifier, *_, content = _items(extension)
        if identifier == (_OBJECT_ID, _OID_SUBJECT_ALT_NAME):
            names = _items(_items(content[1])[0][1])
            return [
                _text(value) if tag == _DNS else str(ip_address(value))
                for tag, value in names
                if tag in (_DNS, _ADDRESS)
            ]
    return []


def _time(tag: int, value: bytes) -> str:
    text = _text(value)
    if tag == _UTC_TIME:
        text = ("19" if text[:2] >= "50" else "20") + text
    return f"{text[:4]}-{text[4:6]}-{text[6:8]} {text[8:10]}:{text[10:12]}:{text[12:14]} UTC"


def _text(value: bytes) -> str:
    # Of a server that is not trusted: no line breaks or control characters reach a terminal.
    text = value.decode("utf-8", "replace")[:_LONGEST]
    return "".join(char if char.isprintable() else "?" for char in text)

"""The part of the protobuf encoding that arrays need: tags, varints, and bytes objects that are filled in place."""

import ctypes
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

_FIELDS = 1 << 16
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

_new_bytes = ctypes.pythonapi.PyBytes_FromStringAndSize
_new_bytes.restype = ctypes.py_object
_new_bytes.argtypes = (ctypes.c_char_p, ctypes.c_ssize_t)
# Where the data of a bytes object begin; the basic size includes the zero byte after the data.
_BYTES_HEADER = bytes.__basicsize__ - 1


def varint(value: int) -> bytes:
    """`value`, at least 0, as a protobuf varint."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def tag(number: int) -> bytes:
    """The tag of a length-delimited field."""
    return varint(number << 3 | _BYTES)


def number_tag(number: int) -> bytes:
    """The tag of a varint field."""
    return varint(number << 3 | _VARINT)


def number(field: int, value: int) -> bytes:
    """A varint field: tag and value."""
    return number_tag(field) + varint(value)


def delimited(number: int, value: bytes) -> bytes:
    """A length-delimited field: tag, length and value."""
    return tag(number) + varint(len(value)) + value


def fields(message: memoryview, most: int = _FIELDS) -> Iterator[tuple[int, int | memoryview]]:
    """The fields of a message in order, as (number, varint) or (number, view of the bytes); skips fixed-size fields.

    Raises ValueError if the message is truncated or malformed, or has more than `most` fields.
    """
    at, end, left = 0, len(message), most
    while at < end:
        left -= 1
        if left < 0:
            raise ValueError(f"it has more than {most} fields")
        key, at = read_varint(message, at)
        number, kind = key >> 3, key & 7
        if not number:
            raise ValueError("a field has the number 0")
        if kind == _VARINT:
            value, at = read_varint(message, at)
            yield number, value
        elif kind == _BYTES:
            length, at = read_varint(message, at)
            if length > end - at:
                raise ValueError(f"field {number} claims {length} bytes, and {end - at} are left")
            yield number, message[at : at + length]
            at += length
        elif kind in (_FIXED64, _FIXED32):
            at += 8 if kind == _FIXED64 else 4
            if at > end:
                raise ValueError(f"field {number} is truncated")
        else:
            raise ValueError(f"field {number} has the unknown wire type {kind}")


def read_varint(message: memoryview, at: int) -> tuple[int, int]:
    """The varint at offset `at`, and the offset after it. Raises ValueError past 64 bits or the end."""
    if at < len(message) and message[at] < 0x80:  # nearly all varints have one byte
        return message[at], at + 1
    value = 0
    for length, byte in enumerate(message[at : at + 10]):
        value |= (byte & 0x7F) << 7 * length
        if byte < 0x80:
            if value >> 64:
                break
            return value, at + length + 1
    raise ValueError("a varint is truncated or longer than 64 bits")


class _Writable:
    """NumPy's array interface over the memory of a bytes object that no other code has seen yet."""

    def __init__(self, data: bytes):
        self.owner = data  # an array keeps its interface object alive, and so the bytes
        self.__array_interface__: dict[str, Any] = {
            "data": (id(data) + _BYTES_HEADER, False),  # in CPython, `id` is the address
            "shape": (len(data),),
            "typestr": "|u1",
            "version": 3,
        }


def empty_bytes(size: int) -> tuple[bytes, npt.NDArray[np.uint8]]:
    """A bytes object of undefined content, and a writable view (uint8) to fill it before other code sees it.

    Raises ValueError for sizes below 2.
    """
    # grpc sends bytes objects only, so filling one in place saves a copy of every batch. CPython's C API allows this
    # for an object that is fresh from `PyBytes_FromStringAndSize(NULL, size)`.
    if size < 2:  # CPython shares the empty and the one-byte objects
        raise ValueError(f"size must be at least 2, got {size}")
    data = _new_bytes(None, size)
    return data, writable(data)


def writable(data: bytes) -> npt.NDArray[np.uint8]:
    """A writable view (uint8) of a bytes object to which no other code has a reference."""
    return np.asarray(_Writable(data))

"""Checks of user arguments: each returns the value in its proper type, or raises an error that names it."""

import math
import operator
from typing import Any

import numpy as np

from mixserve_client.credentials import check_no_token
from mixserve_client.errors import InvalidRequest
from mixserve_client.schema.text import show


def check_integer(name: str, value: Any, least: int | None = None, most: int | None = None) -> int:
    """`value` as an int in `least`..`most`. Raises InvalidRequest with the name, also for bools."""
    try:  # `operator.index` accepts NumPy's integers and refuses floats, but a bool is an int to it
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or (least is not None and number < least) or (most is not None and number > most):
        allowed = "" if least is None else f" of at least {least}" if most is None else f" in {least}..{most}"
        raise InvalidRequest(f"{name} must be an integer{allowed}, got {show(value)}")
    return number


def check_truth(name: str, value: Any) -> bool:
    """`value` as a bool. Raises InvalidRequest with the name, for example for "no", which would count as true."""
    if type(value) not in (bool, np.bool_):
        raise InvalidRequest(f"{name} must be True or False, got {show(value)}")
    return bool(value)


def check_seconds(name: str, value: Any) -> float:
    """`value` as a positive number of seconds. Raises InvalidRequest with the name."""
    try:
        number = math.nan if isinstance(value, bool | str) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not number > 0:  # not `number <= 0`, which is False for NaN
        raise InvalidRequest(f"{name} must be a positive number of seconds, got {show(value)}")
    return number


def check_pair(name: str, pair: Any, most: int | None = None) -> tuple[int, int]:
    """`pair` as (index, count), with 0 <= index < count <= `most`. Raises InvalidRequest."""
    try:
        index, count = (check_integer(name, number) for number in pair)
    except (TypeError, ValueError):
        index, count = -1, 0
    if not 0 <= index < count <= (count if most is None else most):
        limit, size = ("", "") if most is None else (" <= batch_size", f" for batch_size {most}")
        raise InvalidRequest(f"{name} must be (index, count) with 0 <= index < count{limit}, got {show(pair)}{size}")
    return index, count


def check_mixture(name: Any) -> str:
    """`name` itself, or "" for None. Raises InvalidRequest unless it is printable text."""
    name = "" if name is None else name
    if not isinstance(name, str) or not name.isprintable():
        raise InvalidRequest(f"mixture must be the name of a mixture, got {name!r:.100}")
    check_no_token(name, "mixture must be the name of a mixture")
    return name


def check_source(name: Any) -> str:
    """`name` itself, or "" for None. Raises InvalidRequest unless it is text."""
    name = "" if name is None else name
    if not isinstance(name, str):
        raise InvalidRequest(f"source must be the name of a source, got {show(name)}")
    check_no_token(name, "source must be the name of a source")
    return name

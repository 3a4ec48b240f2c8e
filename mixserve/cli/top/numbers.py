"""Numbers -> a few characters for people."""

import math

UNKNOWN = "-"

_SIZES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
_TIMES = ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s"))


def show_rate(value: float | None, digits: int = 3) -> str:
    """A number with so many digits, all of them before the point if it is large."""
    if value is None:
        return UNKNOWN
    if not math.isfinite(value):
        return str(value)
    whole = len(str(int(abs(value)))) if abs(value) >= 1 else 1
    return f"{value:,.{max(0, digits - whole)}f}" if value else "0"


def show_count(value: float | None) -> str:
    """A whole number."""
    return UNKNOWN if value is None else f"{int(value):,}"


def show_share(value: float | None) -> str:
    """A share as a percentage."""
    return UNKNOWN if value is None else f"{value:.2%}"


def show_seconds(value: float | None, above: float = 30.0) -> str:
    """A short time; one that is infinite is more than `above`."""
    if value is None:
        return UNKNOWN
    if value == math.inf:
        return f">{above:g} s"
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        # What rounds to 1000 of a unit is 1 of the next one.
        if value * factor >= 0.9995 or unit == "µs":
            return f"{show_rate(value * factor)} {unit}"
    raise AssertionError


def show_duration(seconds: float | None) -> str:
    """How long something has lasted, as its two largest units."""
    if seconds is None:
        return UNKNOWN
    seconds = max(0, int(seconds))
    for size, name, small, small_name in _TIMES:
        if seconds >= size:
            return f"{seconds // size}{name} {seconds % size // small}{small_name}"
    return f"{seconds}s"


def show_size(count: float | None) -> str:
    """Bytes."""
    if count is None:
        return UNKNOWN
    for size, name in _SIZES:
        if abs(count) >= size * 0.9995:
            return f"{show_rate(count / size)} {name}"
    return f"{count:.0f} B"


def show_bar(part: float | None, mark: float | None, width: int = 20) -> str:
    """`part` of 0..1 as a bar of `width` cells, and where it should end."""
    if part is None:
        return " " * width
    filled = _cells(part, width)
    cells = ["█" if at < filled else "·" for at in range(width)]
    if mark is not None:
        cells[min(width - 1, max(0, _cells(mark, width) - 1))] = "┃"
    return "".join(cells)


def _cells(part: float, width: int) -> int:
    return int(part * width + 0.5 + 1e-6)  # shares such as 0.15 are not exact

"""The size of a terminal -> which rows and columns are shown."""

from collections.abc import Sequence


def fit_rows(wanted: Sequence[int], room: int) -> list[int | None]:
    """How many rows of each table fit into `room` lines, None for a table that does not fit at all.

    A table needs a line for its header, one for each row, and one that says how many rows are left out, if some are.
    Tables come in the order of their importance: each gets a row before any gets a second one.
    """
    shown: list[int | None] = [None] * len(wanted)
    for at, rows in enumerate(wanted):
        least = min(1, rows)
        if _lines(least, rows) <= room:
            shown[at] = least
            room -= _lines(least, rows)
    open_tables = [at for at, rows in enumerate(wanted) if shown[at] is not None and shown[at] != rows]
    while open_tables:
        still_open = list[int]()
        for at in open_tables:
            now = shown[at]
            assert now is not None
            # The last row takes the place of the line that says that one is left out.
            longer = now + 2 if now + 2 == wanted[at] else now + 1
            cost = _lines(longer, wanted[at]) - _lines(now, wanted[at])
            if cost > room:
                continue
            shown[at], room = longer, room - cost
            if longer < wanted[at]:
                still_open.append(at)
        open_tables = still_open
    return shown


def fit_columns(widths: Sequence[int], ranks: Sequence[int], room: int, gap: int = 2) -> list[int]:
    """The numbers of the columns that fit into `room` cells, with `gap` cells between them.

    Those of the highest rank are left out first; those of rank 0 stay.
    """
    shown = list(range(len(widths)))
    for at in sorted((at for at in shown if ranks[at]), key=lambda at: (-ranks[at], -at)):
        if sum(widths[one] for one in shown) + gap * (len(shown) - 1) <= room:
            break
        shown.remove(at)
    return shown


def _lines(shown: int, rows: int) -> int:
    return 1 + shown + (shown < rows)

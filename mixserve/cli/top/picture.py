"""Tables -> lines of a terminal of some size, by rich."""

from collections.abc import Sequence

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from mixserve.cli.top.layout import fit_columns, fit_rows
from mixserve.cli.top.tables import DIM, Cell, Table

_GAP = 2
_LEAST_TEXT, _MOST_TEXT = 12, 40  # cells of a text's column, if the terminal is narrow, and in any


def picture_of(title: Cell, tables: Sequence[Table], width: int | None = None, height: int | None = None) -> Text:
    """The title and as much of the tables as fits: nothing is wrapped, and rows that are left out are counted.

    Without a width or a height, everything.
    """
    lines = [_line([title], [None], width)]
    blank = height is None or _lines(tables) + len(tables) < height  # a line before each table, if there is room
    room = None if height is None else height - 1 - (len(tables) if blank else 0)
    shown = [len(one.rows) for one in tables] if room is None else fit_rows([len(one.rows) for one in tables], room)
    for table, rows in zip(tables, shown, strict=True):
        if rows is None:
            continue
        if blank:
            lines.append(Text())
        lines.extend(_draw(table, rows, width))
    return Text("\n").join(lines)


def _lines(tables: Sequence[Table]) -> int:
    return 1 + sum(1 + len(table.rows) for table in tables)


def _draw(table: Table, count: int, width: int | None) -> list[Text]:
    rows = list(table.rows[:count])
    if count < len(table.rows) and table.has_sum:
        rows = [*table.rows[: max(0, count - 1)], table.rows[-1]][:count] if count else []
    widths = [
        max(cell_len(text) for text in (column.header, *(row[at].text for row in rows if at == 0 or len(row) > 2)))
        for at, column in enumerate(table.columns)
    ]
    columns = list(range(len(widths)))
    if width is not None:
        widths = [
            min(size, _MOST_TEXT) if column.is_text else size
            for size, column in zip(widths, table.columns, strict=True)
        ]
        narrow = [
            min(size, _LEAST_TEXT) if column.is_text and not column.rank else size
            for size, column in zip(widths, table.columns, strict=True)
        ]
        columns = fit_columns(narrow, [column.rank for column in table.columns], width, _GAP)
        left = width - sum(narrow[at] for at in columns) - _GAP * (len(columns) - 1)
        for at in columns:
            taken = min(max(0, left), widths[at] - narrow[at])
            widths[at], left = narrow[at] + taken, left - taken
    header = [Cell(column.header, DIM) for column in table.columns]
    lines = [_row(cells, table, columns, widths, width) for cells in (header, *rows)]
    if count < len(table.rows):
        lines.append(_line([Cell(f"… {len(table.rows) - count:,} more", DIM)], [None], width))
    return lines


def _row(cells: Sequence[Cell], table: Table, columns: Sequence[int], widths: Sequence[int], width: int | None) -> Text:
    if len(cells) < len(table.columns):
        return _line(cells, [widths[0], None], width)
    texts = [cells[at] for at in columns]
    sizes = [widths[at] if table.columns[at].is_text else -widths[at] for at in columns]
    return _line(texts, sizes, width)


def _line(cells: Sequence[Cell], sizes: Sequence[int | None], width: int | None) -> Text:
    """The cells in one line, each cut or filled to its size; those with a negative one end at its right."""
    line = Text(no_wrap=True, overflow="ellipsis", end="")
    for at, (cell, size) in enumerate(zip(cells, sizes, strict=True)):
        if at:
            line.append(" " * _GAP)
        line.append(cell.text if size is None else _fit(cell.text, size), cell.style)
    line.rstrip()
    if width is not None and line.cell_len > width:
        line.truncate(width, overflow="ellipsis")
    return line


def _fit(text: str, size: int) -> str:
    length = cell_len(text)
    if length > abs(size):
        return set_cell_size(text, max(0, abs(size) - 1)) + "…"
    return " " * (-size - length) + text if size < 0 else text + " " * (size - length)

"""The tables of docs/security.md."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "security.md"


def read_tables() -> dict[str, list[tuple[str, ...]]]:
    """The rows of each table, by the table's first column."""
    tables = dict[str, list[tuple[str, ...]]]()
    rows: list[tuple[str, ...]] | None = None
    for line in PAGE.read_text().splitlines():
        if not line.startswith("|"):
            rows = None
            continue
        cells = tuple(cell.strip() for cell in line.strip("|").split("|"))
        if rows is None:
            rows = tables.setdefault(cells[0], [])
        elif not all(re.fullmatch(r"-+", cell) for cell in cells):
            rows.append(cells)
    return tables


TABLES = read_tables()
TLS, CALLS, OTHERS = TABLES["the server has"], TABLES["call"], TABLES["what"]

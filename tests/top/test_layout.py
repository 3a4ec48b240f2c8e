"""Which rows and columns a terminal has room for."""

from hypothesis import given, settings
from hypothesis import strategies as st

from mixserve.cli.top.layout import fit_columns, fit_rows
from tests.profiles import examples


def lines(shown: list[int | None], wanted: list[int]) -> int:
    return sum(1 + rows + (rows < all_rows) for rows, all_rows in zip(shown, wanted, strict=True) if rows is not None)


def test_all_rows_if_there_is_room():
    assert fit_rows([1, 3, 12], room=19) == [1, 3, 12]
    assert fit_rows([1, 3, 12], room=1000) == [1, 3, 12]


def test_the_last_tables_lose_rows_first():
    assert fit_rows([1, 3, 12], room=18) == [1, 3, 10]
    assert fit_rows([12, 12], room=14) == [5, 5]
    assert fit_rows([2, 12, 12], room=8) == [2, 3, None]
    assert fit_rows([2, 12, 12], room=9) == [2, 1, 1]
    assert fit_rows([5], room=2) == [None]


tables = st.lists(st.integers(1, 40), max_size=6)


@settings(max_examples=examples(400))
@given(tables, st.integers(-3, 150))
def test_rows_fit_and_no_room_is_wasted(wanted, room):
    shown = fit_rows(wanted, room)
    used = lines(shown, wanted)
    assert used <= max(0, room)
    for at, (rows, all_rows) in enumerate(zip(shown, wanted, strict=True)):
        assert rows is None or 1 <= rows <= all_rows
        assert rows != all_rows - 1  # "1 more" takes the line that the row itself needs
        if rows is None:
            assert used + lines([1], [all_rows]) > room
        elif rows < all_rows:
            more = [*shown[:at], min(all_rows, rows + (2 if rows + 2 == all_rows else 1)), *shown[at + 1 :]]
            assert lines(more, wanted) > room


@settings(max_examples=examples(400))
@given(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 9)), min_size=1, max_size=10), st.integers(0, 200))
def test_columns_fit_or_only_the_first_ones_stay(columns, room):
    widths, ranks = [width for width, _ in columns], [0, *(rank for _, rank in columns[1:])]
    shown = fit_columns(widths, ranks, room)
    assert shown == sorted(set(shown))
    assert {at for at, rank in enumerate(ranks) if rank == 0} <= set(shown)
    used = sum(widths[at] for at in shown) + 2 * (len(shown) - 1)
    left_out = [at for at in range(len(columns)) if at not in shown]
    assert used <= room or all(ranks[at] == 0 for at in shown)
    if left_out:
        last = min(left_out, key=lambda at: (ranks[at], at))
        assert used + widths[last] + 2 > room
        assert all(ranks[at] <= min(ranks[one] for one in left_out) for at in shown)

"""Figures -> the tables that `mixserve top` shows, as texts with styles."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mixserve.cli.top.figures import Client, Count, Figures, Mixture, Server, Source
from mixserve.cli.top.numbers import (
    UNKNOWN,
    show_bar,
    show_count,
    show_duration,
    show_rate,
    show_seconds,
    show_share,
    show_size,
)

GOOD, WARN, BAD, DIM = "green", "yellow", "bold red", "dim"
_HUNGRY, _NEAR = 0.1, 0.9  # of a trainer's time; of the memory limit


class Cell(NamedTuple):
    """A text, and its style by rich's names."""

    text: str
    style: str = ""


class Column(NamedTuple):
    """A column: numbers end at its right. In a narrow terminal the columns with the highest rank are left out first."""

    header: str
    rank: int = 0
    is_text: bool = False


@dataclass(frozen=True)
class Table:
    """A table. A row that has two cells only is a name and a message, which takes the rest of the line.

    If rows are left out, the last one stays if it `has_sum`.
    """

    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    has_sum: bool = False


def tables_of(figures: Figures) -> list[Table]:
    """The tables that have rows, the most important first."""
    found = [
        _servers(figures.servers),
        _mixtures(figures.mixtures),
        _sources(figures.sources),
        _counts("ERROR", figures.errors),
        _counts("LIMIT", figures.limits),
        _clients(figures.clients),
    ]
    return [table for table in found if table.rows]


def _servers(servers: Sequence[Server]) -> Table:
    columns = (
        Column("SERVER", is_text=True),
        Column("STATE", is_text=True),
        Column("REPLIES/S", 1),
        Column("RECORDS/S", 1),
        Column("BYTES/S", 2),
        Column("MEMORY", 3),
        Column("SESSIONS", 5),
        Column("PROCESSES", 6),
        Column("UP", 4),
        Column("VERSION", 7),
    )
    rows = [_server(one) for one in servers]
    if len(servers) > 1:
        rows.append(_sum(servers))
    return Table(columns, rows, has_sum=len(servers) > 1)


def _server(one: Server) -> list[Cell]:
    if one.error:
        state = f"no answer for {show_duration(one.silent_s)}: {one.error}"
        return [_text(one.address), _text(state, BAD)]
    if not one.answers:
        return [_text(one.address), Cell("asking", DIM)]
    state = {True: Cell("serving", GOOD), False: Cell("not serving", BAD), None: Cell("answers", GOOD)}[one.serving]
    return [
        _text(one.address),
        state,
        Cell(show_rate(one.replies_s)),
        Cell(show_rate(one.records_s)),
        Cell(show_size(one.bytes_s)),
        _memory(one),
        Cell(show_count(one.sessions)),
        Cell(str(one.processes)),
        Cell(UNKNOWN if one.started is None else show_duration(time.time() - one.started)),
        _text(one.version or UNKNOWN),
    ]


def _memory(one: Server) -> Cell:
    if one.memory is None:
        return Cell(UNKNOWN)
    if one.memory_limit is None:
        return Cell(show_size(one.memory))
    style = BAD if one.memory > _NEAR * one.memory_limit else ""
    return Cell(f"{show_size(one.memory)} of {show_size(one.memory_limit)}", style)


def _sum(servers: Sequence[Server]) -> list[Cell]:
    answering = [one for one in servers if one.answers]

    def total(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return sum(known) if known else None

    return [
        Cell("all", "bold"),
        Cell(f"{len(answering)} of {len(servers)}", GOOD if len(answering) == len(servers) else BAD),
        Cell(show_rate(total([one.replies_s for one in answering])), "bold"),
        Cell(show_rate(total([one.records_s for one in answering])), "bold"),
        Cell(show_size(total([one.bytes_s for one in answering])), "bold"),
        Cell(show_size(total([one.memory for one in answering]))),
        Cell(show_count(total([one.sessions for one in answering]))),
        Cell(str(sum(one.processes for one in answering))),
        Cell(""),
        Cell(""),
    ]


def _mixtures(mixtures: Sequence[Mixture]) -> Table:
    columns = (
        Column("MIXTURE", is_text=True),
        Column("STATE", 2, is_text=True),
        Column("REPLIES/S", 3),
        Column("RECORDS/S"),
        Column("BYTES/S", 1),
        Column("P50", 6),
        Column("P99", 3),
        Column("UNDER WAY", 8),
        Column("WAITING", 5),
        Column("READERS", 7),
        Column("APART", 9),
        Column("WAIT", 1),
        Column("ERRORS/S", 4),
    )
    rows = [
        [
            _text(one.mixture),
            {True: Cell("serving", GOOD), False: Cell("no records", BAD), None: Cell(UNKNOWN)}[one.serving],
            Cell(show_rate(one.replies_s)),
            Cell(show_rate(one.records_s)),
            Cell(show_size(one.bytes_s)),
            Cell(show_seconds(one.p50_s)),
            Cell(show_seconds(one.p99_s)),
            Cell(show_count(one.under_way)),
            Cell(show_count(one.waiting), WARN if one.waiting else ""),
            Cell(show_count(one.readers)),
            Cell(show_count(one.apart)),
            _wait(one.wait_share),
            Cell(show_rate(one.errors_s), BAD if one.errors_s else ""),
        ]
        for one in mixtures
    ]
    return Table(columns, rows)


def _sources(sources: Sequence[Source]) -> Table:
    columns = (
        Column("SOURCE", is_text=True),
        Column("REQUESTED", 1),
        Column("REALISED"),
        Column("NOW", 2),
        Column("", 5, is_text=True),
        Column("RECORDS/S", 3),
        Column("BYTES/S", 4),
        Column("RECORDS", 7),
        Column("PASSES", 6),
    )
    rows = [
        [
            _text(f"{one.mixture}/{one.source}"),
            Cell(show_share(one.requested)),
            Cell(show_share(one.realised), WARN if one.is_off else ""),
            Cell(show_share(one.realised_now)),
            Cell(show_bar(one.realised, one.requested), WARN if one.is_off else GOOD),
            Cell(show_rate(one.records_s)),
            Cell(show_size(one.bytes_s)),
            Cell(show_count(one.records)),
            Cell(show_rate(one.passes)),
        ]
        for one in sources
    ]
    return Table(columns, rows)


def _clients(clients: Sequence[Client]) -> Table:
    columns = (
        Column("CLIENT", is_text=True),
        Column("MIXTURE", 3, is_text=True),
        Column("WAIT"),
        Column("RECORDS/S", 1),
        Column("RECORDS", 4),
        Column("READERS", 2),
    )
    rows = [
        [
            _text(one.client or "(no name)"),
            _text(one.mixture),
            _wait(one.wait_share),
            Cell(show_rate(one.records_s)),
            Cell(show_count(one.records)),
            Cell(show_count(one.readers)),
        ]
        for one in clients
    ]
    return Table(columns, rows)


def _counts(what: str, counts: Sequence[Count]) -> Table:
    columns = [Column(what, is_text=True), Column("IN ALL"), Column("PER S")]
    with_mixture = any(one.mixture for one in counts)
    if with_mixture:
        columns.insert(1, Column("MIXTURE", 1, is_text=True))
    rows = list[list[Cell]]()
    for one in counts:
        style = BAD if one.per_s else DIM
        cells = [_text(one.what, style), Cell(show_count(one.count), style), Cell(show_rate(one.per_s), style)]
        if with_mixture:
            cells.insert(1, _text(one.mixture, style))
        rows.append(cells)
    return Table(columns, rows)


def _wait(share: float | None) -> Cell:
    return Cell(show_share(share), WARN if share is not None and share > _HUNGRY else "")


def _text(text: str, style: str = "") -> Cell:
    """What a server or a client wrote: no control characters reach the terminal."""
    return Cell("".join(char if char.isprintable() else "?" for char in text), style)

"""`mixserve explain`: the records at a range of positions, of a configuration file or a running server."""

import json
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mixserve.cli.connecting import Connection
from mixserve.cli.console import open_console
from mixserve.cli.plain import plain
from mixserve.cli.show import MOST_ROWS, show_rest
from mixserve.sessions.storage import open_regular
from mixserve.sources.location import locate
from mixserve_client import FingerprintMismatch, InvalidRequest, MixClient, MixtureDescription, OutOfRange
from mixserve_client.reading.skips import Skips
from mixserve_client.schema.checks import check_integer
from mixserve_client.schema.keys import key_words
from mixserve_client.schema.positions import check_positions
from mixserve_client.schema.tree import flatten

_ROWS = 32
_MOST_ROWS = 64
_MOST_NUMBERS = 4096  # of a record's array: tokens are shown whole, images are not
_ROWS_AT_ONCE = 1 << 17
_STATE_BYTES = 256 << 20

Range = tuple[int, int]  # start and size


@dataclass(frozen=True)
class _Reader:
    """A reader of a mixture: its key, its own schedule, and the positions that it skips."""

    client: MixClient
    mixture: MixtureDescription
    key: Any
    schedule: list[Any] | None
    skips: Skips
    timeout_s: float | None
    sources: Sequence[Any]  # of a configuration file, by `source_id`; empty for a running server's

    def plan(self, start: int, size: int) -> dict[str, np.ndarray]:
        """`source_id` and `record_id`, int32 or int64 of shape (size,), of the positions [start, start + size)."""
        return self.client.get_plan_at(start, size, self.key, **self._options())

    def records(self, start: int, size: int) -> dict[str, np.ndarray]:
        """The rows at the positions [start, start + size), by the paths of their fields."""
        return flatten(self.client.get_batch_at(start, size, self.key, **self._options()))

    def locations(self, plan: dict[str, np.ndarray]) -> list[str]:
        """Where each record of `plan` lies; empty if no source knows."""
        if not self.sources:
            return []
        ids = zip(plan["source_id"].tolist(), plan["record_id"].tolist(), strict=True)
        return [locate(self.sources[source], record) for source, record in ids]

    def kept(self, start: int, size: int) -> np.ndarray:
        """Which rows of [start, start + size) the reader gets: bool of shape (size,)."""
        kept = np.ones(size, bool)
        for first, stop in self.skips.ranges:
            kept[max(0, first - start) : max(0, stop - start)] = False
        return kept

    def _options(self) -> dict[str, Any]:
        return {"mixture": self.mixture.name, "schedule": self.schedule, "timeout_s": self.timeout_s}


def run(
    target: str,
    connection: Connection,
    *,
    start: int | None,
    size: int | None,
    batch: int | None,
    batch_size: int | None,
    key: int | None,
    mixture: str | None,
    state_file: Path | None,
    records: bool,
    whole: bool,
    every_row: bool,
    as_json: bool,
    timeout_s: float,
) -> None:
    """Show source and record of [start, start + size), up to the mixture's end, or of the batch number `batch` of a run
    that began at `start` (default 0); with `records` also the rows, and with `whole` every number of them. `as_json`
    writes all of that for scripts.

    Raises ConfigError and MixserveError.
    """
    if (batch is None) != (batch_size is None) or (batch is not None and size is not None):
        raise InvalidRequest("--batch N needs --batch-size B, and takes no --size; without them use --start S --size N")
    if key is None and state_file is None:
        # A default would answer with the records of another run, and nothing would look wrong.
        raise InvalidRequest("--key is needed: the key= of the run, as in client.batches(…, key=7); or a --state of it")
    state = {} if state_file is None else _load_state(state_file)
    console = open_console()
    with _client(target, connection, timeout_s, mixture or state.get("mixture")) as (client, nodes, call_s):
        if state_file is not None:
            state = _check_state(client, state, state_file, mixture, call_s)
        described = client.mixture(mixture or state.get("mixture"), timeout_s=call_s)
        reader = _Reader(
            client=client,
            mixture=described,
            key=state["key"] if key is None else key,
            schedule=state.get("schedule"),
            skips=Skips.of(state.get("skip", ())),
            timeout_s=call_s,
            sources=nodes[described.name].mixture.leaves if nodes else (),
        )
        if batch is None or batch_size is None:
            first: int = state.get("position", 0) if start is None else start
            start, asked = check_positions(first, _ROWS if size is None else size)
        else:
            # Not from the state's position: batches of a run count from its first.
            start, asked = _place_of_batch(batch, batch_size, start or 0, reader.skips)
            if not as_json:
                console.print(f"batch {batch:,}: the positions {start:,} to {start + asked - 1:,}")
        end = client.end(mixture=reader.mixture.name, schedule=reader.schedule, timeout_s=call_s)
        if end is not None and start >= end:
            raise OutOfRange(f"the mixture ends at position {end}: start must be below that, got {start}")
        size = asked if end is None else min(asked, end - start)
        if as_json:
            _print_rows(reader, start, size, records=records)
            return
        parts = _choose_rows(start, size, every_row)
        _show_rows(console, reader, parts)
        if size < asked:
            console.print(f"  the mixture ends at position {end:,}: {size:,} of {asked:,} rows")
        _show_counts(console, reader, start, size)
        if records:
            for part in parts:
                _show_records(console, reader, *part, whole=whole)


def _place_of_batch(batch: int, batch_size: int, first: int, skips: Skips) -> Range:
    """The positions of the batch of that number, counted from `first`. Raises InvalidRequest and OutOfRange."""
    if skips.ranges:
        raise InvalidRequest("--batch counts whole batches, and the state skips positions between them; use --start")
    batch, size = check_integer("--batch", batch, 0), check_integer("--batch-size", batch_size, 1)
    return check_positions(first + batch * size, size)


@contextmanager
def _client(
    target: str, connection: Connection, timeout_s: float, mixture: str | None
) -> Generator[tuple[MixClient, Mapping[str, Any], float | None], None, None]:
    """A client of the file's mixtures, or of the server; the file's nodes; and the timeout of calls."""
    file = Path(target)
    # A missing mixture.yaml should say so, and not be looked up as a host name.
    if not (file.exists() or file.suffix in (".yaml", ".yml")):
        with connection.connect(target, patience_s=timeout_s) as client:
            yield client, {}, timeout_s
        return
    from mixserve.cli.opened import open_mixtures  # here: it loads JAX, which a running server's address does not need

    with open_mixtures(file, placement="host", mixture=mixture) as (client, nodes):
        yield client, nodes, None  # no timeout: in process, a call takes as long as it takes


def _load_state(file: Path) -> dict[str, Any]:
    """The JSON object in the file. Raises InvalidRequest."""
    try:
        with open_regular(file.resolve(), _STATE_BYTES) as (opened, _):
            state = json.loads(opened.read())
    except OSError as error:
        raise InvalidRequest(f"--state {file}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(
            f"--state {file}: must be the JSON of an iterator's get_state(), and is not JSON: {error}"
        ) from error
    if not isinstance(state, dict) or not isinstance(state.get("mixture"), str):
        raise InvalidRequest(
            f"--state {file}: must be the JSON of an iterator's get_state(), an object that names its mixture; "
            f"got {state!r:.200}"
        )
    return state


def _check_state(
    client: MixClient, state: dict[str, Any], file: Path, mixture: str | None, timeout_s: float | None
) -> dict[str, Any]:
    """The state, as an iterator over the mixture reads it. Raises InvalidRequest and FingerprintMismatch."""
    # The iterator checks it, and its own get_state has all entries.
    try:
        with client.batches(1, 0, mixture=mixture or state["mixture"], timeout_s=timeout_s) as batches:
            batches.set_state(state)
            return batches.get_state()
    except InvalidRequest as error:
        raise InvalidRequest(f"--state {file}: {error}") from error
    except FingerprintMismatch as error:
        said = str(error).partition(" To resume at ")[0]
        raise FingerprintMismatch(f"--state {file}: {said} Name the file or the server of that mixture") from error


def _choose_rows(start: int, size: int, every_row: bool) -> list[Range]:
    """The ranges whose rows are shown: all, or the first and the last ones."""
    if every_row or size <= _MOST_ROWS:
        return [(start, size)]
    half = _MOST_ROWS // 2
    return [(start, half), (start + size - half, half)]


def _show_rows(console: Console, reader: _Reader, parts: list[Range]) -> None:
    key = ", ".join(map(str, key_words(reader.key).tolist()))
    title = f"mixture {escape(reader.mixture.name)}, key {escape(f'[{key}]')}"
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("position", justify="right", no_wrap=True)
    table.add_column("source", overflow="fold")
    table.add_column("record", justify="right", no_wrap=True)
    plans = [reader.plan(start, size) for start, size in parts]
    locations = [reader.locations(plan) for plan in plans]
    has_locations = any(any(known) for known in locations)
    if has_locations:
        table.add_column("where", overflow="fold")
    if reader.skips.ranges:
        table.add_column("")
    names = [escape(name) for name in reader.mixture.leaves]
    for place, (start, size) in enumerate(parts):
        if place:
            table.add_section()
            table.add_row("…", f"{start - sum(parts[place - 1]):,} more rows; --all shows them", "…")
            table.add_section()
        plan, kept = plans[place], reader.kept(start, size).tolist()
        for row, (source, record) in enumerate(
            zip(plan["source_id"].tolist(), plan["record_id"].tolist(), strict=True)
        ):
            skipped = ["" if kept[row] else "skipped"] if reader.skips.ranges else []
            where = [escape(locations[place][row])] if has_locations else []
            table.add_row(f"{start + row:,}", names[source], f"{record:,}", *where, *skipped)
    console.print(table)


def _show_counts(console: Console, reader: _Reader, start: int, size: int) -> None:
    """Show how many rows come from each source, without skipped ones. Memory does not grow with `size`."""
    names = reader.mixture.leaves
    counts = np.zeros(len(names), np.int64)
    for at in range(start, start + size, _ROWS_AT_ONCE):
        rows = min(_ROWS_AT_ONCE, start + size - at)
        kept = reader.kept(at, rows)
        counts += np.bincount(reader.plan(at, rows)["source_id"][kept], minlength=len(names))
    total = int(counts.sum())
    table = Table()
    table.add_column("source", overflow="fold")
    table.add_column("rows", justify="right")
    table.add_column("share", justify="right")
    for name, count in islice(zip(names, counts.tolist(), strict=True), MOST_ROWS):
        table.add_row(escape(name), f"{count:,}", f"{count / max(1, total):.4%}")
    console.print(table)
    show_rest(console, len(names), "sources")
    if total < size:
        console.print(f"  {size - total:,} of the {size:,} rows are skipped by the state, and not counted")


def _show_records(console: Console, reader: _Reader, start: int, size: int, *, whole: bool) -> None:
    for row, kept in enumerate(reader.kept(start, size).tolist()):
        if kept:
            console.print(f"position {start + row:,}", style="bold")
            for name, array in reader.records(start + row, 1).items():
                record = np.asarray(array[0])
                most = record.size if whole else _MOST_NUMBERS
                shown = np.array2string(record, threshold=max(1, most), edgeitems=8, prefix="  ")
                more = "" if record.size <= most else f" ({record.size:,} numbers; --whole shows all)"
                console.print(f"  {name or 'record'}: {shown}{more}", markup=False, soft_wrap=True)


def _print_rows(reader: _Reader, start: int, size: int, *, records: bool) -> None:
    """Write a JSON list with an object for each row, each on a line. Memory does not grow with `size`."""
    before = "["
    for at in range(start, start + size, _ROWS_AT_ONCE):
        here = min(_ROWS_AT_ONCE, start + size - at)
        for row in _rows(reader, at, here):
            if records and not row["skipped"]:
                fields = reader.records(row["position"], 1)
                row["fields"] = {name or "record": plain(np.asarray(array[0])) for name, array in fields.items()}
            print(before, json.dumps(row), sep="\n", end="")
            before = ","
    print("\n]")


def _rows(reader: _Reader, start: int, size: int) -> Generator[dict[str, Any]]:
    """What the table shows of each row; `where` is None if the source does not know."""
    plan = reader.plan(start, size)
    locations, names = reader.locations(plan) or [""] * size, reader.mixture.leaves
    columns = plan["source_id"].tolist(), plan["record_id"].tolist(), locations, reader.kept(start, size).tolist()
    for position, (source, record, where, kept) in enumerate(zip(*columns, strict=True), start):
        yield {
            "position": position,
            "source": names[source],
            "record": record,
            "where": where or None,
            "skipped": not kept,
        }

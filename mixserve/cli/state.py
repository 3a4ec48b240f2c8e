"""`mixserve state`: shows a running server's sessions and checkpoints; saves, restores and deletes checkpoints."""

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import numpy as np
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from mixserve.cli.connecting import Connection
from mixserve.cli.console import open_console
from mixserve.cli.plain import plain
from mixserve_client import MixClient
from mixserve_client.errors import (
    CorruptCheckpoint,
    FingerprintMismatch,
    MixserveError,
    SessionTaken,
    UnknownCheckpoint,
    UnknownSession,
)
from mixserve_client.schema.dtypes import dtype_name
from mixserve_client.schema.sessions import SessionDescription, check_name
from mixserve_client.sessions.session import Checkpoint, SessionView

_MOST_CHECKPOINTS = 4
# The server's messages name arguments of Python; these are the flags for them.
_FLAGS: dict[type[MixserveError], str] = {
    SessionTaken: "--take-over",
    FingerprintMismatch: "--fresh, or --ignore-fingerprint",
    CorruptCheckpoint: "--fresh",
}


def show_sessions(
    address: str, connection: Connection, *, mixture: str | None, as_json: bool, timeout_s: float
) -> None:
    """Show the sessions of one mixture, or of all. Raises MixserveError."""
    with connection.connect(address, patience_s=timeout_s) as client:
        sessions = client.sessions(mixture=mixture, timeout_s=timeout_s)
    if as_json:
        _print_json([asdict(session) for session in sessions])
        return
    console = open_console()
    if not sessions:
        of = "" if mixture is None else f" of the mixture {mixture!r}"
        console.print(f"{address} knows no session{of}", markup=False, soft_wrap=True)
        return
    table = Table(title=f"sessions of {escape(address)}", title_justify="left", title_style="bold")
    for name in ("mixture", "session", "holder"):
        table.add_column(name, overflow="fold")
    for name in ("silent for", "epoch", "index"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("checkpoints", overflow="fold")
    for session in sessions:
        position = [_duration(session.idle_s), f"{session.epoch:,}", f"{session.index:,}"]
        table.add_row(
            escape(session.mixture),
            session.name,
            escape(_holder(session)),
            *(position if _has_place(session) else ["", "", ""]),
            _summarise(session.checkpoints),
        )
    console.print(table)
    for session in sessions:
        if session.damaged:
            console.print(f"  {session.name}: {session.damaged}", markup=False, soft_wrap=True)


def show_session(
    address: str, connection: Connection, name: str, *, mixture: str | None, as_json: bool, timeout_s: float
) -> None:
    """Show one session and its checkpoints. Raises MixserveError."""
    with connection.connect(address, patience_s=timeout_s) as client:
        view = client.view_session(name, mixture=mixture, timeout_s=timeout_s)
        session = _find_session(client, view, timeout_s)
        counts, statistics, problem = None, None, ""
        try:
            counts, statistics = view.get_operation_stats(), view.get_statistics()
        except UnknownSession:
            problem = "only checkpoints are left of this session; opening it begins a new one"
        except (CorruptCheckpoint, FingerprintMismatch) as error:
            problem = str(error)
        # Only if there are any: a server without a state folder refuses to list them.
        checkpoints = view.list_checkpoints() if session.checkpoints else ()
    if as_json:
        described = asdict(session) | {"checkpoints": [asdict(checkpoint) for checkpoint in checkpoints]}
        del described["damaged"]
        _print_json(described | {"operation_stats": counts, "statistics": statistics, "problem": problem})
        return
    console = open_console()
    console.print(f"session {session.name} of the mixture {session.mixture}", style="bold", markup=False)
    if problem:
        console.print(f"  {problem}", markup=False, soft_wrap=True)
    if _has_place(session):
        console.print(f"  {_holder(session)}, silent for {_duration(session.idle_s)}", markup=False)
        console.print(f"  epoch {session.epoch:,}, index {session.index:,}")
    if counts is not None:
        console.print(f"  {', '.join(f'{count} {number:,}' for count, number in counts.items())}", markup=False)
        lines = list(_lines("", statistics)) if statistics else []
        console.print("  statistics:" if lines else "  no statistics")
        for line in lines:
            console.print(f"    {line}", markup=False, soft_wrap=True)
    _show_checkpoints(console, checkpoints)


def save(
    address: str,
    connection: Connection,
    session: str,
    name: str,
    *,
    keep_last: int | None,
    mixture: str | None,
    timeout_s: float,
) -> None:
    """Save a checkpoint, and describe it. Raises MixserveError."""
    with connection.connect(address, patience_s=timeout_s) as client:
        view = client.view_session(session, mixture=mixture, timeout_s=timeout_s)
        saved = view.save_checkpoint(name, keep_last=keep_last)
    print(f"saved {_describe(saved, view)}")


def restore(
    address: str,
    connection: Connection,
    name: str,
    checkpoint: str,
    *,
    source: str | None,
    take_over: bool,
    fresh: bool,
    strict: bool,
    mixture: str | None,
    timeout_s: float,
) -> None:
    """Set the session to a checkpoint, and say where it is then. Raises MixserveError."""
    check_name("session", name)
    with connection.connect(address, patience_s=timeout_s) as client:
        view = client.view_session(source or name, mixture=mixture, timeout_s=timeout_s)
        # Before the session is opened: that would create an unknown session, or start one over, for nothing.
        found = _find_checkpoint(client, view, checkpoint, strict, timeout_s)
        options = {"take_over": take_over, "fresh": fresh, "strict": strict, "timeout_s": timeout_s}
        try:
            session = client.session(name, mixture=view.mixture, **options)
        except tuple(_FLAGS) as error:
            raise type(error)(f"{error}. On the command line: {_FLAGS[type(error)]}") from error
        with session:
            try:
                session.restore_checkpoint(checkpoint, session=view.name, strict=strict)
            except MixserveError:
                if not session.resumed:
                    print(f"mixserve: the session {name!r} is new, and stays at its beginning", file=sys.stderr)
                raise
            epoch, index, resumed = session.epoch, session.index, session.resumed
    print(f"restored {_describe(found, view)}")
    begun = "" if resumed else ", which was started over," if fresh else ", which is new,"
    print(f"the session {name!r} of the mixture {view.mixture!r}{begun} stands at epoch {epoch}, index {index}")


def delete(
    address: str, connection: Connection, session: str, name: str, *, mixture: str | None, timeout_s: float
) -> None:
    """Delete a checkpoint, and describe it. Raises MixserveError."""
    with connection.connect(address, patience_s=timeout_s) as client:
        view = client.view_session(session, mixture=mixture, timeout_s=timeout_s)
        check_name("checkpoint", name)
        _find_session(client, view, timeout_s)
        deleted = view.delete_checkpoint(name)
    print(f"deleted {_describe(deleted, view)}")


def _find_session(client: MixClient, view: SessionView, timeout_s: float) -> SessionDescription:
    """The server's description of that session. Raises UnknownSession."""
    sessions = client.sessions(mixture=view.mixture, timeout_s=timeout_s)
    for session in sessions:
        if session.name == view.name:
            return session
    known = ", ".join(repr(session.name) for session in sessions) or "none"
    raise UnknownSession(f"the mixture {view.mixture!r} has no session {view.name!r}; it has {known:.1000}")


def _find_checkpoint(client: MixClient, view: SessionView, name: str, strict: bool, timeout_s: float) -> Checkpoint:
    """The checkpoint called `name`. Raises what restoring it would raise, but does not read its files."""
    check_name("checkpoint", name)
    _find_session(client, view, timeout_s)
    by_name = {checkpoint.name: checkpoint for checkpoint in view.list_checkpoints()}
    if name not in by_name:
        known = ", ".join(map(repr, by_name)) or "none"
        raise UnknownCheckpoint(f"the session {view.name!r} has no checkpoint {name!r}; it has {known:.1000}")
    found = by_name[name]
    if found.damaged:
        raise CorruptCheckpoint(found.damaged)
    current = client.mixture(view.mixture, timeout_s=timeout_s).fingerprint
    if strict and found.fingerprint != current:
        raise FingerprintMismatch(
            f"the checkpoint {name!r} belongs to a mixture with the fingerprint {found.fingerprint}, this one has "
            f"{current}: its records differ. With --ignore-fingerprint the session resumes in this mixture at the "
            "same index"
        )
    return found


def _show_checkpoints(console: Console, checkpoints: tuple[Checkpoint, ...]) -> None:
    if not checkpoints:
        console.print("  no checkpoints")
        return
    table = Table(title="  checkpoints", title_justify="left")
    table.add_column("name", overflow="fold")
    table.add_column("saved (UTC)", no_wrap=True)
    for name in ("epoch", "index", "size"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("version", overflow="fold")
    for saved in checkpoints:
        if saved.damaged:
            table.add_row(saved.name, "damaged")
        else:
            cells = _time(saved.saved_at), f"{saved.epoch:,}", f"{saved.index:,}", decimal(saved.bytes), saved.version
            table.add_row(saved.name, *cells)
    console.print(table)
    for saved in checkpoints:
        if saved.damaged:
            console.print(f"  {saved.name}: {saved.damaged}", markup=False, soft_wrap=True)


def _has_place(session: SessionDescription) -> bool:
    """Whether the server knows the session's position: not if its journal is damaged, or only checkpoints are left."""
    return not session.damaged and not session.saved_only


def _holder(session: SessionDescription) -> str:
    if session.damaged:
        return "damaged"
    if not _has_place(session):
        return "saved only"
    return session.holder or "free"


def _describe(checkpoint: Checkpoint, view: SessionView) -> str:
    whose = f"the checkpoint {checkpoint.name!r} of the session {view.name!r} of the mixture {view.mixture!r}"
    if checkpoint.damaged:
        return f"{whose}, which was damaged: {checkpoint.damaged}"
    place = f"epoch {checkpoint.epoch}, index {checkpoint.index}"
    return f"{whose}: {place}, {decimal(checkpoint.bytes)}, saved {_time(checkpoint.saved_at)} UTC"


def _summarise(checkpoints: tuple[str, ...]) -> str:
    """The names of the newest checkpoints, in order of age, after the number of older ones."""
    older = len(checkpoints) - _MOST_CHECKPOINTS
    return ", ".join(([f"{older:,} older"] if older > 0 else []) + [*checkpoints[-_MOST_CHECKPOINTS:]])


def _lines(path: str, value: Any) -> Iterator[str]:
    """A line for each leaf of statistics, with arrays abbreviated."""
    if isinstance(value, Mapping) and value:
        for key, child in value.items():
            yield from _lines(f"{path}.{key}" if path else str(key), child)
    elif isinstance(value, np.ndarray):
        shown = np.array2string(value, threshold=16, edgeitems=3, prefix=" " * 4)
        yield f"{path}: {dtype_name(value.dtype)}{list(value.shape)} {shown}"
    else:
        yield f"{path}: {value!r:.200}"


def _print_json(value: Any) -> None:
    print(json.dumps(plain(value), indent=1))


def _time(saved_at: float) -> str:
    return f"{datetime.fromtimestamp(saved_at, UTC):%Y-%m-%d %H:%M:%S}"


def _duration(seconds: float) -> str:
    for unit, unit_s in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * unit_s:
            return f"{seconds / unit_s:.0f} {unit}"
    return f"{seconds:.0f} s"

"""The command `mixserve top`."""

import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from datetime import datetime
from typing import NoReturn

import typer
from rich.console import Console
from rich.text import Text

from mixserve.cli.connecting import Connection
from mixserve.cli.plain import plain
from mixserve.cli.top.asking import Asking
from mixserve.cli.top.figures import Figures, figures_of
from mixserve.cli.top.picture import picture_of
from mixserve.cli.top.screen import Bell, show
from mixserve.cli.top.tables import Cell, tables_of

_PATIENCE_S = 15.0  # for the two answers that rates need


def run(
    addresses: Sequence[str], connection: Connection, *, every_s: float, once: bool, as_json: bool, no_color: bool
) -> NoReturn:
    """Show figures of these servers, until the user ends it or `once` they are known. Raises MixserveError.

    On a terminal one picture, which changes; elsewhere one text, or one line of JSON, after another.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its lines, and those below, would cross the picture
    _silence(logging.getLogger("mixserve_client"))
    bell = Bell()
    with ExitStack() as held:
        all_asking = [Asking(one, connection, every_s, bell.ring) for one in dict.fromkeys(addresses)]
        for asking in all_asking:
            held.callback(asking.close)
        for asking in all_asking:
            asking.start()
        console = Console(highlight=False, no_color=no_color or None)
        is_live = console.is_terminal and sys.stdout.isatty() and not console.is_dumb_terminal
        if is_live and not once and not as_json:
            code = show(console, bell, lambda width, height: picture_now(all_asking, every_s, width, height))
        else:
            code = _write(console, all_asking, every_s, once, as_json)
    raise typer.Exit(code)


def _write(console: Console, all_asking: Sequence[Asking], every_s: float, once: bool, as_json: bool) -> int:
    """Write figures after each interval. Raises the error of a server if `once`, and none answers."""
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    seen = [0] * len(all_asking)
    is_first = True
    while not ended.is_set():
        _wait_for_turns(all_asking, [turns + (2 if is_first else 1) for turns in seen], ended)
        if ended.is_set():
            break
        seen = [one.turns for one in all_asking]
        figures = figures_now(all_asking)
        errors = [one.error for one in all_asking if one.error is not None]
        if once and len(errors) == len(all_asking):
            raise errors[0]
        if as_json:
            print(json.dumps(plain(asdict(figures) | {"time": time.time()})), flush=True)
        else:
            width = console.width if sys.stdout.isatty() else None
            if not is_first:
                print()
            console.print(picture_of(_title(figures, every_s), tables_of(figures), width), soft_wrap=True)
        is_first = False
        if once:
            break
    return 0


def _wait_for_turns(all_asking: Sequence[Asking], turns: Sequence[int], ended: threading.Event) -> None:
    """Wait until each has been asked so often, or has not answered."""
    until = time.monotonic() + _PATIENCE_S
    while time.monotonic() < until and not ended.wait(0.02):
        if all(one.turns >= wanted for one, wanted in zip(all_asking, turns, strict=True)):
            return


def figures_now(all_asking: Sequence[Asking]) -> Figures:
    """The figures of all servers at this moment."""
    told = [one.now() for one in all_asking]
    return figures_of([server for server, _ in told], [reading for _, reading in told if reading is not None])


def picture_now(all_asking: Sequence[Asking], every_s: float, width: int, height: int) -> Text:
    """The picture of that moment for a terminal of that size."""
    figures = figures_now(all_asking)
    title = _title(figures, every_s)
    return picture_of(Cell(f"{title.text}  (q: quit)", title.style), tables_of(figures), width, height)


def _title(figures: Figures, every_s: float) -> Cell:
    answering, count = sum(one.answers for one in figures.servers), len(figures.servers)
    servers = "1 server" if count == 1 else f"{count} servers"
    lost = f", {count - answering} without an answer" if answering < count else ""
    now = datetime.now().strftime("%H:%M:%S")
    return Cell(f"mixserve top  {now}  {servers}{lost}, every {every_s:g} s", "bold")


def _silence(logger: logging.Logger) -> None:
    logger.addHandler(logging.NullHandler())
    logger.propagate = False

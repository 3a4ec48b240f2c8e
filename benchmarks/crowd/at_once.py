"""Eight clients at once on one server, compared with one client alone."""

from collections.abc import Sequence

from benchmarks.common.spread import Spread, spread
from benchmarks.common.targets import Row
from benchmarks.crowd.iterating import MODULE, SHARED_MEMORY, TCP, total_speed
from benchmarks.crowd.scenario import Outcome, Step, Window, children, server

_CLIENTS = 8
_SIZE = 256
_WARM_UP_S, _SECONDS = 0.7, 1.5


def run(repetitions: int, step: Step) -> Outcome:
    figures = {way: _on(way, repetitions, step) for way in (TCP, SHARED_MEMORY)}
    rows = [
        Row(
            f"{_CLIENTS} clients at once over {way}, batches of {_SIZE}, GB/s together",
            "1 client alone",
            ">=",
            1.2,
            spread([one["together"] / one["alone"] for one in taken]),
        )
        for way, taken in figures.items()
    ]
    notes = [
        f"{_CLIENTS} clients over {way}: {_of(taken, 'together')} GB/s together, {_of(taken, 'alone')} GB/s alone."
        for way, taken in figures.items()
    ]
    return Outcome(rows, notes, figures)


def _on(way: str, repetitions: int, step: Step) -> list[dict[str, float]]:
    figures = []
    with server() as (address, _), children(_CLIENTS, MODULE, address, way) as clients:
        total_speed(clients, _SIZE, Window.after(3.0, 0.1))  # connects all clients
        for number in range(repetitions):
            step(f"{_CLIENTS} clients over {way}, repetition {number + 1}")
            alone = total_speed(clients[:1], _SIZE, Window.after(_WARM_UP_S, _SECONDS))
            together = total_speed(clients, _SIZE, Window.after(_WARM_UP_S, _SECONDS))
            figures.append({"alone": alone, "together": together})
    return figures


def _of(taken: Sequence[dict[str, float]], name: str) -> Spread | None:
    return spread([one[name] for one in taken])

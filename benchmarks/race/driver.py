"""The driver: starts the contestants, runs their rounds in turn, and collects their answers."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from benchmarks.common.children import Child, ChildFailed
from benchmarks.common.progress import progress_bar
from benchmarks.race.roster import Entry

_START_LIMIT_S = 120.0
_ROUND_LIMIT_S = 60.0


class Contestant:
    """A contestant's process, seen from the driver."""

    def __init__(self, entry: Entry):
        """Start the process. Raises FileNotFoundError if its environment has not been built."""
        self.largest = entry.largest
        self._child = Child("benchmarks.race.contestant", entry.module, *entry.arguments, python=entry.python())

    def wait_until_ready(self) -> dict[str, str]:
        """Wait until it is ready for rounds; returns the versions of its packages. Raises ChildFailed."""
        return self._child.answer(_START_LIMIT_S)["versions"]

    def round(self, **asked: float) -> dict[str, Any]:
        """Run a round; returns its figures. Raises ChildFailed."""
        self._child.tell(asked)
        return self._child.answer(_ROUND_LIMIT_S)

    def close(self) -> None:
        """End the process, which ends its servers."""
        self._child.close()


def race(entries: Sequence[Entry], sizes: Sequence[int], rounds: int, asked: Mapping[str, float]) -> dict[str, Any]:
    """All rounds, in turn: for every size and round, every contestant, A B C … A B C …, under a new key each.

    A contestant that fails is left out from then on; the others continue.
    """
    figures: list[dict[str, Any]] = []
    not_run: dict[str, str] = {}
    versions: dict[str, dict[str, str]] = {}
    with contestants(entries, not_run, versions) as running, progress_bar() as progress:
        turns = sum(size <= one.largest for size in sizes for one in running.values()) * rounds
        task = progress.add_task("", total=turns)
        for number, (size, turn) in enumerate((size, turn) for size in sizes for turn in range(rounds)):
            for name in [name for name, one in running.items() if size <= one.largest]:
                progress.update(task, description=f"batches of {size}, round {turn + 1}, {name}")
                try:
                    taken = running[name].round(batch=size, key=1000 + number, **asked)
                    figures.append({"name": name, "batch": size, "round": turn, **taken})
                except ChildFailed as error:
                    not_run[name] = str(error)
                    running.pop(name).close()
                progress.advance(task)
    return {"versions": versions, "not_run": not_run, "rounds": figures}


@contextmanager
def contestants(
    entries: Sequence[Entry], not_run: dict[str, str], versions: dict[str, dict[str, str]]
) -> Iterator[dict[str, Contestant]]:
    """The contestants that are ready, by name; the reasons of the others go to `not_run`."""
    with ExitStack() as stack:
        running: dict[str, Contestant] = {}
        for entry in entries:
            try:
                # All start before any is awaited, so that their slow imports overlap.
                running[entry.name] = Contestant(entry)
                stack.callback(running[entry.name].close)
            except OSError as error:
                not_run[entry.name] = str(error)
        for name in list(running):
            try:
                versions[name] = running[name].wait_until_ready()
            except ChildFailed as error:
                not_run[name] = str(error)
                running.pop(name).close()
        yield running

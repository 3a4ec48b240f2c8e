"""How many calls came, how long they took, and how they ended."""

import time
from collections import Counter

from mixserve.access.call import Call
from mixserve.metrics.journal import Journal
from mixserve_client.errors import MixserveError
from mixserve_client.schema.histogram import Histogram

# Method, mixture, class of the error (empty: none), seconds. A tuple without names, since it is made for each call.
_Ended = tuple[str, str, str, float]


class CallFigures:
    """Counts calls by method and mixture. Thread-safe, once `add_up` has been called by the thread that reads them."""

    def __init__(self) -> None:
        self.calls = Counter[tuple[str, str]]()  # by method and mixture
        self.errors = Counter[tuple[str, str, str]]()  # by method, mixture and class
        self.seconds = dict[str, Histogram]()  # by method
        self._journal = Journal[_Ended](self._add)
        self.add_up = self._journal.add_up

    def counting(self, call: Call) -> "_Counting":
        """A context around all of a call, or of a stream."""
        return _Counting(self._journal, call)

    def note_refused(self, method: str, error: MixserveError) -> None:
        """A call was refused before it was looked at."""
        self._journal.note((method.rpartition("/")[2], "", type(error).__name__, 0.0))

    def _add(self, ended: list[_Ended]) -> None:
        by_method = dict[str, list[float]]()
        for method, mixture, error, seconds in ended:
            self.calls[method, mixture] += 1
            if error:
                self.errors[method, mixture, error] += 1
            by_method.setdefault(method, []).append(seconds)
        for method, seconds in by_method.items():
            self.seconds.setdefault(method, Histogram()).add(seconds)


class _Counting:
    __slots__ = ("_began", "_call", "_journal")

    def __init__(self, journal: Journal[_Ended], call: Call):
        self._journal, self._call = journal, call
        self._began = 0.0

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        name = "" if kind is None or issubclass(kind, GeneratorExit) else _name(kind)
        seconds = time.perf_counter() - self._began
        self._journal.note((self._call.method, self._call.mixture, name, seconds))


def _name(kind: type[BaseException]) -> str:
    """The class that a client sees."""
    found = next((one for one in kind.__mro__ if one.__module__ == MixserveError.__module__), None)
    return "ServerFault" if found is None or found is MixserveError else found.__name__

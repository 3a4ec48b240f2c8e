"""Asks one server for its statistics again and again, in a thread of its own."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace

from mixserve.cli.connecting import Connection
from mixserve.cli.top.figures import Server, server_of
from mixserve.readings.growth import Growth, Reading
from mixserve_client.errors import MixserveError
from mixserve_client.options import ConnectOptions
from mixserve_client.schema.stats import Metric, Stats
from mixserve_client.schema.text import shorten
from mixserve_client.transport.credentials import Credentials
from mixserve_client.transport.grpc import GrpcTransport
from mixserve_client.wire import methods
from mixserve_client.wire.stats import decode_stats, encode_stats_request

_LEAST_S, _MOST_S = 2.0, 10.0  # to wait for an answer
_ERROR_CHARACTERS = 300
_LARGEST = 1e18


class Asking:
    """What the server at `address` said last. Thread-safe.

    `turns` is how often it was asked, with or without success. `error` is that of the last turn, None for an answer.
    """

    def __init__(self, address: str, connection: Connection, every_s: float, told: Callable[[], None]):
        """Calls `told` after each turn. Raises InvalidRequest if the address or the credentials are wrong."""
        self.address = address
        self.turns = 0
        self.error: MixserveError | None = None
        self._every_s = every_s
        self._told = told
        self._growth = Growth()
        self._reading: Reading | None = None
        self._silent_since = 0.0
        self._ended = threading.Event()
        # Not a MixClient, which would try again before it says that a server does not answer: that is shown at once.
        options = ConnectOptions(address, **connection.credentials())
        self._transport = GrpcTransport(options.addresses[0], Credentials(options.tls_options, options.token_options))
        self._thread = threading.Thread(target=self._run, name="mixserve-top", daemon=True)

    def start(self) -> None:
        """Begin to ask."""
        self._thread.start()

    def close(self) -> None:
        """End, also a call that is under way."""
        self._ended.set()
        self._transport.close()

    def now(self) -> tuple[Server, Reading | None]:
        """The server, and its last reading, None if it does not answer."""
        reading, error = self._reading, self.error
        if error is not None:
            said = shorten(f"{type(error).__name__}: {error}", _ERROR_CHARACTERS)
            return Server(self.address, False, said, time.monotonic() - self._silent_since), None
        if reading is None:
            return Server(self.address, False), None
        return server_of(self.address, reading), reading

    def _run(self) -> None:
        due = time.monotonic()
        while not self._ended.is_set():
            self._turn()
            self._told()
            due = max(due + self._every_s, time.monotonic())  # a late answer does not make the next ones come together
            self._ended.wait(max(0.0, due - time.monotonic()))

    def _turn(self) -> None:
        began = time.monotonic()
        try:
            stats = self._ask()
        except MixserveError as error:
            if self.error is None:
                self._silent_since = began
            self.error = error
        else:
            self._reading = self._growth.read(stats, time.monotonic())
            self.error = None
        self.turns += 1

    def _ask(self) -> Stats:
        """Raises MixserveError."""
        timeout_s = min(_MOST_S, max(_LEAST_S, self._every_s))
        reply = self._transport.call(methods.GET_STATS, encode_stats_request(), timeout_s)
        return {name: _finite(metric) for name, metric in decode_stats(reply).items()}


def _finite(metric: Metric) -> Metric:
    """The metric without samples that are no numbers, or none to reckon with: no server may end this program."""
    return replace(metric, samples=tuple(one for one in metric.samples if abs(one.value) <= _LARGEST))

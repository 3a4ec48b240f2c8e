"""The metrics of several processes that serve together: each tells its own at a Unix socket."""

import logging
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from mixserve_client.errors import CorruptReply
from mixserve_client.limited_log import LimitedLog
from mixserve_client.schema.stats import Metric, Sample, by_name
from mixserve_client.wire.stats import decode_stats, encode_stats

_logger = logging.getLogger("mixserve")

_WAIT_S = 1.0
_PAUSE_S = 0.2
_PIECE_BYTES = 1 << 16
_LABEL = "worker"

Collect = Callable[[], Iterable[Metric]]


class StatsSocket:
    """Sends what `collect` returns to whoever connects to `path`, a socket in a folder that only this user can open."""

    def __init__(self, collect: Collect, path: str):
        """Raises OSError."""
        self._collect = collect
        self._failures, self._untaken = LimitedLog(_logger), LimitedLog(_logger)
        self._closed = threading.Event()
        self._socket = socket.socket(socket.AF_UNIX)
        Path(path).unlink(missing_ok=True)  # of a worker that was killed
        self._socket.bind(path)
        self._socket.listen()
        threading.Thread(target=self._run, name="mixserve-stats", daemon=True).start()

    def close(self) -> None:
        """End."""
        self._closed.set()
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread
        self._socket.close()

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                peer, _ = self._socket.accept()
            except OSError as error:  # closed, or there is no descriptor left
                if not self._closed.wait(_PAUSE_S):
                    with suppress(BaseException):  # as below
                        self._untaken.warn("cannot take a connection for the metrics of this process: %s", error)
                continue
            try:
                with peer:
                    peer.settimeout(_WAIT_S)
                    peer.sendall(encode_stats(by_name(self._collect()).values()))
            except OSError:
                pass  # the peer has gone
            except BaseException:  # such as SystemExit from a handler of the log: this thread must live
                self._failures.exception("cannot tell the metrics of this process")


def of_workers(paths: Sequence[str], number: int | None = None, own: Collect | None = None) -> Iterator[Metric]:
    """The metrics of all workers, each with its number as a label. Those of the worker `number` are `own`.

    Leaves out workers that do not answer: they start, end or hang.
    """
    for at, path in enumerate(paths):
        if at == number and own is not None:
            yield from _labelled(own(), at)
            continue
        with suppress(OSError, CorruptReply):
            yield from _labelled(_read(path), at)


def _read(path: str) -> Iterable[Metric]:
    """Raises OSError and CorruptReply."""
    with socket.socket(socket.AF_UNIX) as made:
        made.settimeout(_WAIT_S)
        made.connect(path)
        pieces = list[bytes]()
        while piece := made.recv(_PIECE_BYTES):
            pieces.append(piece)
    return decode_stats(b"".join(pieces)).values()


def _labelled(metrics: Iterable[Metric], number: int) -> Iterator[Metric]:
    for metric in metrics:
        samples = tuple(Sample((*one.labels, str(number)), one.value, one.counts) for one in metric.samples)
        yield replace(metric, labels=(*metric.labels, _LABEL), samples=samples)

"""A TCP connection to a host by a deadline, also if no name server answers: the resolver alone may wait for minutes."""

import socket
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from mixserve_client.forks import PerProcess
from mixserve_client.transport.endpoints import Endpoint
from mixserve_client.transport.waits import wait_s

_Found = Sequence[tuple[int, int, int, str, Any]]  # what socket.getaddrinfo returns


def connect_tcp(at: Endpoint, until: float) -> socket.socket:
    """A connection to the first of the host's addresses that answers. Raises OSError, at `until` TimeoutError."""
    found = _addresses(at, until)
    said = "it has no address"
    for place, (family, kind, protocol, _, address) in enumerate(found):
        made = socket.socket(family, kind, protocol)
        try:
            made.settimeout(_remaining_s(until) / (len(found) - place))
            made.connect(address)
            return made
        except OSError as error:
            made.close()
            said = str(error)
        except BaseException:
            made.close()
            raise
    raise OSError(said)


def _addresses(at: Endpoint, until: float) -> _Found:
    try:
        with suppress(socket.gaierror):  # it is a name, and no address
            return socket.getaddrinfo(at.host, at.port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        lookup = _lookups.here.start(at)
        try:
            return lookup.result(wait_s(until))
        except TimeoutError:
            if lookup.done():
                raise
            raise TimeoutError(f"the name servers have not told the address of {at.host} in time") from None
    except UnicodeError as error:  # a label of a name is empty, or too long
        raise OSError(f"{at.host!r:.100} is no name of a host: {error}") from error


class _Lookups:
    """Those under way in this process. A lookup cannot be ended, so callers that need the same one share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way = dict[Endpoint, Future[_Found]]()

    def start(self, at: Endpoint) -> "Future[_Found]":
        with self._lock:
            known = self._under_way.get(at)
            if known is not None:
                return known
            made = Future[_Found]()
            # A daemon: the interpreter does not wait for name servers when it ends.
            thread = threading.Thread(target=self._look_up, args=(at, made), name="mixserve-resolve", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # too many threads, or the interpreter ends
                raise OSError(f"cannot look up {at.host}: {error}") from error
            self._under_way[at] = made
            return made

    def _look_up(self, at: Endpoint, made: "Future[_Found]") -> None:
        try:
            found = socket.getaddrinfo(at.host, at.port, type=socket.SOCK_STREAM)
        except BaseException as error:
            made.set_exception(error)
        else:
            made.set_result(found)
        finally:
            with self._lock:
                self._under_way.pop(at, None)


_lookups = PerProcess(_Lookups)


def _remaining_s(until: float) -> float:
    """Raises TimeoutError."""
    remaining_s = until - time.monotonic()
    if remaining_s <= 0:
        raise TimeoutError("it took too long")
    return remaining_s

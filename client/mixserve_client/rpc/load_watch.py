"""Asks replicas from time to time how many readers they have, in the background."""

import time
from collections.abc import Callable, Sequence

from mixserve_client.errors import ServerFault, Unavailable
from mixserve_client.rpc.homes import Homes
from mixserve_client.rpc.replica import Replica
from mixserve_client.schema.requests import Sender
from mixserve_client.wire import methods
from mixserve_client.wire.server import ask_load, decode_server

_ANSWER_S = 1.0  # how long a replica has to answer
_NO_THREAD_S = 1.0  # when to try again if the system has no thread left

Start = Callable[[Callable[[], None]], None]
LookAt = Callable[[float], None]


class LoadWatch:
    """Has `homes` look when that is due. Thread-safe."""

    def __init__(self, homes: Homes, usable: Callable[[], Sequence[Replica]], attempt_s: float):
        """`usable` are the replicas among which readers may move, and `attempt_s` how long calls may take."""
        self._homes, self._usable = homes, usable
        self._answer_s = min(attempt_s, _ANSWER_S)
        self._is_looking = False

    def look_soon(self, look_at: LookAt) -> None:
        """There are other replicas than before. `look_at` has `look` called at a time."""
        if self._homes.look_at:
            self._homes.look_soon(time.monotonic())
            look_at(self._homes.look_at)

    def look(self, now: float, start: Start, look_at: LookAt) -> float:
        """Do what is due, in a thread that `start` runs; returns when something is due next, 0 for never."""
        at = self._homes.look_at
        if self._is_looking or not at or at > now:
            return 0.0 if self._is_looking else at
        self._is_looking = True
        try:
            start(lambda: self._look(look_at))
        except Unavailable:  # closed
            return 0.0
        except RuntimeError:  # the system has no thread left
            self._is_looking = False
            return now + _NO_THREAD_S
        return 0.0  # that thread says so

    def _look(self, look_at: LookAt) -> None:
        try:
            self._homes.look(self._usable(), self._ask, time.monotonic)
        finally:
            self._is_looking = False
            if self._homes.look_at:
                look_at(self._homes.look_at)

    def _ask(self, replica: Replica, reader: Sender | None, leaves: bool) -> None:
        try:
            answer = replica.transport.call(methods.GET_SERVER, ask_load(reader, leaves=leaves), self._answer_s)
            replica.note_load(decode_server(answer).load, time.monotonic())
        except ServerFault:  # the answer of a server that is older than GetServer
            replica.note_load(None, time.monotonic())
        except Exception:  # also of a transport that was closed meanwhile. Requests for rows will say what is wrong
            replica.load = None

"""Sends a schedule to servers that do not know it."""

from mixserve_client.errors import DeadlineExceeded, Unavailable, UnknownSchedule
from mixserve_client.rpc.asking import Definitions
from mixserve_client.rpc.replica import Asked, Replica
from mixserve_client.rpc.replicas import Replicas
from mixserve_client.rpc.tries import Tries
from mixserve_client.wire import methods

# Servers may forget a schedule at any time, but one that forgets it this often between two replies cannot keep it.
_LIMIT = 8
_TIMEOUT_S = 10.0


class SchedulePublisher:
    """Sends a schedule to servers that do not know it."""

    def __init__(self, replicas: Replicas, definitions: Definitions | None):
        self._replicas = replicas
        self._definitions = definitions
        self._is_wanted = False
        self._unknown = 0  # how often a server did not know the schedule since the last reply

    def note_unknown(self, error: UnknownSchedule) -> None:
        """Make the next `publish` send the schedule. Raises `error` if there is none, or servers keep forgetting it."""
        self._unknown += 1
        if self._definitions is None or self._unknown > _LIMIT:
            try:
                raise error
            finally:
                del error  # breaks a reference cycle, as in `Tries.failed`
        self._is_wanted = True
        self._replicas.figures.note_retry(error)

    def publish(self, replica: Replica, tries: Tries) -> None:
        """Send the schedule if the server did not know it. Raises what a call raises."""
        if self._is_wanted and self._definitions is not None:
            # At first only the last entry: most servers know the schedule before it. If not, all of it.
            for definition in self._definitions(self._unknown > 1):
                self._send(replica, definition, tries)
        self._is_wanted = False

    def note_reply(self) -> None:
        """A server has answered with the schedule."""
        self._unknown = 0

    def _send(self, replica: Replica, definition: bytes, tries: Tries) -> None:
        try:
            # A stream's `cancel` does not reach this call, so it must be short.
            timeout_s = min(_TIMEOUT_S, tries.remaining_s() or _TIMEOUT_S, tries.limit_s() or _TIMEOUT_S)
            self._replicas.call(replica, Asked(methods.DEFINE_SCHEDULE, definition), timeout_s)
        except DeadlineExceeded as error:
            # Our own limit, not the caller's deadline, which `Tries` checks: another replica may be quicker.
            raise Unavailable(f"the server did not accept the schedule in time: {error}") from error

"""The readers that read here at present, and how long replies take: clients of several replicas compare that."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from mixserve_client.forks import renew_in_forks
from mixserve_client.schema.requests import Sender
from mixserve_client.schema.server import Load

# A reader between two requests is still one. One that has moved elsewhere must not keep others away.
PRESENT_S = 1.0
# It says that it moves before it requests anything where it goes to, and while requests are under way where it was.
_COMES_S, _GOES_S = 3.0, 5.0
_MOST_READERS = 4096
_COUNT_EVERY_S = 0.1
_SMOOTHING = 0.1
_LATELY_S = 5.0  # a replica that readers have left because it was slow may be as fast as others now

Clock = Callable[[], float]


class PresentReaders:
    """Counts the readers of all mixtures, up to 4,096: of more, the ones that were silent longest do not count.
    Thread-safe."""

    def __init__(self, clock: Clock = time.monotonic, most: int = _MOST_READERS):
        self._clock, self._most = clock, most
        # By client and reader, the one that came last as the last.
        self._readers = OrderedDict[tuple[str, int], PresentReader]()
        self._count, self._count_again_at = 0, 0.0
        # Of the other processes that answer at the same address, and what tells these of this one's.
        self.of_others: Callable[[], int] = _none
        self.tell_others: Callable[[], None] = _nothing
        self._reply_s, self._replied_at = 0.0, 0.0
        self._renew()
        renew_in_forks(self, PresentReaders._renew)

    def _renew(self) -> None:
        self._lock = threading.Lock()

    def come(self, sender: Sender) -> "PresentReader":
        """A request of a reader begins. What is returned is for `leave`, when it ends."""
        with self._lock:
            reader = self._reader(sender)
            reader.requests += 1
            reader.until = max(reader.until, self._clock() + PRESENT_S)
        return reader

    def expect(self, sender: Sender) -> None:
        """A reader moves here, and sends its first request when it needs the next rows."""
        with self._lock:
            reader, now = self._reader(sender), self._clock()
            reader.absent_until, reader.until = 0.0, now + _COMES_S
            self._count_again_at = 0.0

    def leave_for_another(self, sender: Sender) -> None:
        """A reader moves to another replica, and takes only what it has requested."""
        with self._lock:
            reader, now = self._reader(sender), self._clock()
            reader.absent_until, reader.until = now + _GOES_S, 0.0
            self._count_again_at = 0.0

    def _reader(self, sender: Sender) -> "PresentReader":
        """The reader, as the one that came last. With the lock."""
        name = (sender.client, sender.reader)
        reader = self._readers.get(name)
        if reader is None:
            reader = self._readers[name] = PresentReader()
            if len(self._readers) > self._most:
                self._readers.popitem(last=False)
        else:
            self._readers.move_to_end(name)
        return reader

    def leave(self, reader: "PresentReader") -> None:
        """A request has ended."""
        now = self._clock()
        with self._lock:
            reader.requests -= 1
            reader.until = max(reader.until, now + PRESENT_S)

    def note_reply(self, seconds: float) -> None:
        """A reply was made in so many seconds."""
        now = self._clock()
        with self._lock:
            is_first = now - self._replied_at > _LATELY_S
            self._reply_s += (1.0 if is_first else _SMOOTHING) * (seconds - self._reply_s)
            self._replied_at = now

    def count(self) -> int:
        """The number of readers of this process."""
        with self._lock:
            now = self._clock()
            if now >= self._count_again_at:  # not for each of many clients that ask at once
                for name in [name for name, one in self._readers.items() if one.is_gone(now)]:
                    del self._readers[name]
                self._count = sum(one.is_present(now) for one in self._readers.values())
                self._count_again_at = now + _COUNT_EVERY_S
            return self._count

    def load(self) -> Load:
        """The readers of all processes, and how long replies of this one take."""
        is_late = self._clock() - self._replied_at > _LATELY_S
        return Load(self.count() + self.of_others(), 0.0 if is_late else self._reply_s)


class PresentReader:
    """One reader: how many of its requests are under way, until when it counts without one, and until when it does not
    count."""

    __slots__ = ("absent_until", "requests", "until")

    def __init__(self) -> None:
        self.requests = 0
        self.until = self.absent_until = 0.0

    def is_present(self, now: float) -> bool:
        return now >= self.absent_until and (self.requests > 0 or now < self.until)

    def is_gone(self, now: float) -> bool:
        """Whether nothing need be remembered of it."""
        return not self.requests and now >= max(self.until, self.absent_until)


def _none() -> int:
    return 0


def _nothing() -> None:
    pass

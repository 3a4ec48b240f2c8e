"""The memory of the process: how much there may be, how much there is, and giving back what is free."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from mixserve.serving.allocator import Visit, free_bytes, give_back
from mixserve.serving.unread import UnreadReplies
from mixserve_client.limited_log import LimitedLog

_logger = logging.getLogger("mixserve")

MIB = 1 << 20
_PROC, _CGROUPS = Path("/proc/self"), Path("/sys/fs/cgroup")
_SHARE = 0.9  # of what the system allows: the kernel's own memory for sockets counts in a control group too
_MOST_REPLY_BYTES, _REPLY_PART = 512 * MIB, 8
_COPIES = 2  # of a reply: ours, and gRPC's

# Free memory goes back in quiet moments: it costs the first replies afterwards a quarter of a millisecond per MiB.
_QUIET_BYTES, _QUIET_S = 64 * MIB, 5.0
_TRIM_AGAIN_S = 10.0
_LEAST_FREE_BYTES = 64 * MIB  # less is kept for the next replies
_NEAR = 0.9  # from this part of the limit on, memory is given back at once

Clock = Callable[[], float]


def own_bytes() -> int | None:
    """Bytes that the kernel cannot take back: anonymous pages, and shared memory that this process has touched.

    Not the pages of mapped files, of which the kernel keeps as many as it has room for. None where it cannot be told.
    """
    try:
        lines = (_PROC / "status").read_text().splitlines()
    except OSError:
        return None
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith(("RssAnon:", "RssShmem:"))]
    return sum(found) if found else None


def allowed_bytes(processes: int = 1) -> int | None:
    """What one of so many processes may have by default; None where the system does not tell."""
    allowed = min((*_group_limits(), *_machine_bytes()), default=None)
    return None if allowed is None else int(allowed * _SHARE) // processes


def default_reply_bytes(memory_limit: int | None) -> int:
    """`reply_bytes`, for a limit of memory."""
    if memory_limit is None:
        return _MOST_REPLY_BYTES
    return max(1, min(_MOST_REPLY_BYTES, memory_limit // _REPLY_PART))


class MemoryWatch:
    """Keeps the memory of the process below `limit`; `look` is called every second.

    The closer it is, the fewer bytes of replies there may be: at the limit there are none, and calls get Overloaded
    until readers have taken theirs. What is free goes back to the system near the limit, and in quiet moments.
    """

    def __init__(
        self,
        limit: int | None,
        unread: UnreadReplies,
        shrink: Iterable[Callable[[], None]] = (),
        visits: Iterable[Visit] = (),
        clock: Clock = time.monotonic,
        own: Callable[[], int | None] = own_bytes,
    ):
        """`shrink` are functions that let go of memory which is kept for reuse, `visits` those for `give_back`, and
        `own` tells how much memory there is."""
        self.limit = limit
        self.near = LimitedLog(_logger, "memory_limit")
        self._unread = unread
        self._most_reply_bytes = unread.most_bytes
        self._shrink, self._visits = tuple(shrink), tuple(visits)
        self._clock = clock
        self._own = own
        self._made = unread.made_bytes
        self._busy_at = self._trimmed_at = clock()
        self._at_trim = (-1, 0)  # bytes of replies made and held; starting may have left memory too
        unread.look = self._look_at_limit
        self._look_at_limit(may_grow=True)

    def look(self) -> None:
        """Adapt how many bytes of replies there may be, and give memory back."""
        now, made = self._clock(), self._unread.made_bytes
        if made - self._made > _QUIET_BYTES:
            self._busy_at = now
        self._made = made
        own = self._own()
        if own is None:
            return
        is_near = self.limit is not None and own > self.limit * _NEAR
        is_quiet = now - self._busy_at >= _QUIET_S and now - self._trimmed_at >= _TRIM_AGAIN_S
        if is_near or (is_quiet and (made, self._unread.bytes) != self._at_trim):
            self._trim(now)
        self._look_at_limit(may_grow=True)

    def _look_at_limit(self, may_grow: bool = False) -> None:
        limit, own = self.limit, self._own()
        if limit is None or own is None:
            return
        left = max(0, limit - own)
        # Half of what is left, so that it is reached slowly. Replies that are reserved and not made are not in `own`
        # yet: so there may be more only once a second.
        most = min(self._most_reply_bytes, self._unread.bytes + left // (2 * _COPIES))
        self._unread.most_bytes = most if may_grow else min(self._unread.most_bytes, most)
        # The next replies need not get the memory of those that were taken, so that it may grow without more of them.
        self._unread.look_at = self._unread.made_bytes + left // (2 * _COPIES)
        if left < limit * (1 - _NEAR):
            self.near.warn(
                "the server has %d MiB of memory, and memory_limit is %d MiB: it accepts %d MiB of replies at a time, "
                "and answers other calls with Overloaded. Give it more memory, or less to remember",
                own // MIB,
                limit // MIB,
                self._unread.most_bytes // MIB,
            )

    def _trim(self, now: float) -> None:
        for shrink in self._shrink:
            shrink()
        if free_bytes() >= _LEAST_FREE_BYTES:
            give_back(self._visits)
        self._trimmed_at, self._at_trim = now, (self._made, self._unread.bytes)


def _machine_bytes() -> Iterator[int]:
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemTotal:"):
                yield int(line.split()[1]) * 1024


def _group_limits() -> Iterator[int]:
    """The limits of the control groups that the process is in, and of those around them."""
    try:
        lines = (_PROC / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if not controllers:  # version 2
            yield from _limits_up(_CGROUPS, path, "memory.max")
        elif "memory" in controllers.split(","):
            yield from _limits_up(_CGROUPS / "memory", path, "memory.limit_in_bytes")


def _limits_up(root: Path, path: str, name: str) -> Iterator[int]:
    # In a container the path may be that of the host, and the files of the own group lie at the root.
    place = root / path.lstrip("/")
    for folder in (place, *place.parents):
        with suppress(OSError, ValueError):  # "max" is no limit
            yield int((folder / name).read_text())
        if folder == root:
            break

"""The folder where one server keeps sessions and checkpoints: its lock, its layout, and atomic writes.

lock                                              held by the server while it runs
sessions/MIXTURE/SESSION                          the session's journal
checkpoints/MIXTURE/SESSION/NAME.NUMBER/          one checkpoint
unfinished/                                       what is being written or deleted; cleared at the start
"""

import errno
import fcntl
import os
import shutil
import stat
import threading
import time
import uuid
from collections.abc import Generator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from urllib.parse import quote

from mixserve.disk import sync
from mixserve_client.errors import StorageFailed
from mixserve_client.schema.text import show

_NAME_BYTES_LIMIT = 200
_QUIET_S = 10.0
KEPT_BYTES = 64 << 30
_MEASURE_EVERY_S = 10.0


class StateFolder:
    """The folder of one server; a second server cannot open it. Holds up to `limit_bytes` bytes. Thread-safe."""

    def __init__(self, path: Path, *, limit_bytes: int = KEPT_BYTES):
        """Raises OSError if the folder cannot be written, or another server has it."""
        self.path = path.absolute()
        self._limit_bytes, self._spare_bytes = limit_bytes, limit_bytes // 16
        self._writes = threading.Condition()
        self._writing = 0
        self._closed = False
        self._pid = os.getpid()
        self._unfinished = self.path / "unfinished"
        try:
            make_folder(self.path)
            # Stays open: the kernel holds the lock while a descriptor is open, and drops it however the process ends.
            self._lock = (self.path / "lock").open("a+")
            try:
                self._take()
            except BaseException:
                self._lock.close()
                raise
        except OSError as error:
            raise OSError(
                error.errno,
                f"the state folder {path} cannot be used: {error.strerror}; give every server its own folder that it "
                "can write to",
            ) from error
        self._measuring = threading.Lock()
        self._used, self._measured = self._measure(), time.monotonic()

    def journals(self, mixture: str) -> Path:
        """The folder of the journals of a mixture's sessions."""
        return self.path / "sessions" / _folder_name(mixture)

    def checkpoints(self, mixture: str) -> Path:
        """The folder of the checkpoints of a mixture's sessions."""
        return self.path / "checkpoints" / _folder_name(mixture)

    def unfinished(self) -> Path:
        """A path that nothing else uses, on the same file system."""
        return self._unfinished / uuid.uuid4().hex

    def grow(self, more_bytes: int, *, spared: bool = False) -> None:
        """Count bytes that are about to be written. Raises OSError if the folder would be too large.

        `spared` bytes may exceed the limit by a sixteenth: that is for journals, so that sessions can continue, and
        delete checkpoints, when there is no room for checkpoints.
        """
        limit = self._limit_bytes + (self._spare_bytes if spared else 0)
        with self._measuring:
            if more_bytes > 0 and self._used + more_bytes > limit:
                # Users may have made room by hand. Walking through the folder is slow, so not at every call.
                if time.monotonic() - self._measured >= _MEASURE_EVERY_S:
                    self._used, self._measured = self._measure(), time.monotonic()
                if self._used + more_bytes > limit:
                    raise OSError(
                        errno.EDQUOT,
                        f"the state folder has {self._used} bytes, and may have {limit}: delete old checkpoints",
                    )
            self._used += more_bytes

    def _measure(self) -> int:
        """The bytes of all journals and checkpoints."""
        tops = (self.path / "sessions", self.path / "checkpoints")
        return sum(bytes_below(top) for top in tops)

    @contextmanager
    def writing(self) -> Generator[None]:
        """Around every change in the folder. Raises OSError once another server may have the folder."""
        if os.getpid() != self._pid:
            raise OSError(errno.EPERM, "the state folder belongs to the process that this one was forked from")
        with self._writes:
            if self._closed:  # a call may still be running after the server has stopped
                raise OSError(errno.ESHUTDOWN, "this server has stopped, and another one may have its state folder")
            self._writing += 1
        try:
            yield
        finally:
            with self._writes:
                self._writing -= 1
                self._writes.notify_all()

    def remove(self, path: Path) -> None:
        """Delete a file or folder atomically. Raises OSError."""
        # Renamed first: a reader, or a server that is killed here, must never see half a folder.
        away = self.unfinished()
        with self.writing():
            path.rename(away)
            sync(path.parent)
        self.grow(-bytes_below(away))
        if away.is_dir() and not away.is_symlink():
            shutil.rmtree(away, ignore_errors=True)
        else:
            away.unlink()

    def close(self) -> None:
        """Release the folder for another server, after the writes in progress (up to 10 s)."""
        if os.getpid() != self._pid:
            return
        with self._writes:
            self._closed = True
            is_quiet = self._writes.wait_for(lambda: not self._writing, _QUIET_S)
        if is_quiet and not self._lock.closed:  # else this process keeps the lock until it ends
            # Unlocked, not only closed: a forked process has the same descriptor, and would hold the lock.
            fcntl.flock(self._lock, fcntl.LOCK_UN)
            self._lock.close()

    def _take(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OSError(error.errno, f"another server{self._owner()} has it") from None
        self._lock.truncate(0)
        self._lock.write(str(os.getpid()))
        self._lock.flush()
        shutil.rmtree(self._unfinished, ignore_errors=True)
        self._unfinished.mkdir(exist_ok=True)

    def _owner(self) -> str:
        self._lock.seek(0)
        pid = self._lock.read(20)
        return f" (process {pid})" if pid.isdecimal() else ""


def _describe(error: OSError) -> str:
    """The operating system's message, and the path that it is about."""
    said, path = error.strerror or str(error), error.filename2 or error.filename
    return said if path is None else f"{said}: {show(str(path))}"


@contextmanager
def storing(what: str) -> Generator[None]:
    """Turns an OSError of writing `what` into StorageFailed."""
    try:
        yield
    except OSError as error:
        raise StorageFailed(
            f"the server cannot save {what}: {_describe(error)}; everything saved before is still there. "
            "Make room, or let the server write to its state folder, and ask again"
        ) from error


@contextmanager
def open_regular(path: Path, limit_bytes: int) -> Generator[tuple[BufferedReader, int]]:
    """A regular file to read, and its size. Raises OSError, also if it is larger than `limit_bytes`."""
    # Nothing else is read: a link may lead anywhere, and a pipe or device may have no end. Without O_NONBLOCK, the open
    # of a pipe would wait for a writer.
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK):
            raise OSError(error.errno, "it is a link, and links are not followed") from error
        raise
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
        if found.st_size > limit_bytes:
            raise OSError(errno.EFBIG, f"it has {found.st_size} bytes, at most {limit_bytes} are allowed")
    except BaseException:
        os.close(descriptor)
        raise
    with os.fdopen(descriptor, "rb") as file:
        yield file, found.st_size


def bytes_below(path: Path) -> int:
    """The bytes of a file, or of all files in a folder. Links are not followed."""
    total = 0
    with suppress(OSError):
        total += path.lstat().st_size if not path.is_dir() or path.is_symlink() else 0
    for place, _, files in os.walk(path):
        for file in files:
            with suppress(OSError):  # it may have been deleted meanwhile
                total += (Path(place) / file).lstat().st_size
    return total


def make_folder(path: Path) -> None:
    """Make a folder, with missing parents, and sync them to disk. Raises OSError."""
    if path.is_dir():
        return
    try:
        path.mkdir(exist_ok=True)
    except FileNotFoundError:
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
    try:
        sync(path.parent)
    except OSError:
        path.rmdir()  # or the next call would find the folder, and not sync it
        raise


def _folder_name(mixture: str) -> str:
    """A folder name for the mixture. Raises OSError if it is too long."""
    # `quote` leaves dots alone, and a mixture may be called "..".
    name = quote(mixture, safe=" ").replace(".", "%2E")
    if len(name) > _NAME_BYTES_LIMIT:
        raise OSError(errno.ENAMETOOLONG, f"the mixture's name {mixture!r:.60} is too long for a state folder")
    return name

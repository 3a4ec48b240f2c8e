"""Small files that are read again when they change: certificates, keys and tokens."""

import logging
import os
import stat
from pathlib import Path

from mixserve_client.errors import InvalidRequest

AnyPath = str | os.PathLike[str]
# The time of change, the size and the inode; None if the file is not there.
FileVersion = tuple[int, int, int] | None

_LARGEST_FILE = 1 << 20
_ROOT = 0
_warned: set[tuple[str, int]] = set()


def version_of(path: AnyPath) -> FileVersion:
    """Another one when the file has changed, or a link leads to another file."""
    try:
        status = Path(path).stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def read_small(path: AnyPath, name: str) -> bytes:
    """What the file has, up to 1 MiB. Raises InvalidRequest, a ValueError, which calls the file `name`."""
    try:
        # Opening a pipe would wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:  # noqa: PTH123
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise InvalidRequest(f"{name}: {path} must be a file, not a folder, a pipe or a device")
            content = file.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise InvalidRequest(f"{name}: {path} cannot be read: {error.strerror}") from error
    if len(content) > _LARGEST_FILE:
        raise InvalidRequest(f"{name}: {path} has more than {_LARGEST_FILE >> 20} MiB")
    return content


def warn_of_readers(path: AnyPath, what: str, logger: logging.Logger) -> None:
    """Log, once for each file and mode, that other users can read the file of a secret, and what to do.

    It is a warning only: the file may be in a container, where there are no others.
    """
    try:
        status = os.stat(path)  # noqa: PTH116  # of what a link leads to
    except OSError:
        return
    mode = stat.S_IMODE(status.st_mode)
    who = who_may_use(mode, status.st_uid, os.geteuid())
    if who is not None and (os.fspath(path), mode) not in _warned:
        _warned.add((os.fspath(path), mode))
        logger.warning("%s may use the %s in %s, which has the mode %04o: chmod 600 it", who, what, path, mode)


def who_may_use(mode: int, owner: int, user: int) -> str | None:
    """Who else than `user` may use its secret, in a file of that mode and owner; None if that is fine."""
    if mode & stat.S_IRWXO:
        return "every user of this machine"
    # As PostgreSQL has it: a file of the user's own has no need of a group. One that root puts there for the user is
    # often for its group alone, such as secrets of Kubernetes with fsGroup.
    return "its group" if mode & stat.S_IRWXG and owner == user != _ROOT else None

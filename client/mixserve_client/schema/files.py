"""Small files that are read again when they change: certificates, keys and tokens."""

import os
import stat
from pathlib import Path

from mixserve_client.errors import InvalidRequest

AnyPath = str | os.PathLike[str]
# The time of change, the size and the inode; None if the file is not there.
FileVersion = tuple[int, int, int] | None

_LARGEST_FILE = 1 << 20


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

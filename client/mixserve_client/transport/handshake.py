"""How a client and a server on one host meet: a private folder, a socket in it, packets, and who is there."""

import os
import socket
import stat
import struct
from pathlib import Path

DEFAULT_FOLDER = "/dev/shm"
# (size, 0) with a descriptor hands in a slot, and (0, id) takes it back; see `Server` in the .proto.
SLOT_PACKET = struct.Struct("<qQ")
SLOT_ID = struct.Struct("<Q")
_CREDENTIALS = struct.Struct("3i")


def own_folder(folder: str) -> Path:
    """Where this user's sockets lie in `folder`."""
    return Path(folder).absolute() / f"mixserve-{os.geteuid()}"


def peer_user(connection: socket.socket) -> int:
    """The user at the other end, as the kernel says."""
    found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return _CREDENTIALS.unpack(found)[1]


def check_private(folder: Path) -> None:
    """Raises PermissionError where `folder` is a link, or somebody else's, or open to others."""
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise PermissionError(f"{folder} must be a folder of this user alone (mode 700), and no link")


def check_socket(path: Path, folder: Path) -> None:
    """Raises OSError unless `path` is a socket of this user, in a private folder directly inside `folder`."""
    if path.parent.parent != folder or ".." in path.parts:
        raise PermissionError(f"{path} is not in a folder of {folder}; give the server's folder to connect()")
    check_private(path.parent)
    found = os.lstat(path)
    if not stat.S_ISSOCK(found.st_mode) or found.st_uid != os.geteuid():
        raise PermissionError(f"{path} must be a socket of this user, and no link")

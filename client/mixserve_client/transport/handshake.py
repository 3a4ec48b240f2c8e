"""How a client and a server on one host connect: private folder, socket, packets, and the checks of the peer."""

import os
import socket
import stat
import struct
from pathlib import Path

DEFAULT_FOLDER = "/dev/shm"
# (size, 0) with a descriptor adds a slot, and (0, id) removes it; see `Server` in mix.proto.
SLOT_PACKET = struct.Struct("<qQ")
CHANNEL_SIZE = -0x626C6B  # in place of a slot's size: the descriptor is a socket, for a bulk channel
SLOT_ID = struct.Struct("<Q")
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid


def own_folder(folder: str) -> Path:
    """The folder of this user's sockets, inside `folder`."""
    return Path(folder).absolute() / f"mixserve-{os.geteuid()}"


def peer_user(connection: socket.socket) -> int:
    """The user id of the process at the other end, from the kernel."""
    found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return _CREDENTIALS.unpack(found)[1]


def check_private(folder: Path) -> None:
    """Raises PermissionError if `folder` is a link, belongs to another user, or is open to others."""
    # lstat: a link that is followed could lead into a folder of another user.
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise PermissionError(f"{folder} must be a folder (not a link) that only this user can open (mode 700)")


def check_socket(path: Path, folder: Path) -> None:
    """Raises OSError unless `path` is a socket of this user, in a private folder directly inside `folder`."""
    if path.parent.parent != folder or ".." in path.parts:
        raise PermissionError(
            f"{path} must be in a folder directly inside {folder}; pass the server's folder to connect()"
        )
    check_private(path.parent)
    found = os.lstat(path)
    if not stat.S_ISSOCK(found.st_mode) or found.st_uid != os.geteuid():
        raise PermissionError(f"{path} must be a socket (not a link) of this user")

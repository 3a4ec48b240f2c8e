"""Whether a server can listen at an address: told before data are opened, and kept until the server listens itself."""

import errno
import os
import socket
import sys
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from mixserve.address import check_address
from mixserve_client.schema.text import show

_ANY = (("::", socket.AF_INET6), ("0.0.0.0", socket.AF_INET))  # gRPC tries both for either


@contextmanager
def holding(*addresses: str) -> Generator[ExitStack]:
    """Until the end of the block, or `close()` of what it gets, no other process can begin to listen at `addresses`.

    Raises OSError if this process could not do so either.

    Calls to a held port are refused, like those to a free one. A free port (0) and the path of a socket are not held;
    whether the path can be used is checked.
    """
    with ExitStack() as held:
        for address in addresses:
            check_listening(address)
            if not address.startswith("unix:") and int(address.rpartition(":")[2]):
                _hold(address, held)
        yield held


@contextmanager
def sharing(address: str) -> Generator[str]:
    """Until the end of the block, processes of this user can listen at `address` together, and no others can.

    The block gets the address with its port, which the kernel chooses for port 0. Each of the processes sets
    SO_REUSEPORT; what is held here does not listen. Raises OSError if another process listens there, and on systems
    that do not spread connections over such processes.
    """
    check_listening(address)
    if sys.platform != "linux":
        raise OSError(errno.ENOTSUP, f"several processes cannot share {address}: only Linux spreads connections")
    with ExitStack() as held:
        bound = _hold(address, held)
        # After the binding: processes that share a port of their own would not be noticed otherwise.
        for one in bound:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        yield f"{address.rpartition(':')[0]}:{bound[0].getsockname()[1]}"


def check_listening(address: Any) -> None:
    """Raises OSError that says what is wrong with `address`, or who has its socket. gRPC checks neither."""
    try:
        check_address(address)
    except ValueError as error:
        raise OSError(errno.EINVAL, f"cannot listen on {show(address)}: {error}") from error
    if address.startswith("unix:"):
        _check_socket_is_free(address)


def listening_error(address: str) -> OSError:
    """The reason that the server cannot listen at `address`."""
    # gRPC does not give the reason, so we bind a socket ourselves: that fails with the operating system's error.
    host, _, port = address.rpartition(":")
    hint = "choose another address, or port 0 for a free port"
    try:
        family, sockaddr = _resolve(host, int(port))[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind(sockaddr)
    except OSError as error:
        return OSError(error.errno, f"cannot listen on {address}: {error.strerror}; {hint}")
    except ValueError:
        pass
    return OSError(errno.EADDRNOTAVAIL, f"cannot listen on {address}: it must be host:port or unix:///path; {hint}")


def _hold(address: str, held: ExitStack) -> list[socket.socket]:
    """Bind sockets that do not listen, all to one port, until `held` ends. Raises OSError if none can be bound."""
    host, _, port = address.rpartition(":")
    try:
        is_any = ip_address(host.strip("[]")).is_unspecified
    except ValueError:
        is_any = False
    try:
        found = [(family, (name, int(port))) for name, family in _ANY] if is_any else _resolve(host, int(port))
    except (OSError, ValueError):
        raise listening_error(address) from None
    bound = list[socket.socket]()
    for family, (name, number, *more) in found:
        made = _bind(family, (name, bound[0].getsockname()[1] if bound else number, *more), held)
        if made is not None:
            bound.append(made)
    if not bound:  # one is enough for gRPC, too: a name may have addresses that this machine does not have
        raise listening_error(address)
    return bound


def _bind(family: socket.AddressFamily, sockaddr: Any, held: ExitStack) -> socket.socket | None:
    """The socket that is bound there, until `held` ends; None if it cannot be."""
    try:
        made = socket.socket(family, socket.SOCK_STREAM)
    except OSError:  # a system without IPv6
        return None
    held.callback(_release, made)
    # Exclusively, if that is possible. With SO_REUSEADDR, connections of a server that has ended are not in the way,
    # but other servers that are starting can bind the port as well, and the last one is told when it tries to listen.
    for shared in (0, 1):
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, shared)
            made.bind(sockaddr)
        except OSError:
            continue
        return made
    return None


def _release(held: socket.socket) -> None:
    # A source's code may have forked processes that still have the socket: gRPC can listen beside it then.
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.close()


def _resolve(host: str, port: int) -> list[tuple[socket.AddressFamily, Any]]:
    """Families and addresses of a host. Raises OSError."""
    found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return [(family, sockaddr) for family, _, _, _, sockaddr in found]


def _check_socket_is_free(address: str) -> None:
    """Raises OSError if another server listens on the socket, or its path is taken."""
    # gRPC removes an existing socket and binds its own, even if another server is listening on it.
    path = address.removeprefix("unix:").removeprefix("//")
    if not path.startswith("\0") and not Path(path).parent.is_dir():
        raise OSError(errno.ENOENT, f"cannot listen on {address}: there is no folder {Path(path).parent}")
    with socket.socket(socket.AF_UNIX) as probe:
        if probe.connect_ex(path) == 0:
            raise OSError(errno.EADDRINUSE, f"cannot listen on {address}: another server does; choose another path")
    if os.path.lexists(path) and not Path(path).is_socket():
        what = "a folder" if Path(path).is_dir() else "a file that is not a socket"
        raise OSError(errno.EEXIST, f"cannot listen on {address}: this path is {what}; choose another path")

"""Where bulk channels begin: accepts connections, and lets in those that say hello with a token."""

import errno
import logging
import selectors
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from mixserve.access.certificates import Certificates
from mixserve.listening import listening_error
from mixserve_client.limited_log import LimitedLog
from mixserve_client.transport.pipes import Pipe, PlainPipe, TlsPipe
from mixserve_client.wire.bulk import ALPN, HELLO, TOKEN_BYTES, WELCOME

_logger = logging.getLogger("mixserve")

_HELLO_BYTES = len(HELLO) + TOKEN_BYTES
_HELLO_S = 5.0
_MOST_STRANGERS = 128
_PAUSE_S = 0.2
_BACKLOG = 128
_TRIES = 8  # a free port of one address may be in use at another one

# Gets the token of a stranger and whence it comes. Returns what to do with its connection, None to end it.
Admit = Callable[[bytes, str], Callable[[Pipe], None] | None]


class BulkDoor:
    """Lets in those connections whose tokens `admit` knows. `port` is 0 until `listen`.

    One thread does this for all, so strangers cannot occupy those that answer.
    """

    def __init__(self, admit: Admit):
        self.port = 0
        self._admit = admit
        self._certificates: Certificates | None = None
        self._strangers: dict[_Stranger, None] = {}  # the oldest first
        self._let_in = list[socket.socket]()
        self._closed = False
        self._last_error = ""
        # Strangers can cause them as often as they like.
        self._strange, self._untaken, self._failures = LimitedLog(_logger), LimitedLog(_logger), LimitedLog(_logger)
        self.pushed_out = LimitedLog(_logger, "bulk_strangers")
        self._selector = selectors.DefaultSelector()
        self._woken, self._wake = socket.socketpair()
        self._wake.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._lock = threading.Lock()
        self._listening = list[socket.socket]()
        self._thread = threading.Thread(target=self._run, name="mixserve-bulk-door", daemon=True)

    def listen(self, host: str, port: int, certificates: Certificates | None) -> None:
        """Accept connections there. Raises OSError."""
        self._certificates = certificates
        self._listening = _listen(host, port)
        self.port = self._listening[0].getsockname()[1]
        for made in self._listening:
            self._selector.register(made, selectors.EVENT_READ, self)

    def start(self) -> None:
        """Begin to let connections in."""
        self._thread.start()

    def let_in(self, connection: socket.socket) -> None:
        """Hear what a connection says that came another way: one without TLS, of this user."""
        with self._lock:
            if not self._closed:
                self._let_in.append(connection)
                self._notify()
                return
        connection.close()

    def close(self) -> None:
        """Accept no others, and end those that have not been let in."""
        with self._lock:
            self._closed = True
        self._notify()
        if self._thread.is_alive():
            self._thread.join()
        for made in (*self._listening, *self._let_in, self._woken, self._wake):
            made.close()
        self._selector.close()

    def _notify(self) -> None:
        with suppress(BlockingIOError):  # it is awake already
            self._wake.send(b"x")

    def _run(self) -> None:
        while not self._closed:
            oldest = next(iter(self._strangers), None)
            events = self._selector.select(None if oldest is None else max(0.0, oldest.until - time.monotonic()))
            for key, _ in events:
                try:
                    self._attend(key)
                except BaseException:  # this thread must live
                    self._failures.exception("cannot open a bulk channel")
            with self._lock:
                came, self._let_in = self._let_in, []
            for connection in came:
                self._add(connection, "unix:", None)
            self._end_silent()
        for stranger in list(self._strangers):
            self._drop(stranger)

    def _attend(self, key: selectors.SelectorKey) -> None:
        if key.data is self:
            assert isinstance(key.fileobj, socket.socket)
            self._accept(key.fileobj)
        elif isinstance(key.data, _Stranger):
            if key.data in self._strangers:  # it may have been dropped for one that came in the same round
                self._hear(key.data)
        else:
            self._woken.recv(1024)

    def _accept(self, listening: socket.socket) -> None:
        try:
            connection, address = listening.accept()
        except OSError as error:
            if str(error) != self._last_error:  # the error may come back every 0.2 s: log it once
                self._last_error = str(error)
                self._untaken.warn("cannot take a connection for a bulk channel: %s", error)
            # The connection stays in the queue, so `select` returns at once: without a pause this would spin.
            time.sleep(_PAUSE_S)
            return
        host, port = str(address[0]), int(address[1])
        peer = f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}"
        self._add(connection, peer, self._certificates)

    def _add(self, connection: socket.socket, peer: str, certificates: Certificates | None) -> None:
        try:
            stranger = _Stranger(connection, peer, certificates)
        except (OSError, ValueError) as error:
            self._strange.info("cannot open a bulk channel for %s: %s", peer, error)
            connection.close()
            return
        if len(self._strangers) >= _MOST_STRANGERS:
            oldest = next(iter(self._strangers))
            self.pushed_out.warn(
                "%d connections to the port of bulk channels have not said hello: ended the oldest, of %s. Strangers "
                "who open many keep clients from bulk channels; a firewall should keep them from the port",
                _MOST_STRANGERS,
                oldest.peer,
            )
            self._drop(oldest)
        self._strangers[stranger] = None
        self._hear(stranger)

    def _hear(self, stranger: "_Stranger") -> None:
        try:
            token = stranger.hear()
            if token is None:
                self._watch(stranger)
                return
            self._forget(stranger)
            begin = self._admit(token, stranger.peer)
            if begin is not None:
                # Not before: a client that is welcome takes it for granted that its requests will be answered here.
                begin(stranger.welcome())
                return
            # The client goes on with gRPC. The token is of no use to others: it is not in the log.
            said = "%s said hello on a bulk channel with a token that is unknown, used or too old"
            self._strange.info(said, stranger.peer)
        except (OSError, ValueError) as error:
            self._strange.info("no bulk channel for %s: %s", stranger.peer, error)
        except BaseException:  # such as a lack of threads
            self._failures.exception("cannot open a bulk channel for %s", stranger.peer)
        self._drop(stranger)

    def _watch(self, stranger: "_Stranger") -> None:
        change = self._selector.modify if stranger.is_watched else self._selector.register
        change(stranger, stranger.waits_for, stranger)
        stranger.is_watched = True

    def _forget(self, stranger: "_Stranger") -> None:
        self._strangers.pop(stranger, None)
        if stranger.is_watched:
            stranger.is_watched = False
            self._selector.unregister(stranger)

    def _end_silent(self) -> None:
        now = time.monotonic()
        while self._strangers and (oldest := next(iter(self._strangers))).until <= now:
            self._drop(oldest)

    def _drop(self, stranger: "_Stranger") -> None:
        self._forget(stranger)
        stranger.close()


class _Stranger:
    """A connection whose hello has not come whole."""

    def __init__(self, connection: socket.socket, peer: str, certificates: Certificates | None):
        """Raises OSError."""
        self.peer = peer
        self.until = time.monotonic() + _HELLO_S
        self.waits_for = selectors.EVENT_READ
        self.is_watched = False
        self._came = b""
        self._secure: ssl.SSLSocket | None = None
        self._socket = connection
        connection.setblocking(False)
        if certificates is not None:
            self._socket = self._secure = certificates.pair.context.wrap_socket(
                connection, server_side=True, do_handshake_on_connect=False
            )
        self._shaking = certificates is not None

    def fileno(self) -> int:
        return self._socket.fileno()

    def hear(self) -> bytes | None:
        """The token of the hello; None until all of it has come. Never waits. Raises OSError and ValueError."""
        try:
            if self._shaking:
                assert self._secure is not None
                self._secure.do_handshake()
                self._shaking = False
                if self._secure.selected_alpn_protocol() != ALPN:
                    raise ValueError("it does not speak the protocol of bulk channels")
            while len(self._came) < _HELLO_BYTES:
                came = self._socket.recv(_HELLO_BYTES - len(self._came))
                if not came:
                    raise ConnectionError("it ended before its hello")
                self._came += came
                if not HELLO.startswith(self._came[: len(HELLO)]):
                    raise ValueError("it does not speak the protocol of bulk channels")
        except (BlockingIOError, ssl.SSLWantReadError):
            self.waits_for = selectors.EVENT_READ
            return None
        except ssl.SSLWantWriteError:
            self.waits_for = selectors.EVENT_WRITE
            return None
        return self._came[len(HELLO) :]

    def welcome(self) -> Pipe:
        """The connection, after the server's own hello. Raises OSError."""
        pipe: Pipe = PlainPipe(self._socket) if self._secure is None else TlsPipe(self._secure)
        unsent = [memoryview(WELCOME)]
        pipe.send(unsent, wait=False)
        if unsent:  # of a buffer that was empty
            raise ConnectionError("it takes no bytes")
        return pipe

    def close(self) -> None:
        self._socket.close()


def _listen(host: str, port: int) -> list[socket.socket]:
    """Sockets at one port of all addresses of `host` that this machine has. Raises OSError if there are none, or if the
    port is in use at one of them: clients would find another server there."""
    for left in range(_TRIES if port == 0 else 1, 0, -1):
        made = list[socket.socket]()
        failed: OSError | None = None
        for family, address in _addresses(host):
            try:
                made.append(_bind(family, address, port or (made[0].getsockname()[1] if made else 0)))
            except OSError as error:
                failed = error
                if error.errno == errno.EADDRINUSE:
                    break
        in_use = failed is not None and failed.errno == errno.EADDRINUSE
        if made and not in_use:
            return made
        for one in made:
            one.close()
        if not in_use or left == 1:
            raise listening_error(f"[{host}]:{port}" if ":" in host else f"{host}:{port}") from failed
    raise AssertionError


def _bind(family: int, address: str, port: int) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind((address, port))
        made.listen(_BACKLOG)
        made.setblocking(False)
    except BaseException:
        made.close()
        raise
    return made


def _addresses(host: str) -> list[tuple[int, str]]:
    if host in ("::", "0.0.0.0"):  # gRPC listens at both for either
        return [(socket.AF_INET6, "::"), (socket.AF_INET, "0.0.0.0")]
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys((family, str(address[0])) for family, _, _, _, address in found))

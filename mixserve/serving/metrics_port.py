"""A port where Prometheus reads the server's metrics over HTTP, in plain text."""

import socket
import threading
import time
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import make_wsgi_app

from mixserve.listening import check_listening, listening_error
from mixserve.serving.prometheus import Collect, registry_of

_MOST = 8  # requests at a time; the next are refused
_LONGEST_S = 10.0  # of a request, however slowly it comes and its answer is taken
_LOOK_EVERY_S = 0.5


class MetricsPort:
    """Answers GET with what `collect` returns then. `address` is where it listens, a host and a port."""

    def __init__(self, collect: Collect, address: str):
        """Raises OSError if it cannot listen."""
        check_listening(address)
        host, _, port = address.rpartition(":")
        host = host.strip("[]")
        is_v6 = ":" in host
        kind = _ServerV6 if is_v6 else _Server
        try:
            self._server = kind((host, int(port)), _Handler)
        except OSError as error:
            raise listening_error(address) from error
        self._server.set_app(make_wsgi_app(registry_of(collect)))
        self.address = f"{f'[{host}]' if is_v6 else host}:{self._server.server_port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_LOOK_EVERY_S,), name="mixserve-metrics", daemon=True
        )

    def start(self) -> None:
        """Answer from now on."""
        self._thread.start()

    def stop(self) -> None:
        """End; also if it was never started."""
        if self._thread.is_alive():
            self._server.shutdown()
        self._server.server_close()


class _Handler(WSGIRequestHandler):
    timeout = _LONGEST_S  # of each wait for the peer

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass  # whoever asks the metrics every few seconds would fill the log


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 16

    def __init__(self, address: tuple[str, int], handler: type[WSGIRequestHandler]):
        self._until = dict[socket.socket, float]()  # when each request must have ended
        super().__init__(address, handler)

    def server_bind(self) -> None:
        # Not that of HTTPServer, which asks the resolver for the host's full name: that may take seconds.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        host, port = self.server_address[:2]
        self.server_name, self.server_port = str(host), int(port)
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        if len(self._until) >= _MOST:
            self.shutdown_request(request)
            return
        self._until[request] = time.monotonic() + _LONGEST_S
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._until.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Called every half second, and after each connection."""
        now = time.monotonic()
        for request, until in list(self._until.items()):
            if until < now:
                try:
                    request.shutdown(socket.SHUT_RDWR)  # wakes its thread, which closes it
                except OSError:
                    self._until.pop(request, None)

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # the peer has gone, or sends nonsense


class _ServerV6(_Server):
    address_family = socket.AF_INET6

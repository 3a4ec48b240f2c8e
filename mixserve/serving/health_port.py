"""A port that answers health alone, in plain text: probes of Kubernetes know neither TLS nor tokens."""

import grpc

from mixserve.listening import check_listening, listening_error
from mixserve.serving.health import Health
from mixserve.serving.options import KEEPALIVE
from mixserve.serving.threads import CallThreads

_OPTIONS = [
    *KEEPALIVE,
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", 1 << 16),
    ("grpc.max_concurrent_streams", 10),
    # Anybody may connect: strangers must not take the descriptors that the server needs.
    ("grpc.max_allowed_incoming_connections", 64),
    ("grpc.max_connection_idle_ms", 10_000),
    ("grpc.server_handshake_timeout_ms", 5_000),
]
_END_S = 1.0


class HealthPort:
    """A gRPC server of its own for `health`, with its own threads. `address` is where it listens, a host and a port."""

    def __init__(self, health: Health, address: str):
        """Raises OSError if it cannot listen."""
        check_listening(address)
        # No call but those of health has a handler, and gRPC answers the others without a thread.
        self._server = grpc.server(CallThreads(1, "mixserve-no-call"), options=_OPTIONS)
        health.add_to(self._server)
        try:
            port = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise listening_error(address) from error
        self.address = f"{address.rpartition(':')[0]}:{port}"

    def start(self) -> None:
        """Answer from now on."""
        self._server.start()

    def stop(self) -> None:
        """End, also the calls that watch."""
        self._server.stop(grace=None).wait(_END_S)

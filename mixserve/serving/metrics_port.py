"""A port where Prometheus reads the server's metrics over HTTP, in plain text."""

from mixserve.listening import check_listening, listening_error
from mixserve_client.prometheus import Collect, MetricsServer, registry_of


class MetricsPort(MetricsServer):
    """Answers GET with what `collect` returns then. `address` is where it listens, a host and a port."""

    def __init__(self, collect: Collect, address: str):
        """Raises OSError if it cannot listen."""
        check_listening(address)
        host, _, port = address.rpartition(":")
        try:
            super().__init__(registry_of(collect), host, int(port))
        except OSError as error:
            raise listening_error(address) from error

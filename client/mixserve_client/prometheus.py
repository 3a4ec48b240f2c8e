"""Metrics for Prometheus: those of a client, and on a port of their own. Needs `prometheus_client`."""
# pyright: standard

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from socketserver import ThreadingMixIn
from types import TracebackType
from typing import Any, Protocol, Self
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from mixserve_client.errors import InvalidRequest
from mixserve_client.limited_log import LimitedLog
from mixserve_client.schema.checks import check_integer
from mixserve_client.schema.stats import Metric, MetricKind, by_name
from mixserve_client.schema.text import show

_logger = logging.getLogger("mixserve_client")

_MOST = 8  # requests at a time; the next are refused
_LONGEST_S = 10.0  # of a request, however slowly it comes and its answer is taken
_LOOK_EVERY_S = 0.5
_PAUSE_S = 0.2
_LARGEST_PORT = 65_535

Collect = Callable[[], Iterable[Metric]]


class HasStats(Protocol):
    """A MixClient or an AsyncMixClient."""

    def stats(self) -> dict[str, Metric]: ...


class MetricsServer:
    """Answers GET on a port of its own with the metrics of a registry, in plain text. `address` is its host and port.

    It ends with `close`, or with the process.
    """

    def __init__(self, registry: CollectorRegistry, host: str, port: int):
        """Listens on `port` (0: a free one) of `host`, and answers after `start`. Raises OSError if it cannot."""
        host = host.strip("[]")
        is_v6 = ":" in host
        kind = _ServerV6 if is_v6 else _Server
        self._server = kind((host, port), _Handler)
        self._server.set_app(make_wsgi_app(registry))
        self.address = f"{f'[{host}]' if is_v6 else host}:{self._server.server_port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_LOOK_EVERY_S,), name="mixserve-metrics", daemon=True
        )

    def start(self) -> None:
        """Answer from now on."""
        self._thread.start()

    def close(self) -> None:
        """End; also if it was never started."""
        if self._thread.is_alive():
            self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def serve_metrics(client: HasStats, port: int, host: str = "127.0.0.1") -> MetricsServer:
    """Let Prometheus read the metrics of `client`, and of this process, at http://HOST:PORT/metrics.

    `port` 0 takes a free one; `address` of the result says which. Everybody who can reach the port can read it, without
    TLS or a token. Raises InvalidRequest for wrong arguments, and OSError if the port cannot be used.
    """
    checked = _check_client(client)
    port = check_integer("port", port, 0, _LARGEST_PORT)
    try:
        made = MetricsServer(registry_of(lambda: checked.stats().values()), host, port)
    except OSError as error:  # it says neither host nor port
        raise OSError(error.errno, f"cannot listen on {host}:{port}: {error.strerror}") from error
    made.start()
    return made


def collector(client: HasStats) -> Collector:
    """The metrics of `client` for a registry of `prometheus_client`: `REGISTRY.register(collector(client))`.

    One client for each registry: `register` refuses a second one, whose metrics have the same names. Raises
    InvalidRequest if `client` is not a client.
    """
    return _ClientCollector(_check_client(client))


def registry_of(collect: Collect) -> CollectorRegistry:
    """A registry of what `collect` returns when Prometheus asks, and of this process."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(collect))
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    return registry


class _Collector(Collector):
    def __init__(self, collect: Collect):
        self._collect = collect

    def collect(self) -> Iterator[Family]:
        return map(_family, by_name(self._collect()).values())


class _ClientCollector(_Collector):
    def __init__(self, client: HasStats):
        super().__init__(lambda: client.stats().values())

    def describe(self) -> Iterator[Family]:
        """For the registry, which compares names."""
        return self.collect()


def _check_client(client: Any) -> HasStats:
    if not hasattr(client, "stats"):
        raise InvalidRequest(f"client must be a MixClient, such as MixClient.connect('HOST:PORT'), got {show(client)}")
    return client


def _family(metric: Metric) -> Family:
    if metric.kind == MetricKind.HISTOGRAM:
        histogram = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
        bounds = [*map(str, metric.bounds), "+Inf"]
        for sample in metric.samples:
            buckets = list(zip(bounds, map(float, accumulate(sample.counts)), strict=True))
            histogram.add_metric(sample.labels, buckets, sample.value)
        return histogram
    # Their class for counters adds "_total" to the name.
    kind = CounterMetricFamily if metric.kind == MetricKind.COUNTER else GaugeMetricFamily
    family = kind(metric.name, metric.help, labels=metric.labels)
    for sample in metric.samples:
        family.add_metric(sample.labels, sample.value)
    return family


class _Handler(WSGIRequestHandler):
    timeout = _LONGEST_S  # of each wait for the peer
    wbufsize = 64 << 10  # headers and text in one piece: between two the thread would wait for the interpreter's lock

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass  # requests every few seconds would fill the log


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 16

    def __init__(self, address: tuple[str, int], handler: type[WSGIRequestHandler]):
        self._until = dict[socket.socket, float]()  # when each request must have ended
        self.refused = LimitedLog(_logger, "metrics_requests")
        super().__init__(address, handler)

    def server_bind(self) -> None:
        # Not that of HTTPServer, which asks the resolver for the host's full name: that may take seconds.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        host, port = self.server_address[:2]
        self.server_name, self.server_port = str(host), int(port)
        self.setup_environ()

    def get_request(self) -> tuple[Any, Any]:
        try:
            return super().get_request()
        except OSError:  # no descriptor is left, and the connection stays in the queue: without a pause this would spin
            time.sleep(_PAUSE_S)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        if len(self._until) >= _MOST:
            self.refused.warn(
                "refused a request for metrics of %s: %d are answered already. Let fewer programs read them, or less "
                "often; the port must not be open to strangers",
                client_address[0],
                _MOST,
            )
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

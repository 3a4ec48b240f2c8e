"""The actor of one replica: a server in the process of the actor."""

import logging
import os
import secrets
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from mixserve.config import parse_config
from mixserve.ray.messages import DRAINING, FAILED, OPENING, SERVING, FleetSpec, Report, Told
from mixserve.ray.placed import config_of
from mixserve.ray.runtime import import_ray
from mixserve_client.schema.server import FleetList
from mixserve_client.schema.stats import Stats, by_name
from mixserve_client.schema.text import describe_error

if TYPE_CHECKING:
    from mixserve.serving import MixServer

_logger = logging.getLogger("mixserve")

_SHOWN = 2000
_LOOK_EVERY_S = 5.0  # at the figures of readers, which takes a while if there are many


class Replica:
    """Opens a server in the background, and says how it is. Ray starts it again on another node if its own is lost."""

    def __init__(self, spec: FleetSpec, group: str):
        """Raises nothing: Ray would not start it again."""
        context = import_ray().get_runtime_context()
        self._node: str = context.get_node_id()
        self._host: str = import_ray().util.get_node_ip_address()
        self._instance = secrets.token_hex(8)
        self._spec, self._group = spec, group
        self._told: Told | None = None
        self._state, self._error = OPENING, ""
        self._server: MixServer | None = None
        self._fingerprints = dict[str, str]()
        self._draining = threading.Lock()
        self._has_finished: bool | None = None  # when it has drained
        self._readers: tuple[int, float | None] = 0, None
        self._seen_at = 0.0
        threading.Thread(target=self._open, name="mixserve-open", daemon=True).start()

    def report(self, told: Told | None = None) -> Report:
        """How it is; from now on it tells clients what it is told here."""
        server = self._server
        if told is not None and (self._told is None or told.version > self._told.version):
            self._told = told
        if server is not None and self._told is not None:
            server.tell_fleet(FleetList(self._told.version, self._told.addresses))
        if server is not None and time.monotonic() > self._seen_at + _LOOK_EVERY_S:
            self._readers, self._seen_at = _readers(self.stats()), time.monotonic()
        readers, wait_share = self._readers
        return Report(
            instance=self._instance,
            node=self._node,
            host=self._host,
            pid=os.getpid(),
            state=self._state,
            told=0 if self._told is None else self._told.version,
            error=self._error,
            address="" if server is None else server.address,
            health_address="" if server is None else server.health_address or "",
            metrics_address="" if server is None else server.metrics_address or "",
            fingerprints=self._fingerprints,
            readers=readers,
            wait_share=wait_share,
        )

    def stats(self) -> Stats:
        """What its server has counted, as GetStats tells it."""
        return {} if self._server is None else by_name(self._server.stats.collect())

    def recall(self) -> Told | None:
        """What it was told last."""
        return self._told

    def drain(self, grace_s: float) -> bool:
        """Stop as at SIGTERM: new calls are refused, so that clients go elsewhere, and running ones have `grace_s`
        seconds. False if some were still running then."""
        with self._draining:  # a controller that was restarted meanwhile asks once more
            self._state = DRAINING
            if self._has_finished is None:
                self._has_finished = True if self._server is None else self._server.stop(grace_s)
            return self._has_finished

    def _open(self) -> None:
        try:
            # Not with this module, which commands import: these load JAX.
            from mixserve.ray.server import open_server, write_log
            from mixserve.trace_export import export_spans

            path = Path(self._spec.file)
            config = config_of(parse_config(self._spec.text, path), self._spec.name, self._group)
            write_log(config)
            export_spans()
            server, self._fingerprints = open_server(
                config, path, self._host, insecure=self._spec.insecure, placement=self._spec.placement
            )
            self._server, self._state = server, SERVING
        except BaseException as error:  # a source may be a user's code, and raise anything, even SystemExit
            self._error = describe_error(error, _SHOWN)
            _logger.error("the server cannot be opened on the node %s: %s", self._host, self._error)
            self._state = FAILED


def _readers(stats: Stats) -> tuple[int, float | None]:
    """How many readers there are, and which part of their time they wait, averaged over those who tell it."""
    readers = sum(sample.value for sample in stats["mixserve_readers"].samples) if "mixserve_readers" in stats else 0
    shares = stats.get("mixserve_wait_share")
    found = [] if shares is None else [sample.value for sample in shares.samples]
    return int(readers), sum(found) / len(found) if found else None

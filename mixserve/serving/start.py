"""`serve`: from nodes and options to a server that answers."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from mixserve.access.certificates import Certificates, ServerTls
from mixserve.access.exposure import check_exposure
from mixserve.access.tokens import TokenFile
from mixserve.address import join_address, ports_of
from mixserve.limits import ServerLimits
from mixserve.listening import check_listening, holding
from mixserve.node import MixDataSourcesNode
from mixserve.servicer import Services
from mixserve.serving.server import MixServer
from mixserve.serving.shared_memory import open_shared_memory
from mixserve.serving.worker import Worker
from mixserve.sessions import JOURNAL_DAYS, TTL_S
from mixserve_client.credentials import check_no_token
from mixserve_client.schema.checks import check_truth
from mixserve_client.schema.zone import check_zone


def serve(
    nodes: Mapping[str, MixDataSourcesNode],
    address: str = "127.0.0.1:0",
    *,
    placement: str | None = None,
    shared_memory: bool | str = True,
    state_dir: Path | str | None = None,
    session_ttl_s: float = TTL_S,
    journal_days: float = JOURNAL_DAYS,
    tokens: Path | str | None = None,
    tls: ServerTls | Mapping[str, Any] | None = None,
    insecure: bool = False,
    health_port: int | None = None,
    health_host: str = "127.0.0.1",
    metrics_port: int | None = None,
    metrics_host: str = "127.0.0.1",
    bulk: bool = True,
    bulk_port: int = 0,
    limits: ServerLimits | None = None,
    zone: str | None = None,
    worker: Worker | None = None,
) -> MixServer:
    """Host the nodes under their names at `address` (`host:port`, port 0 for a free one, or `unix:///path`).

    Returns when the server is warmed up and serving. `placement` (auto, host or device) overrides the nodes' own.
    Clients of the same user on this host get batches through shared memory; they find the server in the folder
    `shared_memory` (True: /dev/shm, False: no shared memory). With `bulk`, other clients get streams of batches over
    plain connections, which are faster than gRPC: at `bulk_port` of the same host (0: a free one, which
    `MixServer.bulk_port` tells), under the same TLS and tokens. What cannot reach that port uses gRPC.

    Sessions and checkpoints are kept in the folder `state_dir`; without one, sessions end with the server. If a holder
    is silent for `session_ttl_s` seconds, other clients may open its session. A journal that is unused for
    `journal_days` days is deleted.

    `tokens` is a file of `mixserve token new`: calls need one of its tokens, and its role decides what they may do.
    `tls` has the server's certificate and key, and with `client_ca` only clients with a certificate may connect. These
    files are read again when they change. An `address` that other machines can reach requires `tls`, and `tokens` or
    `client_ca`, unless `insecure`. At `health_host:health_port` the server answers health alone, and at
    `metrics_host:metrics_port` Prometheus reads metrics over HTTP: always in plain text, and by everybody who can
    reach them.

    `limits` say what the server does and remembers at most (None: those of `ServerLimits()`). `zone` names where it is,
    for clients that prefer servers of their own zone.

    A server in Python is one process. `mixserve serve --processes` has several; `worker` is for these alone.

    Raises ValueError for bad arguments, and OSError if the server cannot listen at `address`, use the folder or read a
    file.
    """
    limits = ServerLimits() if limits is None else limits
    for what, given in (("state_dir", state_dir), ("shared_memory", shared_memory), ("address", address)):
        if isinstance(given, str | Path):
            check_no_token(
                str(given), f"{what} must be {'host:port or unix:///path' if what == 'address' else 'a folder'}"
            )
    token_file = None if tokens is None else TokenFile(tokens)
    files = ServerTls.of(tls)
    others = dict[str, str]()
    for what, host, port in (("health", health_host, health_port), ("metrics", metrics_host, metrics_port)):
        if port is not None:
            others[what] = join_address(host, port)
    check_listening(address)
    listens = ports_of(address, others, bulk_port if check_truth("bulk", bulk) else None)
    with ExitStack() as opened:
        # The ports of workers are held by the process that started them.
        with holding(*(listens if worker is None else ())):
            # Before nodes are placed and folders locked.
            certificates = None if files is None else Certificates(files)
            check_exposure(
                address,
                has_tls=files is not None,
                has_client_ca=files is not None and files.client_ca is not None,
                has_tokens=token_file is not None,
                insecure=insecure,
            )
            memory = open_shared_memory(shared_memory)
            if memory is not None:
                opened.callback(memory.close)
            services = Services(
                nodes,
                placement=placement,
                slots=memory,
                workers=() if worker is None else worker.told,
                zone=check_zone(zone) or "",
                state_dir=state_dir,
                session_ttl_s=session_ttl_s,
                journal_days=journal_days,
                limits=limits,
            )
            opened.callback(services.close)
        if worker is not None:
            # Before it listens, unlike one process: connections would come to it rather than to the other workers.
            services.warm_up()
            worker.wait_to_serve(services.fingerprints)
        server = MixServer(
            services,
            address,
            memory,
            tokens=token_file,
            certificates=certificates,
            health_address=others.get("health"),
            metrics_address=others.get("metrics"),
            bulk=bulk,
            bulk_port=bulk_port,
            limits=limits,
            worker=worker,
        )
        opened.pop_all()
    try:
        server.start()
    except BaseException:
        server.stop(grace_s=0)
        raise
    return server

"""What each alert is for, made with real servers: a target for Prometheus, and what happens there all the time."""

import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import jax
import numpy as np

from mixserve import ArraySource, MixDataSourcesConfig, MixDataSourcesNode, MixServer, ServerLimits, ServerTls, serve
from mixserve.serving.memory import own_bytes
from mixserve_client import MixClient, MixserveError
from mixserve_client.prometheus import serve_metrics
from mixserve_client.schema.keys import key_words
from mixserve_client.schema.requests import BatchRequest, Sender
from mixserve_client.wire import methods
from mixserve_client.wire.request import encode_batch_request
from tests.certificates import self_signed
from tests.cluster import children
from tests.hanging_source import HangingSource
from tests.ports import free_ports
from tests.processes import ONE_SIZE, server_process, write_mixture
from tests.waiting import wait_until

DEADLINE_S = 60


class FailingSource:
    """Rows that cannot be read."""

    content_id = "is not read for the fingerprint"

    def __len__(self) -> int:
        return 1000

    def element_spec(self):
        return {"x": jax.ShapeDtypeStruct((), np.int32)}

    def take(self, record_ids):
        raise OSError("the disk is gone")


def node_of(*sources: object, weights: tuple[float, ...] = (1.0,)) -> MixDataSourcesNode:
    config = MixDataSourcesConfig(num_sources=len(sources), weights=weights, plan_sizes=ONE_SIZE)
    return MixDataSourcesNode(config, list(sources))  # pyright: ignore[reportArgumentType]


def numbers(weights: tuple[float, ...] = (0.7, 0.3)) -> MixDataSourcesNode:
    return node_of(*(ArraySource({"x": np.arange(1000, dtype=np.int32)}) for _ in weights), weights=weights)


@contextmanager
def again_and_again(do: Callable[[], object], every_s: float = 0.1) -> Iterator[None]:
    """Within the block, `do` is called all the time; errors of mixserve are what it is for."""
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(every_s):
            with suppress(MixserveError):
                do()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(DEADLINE_S)


@contextmanager
def connected(server: MixServer) -> Iterator[MixClient]:
    """A client over gRPC that does not try again for long."""
    with MixClient.connect(server.address, patience_s=0.2, shared_memory=False, bulk=False) as client:
        yield client


def metrics_of(server: MixServer) -> str:
    assert server.metrics_address is not None
    return server.metrics_address


def ask(client: MixClient, start: int, reader: int, wait_share: float | None = None) -> None:
    """What an iterator of that number would ask, of a trainer that waits so much."""
    request = BatchRequest("", start, 8, key_words(1), sender=Sender("trainer", reader, wait_share))
    client._caller.call(methods.GET_BATCH_AT, encode_batch_request(request))


@contextmanager
def good(folder: Path) -> Iterator[str]:
    """A server, in a process of its own, whose reader does not wait: no alert."""
    port = free_ports()
    with server_process(write_mixture(folder), "--metrics-port", str(port)) as server:
        address = server.address()
        with MixClient.connect(address, patience_s=20) as client:
            batches = client.batches(64, key=1)
            next(batches)  # the first one takes its time
            with again_and_again(lambda: next(batches), every_s=0.2):
                yield f"127.0.0.1:{port}"


@contextmanager
def down(folder: Path) -> Iterator[str]:
    port = free_ports()
    with server_process(write_mixture(folder), "--metrics-port", str(port)) as server:
        server.address()
        server.kill()
        yield f"127.0.0.1:{port}"


@contextmanager
def not_serving(folder: Path) -> Iterator[str]:
    """It drains, and a call does not end."""
    hang = folder / "hang"
    server = serve({"drains": node_of(HangingSource(hang))}, metrics_port=0)
    hang.touch()
    with connected(server) as client, again_and_again(lambda: client.get_batch_at(0, 8, key=1, timeout_s=DEADLINE_S)):
        wait_until(lambda: server.stats and _value(server, "mixserve_under_way") > 0, "a call under way")
        stopping = threading.Thread(target=server.stop, args=(DEADLINE_S,))
        stopping.start()
        try:
            yield metrics_of(server)
        finally:
            hang.unlink()
            stopping.join()


@contextmanager
def mixture_not_serving(folder: Path) -> Iterator[str]:
    hang = folder / "hang"
    nodes = {"hangs": node_of(HangingSource(hang)), "works": numbers()}
    with (
        serve(nodes, metrics_port=0, limits=ServerLimits(read_timeout_s=0.3)) as server,
        connected(server) as client,
        again_and_again(lambda: client.get_batch_at(0, 8, key=1, mixture="hangs", timeout_s=2)),
    ):
        hang.touch()
        try:
            yield metrics_of(server)
        finally:
            hang.unlink()


@contextmanager
def faults(folder: Path) -> Iterator[str]:
    with (
        serve({"faults": node_of(FailingSource())}, metrics_port=0) as server,
        connected(server) as client,
    ):
        with suppress(MixserveError):
            client.get_batch_at(0, 8, key=1, timeout_s=5)
        yield metrics_of(server)


@contextmanager
def errors(folder: Path) -> Iterator[str]:
    with (
        serve({"errors": numbers()}, metrics_port=0) as server,
        connected(server) as client,
        again_and_again(lambda: client._caller.call(methods.GET_BATCH_AT, b""), every_s=0.05),
    ):
        yield metrics_of(server)


@contextmanager
def limit_hit(folder: Path) -> Iterator[str]:
    """A session too many, again and again."""
    with (
        serve({"limit": numbers()}, metrics_port=0, limits=ServerLimits(sessions=1)) as server,
        connected(server) as client,
        client.session("one"),
        again_and_again(lambda: client.session("two", timeout_s=1)),
    ):
        yield metrics_of(server)


@contextmanager
def shares_off(folder: Path) -> Iterator[str]:
    """A reader that takes the records of one source only."""
    with serve({"off": numbers()}, metrics_port=0) as server, connected(server) as client:
        plan = client.get_plan_at(0, 4096, key=1)
        chosen = np.flatnonzero(plan["source_id"] == 1)[:512]
        with again_and_again(lambda: client.get_batch_by_positions(chosen, key=1)):
            yield metrics_of(server)


@contextmanager
def trainers_wait(folder: Path) -> Iterator[str]:
    with (
        serve({"wait": numbers()}, metrics_port=0) as server,
        connected(server) as client,
        again_and_again(lambda: ask(client, 0, reader=1, wait_share=0.6)),
    ):
        yield metrics_of(server)


@contextmanager
def readers_apart(folder: Path) -> Iterator[str]:
    with serve({"apart": numbers()}, metrics_port=0) as server, connected(server) as client:

        def read() -> None:
            for reader, start in ((1, 0), (2, 1_000_000)):
                ask(client, start, reader)

        with again_and_again(read):
            yield metrics_of(server)


@contextmanager
def memory_near_limit(folder: Path) -> Iterator[str]:
    held = np.ones(256 << 20, np.uint8)  # beside it, what the server gives back to the system is little
    limit = int((own_bytes() or 0) / 0.98)
    with serve({"memory": numbers()}, metrics_port=0, limits=ServerLimits(memory_limit=limit)) as server:
        yield metrics_of(server)
        del held


@contextmanager
def storage_failed(folder: Path) -> Iterator[str]:
    """The state folder goes while a session is open."""
    state = folder / "state"
    with serve({"storage": numbers()}, metrics_port=0, state_dir=state) as server, connected(server) as client:
        session = client.session("one")
        shutil.rmtree(state)
        with again_and_again(lambda: session.save_checkpoint("now")):
            yield metrics_of(server)


@contextmanager
def workers_end(folder: Path) -> Iterator[str]:
    """One of two workers is killed whenever it comes."""
    port = free_ports()
    flags = ("--processes", "2", "--metrics-port", str(port))
    with server_process(write_mixture(folder), *flags, real=True) as server:
        server.address()
        kept = children(server.process.pid)[0]

        def kill() -> None:
            for one in children(server.process.pid):
                if one != kept:
                    with suppress(ProcessLookupError):
                        os.kill(one, signal.SIGKILL)

        with again_and_again(kill):
            yield f"127.0.0.1:{port}"


@contextmanager
def certificate_ends(folder: Path) -> Iterator[str]:
    pair = self_signed(folder, days=3)
    tls = ServerTls(certificate=pair.certificate, key=pair.key)
    with serve({"certificate": numbers()}, metrics_port=0, tls=tls) as server:
        yield metrics_of(server)


@contextmanager
def replica_out(folder: Path) -> Iterator[str]:
    """A trainer, one of whose replicas is not there."""
    with serve({"replicas": numbers()}) as server:
        addresses = [server.address, f"127.0.0.1:{free_ports()}"]
        with (
            MixClient.connect(addresses, patience_s=5) as client,
            serve_metrics(client, 0) as metrics,
            again_and_again(lambda: client.get_batch_at(0, 8, key=1)),
        ):
            yield metrics.address


def _value(server: MixServer, name: str) -> float:
    return sum(metric.value() for metric in server.stats.collect() if metric.name == name)


# By alert.
CAUSES = {
    "MixserveDown": down,
    "MixserveNotServing": not_serving,
    "MixserveMixtureNotServing": mixture_not_serving,
    "MixserveFaults": faults,
    "MixserveErrors": errors,
    "MixserveLimitHit": limit_hit,
    "MixserveSharesOff": shares_off,
    "MixserveTrainersWait": trainers_wait,
    "MixserveReadersApart": readers_apart,
    "MixserveMemoryNearLimit": memory_near_limit,
    "MixserveStorageFailed": storage_failed,
    "MixserveWorkerRestarted": workers_end,
    "MixserveWorkersMissing": workers_end,
    "MixserveCertificateEnds": certificate_ends,
    "MixserveReplicaOut": replica_out,
}

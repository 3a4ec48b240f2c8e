"""tf.data service: a dispatcher and a worker in their own processes run the pipelines of `tf_data`.

As its documentation shows: the pipeline of the guide, then `distribute` with its defaults.

Tuned: the pipeline inside one `flat_map`; no compression (the default was never faster, and slower at 1,024); 16
requests in flight; the worker prefetches, and so does the trainer.

In favour of both: everything in `tf_data`'s docstring, and the dispatcher drops jobs without a reader within a second,
not minutes.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from benchmarks.common.pipes import start_server
from benchmarks.race.contestant import Contestant
from benchmarks.race.peers.tf_data import PACKAGES, textbook, tf, tuned

_IN_FLIGHT = 16
_PREFETCH = 4
_AHEAD = 2 * _PREFETCH + _IN_FLIGHT  # of the tuned form; the other has fewer in flight


def contestant(form: str) -> Contestant:
    """`form`: textbook or tuned."""
    dispatcher = start_server(__name__, "dispatcher")
    worker = start_server(__name__, "worker", dispatcher.address)

    @contextmanager
    def open_batches(size: int, key: int) -> Iterator[Iterator[np.ndarray]]:
        distributed = distributed_tuned if form == "tuned" else distributed_textbook
        yield distributed(size, key, dispatcher.address).as_numpy_iterator()

    return Contestant(open_batches, PACKAGES, lambda _: _AHEAD, (dispatcher, worker))


def distributed_textbook(size: int, seed: int, service: str) -> tf.data.Dataset:
    off = tf.data.experimental.service.ShardingPolicy.OFF
    return textbook(size, seed).apply(tf.data.experimental.service.distribute(off, service))


def distributed_tuned(size: int, seed: int, service: str) -> tf.data.Dataset:
    off = tf.data.experimental.service.ShardingPolicy.OFF
    distribute = tf.data.experimental.service.distribute(
        off, service, max_outstanding_requests=_IN_FLIGHT, compression=None
    )
    return tuned(size, seed).prefetch(_PREFETCH).apply(distribute).prefetch(_PREFETCH)


@contextmanager
def serve(role: str, dispatcher: str = "") -> Iterator[str]:
    service = tf.data.experimental.service
    if role == "dispatcher":
        server = service.DispatchServer(
            service.DispatcherConfig(port=0, job_gc_check_interval_ms=500, job_gc_timeout_ms=500)
        )
        yield server.target
    else:
        server = service.WorkerServer(
            service.WorkerConfig(dispatcher.removeprefix("grpc://"), port=0, heartbeat_interval_ms=1000)
        )
        yield "registered with the dispatcher"

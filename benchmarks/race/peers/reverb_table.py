"""Reverb: one table, from which records are sampled by priority, so that the mixture is exact.

As its documentation shows: a `TimestepDataset` of the table, batched, with two batches of samples in flight.

Tuned: two streams of 1,000 samples in flight each (one, four, and other numbers were not faster); tokens are taken out
of batches; everything is inside one `flat_map`, as in `tf_data`, which doubled the speed of small batches.

In favour of both: a record is its own item and chunk, so nothing is sent that was not requested. Reverb draws without a
key.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from benchmarks.common.pipes import start_server
from benchmarks.common.work import ROW, WEIGHTS, load
from benchmarks.race.contestant import Contestant

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
import reverb
import tensorflow as tf
from reverb.platform.checkpointers_lib import DefaultCheckpointer

_TABLE = "mixture"
_STREAMS = 2
_IN_FLIGHT = 1000
_PREFETCH = 2
_TEXTBOOK_AHEAD = 16  # two batches in flight per stream of samples, and what `AUTOTUNE` prefetches
_FLUSH_EVERY = 32
_RECORD = {"dtypes": {"tokens": tf.int32}, "shapes": {"tokens": tf.TensorShape([ROW])}}


def contestant(form: str) -> Contestant:
    """`form`: textbook or tuned."""
    server = start_server(__name__)

    @contextmanager
    def open_batches(size: int, _key: int) -> Iterator[Iterator[np.ndarray]]:
        if form == "tuned":
            yield tuned(size, server.address).as_numpy_iterator()
        else:
            samples = textbook(size, server.address).as_numpy_iterator()
            yield (sample.data["tokens"] for sample in samples)

    def ahead(size: int) -> int:
        return _PREFETCH + 1 + -(-_STREAMS * _IN_FLIGHT // size) if form == "tuned" else _TEXTBOOK_AHEAD

    return Contestant(open_batches, ("dm-reverb", "tensorflow-cpu", "numpy"), ahead, (server,))


def textbook(size: int, address: str) -> tf.data.Dataset:
    dataset = reverb.TimestepDataset(address, _TABLE, **_RECORD, max_in_flight_samples_per_worker=2 * size)
    return dataset.batch(size, drop_remainder=True).prefetch(tf.data.AUTOTUNE)


def tuned(size: int, address: str) -> tf.data.Dataset:
    def batches(_: tf.Tensor) -> tf.data.Dataset:
        samples = reverb.TimestepDataset(
            address,
            _TABLE,
            **_RECORD,
            max_in_flight_samples_per_worker=_IN_FLIGHT,
            num_workers_per_iterator=_STREAMS,
        )
        return samples.batch(size, drop_remainder=True).map(lambda sample: sample.data["tokens"])

    return tf.data.Dataset.from_tensors(0).flat_map(batches).prefetch(_PREFETCH)


@contextmanager
def serve() -> Iterator[str]:
    sources = load()
    table = reverb.Table(
        _TABLE,
        sampler=reverb.selectors.Prioritized(1.0),
        remover=reverb.selectors.Fifo(),
        max_size=sum(map(len, sources)),
        rate_limiter=reverb.rate_limiters.MinSize(1),
    )
    with tempfile.TemporaryDirectory() as folder:  # without our own folder, Reverb leaves one after it ends
        server = reverb.Server([table], port=None, checkpointer=DefaultCheckpointer(folder))
        address = f"localhost:{server.port}"
        fill(address, sources)
        yield address
        server.stop()


def fill(address: str, sources: list[np.ndarray]) -> None:
    with reverb.Client(address).trajectory_writer(num_keep_alive_refs=1) as writer:
        for records, weight in zip(sources, WEIGHTS, strict=True):
            for index, record in enumerate(records):
                writer.append({"tokens": record})
                writer.create_item(_TABLE, weight / len(records), {"tokens": writer.history["tokens"][-1]})
                if index % _FLUSH_EVERY == 0:
                    writer.flush()

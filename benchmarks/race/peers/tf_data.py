"""tf.data in the trainer's process: `sample_from_datasets` over the four sources.

As its guide shows: a dataset of each source, repeated, mixed, batched, and prefetched by `AUTOTUNE`. In its favour:
records come in their order, unshuffled; every source is in memory as one tensor, and its records are slices.

Tuned, for tf.data service: everything up to the batch is inside one `flat_map`; outside of it tf.data keeps accounts of
every record.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from benchmarks.common.work import RECORDS, ROW, WEIGHTS, paths
from benchmarks.race.contestant import Contestant

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # batches for the host, like every contestant's
import tensorflow as tf

PACKAGES = ("tensorflow-cpu", "numpy")
_HEADER_BYTES = 128  # of a NumPy file
_AUTOTUNE_AHEAD = 16  # only memory bounds AUTOTUNE, yet it prefetches only for a slower trainer


def contestant() -> Contestant:
    @contextmanager
    def open_batches(size: int, key: int) -> Iterator[Iterator[np.ndarray]]:
        yield textbook(size, key).as_numpy_iterator()

    return Contestant(open_batches, PACKAGES, ahead=lambda _: _AUTOTUNE_AHEAD)


def textbook(size: int, seed: int) -> tf.data.Dataset:
    """The pipeline of the guide. The process that runs it reads the sources: files by name, flat-mapped to records."""
    sources = [tf.data.Dataset.from_tensors(str(path)).flat_map(source) for path in paths()]
    return mixture(sources, size, seed).prefetch(tf.data.AUTOTUNE)


def tuned(size: int, seed: int) -> tf.data.Dataset:
    def batches(_: tf.Tensor) -> tf.data.Dataset:
        return mixture([source(str(path)) for path in paths()], size, seed)

    return tf.data.Dataset.from_tensors(0).flat_map(batches)


def mixture(sources: list[tf.data.Dataset], size: int, seed: int) -> tf.data.Dataset:
    mixed = tf.data.Dataset.sample_from_datasets(sources, weights=WEIGHTS, seed=seed)
    return mixed.batch(size, drop_remainder=True)


def source(path: tf.Tensor | str) -> tf.data.Dataset:
    """The records of a file, repeated without end."""
    data = tf.strings.substr(tf.io.read_file(path), _HEADER_BYTES, -1)
    return tf.data.Dataset.from_tensor_slices(tf.reshape(tf.io.decode_raw(data, tf.int32), (RECORDS, ROW))).repeat()

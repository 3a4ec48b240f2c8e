"""Placement `device`: gathering on the accelerator, copying out, batches end to end, and the device's copy speed."""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.device.table import Table
from benchmarks.measure import in_turn, ratio
from mixserve import ArraySource, MixDataSourcesConfig, MixDataSourcesNode, local_client
from mixserve.mixture import device

SOURCES, ROW = 4, 2048  # int32: 8 KiB per record
SIZES = (256, 1024, 4096)
IN_A_STREAM = 8  # batches; one is gathered while the one before it is copied out


def measure(records: int, rounds: int) -> Table:
    """`records` is the number in each of the four sources."""
    parts = np.random.default_rng(0).integers(0, 1 << 30, (SOURCES, records, ROW), np.int32)
    sources = [ArraySource({"tokens": part}) for part in parts]
    config = MixDataSourcesConfig(num_sources=SOURCES, weights=(1.0,) * SOURCES, placement="device")
    node = MixDataSourcesNode(config, sources)
    node.warm_up(max(SIZES))
    buffers = device.upload(sources, node.mixture.fields)
    copied = jax.jit(jnp.copy)
    client = local_client({"train": node})
    rows = []
    for size in SIZES:
        nbytes = size * ROW * 4
        block = jnp.zeros((size, ROW), jnp.int32)
        place = np.random.default_rng(size).integers(0, SOURCES * records, (rounds + 1, size), np.int32)

        def copy(_number: int, block: jax.Array = block) -> None:
            jax.block_until_ready(copied(block))

        def gather(number: int, place: np.ndarray = place) -> None:
            jax.block_until_ready(device.take_rows(buffers, jax.device_put(place[number]), node.mixture.fields))

        def get(_number: int, block: jax.Array = block) -> None:
            jax.device_get(block + 1)  # a fresh array: JAX keeps the host copy of an array that was copied out once

        def out(number: int, size: int = size) -> None:
            buffer = {"tokens": np.empty((size, ROW), np.int32)}
            node.read_into(number * size, np.array([1, number], np.uint32), buffer)

        def one_by_one(number: int, size: int = size) -> None:
            for batch in range(IN_A_STREAM):
                client.get_batch_at(batch * size, size, 1000 + number)

        def stream(number: int, size: int = size) -> None:
            with client.batches(size, number, stop=size * IN_A_STREAM) as batches:
                for _ in batches:
                    pass

        tasks = {"copy": copy, "gather": gather, "get": get, "out": out, "one by one": one_by_one, "stream": stream}
        taken = in_turn(tasks, rounds)
        median = {name: float(np.median(seconds)) for name, seconds in taken.items()}
        rows.append(
            {
                "records": size,
                "gather GB/s": f"{nbytes / median['gather'] / 1e9:.2f}",
                "copy / gather": ratio(taken["copy"], taken["gather"]),
                "planned and copied out GB/s": f"{nbytes / median['out'] / 1e9:.2f}",
                "device_get / that": ratio(taken["get"], taken["out"]),
                "streamed GB/s": f"{IN_A_STREAM * nbytes / median['stream'] / 1e9:.2f}",
                "one by one / streamed": ratio(taken["one by one"], taken["stream"]),
            }
        )
    client.close()
    return Table(
        "Placement device",
        rows,
        [
            f"records of 8 KiB of {SOURCES * records * ROW * 4 >> 20} MiB; ratios are medians over {rounds} rounds in "
            "turn, with the middle half",
            "`copy / gather`: time of a copy of the same bytes on the device over that of the gather",
            "`device_get / that`: time of jax.device_get of a fresh array over plan, gather and copy-out of a batch",
            f"`streamed`: {IN_A_STREAM} batches through the in-process client, one gathered ahead of the copy; "
            "`one by one`: as many calls, which overlap nothing",
        ],
    )

"""Sources of servers before which the proxies are."""

import time

import jax
import numpy as np

from mixserve import ArraySource, MixDataSourcesConfig, MixDataSourcesNode, MixServer, serve
from tests.processes import ONE_SIZE
from tests.proxies.running import Backend

LARGE_BYTES = 80 << 20
FAILS_AT = 50  # the record that cannot be read


class Large:
    """Rows of 80 MiB."""

    content_id = "large"

    def __len__(self) -> int:
        return 4

    def element_spec(self):
        return {"x": jax.ShapeDtypeStruct((LARGE_BYTES // 8,), np.int64)}

    def take(self, record_ids):
        made = np.empty((len(record_ids), LARGE_BYTES // 8), np.int64)
        for row, number in zip(made, record_ids, strict=True):
            row[:] = np.arange(number, number + row.size)
        return {"x": made}


class Troubled:
    """Rows of their number, each read after `delay_s`; record `FAILS_AT` cannot be read if it `fails`."""

    def __init__(self, delay_s: float = 0.0, *, fails: bool = False):
        self.content_id = f"{delay_s} {fails}"
        self._delay_s, self._fails, self._is_on = delay_s, fails, False

    def begin(self) -> None:
        """The server has warmed up."""
        self._is_on = True

    def __len__(self) -> int:
        return 1000

    def element_spec(self):
        return {"x": jax.ShapeDtypeStruct((), np.int32)}

    def take(self, record_ids):
        if self._is_on:
            time.sleep(self._delay_s)
            if self._fails and FAILS_AT in record_ids:
                raise ValueError("this record cannot be read")
        return {"x": record_ids.astype(np.int32)}


def make_node(source) -> MixDataSourcesNode:
    return MixDataSourcesNode(
        MixDataSourcesConfig(num_sources=1, weights=(1.0,), plan_sizes=ONE_SIZE, sampling="epoch"), [source]
    )


def small() -> ArraySource:
    return ArraySource({"x": np.arange(4000, dtype=np.int32).reshape(1000, 4), "y": np.arange(1000) * 1.5})


def start(place: int, port: int, health_port: int, **options) -> tuple[MixServer, Backend]:
    """A replica at an address of its own of this host, where nothing listens at the proxy's address."""
    host = f"127.0.0.{place + 2}"
    slow, very_slow, faulty = Troubled(1.0), Troubled(12.0), Troubled(fails=True)
    nodes = {
        "train": make_node(small()),
        "large": make_node(Large()),
        "slow": make_node(slow),
        "very slow": make_node(very_slow),
        "faulty": make_node(faulty),
    }
    server = serve(
        nodes,
        f"{host}:{port}",
        shared_memory=False,
        health_port=health_port,
        health_host=host,
        insecure=True,
        **options,
    )
    for one in (slow, very_slow, faulty):
        one.begin()
    return server, Backend(host, port, health_port)

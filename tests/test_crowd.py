"""The crowd of `make bench`: its clients are as many connections, which needs an option that clients do not offer."""

import numpy as np
import pytest

import mixserve
from benchmarks.crowd import many
from tests.waiting import wait_until


def test_every_client_of_the_crowd_has_a_connection_of_its_own():
    rows = np.zeros((16, 4), np.int32)
    config = mixserve.MixDataSourcesConfig(num_sources=1, weights=(1.0,))
    node = mixserve.MixDataSourcesNode(config, [mixserve.ArraySource({"tokens": rows})])
    with mixserve.serve({"train": node}, "127.0.0.1:0") as server, many.answering(server.address) as answer:
        clients = answer(keys=[])["clients"]
        if many._connections(server.address) is None:
            pytest.skip("this system does not tell connections")
        assert clients == 50
        # The kernel's table is read page by page, and changes meanwhile: a connection may be missing, or twice.
        wait_until(lambda: many._connections(server.address) == clients, "the connections of all clients")

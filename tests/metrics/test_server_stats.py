"""A server's statistics, by RPC and over HTTP, against what its readers got."""

import socket
import time
import urllib.request
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from mixserve import MixServer, serve
from mixserve_client import InvalidRequest, MixClient
from mixserve_client.wire import methods
from mixserve_client.wire.stats import decode_stats, encode_stats_request
from tests.conftest import ROUTES, make_node
from tests.tokens.files import Tokens

DEADLINE_S = 20


def scrape(server: MixServer) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """All samples, by name and labels."""
    with urllib.request.urlopen(f"http://{server.metrics_address}/metrics", timeout=10) as reply:
        text = reply.read().decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def stats(client: MixClient):
    return decode_stats(client._caller.call(methods.GET_STATS, encode_stats_request()))


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("sampling", ["categorical", "epoch"])
def test_records_are_counted_by_source(route, sampling):
    node = make_node(sampling=sampling)
    got, batches = Counter[int](), 0
    with (
        serve({"train": node}, metrics_port=0) as server,
        MixClient.connect(server.address, patience_s=20, **ROUTES[route]) as client,
    ):
        for batch in client.batches(7, key=3, stop=700, provenance=True):
            got.update(batch["source_id"].tolist())
            batches += 1
        got.update(client.get_batch_at(1000, 5, key=3, provenance=True)["source_id"].tolist())
        got.update(client.get_batch_by_positions(np.array([5, 900, 17]), key=3, provenance=True)["source_id"].tolist())
        found, samples = stats(client), scrape(server)
        row_bytes = sum(field.nbytes for field in client.mixture().fields) + 12
    assert batches == 100
    records, length = found["mixserve_records_total"], {0: 10, 1: 20, 2: 30}
    for source, share in enumerate((0.5, 0.2, 0.3)):
        name = f"source-{source}"
        labels = (("mixture", "train"), ("source", name))
        assert records.value(mixture="train", source=name) == got[source] == samples["mixserve_records_total", labels]
        assert samples["mixserve_source_bytes_total", labels] == got[source] * row_bytes
        assert samples["mixserve_requested_records_total", labels] == pytest.approx(share * 708)
        assert samples["mixserve_passes_total", labels] == pytest.approx(got[source] / length[source])
        assert samples["mixserve_source_records", labels] == length[source]
    assert samples["mixserve_readers_apart_positions", (("mixture", "train"),)] >= 0
    for stage in ("plan", "gather", "encode"):
        times = samples["mixserve_stage_seconds_count", (("mixture", "train"), ("stage", stage))]
        assert times == samples["mixserve_replies_total", (("mixture", "train"),)] > 0
    assert samples["mixserve_serving", ()] == samples["mixserve_mixture_serving", (("mixture", "train"),)] == 1


def test_errors_are_counted_by_class(node):
    with (
        serve({"train": node}, metrics_port=0) as server,
        MixClient.connect(server.address, patience_s=20) as client,
    ):
        for _ in range(3):
            with pytest.raises(InvalidRequest):
                client._caller.call(methods.GET_BATCH_AT, b"")
        found = stats(client)
    assert found["mixserve_errors_total"].value(method="GetBatchAt", error="InvalidRequest") == 3
    assert found["mixserve_calls_total"].value(method="GetBatchAt") == 3
    (sample,) = found["mixserve_call_seconds"].select(method="GetBatchAt")
    assert sample.count == 3


def test_replies_that_readers_share_count_for_each(big_node):
    with (
        serve({"train": big_node}, metrics_port=0) as server,
        MixClient.connect(server.address, patience_s=20, **ROUTES["grpc"]) as one,
        MixClient.connect(server.address, patience_s=20, **ROUTES["grpc"]) as other,
    ):
        for client in (one, other, one):
            list(client.batches(32, key=5, stop=128))
        found = stats(one)
    assert found["mixserve_records_total"].value(mixture="train") == 3 * 128
    assert found["mixserve_reply_cache_hits_total"].value() > 0


def test_slow_readers_of_metrics_are_ended_and_do_not_blind_others(node, caplog):
    with serve({"train": node}, metrics_port=0) as server:
        assert server.metrics_address is not None
        host, port = server.metrics_address.split(":")
        slow = [socket.create_connection((host, int(port))) for _ in range(8)]
        for one in slow:
            one.sendall(b"GET /metrics HTTP/1.1\r\n")
        until = time.monotonic() + DEADLINE_S
        while True:
            try:
                assert scrape(server)["mixserve_serving", ()] == 1
                break
            except OSError:
                assert time.monotonic() < until
        assert any("refused a request for metrics of 127.0.0.1: 8 are" in record.message for record in caplog.records)
        for one in slow:
            one.settimeout(DEADLINE_S)
            with one:
                assert one.recv(1) == b""


def test_a_port_that_is_taken_is_said(node):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}"):
            serve({"train": node}, metrics_port=port)


def test_a_token_sees_its_mixtures_only(tmp_path: Path, node):
    tokens = Tokens(tmp_path / "tokens.yaml", {"r": ("reader", ["train"]), "a": ("admin", None)})
    with serve({"train": node, "other": make_node(seed=9)}, tokens=tokens.path) as server:
        for name, mixtures in (("r", {"train"}), ("a", {"train", "other"})):
            with MixClient.connect(server.address, patience_s=20, token=tokens[name]) as client:
                client.get_batch_at(0, 4, key=1, mixture="train")
                found = stats(client)
            assert {sample.labels[0] for sample in found["mixserve_records_total"].samples} == mixtures
            assert ("mixserve_limit_hits_total" in found) == (name == "a")

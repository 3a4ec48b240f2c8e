"""The statistics of several processes that serve one port."""

import re
import sys
import urllib.request
from pathlib import Path

import pytest

from mixserve_client import MixClient
from mixserve_client.wire import methods
from mixserve_client.wire.stats import decode_stats, encode_stats_request
from tests.processes import DEADLINE_S, ServerProcess, write_mixture

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux spreads connections over processes")

_RECORDS = re.compile(r'^mixserve_records_total\{mixture="train",source="(.)",worker="(\d)"\} (\S+)$', re.MULTILINE)


def test_the_figures_of_workers_add_up(tmp_path: Path):
    server = ServerProcess(write_mixture(tmp_path), "--processes", "2", "--metrics-port", "0", real=True)
    try:
        address = server.address()
        url = server.wait_for_log(r"metrics on (\S+)").group(1)
        with MixClient.connect(address, patience_s=60) as client:
            read = sum(len(batch["tokens"]) for at in range(8) for batch in client.batches(16, key=at, stop=160))

            def told() -> tuple[float, set[str]]:
                found = decode_stats(client._caller.call(methods.GET_STATS, encode_stats_request()))
                metric = found["mixserve_records_total"]
                assert metric.labels[-1] == "worker"
                return metric.value(), {sample.labels[-1] for sample in metric.samples}

            assert told() == (read, {"0", "1"})
            text = urllib.request.urlopen(url, timeout=DEADLINE_S).read().decode()
            assert sum(float(value) for _, _, value in _RECORDS.findall(text)) == read
    finally:
        assert server.terminate() == 0

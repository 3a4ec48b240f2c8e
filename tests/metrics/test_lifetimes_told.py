"""What metrics tell of lifetimes: when a server was started, when its certificate ends, which workers were replaced."""

import os
import signal
import time
import urllib.request
from datetime import UTC, datetime
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from mixserve import serve
from mixserve.access.certificates import Certificates, ServerTls
from tests.certificates import NEEDS_OPENSSL, Authority
from tests.cluster import children
from tests.ports import free_ports
from tests.processes import server_process, write_mixture

DEADLINE_S = 60


def scrape(address: str | None) -> dict[tuple[str, ...], float]:
    """All samples, by name and values of labels."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as reply:
        families = list(text_string_to_metric_families(reply.read().decode()))
    return {(one.name, *one.labels.values()): one.value for family in families for one in family.samples}


def test_when_a_server_was_started(node):
    before = time.time()
    with serve({"train": node}, metrics_port=0) as server:
        first = scrape(server.metrics_address)["mixserve_start_time_seconds",]
    assert before <= first <= time.time()


@NEEDS_OPENSSL
def test_when_the_certificate_ends(tmp_path: Path, node):
    authority = Authority(tmp_path / "ca")
    pair = authority.issue("server", until="2031").copy_to(tmp_path)
    tls = ServerTls(certificate=pair.certificate, key=pair.key)
    with serve({"train": node}, metrics_port=0, tls=tls) as server:
        name = ("mixserve_certificate_expiry_timestamp_seconds",)
        assert scrape(server.metrics_address)[name] == datetime(2031, 1, 1, tzinfo=UTC).timestamp()
        authority.issue("newer", until="2055").copy_to(tmp_path)  # a date of the other format in certificates
        assert scrape(server.metrics_address)[name] == datetime(2055, 1, 1, tzinfo=UTC).timestamp()


@NEEDS_OPENSSL
def test_of_a_chain_the_first_end_counts(tmp_path: Path):
    early, late = Authority(tmp_path / "early", until="2029"), Authority(tmp_path / "late")
    pair = late.issue("server", until="2040")
    chain = tmp_path / "chain.pem"
    chain.write_text(pair.certificate.read_text() + late.ca.read_text() + early.ca.read_text())
    ends = Certificates(ServerTls(certificate=chain, key=pair.key)).pair.expires
    assert ends == datetime(2029, 1, 1, tzinfo=UTC).timestamp()


def test_workers_that_were_replaced(tmp_path: Path):
    config, port = write_mixture(tmp_path), free_ports()
    with server_process(config, "--processes", "2", "--metrics-port", str(port), real=True) as server:
        server.address()
        address = f"127.0.0.1:{port}"
        first = scrape(address)
        assert first["mixserve_workers", "serving"] == 2
        assert first["mixserve_workers", "missing"] == 0
        assert first["mixserve_worker_restarts_total", "0"] == first["mixserve_worker_restarts_total", "1"] == 0
        assert first["mixserve_serving", "0"] == first["mixserve_serving", "1"] == 1
        os.kill(children(server.process.pid)[-1], signal.SIGKILL)
        until = time.monotonic() + DEADLINE_S
        while True:
            now = scrape(address)
            restarts = [now["mixserve_worker_restarts_total", number] for number in "01"]
            if sum(restarts) == 1 and now["mixserve_workers", "serving"] == 2:
                break
            assert time.monotonic() < until
            time.sleep(0.05)
        for number, restarted in zip("01", restarts, strict=True):
            name = "mixserve_start_time_seconds", number
            assert (now[name] > first[name]) == bool(restarted)

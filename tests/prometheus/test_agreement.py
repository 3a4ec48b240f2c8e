"""A server and four trainers that Prometheus reads: what it says agrees with what the trainers counted.

For 15 s, or MIXSERVE_PROMETHEUS_S.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest

from tests.ports import free_ports
from tests.processes import server_process
from tests.prometheus.running import FOLDER, NEEDS_PROMETHEUS, Prometheus, configuration, prometheus

SECONDS = float(os.environ.get("MIXSERVE_PROMETHEUS_S", "15"))
TRAINERS = 4
SCRAPE_S = 1.0
DEADLINE_S = 60
pytestmark = [NEEDS_PROMETHEUS, pytest.mark.timeout(SECONDS + 300)]


@contextmanager
def trainer(address: str, number: int) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-m", "tests.prometheus.trainer", address, str(number), str(TRAINERS)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def read_line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    assert line, "the trainer has ended"
    return line


def wait_for(found: Prometheus, expression: str, wanted: float) -> None:
    """Until the next scrape has come."""
    until = time.monotonic() + DEADLINE_S
    while (value := found.value(expression)) != wanted:
        assert time.monotonic() < until, f"{expression} is {value}, and not {wanted}"
        time.sleep(0.1)


def _mixture(folder: Path) -> Path:
    """Rows of 8 KiB: clients do not request all batches of an iterator at its beginning."""
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        rng.integers(0, 1 << 16, 4_000_000).astype(np.uint16).tofile(folder / f"{name}.bin")
    config = folder / "mixture.yaml"
    source = "{{kind: tokens, path: {}.bin, dtype: uint16, sequence_length: 4096, weight: {}}}"
    config.write_text(
        "mixtures:\n  train:\n    sampling: epoch\n    sources:\n"
        f"      a: {source.format('a', 0.7)}\n      b: {source.format('b', 0.3)}\nserver: {{port: 0}}\n"
    )
    return config


def test_prometheus_says_what_trainers_counted(tmp_path: Path):
    port = free_ports()
    with ExitStack() as held:
        flags = ("--metrics-port", str(port))
        server = held.enter_context(server_process(_mixture(tmp_path), *flags, real=True))
        address = server.address()
        trainers = [held.enter_context(trainer(address, number)) for number in range(TRAINERS)]
        ports = {f"trainer-{number}": read_line(process) for number, process in enumerate(trainers)}
        config = configuration({"server": f"127.0.0.1:{port}"}, SCRAPE_S, ports)
        rules = (FOLDER / "alerts.yaml").read_text()
        found = held.enter_context(prometheus(tmp_path, config, rules))
        began = time.monotonic()
        time.sleep(SECONDS)
        shares = dict[str, float]()
        for process in trainers:
            assert process.stdin is not None
            print(file=process.stdin, flush=True)
        counted = [json.loads(read_line(process)) for process in trainers]

        records, batches = (sum(one[what] for one in counted) for what in ("records", "batches"))
        assert batches >= TRAINERS * 100
        # What the server has counted: to the record, and so to the batch, in all, by source and by trainer.
        wait_for(found, "sum(mixserve_records_total)", records)
        for source in ("a", "b"):
            got = sum(one["by_source"][source] for one in counted)
            assert found.value(f'mixserve_records_total{{source="{source}"}}') == got
        assert found.value("sum(mixserve_source_bytes_total)") == sum(one["bytes"] for one in counted)
        assert found.value("sum(mixserve_requested_records_total)") == pytest.approx(records)
        share = 'sum(mixserve_requested_records_total{source="a"}) / sum(mixserve_requested_records_total)'
        assert found.value(share) == pytest.approx(0.7)
        # And what each client has counted.
        for number, one in enumerate(counted):
            name, own = f"trainer-{number}", f'{{instance="trainer-{number}"}}'
            wait_for(found, f"sum(mixserve_client_batches_total{own})", one["batches"])
            assert found.value(f"sum(mixserve_client_batch_records_total{own})") == one["records"]
            assert found.value(f"sum(mixserve_client_batch_bytes_total{own})") == one["bytes"]
            assert found.value(f'sum(mixserve_client_records_total{{client="{name}"}})') == one["records"]
            waited = found.value(f"sum(mixserve_client_wait_seconds_total{own})")
            # `next` has more to do when its batch has come, such as the next requests: no wait, and under 0.3 ms.
            assert one["waited_s"] - 3e-4 * one["batches"] <= waited <= one["waited_s"]
            shares[name] = one["waited_s"] / one["lasted_s"]
            told = found.value(f'mixserve_client_wait_share{{client="{name}"}}')
            assert told == pytest.approx(shares[name], abs=0.15)
        assert found.value("count(up == 1)") == 1 + TRAINERS
        assert found.query('ALERTS{alertstate="firing"}') == []
        lasted = time.monotonic() - began
    print(
        f"{batches:,} batches, {records:,} records and {sum(one['bytes'] for one in counted):,} bytes of {TRAINERS} "
        f"trainers, scraped for {lasted:.0f} s: the same in Prometheus; wait shares "
        + ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
    )

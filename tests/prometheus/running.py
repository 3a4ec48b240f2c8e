"""A real Prometheus in a process of its own, with the files of deploy/prometheus."""

import json
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import yaml

from tests.ports import free_ports

FOLDER = Path(__file__).parents[2] / "deploy" / "prometheus"
DEADLINE_S = 60

NEEDS_PROMETHEUS = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="the commands prometheus and promtool are not installed (Debian: apt-get install prometheus)",
)

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
# Where rules have durations: `for: 5m`, `[5m]` and `offset 5m`; not in names.
_DURATION = re.compile(r"(?<=for: )(\d+)([smhd])|(?<=\[)(\d+)([smhd])(?=\])|(?<=offset )(\d+)([smhd])")


class Prometheus:
    """Where a running Prometheus answers."""

    def __init__(self, url: str):
        self.url = url

    def query(self, expression: str) -> list[tuple[Mapping[str, str], float]]:
        """The labels and the values of an expression now."""
        text = urllib.parse.urlencode({"query": expression})
        with urllib.request.urlopen(f"{self.url}/api/v1/query?{text}", timeout=10) as reply:
            found: Any = json.load(reply)
        return [(one["metric"], float(one["value"][1])) for one in found["data"]["result"]]

    def value(self, expression: str) -> float:
        """The one value of an expression, NaN if there is none."""
        found = self.query(expression)
        assert len(found) <= 1, found
        return found[0][1] if found else float("nan")


def scaled_rules(text: str, by: int) -> str:
    """The rules with durations that are so many times shorter; nothing else is changed."""

    def scale(found: re.Match[str]) -> str:
        number, unit = (one for one in found.groups() if one is not None)
        return f"{int(number) * _UNITS[unit] * 1000 // by}ms"

    return _DURATION.sub(scale, text)


def configuration(
    servers: Mapping[str, str], scrape_s: float, trainers: Mapping[str, str] = MappingProxyType({})
) -> dict[str, Any]:
    """The example configuration with these targets, by the value of `instance`, and so many seconds between scrapes."""
    config: Any = yaml.safe_load((FOLDER / "prometheus.yaml").read_text())
    every = f"{int(scrape_s * 1000)}ms"
    config["global"] = {"scrape_interval": every, "scrape_timeout": every, "evaluation_interval": every}
    for job, targets in zip(config["scrape_configs"], (servers, trainers), strict=True):
        job["static_configs"] = [{"targets": [at], "labels": {"instance": name}} for name, at in targets.items()]
    return config


@contextmanager
def prometheus(folder: Path, config: Mapping[str, Any], rules: str | None = None) -> Iterator[Prometheus]:
    """A Prometheus that keeps its data in `folder`, until the end of the block."""
    config = dict(config, rule_files=[] if rules is None else ["alerts.yaml"])
    if rules is not None:
        (folder / "alerts.yaml").write_text(rules)
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    promtool("check", "config", folder / "prometheus.yaml")
    address = f"127.0.0.1:{free_ports()}"
    log = folder / "prometheus.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder / 'prometheus.yaml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={address}",
                "--log.level=warn",
            ],
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        found = Prometheus(f"http://{address}")
        until = time.monotonic() + DEADLINE_S
        while not _is_ready(found):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.05)
        yield found
    finally:
        process.terminate()
        try:
            process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def promtool(*arguments: str | Path) -> str:
    """The output of promtool, which must succeed."""
    command: Sequence[str] = ["promtool", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def _is_ready(found: Prometheus) -> bool:
    try:
        with urllib.request.urlopen(f"{found.url}/-/ready", timeout=1) as reply:
            return reply.status == 200
    except OSError:
        return False

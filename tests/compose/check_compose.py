"""Two replicas, four trainers and Prometheus, as docs/deploy.md starts them, while replicas are killed and replaced.

`make test-compose` runs this file; the name keeps it out of `make test`. Trainers read for 30 s, or MIXSERVE_COMPOSE_S.
"""

import json
import math
import os
import shutil
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import yaml

from mixserve import local_client
from mixserve.build import build_nodes
from mixserve.config import load_config
from mixserve_client import MixClient
from tests.compose.dashboard import queries
from tests.compose.engine import ROOT, Engine, find_engine
from tests.compose.page import Page
from tests.compose.trainers import RANKS, SERVICES, expected, longest_wait_s, more_trainers, steps
from tests.prometheus.running import Prometheus

SECONDS = float(os.environ.get("MIXSERVE_COMPOSE_S", "30"))
SERVERS = ("mixserve-1", "mixserve-2")
DEADLINE_S = 120
LONGEST_WAIT_S = 30.0  # docs/reliability.md says 6 s for a replica; machines of tests are busy
SESSION_BATCH = 8
pytestmark = pytest.mark.timeout(SECONDS + 1800)  # images may have to be built

_REPLIES_SINCE = (
    'sum(mixserve_replies_total{{instance="mixserve-2:9090"}}) and on () '
    'max(mixserve_start_time_seconds{{instance="mixserve-2:9090"}}) > {}'
)
Samples = list[tuple[Mapping[str, str], float]]


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """In a copy of the checkout, without what its user has made in it."""
    command = find_engine()
    if shutil.which("openssl") is None:
        pytest.skip("the command openssl makes certificates, and is not here")
    folder, extra = tmp_path / "checkout", tmp_path / "trainers.yaml"
    mine = [str(ROOT / "deploy" / name) for name in ("data", "secrets")]

    def ignore(at: str, names: list[str]) -> set[str]:
        unwanted = {name for name in names if name in {"__pycache__", "build"} or name.endswith(".egg-info")}
        return unwanted | {name for name in names if str(Path(at, name)) in mine}

    for name in ("client", "deploy", "mixserve"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    for name in (".dockerignore", "LICENSE", "README.md", "constraints.txt", "pyproject.toml"):
        shutil.copyfile(ROOT / name, folder / name)
    extra.write_text(more_trainers(folder / "deploy"))
    made = Engine(command, folder, extra)
    yield made
    made.compose("down --volumes")


def wait_for(what: str, condition: Callable[[], object], show: Callable[[], str] = str) -> float:
    """Until `condition` is true; returns how many seconds that took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < DEADLINE_S, f"{what} did not come: {show()}"
        time.sleep(0.2)
    return time.monotonic() - began


def wait_for_log(engine: Engine, service: str, text: str, times: int = 1) -> float:
    return wait_for(text, lambda: engine.log(service).count(text) >= times, lambda: engine.log(service))


def kill(engine: Engine, service: str) -> None:
    """SIGKILL to all of a container but its init, which ends then: no stop that the engine knows of."""
    engine.run(f"docker exec {engine.container(service)} sh -c 'kill -KILL -1' || true")


def check_rules(found: Prometheus) -> int:
    """Prometheus has all rules of deploy/prometheus, and could evaluate them; returns how many."""
    written = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yaml").read_text())["groups"]
    names = {rule.get("alert") or rule["record"] for group in written for rule in group["rules"]}

    def loaded() -> dict[str, str]:
        with urllib.request.urlopen(f"{found.url}/api/v1/rules", timeout=10) as reply:
            groups = json.load(reply)["data"]["groups"]
        return {rule["name"]: rule["health"] for group in groups for rule in group["rules"]}

    wait_for("an evaluation of all rules", lambda: set(loaded().values()) == {"ok"}, lambda: str(loaded()))
    assert set(loaded()) == names
    return len(names)


def check_dashboard(found: Prometheus) -> None:
    """Each query of the dashboard has samples, all of them finite; and what we know of them is so."""
    samples = dict[tuple[str, str], Samples]()
    for query in queries():
        asked = found.query(query.expression)
        assert asked, query
        assert all(math.isfinite(value) and value >= 0 for _, value in asked), (query, asked)
        samples[query.panel, query.legend] = asked
        shown = ", ".join(f"{' '.join(labels.values()) or 'all'} {value:.4g}" for labels, value in asked[:4])
        print(f"  {query.row} / {query.panel}: {shown}{', …' if len(asked) > 4 else ''}")

    def values(panel: str, legend: str) -> list[float]:
        return [value for _, value in samples[panel, legend]]

    assert values("Servers that serve", "serve") == values("Servers that serve", "known") == [2]
    assert values("Alerts", "firing") == [0]
    assert 0 < values("Certificate ends in", "left")[0] <= 90 * 24 * 3600
    assert min(values("Records per second", "{{mixture}} {{source}}")) > 0
    time_of = "Seconds for a reply: median and slowest hundredth"
    assert 0 < values(time_of, "{{mixture}} p50")[0] <= values(time_of, "{{mixture}} p99")[0] < 10
    assert {labels["stage"] for labels, _ in samples["Stages of a reply", "{{stage}}"]} >= {"plan", "gather", "encode"}
    shares = {
        kind: {labels["source"]: value for labels, value in samples["Shares: requested and realised", kind]}
        for kind in ("{{mixture}} {{source}} requested", "{{mixture}} {{source}} realised")
    }
    for share in shares.values():
        assert share == pytest.approx({"web": 0.7, "code": 0.3}, abs=0.02)
    waits = {labels["client"]: value for labels, value in samples["Wait share of each reader", "{{client}}"]}
    assert waits.keys() >= {f"trainer-{rank}" for rank in range(RANKS)}
    assert max(waits.values()) < 1
    assert values("Replicas out", "{{instance}} given") == [2]
    assert values("Faults", "{{mixture}} {{source}}") == [0]
    assert max(values("Memory by its limit", "{{instance}}")) < 0.9
    sessions = {
        (labels["instance"], labels["state"]): value for labels, value in samples["Sessions", "{{instance}} {{state}}"]
    }
    assert sessions["mixserve-1:9090", "held"] == 1


def check_new_certificate(engine: Engine, found: Prometheus) -> None:
    """The script, called again, leaves tokens and authority as they were, and the servers take what it makes."""
    ends, secrets = "min(mixserve_certificate_expiry_timestamp_seconds)", engine.folder / "deploy" / "secrets"
    before, kept = found.value(ends), [(secrets / name).read_bytes() for name in ("ca.pem", "server/tokens.yaml")]
    print(engine.run(f"sh deploy/compose/secrets.sh IP:{engine.address}").strip())
    wait_for("the new certificate in Prometheus", lambda: found.value(ends) > before)
    assert [(secrets / name).read_bytes() for name in ("ca.pem", "server/tokens.yaml")] == kept


def test_trainers_read_on_while_replicas_are_killed_and_replaced(engine: Engine):
    page = Page(engine)
    for word in ("head", "build", "secrets.sh", "up --detach\n"):
        page.run(word)
    for service in SERVERS:
        print(f"{service} serves after {wait_for_log(engine, service, 'serving on'):.1f} s")
    page.run("token.sh reader")
    print("a trainer outside:", page.run("import MixClient").strip())
    engine.run("umask 077; sh deploy/compose/token.sh trainer session > session.token")
    for service in SERVICES:
        wait_for_log(engine, service, "step 100:")
    config = engine.folder / "deploy" / "data" / "mixture.yaml"
    secrets = {"tls": str(engine.folder / "deploy" / "secrets" / "ca.pem")}
    token = str(engine.folder / "session.token")
    found = Prometheus(f"http://{engine.address}:9090")

    began = time.monotonic()
    with (
        MixClient.connect(f"{engine.address}:50051", token_file=token, patience_s=DEADLINE_S, **secrets) as client,
        client.session("run-1") as session,
    ):
        sessions = [session.next_batch(SESSION_BATCH) for _ in range(3)]

        def wait_until(part: float) -> None:
            time.sleep(max(0.0, began + part * SECONDS - time.monotonic()))
            print(f"after {time.monotonic() - began:.0f} s: ", end="", flush=True)

        wait_until(0.2)
        kill(engine, "mixserve-1")
        print(f"killed mixserve-1; serves after {wait_for_log(engine, 'mixserve-1', 'serving on', times=2):.1f} s")
        wait_until(0.4)
        kill(engine, SERVICES[-1])
        goes_on_s = wait_for_log(engine, SERVICES[-1], "goes on after step")
        print(f"killed {SERVICES[-1]}; goes on after {goes_on_s:.1f} s")
        wait_until(0.6)
        before = engine.container("mixserve-2")
        print("mixserve-2 is replaced:")
        replaced_at = time.time()
        page.run("--force-recreate")
        assert engine.container("mixserve-2") != before
        wait_for_log(engine, "mixserve-2", "serving on")
        print(f"  serves again after {time.time() - replaced_at:.1f} s")
        sessions += [session.next_batch(SESSION_BATCH) for _ in range(3)]
        wait_until(1.0)
        print("the figures")
        wait_for("both servers in Prometheus", lambda: found.value("sum(mixserve_serving)") == 2)
        wait_for("the session", lambda: found.value('sum(mixserve_sessions{state="held"})') == 1)
        # Trainers have found the new container, at another address under the same name.
        wait_for("replies of the new mixserve-2", lambda: found.value(_REPLIES_SINCE.format(replaced_at)) > 0)
        print(page.run("curl")[:300])
        print(f"{check_rules(found)} rules of deploy/prometheus are loaded and evaluated")
        check_dashboard(found)
        assert found.query('ALERTS{alertstate="firing"}') == []
        lasted = time.monotonic() - began
        check_new_certificate(engine, found)

    engine.compose(f"stop {' '.join(SERVICES)}")
    with local_client(build_nodes(load_config(config), config)) as local, local.session("run-1") as same:
        for batch in sessions:
            np.testing.assert_array_equal(batch["tokens"], same.next_batch(SESSION_BATCH)["tokens"], strict=True)
    batches, compared, longest = 0, 0, 0.0
    for rank, service in enumerate(SERVICES):
        log, read = engine.log(service), steps(engine, service)
        assert "Error" not in log, log
        assert engine.inspect(service, ".State.ExitCode") == "0", log
        assert "ended after step" in log
        assert read == expected(config, rank, set(read)), service
        waited = longest_wait_s(engine, service)
        print(f"{service}: {max(read)} batches, {len(read)} digests as in process, waited {waited:.2f} s at most")
        print("".join(f"  {line}\n" for line in log.splitlines() if not line.startswith("step ")), end="")
        batches, compared, longest = batches + max(read), compared + len(read), max(longest, waited)
    assert longest < LONGEST_WAIT_S
    print(
        f"{RANKS} trainers read {batches:,} batches in {lasted:.0f} s, without an error; {compared} digests and "
        f"{len(sessions)} batches of a session are those in process; the longest wait for a batch was {longest:.2f} s"
    )

    page.run("down")
    page.check_end()

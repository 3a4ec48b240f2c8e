"""deploy/compose.yaml, its dashboard and its Prometheus, beside each other and beside the metrics there are."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from mixserve import serve
from mixserve.cli.supervisor import Supervisor
from mixserve.config import load_config
from mixserve_client import MixClient
from tests.compose.dashboard import load, queries

DEPLOY = Path(__file__).parents[2] / "deploy"
SERVERS = ("mixserve-1", "mixserve-2")
# They have no samples before something happens, or without TLS; tests of the metrics have them.
LATER = {"mixserve_certificate_expiry_timestamp_seconds", "mixserve_wait_share", "mixserve_client_wait_share"}


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    return read("compose.yaml")["services"]


def read(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text())


def option(service: dict[str, Any], name: str) -> str:
    return service["command"][service["command"].index(name) + 1]


def test_the_metrics_of_the_dashboard_exist(node):
    with serve({"train": node}) as server:
        known = {metric.name for metric in server.stats.collect()}
    known |= {metric.name for metric in Supervisor([], [], print).stats()}
    with MixClient.connect("127.0.0.1:1") as client:
        known |= client.stats().keys()
    # Histograms have three series, and prometheus_client adds those of the process.
    known |= {f"{name}_{end}" for name in known for end in ("bucket", "sum", "count")}
    known |= LATER | {"process_cpu_seconds_total"}
    recorded = {rule.get("record") for group in read("prometheus/alerts.yaml")["groups"] for rule in group["rules"]}
    asked = queries()
    assert len(asked) > 30
    for query in asked:
        assert query.metrics <= known, query
        assert query.recorded <= recorded, query
        assert query.metrics or query.recorded or re.search(r"\bup\{|\bALERTS\{", query.expression), query


def test_the_dashboard_is_whole():
    text = (DEPLOY / "grafana" / "dashboard.json").read_text()
    dashboard, page = load(), (DEPLOY.parent / "docs" / "deploy.md").read_text()
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    taken = set[tuple[int, int]]()
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24, panel["title"]
        assert not cells & taken, panel["title"]
        taken |= cells
        if panel["type"] == "row":
            assert f"| {panel['title']} |" in page
        else:
            assert panel["description"], panel["title"]
            assert panel["targets"], panel["title"]
    variables = {variable["name"] for variable in dashboard["templating"]["list"]} | {"__rate_interval", "__all"}
    assert set(re.findall(r"\$\{?(\w+)", text)) == variables


def test_ports_and_names_agree(services):
    jobs = {job["job_name"]: job for job in read("prometheus/prometheus.yaml")["scrape_configs"]}
    targets = [f"{name}:{option(services[name], '--metrics-port')}" for name in SERVERS]
    assert jobs["mixserve"]["static_configs"] == [{"targets": targets}]
    assert jobs["mixserve-trainers"]["static_configs"] == [{"targets": ["trainer:9091"]}]
    assert 'serve_metrics(client, 9091, "0.0.0.0")' in (DEPLOY / "compose" / "train.py").read_text()
    addresses = [f"{name}:{option(services[name], '--port')}" for name in SERVERS]
    assert services["trainer"]["environment"]["MIXSERVE_ADDRESS"] == ",".join(addresses)
    (datasource,) = read("grafana/provisioning/datasources/prometheus.yaml")["datasources"]
    assert datasource["url"] == f"http://prometheus:{services['prometheus']['ports'][0].rpartition(':')[2]}"
    assert datasource["jsonData"]["timeInterval"] == read("prometheus/prometheus.yaml")["global"]["scrape_interval"]
    (provider,) = read("grafana/provisioning/dashboards/mixserve.yaml")["providers"]
    assert f"{provider['options']['path']}/dashboard.json" in str(services["grafana"]["volumes"])


def test_a_published_bulk_port_is_the_one_that_the_server_tells(services):
    published = [port for name in SERVERS for port in services[name]["ports"]]
    assert len({port.split(":")[-2] for port in published}) == 4  # those of this machine
    for name in SERVERS:
        bulk = option(services[name], "--bulk-port")
        assert services[name]["ports"][1].endswith(f":{bulk}:{bulk}")


def test_every_container_is_hardened(services):
    for name, service in services.items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["mem_limit"], name
        for mount in service["volumes"]:
            assert isinstance(mount, str) or mount["read_only"], name
        for port in service.get("ports", ()):
            assert re.match(r"\$\{\w+:-127\.0\.0\.1\}:", port), name


def test_servers_share_no_state_folder_and_have_the_health_check_of_the_image(services):
    health = re.search(r"HEALTHCHECK .*CMD \[(.*)\]", (DEPLOY / "Dockerfile").read_text())
    assert health is not None
    states = set[str]()
    for name in SERVERS:
        assert option(services[name], "--state-dir") == "/state"
        (state,) = [mount for mount in services[name]["volumes"] if str(mount).endswith(":/state")]
        states.add(state)
        assert services[name]["healthcheck"]["test"] == yaml.safe_load(f"[CMD, {health.group(1)}]")
        assert services[name]["healthcheck"]["test"][-1].endswith(f":{option(services[name], '--health-port')}")
    assert len(states) == len(SERVERS)


@pytest.mark.parametrize("name", ["mixserve-1", "trainer", "prometheus"])
def test_images_are_built_with_the_arguments_that_their_files_have(services, name):
    """Each is a variable of the environment, with the same default."""
    build = services[name]["build"]
    file = (DEPLOY / build["context"] / build.get("dockerfile", "Dockerfile")).read_text()
    defaults = dict(re.findall(r"^ARG (\w+)=(\S+)$", file, re.MULTILINE))
    given = {argument: re.fullmatch(r"\$\{\w+:-(.*)\}", value)[1] for argument, value in build["args"].items()}
    assert given == {argument: defaults[argument] for argument in given}
    assert given.keys() >= defaults.keys() & {"BASE", "EXTRAS", "ACCELERATOR"}


def test_what_is_mounted_is_there(services):
    made = {"./data", "./secrets/server", "./secrets/trainer"}  # by the reader of docs/deploy.md
    ignored = (DEPLOY / ".gitignore").read_text().splitlines()
    assert {f"/{name.split('/')[1]}/" for name in made} == set(ignored)
    for service in services.values():
        for mount in service["volumes"]:
            if isinstance(mount, dict) and mount["source"] not in made:
                assert (DEPLOY / mount["source"]).exists()


def test_the_example_mixture_is_one_for_two_servers():
    server = load_config(DEPLOY / "compose" / "mixture.yaml").server
    assert server.tls is not None
    assert server.tokens is not None
    assert server.metrics_host == "0.0.0.0"
    assert server.state_dir is None

"""The files of deploy/prometheus, as promtool sees them, and beside the documentation and the metrics there are."""

import re
from typing import Any

import yaml

from mixserve import serve
from mixserve_client import MixClient
from tests.prometheus.running import FOLDER, NEEDS_PROMETHEUS, promtool, scaled_rules

pytestmark = NEEDS_PROMETHEUS
DOCS = FOLDER.parents[1] / "docs" / "operations.md"


def rules() -> list[dict[str, Any]]:
    groups: Any = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def test_promtool_accepts_them():
    promtool("check", "config", FOLDER / "prometheus.yaml")
    assert "SUCCESS" in promtool("check", "rules", FOLDER / "alerts.yaml")
    assert "SUCCESS" in promtool("test", "rules", FOLDER / "alerts_test.yaml")


def test_the_metrics_of_the_rules_exist(node):
    from mixserve.cli.supervisor import Supervisor

    with serve({"train": node}) as server:
        known = {metric.name for metric in server.stats.collect()}
    known |= {metric.name for metric in Supervisor([], [], print).stats()}
    with MixClient.connect("127.0.0.1:1") as client:
        known |= client.stats().keys()
    # These have no samples before something happens: the names are in the rules' own tests with real servers.
    known |= {"mixserve_certificate_expiry_timestamp_seconds", "mixserve_wait_share"}
    used = {name for rule in rules() for name in re.findall(r"\bmixserve_\w+", rule["expr"])}
    assert used <= known


def test_each_alert_has_a_section_in_the_runbook_and_a_test():
    headings = re.findall(r"^#+ (.+)$", DOCS.read_text(), re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
    tested = (FOLDER / "alerts_test.yaml").read_text()
    for rule in rules():
        if "alert" in rule:
            page, _, anchor = rule["annotations"]["runbook"].partition("#")
            assert page == "docs/operations.md"
            assert anchor in anchors
            assert anchor == rule["alert"].lower()
            assert rule["alert"] in tested


def test_scaling_changes_durations_alone():
    text = (FOLDER / "alerts.yaml").read_text()
    scaled = scaled_rules(text, 100)
    assert scaled != text
    durations = r"\b\d+(?:ms|[smhd])\b"
    assert re.sub(durations, "", text) == re.sub(durations, "", scaled)

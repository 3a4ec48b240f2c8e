"""Each alert fires in a real Prometheus because of its cause, and none for a server that is well."""

import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from tests.prometheus import causes
from tests.prometheus.running import FOLDER, NEEDS_PROMETHEUS, Prometheus, configuration, prometheus, scaled_rules

pytestmark = [NEEDS_PROMETHEUS, pytest.mark.timeout(600)]

DEADLINE_S = 180
# "For 10 minutes" is 10 s, and an increase over 5 minutes one over 5 s, with two scrapes in a second.
FASTER, SCRAPE_S = 60, 0.5


def firing(found: Prometheus) -> set[tuple[str, str]]:
    """What has fired so far: alerts, and the instance or else the mixture that they are about."""
    fired = found.query('max_over_time(ALERTS{alertstate="firing"}[1h])')
    return {(labels["alertname"], labels.get("instance", labels.get("mixture", ""))) for labels, _ in fired}


def test_each_alert_fires_because_of_its_cause_and_none_for_a_server_that_is_well(tmp_path: Path):
    text = (FOLDER / "alerts.yaml").read_text()
    alerts = {rule["alert"] for group in yaml.safe_load(text)["groups"] for rule in group["rules"] if "alert" in rule}
    assert set(causes.CAUSES) == alerts
    with ExitStack() as held:
        targets = dict[str, str]()
        for cause in (causes.good, *dict.fromkeys(causes.CAUSES.values())):
            name = cause.__name__
            (tmp_path / name).mkdir()
            targets[name] = held.enter_context(cause(tmp_path / name))
        wanted = {(alert, cause.__name__) for alert, cause in causes.CAUSES.items()}
        # These are about a mixture of all servers.
        for alert, cause, mixture in (
            ("MixserveSharesOff", "shares_off", "off"),
            ("MixserveReadersApart", "readers_apart", "apart"),
        ):
            wanted = (wanted - {(alert, cause)}) | {(alert, mixture)}
        trainers = {name: targets.pop(name) for name in ("replica_out",)}
        config = configuration(targets, SCRAPE_S, trainers)
        found = held.enter_context(prometheus(tmp_path, config, scaled_rules(text, FASTER)))
        until = time.monotonic() + DEADLINE_S
        while not wanted <= (fired := firing(found)):
            assert time.monotonic() < until, f"these have not fired: {sorted(wanted - fired)}"
            time.sleep(0.2)
        assert {alert for alert, about in fired if about in ("good", "train")} == set()
        # Nor what has nothing to do with the cause. Servers of one process share their counts of limits and faults.
        others = {one for one in fired - wanted if one[0] not in ("MixserveLimitHit", "MixserveFaults")}
        faulty = found.query('max_over_time(ALERTS{alertname="MixserveFaults"}[1h])')
        assert {labels["mixture"] for labels, _ in faulty} == {"faults"}
        allowed = {
            ("MixserveErrors", "faults"),
            ("MixserveErrors", "storage_failed"),
            ("MixserveErrors", "mixture_not_serving"),
            ("MixserveErrors", "limit_hit"),
            ("MixserveErrors", "not_serving"),
            ("MixserveNotServing", "workers_end"),
        }
        assert others <= allowed, sorted(others - allowed)
        assert {labels["instance"] for labels, _ in found.query("up == 0")} == {"down"}

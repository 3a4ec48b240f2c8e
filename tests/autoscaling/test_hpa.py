"""The HorizontalPodAutoscaler of deploy/kubernetes by its own numbers, in front of simulated replicas.

Kubernetes' rule: of each metric, replicas times its value by its target, unless they differ by less than a tenth; the
largest counts, of what was wanted within the window; then the policies limit the step.
"""

import math
from pathlib import Path

import pytest
import yaml

from tests.autoscaling.model import Trainer, World

FILE = Path(__file__).parents[2] / "deploy/kubernetes/components/autoscaling/horizontalpodautoscaler.yaml"
LOOK_S, MEAN_OF = 15.0, 12  # the adapter's queries are means over 3 minutes


def changes(world: World, busy_target: float | None, until: float) -> list[int]:
    """The numbers of replicas that it asks for, one after another; `busy_target` in place of the file's."""
    spec = yaml.safe_load(FILE.read_text())["spec"]
    wait_target, file_target = (
        float(one["pods"]["target"]["averageValue"].replace("50m", "0.05")) for one in spec["metrics"]
    )
    up, down = spec["behavior"]["scaleUp"], spec["behavior"]["scaleDown"]
    targets = wait_target, busy_target or file_target
    figures, wanted, found = list[tuple[float, float]](), list[tuple[float, int]](), list[int]()
    changed = {"up": -math.inf, "down": -math.inf}
    while world.now < until:
        world.run(world.now + LOOK_S)
        seen, count = world.see(LOOK_S), world.replicas
        figures.append((seen.wait_share or 0.0, seen.busy or 0.0))
        means = [sum(values) / len(values) for values in zip(*figures[-MEAN_OF:], strict=True)]
        ratios = [mean / target for mean, target in zip(means, targets, strict=True)]
        asked = max(count if abs(ratio - 1) <= 0.1 else math.ceil(count * ratio) for ratio in ratios)
        wanted.append((world.now, min(max(asked, spec["minReplicas"]), spec["maxReplicas"])))
        more = min(n for at, n in wanted if at >= world.now - up["stabilizationWindowSeconds"])
        fewer = max(n for at, n in wanted if at >= world.now - down["stabilizationWindowSeconds"])
        if more > count and world.now - changed["up"] >= up["policies"][0]["periodSeconds"]:
            most = max(count + up["policies"][0]["value"], count * (1 + up["policies"][1]["value"] / 100))
            found.append(int(min(more, most)))
            changed["up"] = world.now
        elif fewer < count and world.now - changed["down"] >= down["policies"][0]["periodSeconds"]:
            found.append(count - down["policies"][0]["value"])
            changed["down"] = world.now
        else:
            continue
        world.scale(found[-1])
    return found


def serial(need: float) -> World:
    return World([Trainer(4.0) for _ in range(8)], service_s=4.0 * need / 8, replicas=2)


@pytest.mark.parametrize("need", [3.5, 5.5])
def test_for_sources_that_serve_one_after_another_eight_at_a_time_flap_and_one_does_not(need: float):
    world = serial(need)
    assert len(changes(world, None, 4 * 3600)) >= 8
    world = serial(need)
    assert len(changes(world, 1.0, 4 * 3600)) <= 6
    assert need <= world.replicas <= need + 2


def test_replicas_with_many_cores_follow_the_load():
    world = World([Trainer(4.0) for _ in range(32)], service_s=4.0 * 16 * 3.5 / 32, lanes=16, replicas=2)
    found = changes(world, None, 3600)
    assert (world.replicas >= 4, len(found) <= 3) == (True, True), found


def test_waits_that_replicas_do_not_mend_take_all_there_may_be():
    """Which is why docs/deploy.md says to look where the time goes first."""
    world = World([Trainer(2.0) for _ in range(8)], service_s=0.01, network_s=3.0, replicas=2)
    changes(world, None, 3600)
    assert world.replicas == 8

"""deploy/kubernetes as `kubectl apply -k` would send it: schemas of several versions, references, security, metrics.

`make test-kubernetes` sets up what it needs and runs this file; the name keeps it out of `make test`.
"""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.kubernetes.rendering import (
    FOLDERS,
    ROOT,
    Object,
    containers,
    copy_with_secrets,
    objects,
    of_kind,
    render,
    tool,
    workload,
)

VERSIONS = ("1.29.0", "1.30.0", "1.31.0", "1.32.0", "1.33.0", "1.34.0", "1.35.0", "1.36.0", "1.37.0")
NO_SCHEMA = {"PodMonitor"}
# Of the Pod Security Standard "restricted".
ALLOWED_VOLUMES = {"configMap", "secret", "emptyDir", "persistentVolumeClaim"}


@pytest.fixture(scope="module")
def kubernetes(tmp_path_factory) -> Path:
    return copy_with_secrets(tmp_path_factory.mktemp("checkout"))


@pytest.fixture(scope="module", params=FOLDERS)
def rendered(request, kubernetes) -> str:
    return render(kubernetes, request.param)


@pytest.fixture
def found(rendered) -> list[Object]:
    return objects(rendered)


def validate(text: str, version: str, file: Path) -> tuple[int, str]:
    file.write_text(text)
    command = [tool("kubernetes-validate"), "--strict", "-k", version, str(file)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    return ended.returncode, ended.stdout + ended.stderr


def test_every_folder_is_here(kubernetes):
    files = kubernetes.rglob("kustomization.yaml")
    kustomizations = {str(file.parent.relative_to(kubernetes)) for file in files if "Component" not in file.read_text()}
    assert kustomizations - {"job"} == set(FOLDERS)  # job is the ground of two others


@pytest.mark.parametrize("version", VERSIONS)
def test_objects_fit_the_schemas(rendered, version, tmp_path):
    code, said = validate(rendered, version, tmp_path / "rendered.yaml")
    assert code == 0, said
    unknown = set(re.findall(r"Couldn't find schema for kind (\w+)", said))
    assert unknown <= NO_SCHEMA, said
    assert said.count(" passed for resource ") + len(unknown) == len(objects(rendered)), said


def test_unknown_fields_are_errors(kubernetes, tmp_path):
    """Else the test above would say nothing."""
    text = render(kubernetes, "base")
    for right, wrong in (("livenessProbe:", "livelinessProbe:"), ("clusterIP: None", "clusterIp: None")):
        code, said = validate(text.replace(right, wrong), VERSIONS[0], tmp_path / "wrong.yaml")
        assert code != 0, said


def test_what_refers_to_others_finds_them(found):
    made = workload(found)
    pod = made["spec"]["template"]["spec"]
    labels = made["spec"]["template"]["metadata"]["labels"]
    names = {(one["kind"], one["metadata"]["name"]) for one in found}
    for volume in pod["volumes"]:
        if "configMap" in volume:
            assert ("ConfigMap", volume["configMap"]["name"]) in names
            assert re.search(r"-[a-z0-9]{10}$", volume["configMap"]["name"])  # another content replaces the pods
        if "secret" in volume:
            assert ("Secret", volume["secret"]["secretName"]) in names
        if "persistentVolumeClaim" in volume:
            assert volume["persistentVolumeClaim"] == {"claimName": "mixserve-data", "readOnly": True}
    templates = [claim["metadata"]["name"] for claim in made["spec"].get("volumeClaimTemplates", ())]
    volumes = {*templates, *(volume["name"] for volume in pod["volumes"])}
    ports = set[str]()
    for container in containers(pod):
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
        ports |= {port["name"] for port in container.get("ports", ())}
    for one in found:
        match one["kind"]:
            case "Service":
                assert one["spec"]["selector"].items() <= labels.items()
                assert {port["targetPort"] for port in one["spec"]["ports"]} <= ports
            case "PodDisruptionBudget" | "PodMonitor":
                assert one["spec"]["selector"]["matchLabels"].items() <= labels.items()
                assert {end["port"] for end in one["spec"].get("podMetricsEndpoints", ())} <= ports
            case "NetworkPolicy":
                assert one["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
                assert {port["port"] for rule in one["spec"]["ingress"] for port in rule["ports"]} <= ports
            case "HorizontalPodAutoscaler":
                target = one["spec"]["scaleTargetRef"]
                assert (target["apiVersion"], target["kind"]) == (made["apiVersion"], made["kind"])
                assert target["name"] == made["metadata"]["name"]
                assert "replicas" not in made["spec"]
            case "StatefulSet":
                assert ("Service", one["spec"]["serviceName"]) in names
                assert "strategy" not in one["spec"]
            case _:
                pass
    if made["kind"] != "Job":
        assert made["spec"]["selector"]["matchLabels"].items() <= labels.items()
        for spread in pod["topologySpreadConstraints"]:
            assert spread["labelSelector"]["matchLabels"].items() <= labels.items()
    assert {one["metadata"]["namespace"] for one in found if one["kind"] != "Namespace"} == {"mixserve"}


def test_pods_are_restricted(found):
    """As the Pod Security Standard of that name asks for, which the namespace enforces; and a read-only root."""
    pod = workload(found)["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 10001
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    for volume in pod["volumes"]:
        assert volume.keys() - {"name"} <= ALLOWED_VOLUMES
        if "secret" in volume:
            assert volume["secret"]["defaultMode"] == 0o440
    for container in containers(pod):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["requests"].keys() >= {"cpu", "memory"}
        assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]
        assert all("hostPort" not in port for port in container.get("ports", ()))
        assert ":" in container["image"]
    for one in of_kind(found, "Namespace"):
        assert one["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_the_example_of_a_claim_fits(tmp_path):
    code, said = validate((ROOT / "deploy" / "kubernetes" / "data.yaml").read_text(), VERSIONS[-1], tmp_path / "data")
    assert code == 0, said


def test_the_certificate_has_the_names_that_trainers_use(kubernetes):
    service = "mixserve.mixserve.svc.cluster.local"
    ca, server = kubernetes / "overlays/trainer/secrets/ca.pem", kubernetes / "base/secrets/server.pem"
    for name in (service, f"mixserve-0.{service}", f"mixserve-11.{service}"):
        subprocess.run(["openssl", "verify", "-CAfile", ca, "-verify_hostname", name, server], check=True)


def test_git_ignores_what_the_page_makes(kubernetes):
    made = [str(file.relative_to(kubernetes)) for file in kubernetes.rglob("*") if file.is_file()]
    made = [name for name in made if not (ROOT / "deploy" / "kubernetes" / name).exists()]
    assert "base/secrets/server.key" in made
    for name in made:
        ignored = ["git", "check-ignore", "--quiet", f"deploy/kubernetes/{name}"]
        assert subprocess.run(ignored, cwd=ROOT, check=False).returncode == 0, name


def adapter_queries() -> Iterator[tuple[str, str]]:
    """The (metric, query) of the autoscaler, as prometheus-adapter asks it for two pods."""
    file = ROOT / "deploy" / "kubernetes" / "components" / "autoscaling" / "prometheus-adapter.yaml"
    for rule in yaml.safe_load(file.read_text())["rules"]["custom"]:
        query = rule["metricsQuery"].replace("<<.GroupBy>>", "pod")
        yield rule["name"]["as"], query.replace("<<.LabelMatchers>>", 'namespace="mixserve",pod=~"a|b"')


def test_the_autoscaler_asks_for_metrics_that_the_adapter_makes(kubernetes):
    (scaler,) = of_kind(objects(render(kubernetes, "overlays/autoscaled")), "HorizontalPodAutoscaler")
    asked = {metric["pods"]["metric"]["name"] for metric in scaler["spec"]["metrics"]}
    assert asked == {name for name, _ in adapter_queries()}


def test_the_adapters_queries(tmp_path):
    """Trainers of one pod wait, of the mixture `train` most; nobody reads from the other."""
    series = {
        'mixserve_serving{namespace="mixserve",pod="a"}': "1x20",
        'mixserve_serving{namespace="mixserve",pod="b"}': "1x20",
        'mixserve_wait_share{namespace="mixserve",pod="a",mixture="train"}': "0.25x20",
        'mixserve_wait_share{namespace="mixserve",pod="a",mixture="eval"}': "0.05x20",
        'mixserve_wait_share{namespace="elsewhere",pod="a",mixture="train"}': "0.9x20",
        'mixserve_under_way{namespace="mixserve",pod="a",mixture="train",way="call"}': "2x20",
        'mixserve_under_way{namespace="mixserve",pod="a",mixture="train",way="bulk"}': "5x20",
        'mixserve_under_way{namespace="mixserve",pod="b",mixture="train",way="bulk"}': "0x20",
    }
    expected = {"mixserve_wait_share": {"a": 0.25, "b": 0}, "mixserve_under_way": {"a": 7, "b": 0}}
    (tmp_path / "none.yaml").write_text("groups: []\n")
    (tmp_path / "test.yaml").write_text(
        yaml.safe_dump(
            {
                "rule_files": ["none.yaml"],
                "evaluation_interval": "15s",
                "tests": [
                    {
                        "interval": "15s",
                        "input_series": [{"series": name, "values": values} for name, values in series.items()],
                        "promql_expr_test": [
                            {
                                "expr": query,
                                "eval_time": "5m",
                                "exp_samples": [
                                    {"labels": f'{{pod="{pod}"}}', "value": value}
                                    for pod, value in expected[name].items()
                                ],
                            }
                            for name, query in adapter_queries()
                        ],
                    }
                ],
            }
        )
    )
    command = [tool("promtool"), "test", "rules", str(tmp_path / "test.yaml")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_scripts_have_no_faults_that_shellcheck_knows():
    scripts = [*(ROOT / "deploy").rglob("*.sh"), *(ROOT / "deploy").rglob("*.sbatch")]
    assert len(scripts) >= 3
    ended = subprocess.run([tool("shellcheck"), *scripts], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout

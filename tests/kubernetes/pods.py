"""A pod's containers as processes of this machine, from the YAML of the pod: volumes, commands, probes, the end.

Ports become free ones, and the folders of mounts folders of the test; the name of the Service becomes this machine's.
Nothing else changes.
"""

import base64
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import grpc
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.kubernetes.rendering import Object, containers, of_kind, workload
from tests.ports import free_ports
from tests.processes import DEADLINE_S

SERVICE = "mixserve.mixserve.svc.cluster.local"


class Pod:
    """The pod that `rendered` describes, in `folder`. `claims` are the folders of PersistentVolumeClaims, by name;
    claims of a StatefulSet's template are made in `folder`. `ports` are those of pods before, by their numbers in YAML.
    """

    def __init__(
        self, rendered: list[Object], folder: Path, claims: Mapping[str, Path], ports: Mapping[int, int] | None = None
    ):
        made = workload(rendered)
        self.spec: Object = made["spec"]["template"]["spec"]
        self._objects, self._folder = rendered, folder
        folder.mkdir(parents=True, exist_ok=True)
        templates = {one["metadata"]["name"]: {} for one in made["spec"].get("volumeClaimTemplates", ())}
        self._claims = {name: folder / name for name in templates} | dict(claims)
        self._volumes = {volume["name"]: volume for volume in self.spec["volumes"]} | {
            name: {"persistentVolumeClaim": {"claimName": name}} for name in templates
        }
        # All ports of the configuration, and of the containers.
        numbers = {int(port) for one in self._mixtures() for key, port in one["server"].items() if key.endswith("port")}
        numbers |= {port["containerPort"] for one in containers(self.spec) for port in one.get("ports", ())}
        self.ports = dict(ports or {}) | {number: free_ports() for number in sorted(numbers)}
        for name in self._volumes:
            self._lay_out(name)

    @property
    def grace_s(self) -> float:
        return self.spec.get("terminationGracePeriodSeconds", 30)

    def start(self, name: str) -> "Process":
        """Start a container, and say what is run."""
        (container,) = [one for one in containers(self.spec) if one["name"] == name]
        command = [*container["command"], *container.get("args", ())]
        mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
        here = [self._here(word) for word in command]
        environ = {entry["name"]: self._here(entry["value"]) for entry in container.get("env", ())}
        print(f"\n{name}: {shlex.join(command)}\n  as: {' '.join(f'{k}={v}' for k, v in environ.items())} ", end="")
        print(shlex.join(here))
        # Of this machine's environment only what finds Python and the checkout.
        inherited = {key: os.environ[key] for key in ("PYTHONPATH",) if key in os.environ}
        path = f"{Path(sys.executable).parent}:{os.defpath}"
        log = self._folder / f"{name}-{time.monotonic_ns()}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                here,
                env={"PATH": path, "PYTHONWARNINGS": "error"} | inherited | environ,
                cwd=self._folder_of(mounts["/data"]["name"]) if "/data" in mounts else self._folder,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        return Process(process, log, container, self.ports)

    def path(self, text: str) -> Path:
        """Where a path of a container is here."""
        return Path(self._here(text))

    def _mixtures(self) -> list[Object]:
        files = [one["data"] for one in of_kind(self._objects, "ConfigMap") if "mixture.yaml" in one["data"]]
        return [yaml.safe_load(data["mixture.yaml"]) for data in files]

    def _folder_of(self, name: str) -> Path:
        claim = self._volumes[name].get("persistentVolumeClaim")
        return self._claims[claim["claimName"]] if claim else self._folder / name

    def _here(self, text: str) -> str:
        mounts = {m["mountPath"]: m["name"] for one in containers(self.spec) for m in one["volumeMounts"]}
        folders = {path: str(self._folder_of(name)) for path, name in mounts.items()}
        names = {str(number): str(port) for number, port in self.ports.items()} | {SERVICE: "localhost"}
        # In one go: what was put in is not replaced once more.
        pattern = rf"(?<![\w./-])(?:{_any_of(folders)})(?![\w.-])|(?<![\w.-])(?:{_any_of(names)})(?![\w.-])"
        return re.sub(pattern, lambda found: (folders | names)[found.group()], text)

    def _lay_out(self, name: str) -> None:
        """Make a volume as the kubelet does: files are links into a folder that it can replace at once."""
        volume, folder = self._volumes[name], self._folder_of(name)
        folder.mkdir(parents=True, exist_ok=True)
        files = dict[str, bytes]()
        if "configMap" in volume:
            for key, text in self._named("ConfigMap", volume["configMap"]["name"])["data"].items():
                files[key] = self._here(text).encode()
        elif "secret" in volume:
            for key, text in self._named("Secret", volume["secret"]["secretName"])["data"].items():
                files[key] = base64.b64decode(text)
        elif "emptyDir" in volume:
            folder.chmod(0o777)
        if not files:
            return
        inner = folder / f"..{time.monotonic_ns()}"
        inner.mkdir()
        (folder / "..data").symlink_to(inner.name)
        for key, content in files.items():
            (inner / key).write_bytes(content)
            (inner / key).chmod(volume.get("secret", volume.get("configMap")).get("defaultMode", 0o644))
            (folder / key).symlink_to(f"..data/{key}")

    def _named(self, kind: str, name: str) -> Object:
        (one,) = [one for one in of_kind(self._objects, kind) if one["metadata"]["name"] == name]
        return one


def _any_of(words: Iterable[str]) -> str:
    return "|".join(map(re.escape, words))


class Process:
    """A container that runs."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, container: Object, ports: Mapping[int, int]):
        self._process, self._log, self._container, self._ports = process, log, container, ports
        self.pid = process.pid

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def probe(self, kind: str) -> str:
        """What the kubelet would see: SERVING, another status, or the name of gRPC's error."""
        probe = self._container[kind]
        request = health_pb2.HealthCheckRequest(service=probe["grpc"].get("service", ""))
        with grpc.insecure_channel(f"127.0.0.1:{self._ports[probe['grpc']['port']]}") as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            try:
                status = check(request, timeout=probe.get("timeoutSeconds", 1)).status
            except grpc.RpcError as error:
                return error.code().name  # pyright: ignore[reportAttributeAccessIssue]
        return health_pb2.HealthCheckResponse.ServingStatus.Name(status)

    def wait_until_started(self) -> None:
        """Within the time of the startup probe."""
        probe = self._container["startupProbe"]
        deadline = time.monotonic() + min(DEADLINE_S, probe["periodSeconds"] * probe["failureThreshold"])
        while self.probe("startupProbe") != "SERVING":
            assert self._process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.1)

    def wait_for_log(self, text: str) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while text not in self.log():
            assert self._process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.002)

    def terminate(self) -> None:
        self._process.send_signal(signal.SIGTERM)

    def wait(self, timeout_s: float = DEADLINE_S) -> int:
        return self._process.wait(timeout_s)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(DEADLINE_S)


@contextmanager
def running(pod: Pod, name: str) -> Iterator[Process]:
    process = pod.start(name)
    try:
        yield process
    finally:
        process.kill()

"""A pod's containers in the images themselves, from the YAML of the pod: commands, environment, volumes, user, limits.

Nothing is changed in them: containers have addresses of their own, and the Service is a name in their network.
"""

import os
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from tests.container.conftest import CLIENT, SERVER
from tests.container.engine import Engine, new_name
from tests.kubernetes.pods import SERVICE, Pod, Process
from tests.kubernetes.rendering import Object, containers

_IMAGES = {"mixserve": SERVER, "trainer": CLIENT}


class ContainerPod(Pod):
    """As `Pod`, run by `engine` in the network `net`. `ports` are where its ports are published on this machine."""

    def __init__(self, engine: Engine, net: str, rendered: list[Object], folder: Path, claims: Mapping[str, Path]):
        self._engine, self._net = engine, net
        self._first: str | None = None  # the container whose network the others of the pod share
        super().__init__(rendered, folder, claims)
        self._give_to_group()

    def start(self, name: str) -> "ContainerProcess":
        (container,) = [one for one in containers(self.spec) if one["name"] == name]
        own = new_name()
        command = [*container["command"], *container.get("args", ())]
        flags = [*self._flags(container), *self._network(container)]
        entry, *arguments = command
        here = [
            self._engine.command, "run", "--name", own, *flags, "--entrypoint", entry,
            _IMAGES[container["image"].partition(":")[0]], *arguments,
        ]  # fmt: skip
        print(f"\n{name}, in a container: {' '.join(command)} ", end="")
        log = self._folder / f"{name}-{time.monotonic_ns()}.log"
        with log.open("wb") as out:
            # In the foreground: signals go to the container, and its exit code is the process's.
            process = subprocess.Popen(here, stdout=out, stderr=subprocess.STDOUT)
        if "initContainers" in self.spec:
            self._first = self._first or own
        return ContainerProcess(self._engine, own, process, log, container, self.ports)

    def _here(self, text: str) -> str:
        return text

    def path(self, text: str) -> Path:
        mounts = {mount["mountPath"]: mount["name"] for one in containers(self.spec) for mount in one["volumeMounts"]}
        (mount,) = [mount for mount in mounts if Path(text).is_relative_to(mount)]
        return self._folder_of(mounts[mount]) / Path(text).relative_to(mount)

    def _flags(self, container: Object) -> list[str]:
        security, pod = container["securityContext"], self.spec["securityContext"]
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert security["allowPrivilegeEscalation"] is False
        assert security["readOnlyRootFilesystem"] is True
        memory = container["resources"]["limits"]["memory"].removesuffix("i").lower()
        flags = [*self._engine.hardened, "--memory", memory, "--memory-swap", memory]
        flags.remove("--init")  # Kubernetes has none
        flags += ["--user", f"{pod['runAsUser']}:{pod['runAsGroup']}", "--group-add", str(pod["fsGroup"])]
        for entry in container.get("env", ()):
            flags += ["--env", f"{entry['name']}={entry['value']}"]
        for mount in container["volumeMounts"]:
            access = "ro" if mount.get("readOnly") else "rw"
            flags += ["--volume", f"{self._folder_of(mount['name'])}:{mount['mountPath']}:{access}"]
        return flags

    def _network(self, container: Object) -> list[str]:
        if self._first is not None:
            return ["--network", f"container:{self._first}"]
        flags = ["--network", self._net]
        if container["name"] == "mixserve":
            flags += ["--network-alias", SERVICE]
        for port in container.get("ports", ()):
            number = port["containerPort"]
            flags += ["--publish", f"127.0.0.1:{self.ports[number]}:{number}"]
        return flags

    def _give_to_group(self) -> None:
        """What the kubelet does for fsGroup with volumes that it can write to."""
        group = self.spec["securityContext"]["fsGroup"]
        for name, volume in self._volumes.items():
            if volume.get("persistentVolumeClaim", {}).get("readOnly"):
                continue
            root = self._folder_of(name)
            for path in (root, *root.rglob("*")):
                os.chown(path, -1, group, follow_symlinks=False)
            root.chmod(0o2777 if "emptyDir" in volume else 0o2775)


class ContainerProcess(Process):
    """A container that runs, by the engine's command in the foreground."""

    def __init__(self, engine: Engine, name: str, *arguments: object):
        super().__init__(*arguments)  # pyright: ignore[reportArgumentType]
        self._engine, self.name = engine, name

    def log(self) -> str:
        """Of the container alone: what the engine says goes to another file."""
        ended = self._engine.run("logs", self.name)
        return ended.stderr + ended.stdout if ended.returncode == 0 else super().log()

    def kill(self) -> None:
        self._engine.run("rm", "--force", "--time", "0", self.name)
        super().kill()

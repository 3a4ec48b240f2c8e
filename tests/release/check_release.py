"""The archives of build/dist, as users install them: each into a clean environment, then README's first batch.

`make test-dist` runs it after `make dist`, which has made the environments of the wheels.
"""

import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.forked import wait_for_line
from tools.release.clean import CLEAN, OUT, archives, make_environment

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
KINDS = ("wheel", "sdist")
DEADLINE_S = 180


def block(first_line: str, language: str) -> str:
    """The one block of README.md that begins with that line."""
    (found,) = re.findall(rf"^```{language}\n({re.escape(first_line)}.*?)^```$", README, re.DOTALL | re.MULTILINE)
    return found


def run(*command: str | Path, folder: Path | None = None, python: Path | None = None) -> str:
    """The output of a command, which must end well; with `python`, its environment is the active one."""
    ended = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env=environment(python or Path(sys.executable)),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def environment(python: Path) -> dict[str, str]:
    left = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "MIXSERVE"))}
    return left | {"PATH": f"{python.parent}:{os.environ['PATH']}"}


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def client(kind: str) -> Path:
    """The python of an environment that has the client alone."""
    return of_dist("client", kind)


@pytest.fixture(scope="module")
def server(kind: str) -> Path:
    """The python of an environment that has the server with its client."""
    return of_dist("server", kind)


def of_dist(package: str, kind: str) -> Path:
    made = CLEAN / f"{package}-{kind}" / "bin" / "python"
    built = max(file.stat().st_mtime for file in archives(package, kind))
    # `make dist` made the environments of the wheels for its lists of components.
    return (
        made if kind == "wheel" and made.exists() and made.lstat().st_mtime > built else make_environment(package, kind)
    )


def test_the_environments_have_what_their_packages_require(client: Path, server: Path):
    for python in (client, server):
        run(sys.executable, "-m", "pip", "--python", python, "check")


def test_the_client_alone_has_neither_jax_nor_the_server(client: Path):
    code = """
import sys, importlib.util, mixserve_client
from importlib.metadata import version
assert mixserve_client.__version__ == version("mixserve-client"), mixserve_client.__version__
for name in ("jax", "mixserve", "pytest"):
    assert importlib.util.find_spec(name) is None, name
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""
    assert "grpc" in run(client, "-I", "-W", "error", "-c", code).split()


def test_readmes_mixture_is_served_and_its_first_batch_comes(client: Path, server: Path, tmp_path: Path):
    (tmp_path / "mixture.yaml").write_text(block("# mixture.yaml", "yaml"))
    run("bash", "-euc", block("mkdir -p web code", "sh"), folder=tmp_path, python=server)
    assert run("mixserve", "--version", python=server) == f"mixserve {version_of(server)}\n"
    run("mixserve", "check", "mixture.yaml", folder=tmp_path, python=server)
    code = block("from mixserve_client import MixClient\n\nclient", "python")
    assert code.count("127.0.0.1:50051") == 1
    with serving(server, tmp_path) as address:
        read = code.replace("127.0.0.1:50051", address) + "client.close()\n"
        assert run(client, "-W", "error", "-c", read, folder=tmp_path) == "uint16 (256, 2048)\n"
        assert "train" in run("mixserve", "info", address, python=server)


def version_of(python: Path) -> str:
    return run(python, "-c", "import mixserve; print(mixserve.__version__)").strip()


@contextmanager
def serving(server: Path, folder: Path) -> Iterator[str]:
    """The address of `mixserve serve` of that environment, which ends well when it is asked to."""
    process = Process([server.with_name("mixserve"), "serve", "mixture.yaml", "--port", "0"], folder, server)
    try:
        yield wait_for_line(process, lambda log: re.search(r"serving on (\S+)", log), DEADLINE_S).group(1)
        process.started.terminate()
        assert process.started.wait(DEADLINE_S) == 0, process.log()
    finally:
        process.started.kill()
        process.started.wait()


class Process:
    """A command in that folder and environment, as `wait_for_line` wants it."""

    def __init__(self, command: list[str | Path], folder: Path, python: Path):
        self._log = folder / "log"
        with self._log.open("wb") as log:
            self.started = subprocess.Popen(command, cwd=folder, env=environment(python), stdout=log, stderr=log)
        self.poll = self.started.poll

    def log(self) -> str:
        return self._log.read_text(errors="replace")


def test_type_checkers_see_the_types(client: Path, server: Path, tmp_path: Path):
    """Wrong types are found, so neither package counts as one without types; right ones pass."""
    (tmp_path / "pyrightconfig.json").write_text('{"typeCheckingMode": "strict"}')
    connect = "from mixserve_client import Batch, MixClient\nclient = MixClient.connect({})\n"
    right = "batch: Batch = next(client.batches(batch_size=2, key=7))\n"
    assert types_wrong(client, tmp_path, connect.format(1) + right) == {"reportArgumentType"}
    assert types_wrong(client, tmp_path, connect.format('"a:1"') + right) == set()
    port = "from mixserve import serve\nport: str = serve({}).bulk_port\n"
    assert types_wrong(server, tmp_path, port) == {"reportAssignmentType"}


def types_wrong(python: Path, folder: Path, code: str) -> set[str | None]:
    """The rules of basedpyright that `code` breaks in that environment."""
    (folder / "program.py").write_text(code)
    command = [Path(sys.executable).with_name("basedpyright"), "--outputjson", "--pythonpath", python, "program.py"]
    checked = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=DEADLINE_S)
    return {found.get("rule") for found in json.loads(checked.stdout)["generalDiagnostics"]}


def test_components_are_listed_with_their_versions():
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    for name, needed in (("mixserve_client", "grpcio"), ("mixserve", "jax")):
        (file,) = OUT.glob(f"{name}-[0-9]*.cdx.json")
        listed = json.loads(file.read_text())
        assert listed["metadata"]["component"]["name"] == name.replace("_", "-")
        components = {component["name"]: component["version"] for component in listed["components"]}
        assert components[needed] == pinned[needed]
        assert not set(components) & {"pip", "setuptools", "pytest", "build"}


def test_archives_have_no_tests_no_bytecode_and_no_path_of_this_machine():
    files = sorted(OUT.glob("*.whl")) + sorted(OUT.glob("*.tar.gz"))
    assert len(files) == 4
    for file in files:
        for name, data in contents(file):
            assert not re.search(r"(^|/)(tests?|benchmarks|docs|examples|__pycache__)/|\.py[co]$", name), (file, name)
            assert str(ROOT).encode() not in data, (file, name)


def contents(archive: Path) -> Iterator[tuple[str, bytes]]:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as opened:
            yield from ((name, opened.read(name)) for name in opened.namelist())
    else:
        with tarfile.open(archive) as opened:
            for member in opened.getmembers():
                if member.isfile() and (file := opened.extractfile(member)):
                    yield member.name, file.read()

"""What the two packages export, require and load."""

import importlib
import re
import subprocess
import sys
import tomllib
from importlib.metadata import requires, version
from pathlib import Path

import pytest

import mixserve
import mixserve_client

ROOT = Path(__file__).parents[1]
VERSION = "client/mixserve_client/version.py"
HEAVY = ("jax", "flax", "grain", "torch", "mixserve")


def loaded_by(statement: str) -> set[str]:
    """The top-level modules in a fresh interpreter after `statement`, with warnings as errors."""
    code = f"{statement}; import sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    ended = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert ended.stderr == ""
    return set(ended.stdout.split())


def test_the_client_is_light():
    loaded = loaded_by("import mixserve_client")
    assert "grpc" in loaded
    assert not loaded & set(HEAVY)


@pytest.mark.parametrize("command", ["bench", "explain", "fetch", "health", "show", "state"])
def test_a_command_that_only_calls_a_server_does_not_load_jax(command):
    assert "jax" not in loaded_by(f"import mixserve.cli.main, mixserve.cli.{command}")


def test_the_client_needs_four_packages():
    lines = [line for line in requires("mixserve-client") or () if "extra ==" not in line]
    needed = {re.split(r"[<>=\[ ;]", line)[0] for line in lines}
    assert needed == {"grpcio", "ml_dtypes", "numpy", "protobuf"}


def test_exports_are_sorted_and_there():
    for package in (mixserve, mixserve_client):
        assert package.__all__ == sorted(package.__all__)
        for name in package.__all__:
            found = getattr(package, name)
            assert found is mixserve_client.Batch or found.__name__ == name
    assert set(mixserve._HOMES) == set(mixserve.__all__)
    assert set(mixserve.__all__) <= set(dir(mixserve))


def test_what_is_not_exported_is_an_attribute_error():
    try:
        importlib.import_module("mixserve").nothing  # noqa: B018
    except AttributeError as error:
        assert "nothing" in str(error)
    else:
        raise AssertionError


def test_the_version_is_that_of_one_file_everywhere():
    """Both packages, their metadata, and the requirement of one on the other; the last one is written by hand."""
    written = re.fullmatch(r'.*__version__ = "(.+)"\n', (ROOT / VERSION).read_text(), re.DOTALL)
    assert written is not None
    assert mixserve.__version__ == mixserve_client.__version__ == written[1]
    for file, path in (("pyproject.toml", "client."), ("client/pyproject.toml", "")):
        read = tomllib.loads((ROOT / file).read_text())
        assert read["project"]["dynamic"] == ["version"]
        assert read["tool"]["setuptools"]["dynamic"]["version"] == {
            "attr": f"{path}mixserve_client.version.__version__"
        }
        pinned = [line for line in read["project"]["dependencies"] if line.startswith("mixserve-client")]
        assert pinned == ([f"mixserve-client=={written[1]}"] if file == "pyproject.toml" else [])
    assert f"include {VERSION}\n" in (ROOT / "MANIFEST.in").read_text()  # the sdist of the server reads it, too
    for file in ("Dockerfile", "client.Dockerfile"):
        told = re.findall(r"^ARG VERSION=(.*)$", (ROOT / "deploy" / file).read_text(), re.MULTILINE)
        assert set(told) == {written[1]}, f"deploy/{file} gives the image another version"
    for name in ("mixserve", "mixserve-client"):
        assert version(name) == written[1], f"{name} was installed before its version changed: run make setup"


def test_both_packages_come_with_their_license():
    assert (ROOT / "client" / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    for folder in (ROOT, ROOT / "client"):
        assert 'license-files = ["LICENSE"]' in (folder / "pyproject.toml").read_text()

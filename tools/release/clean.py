"""Archives -> a clean environment that has them, and what they require in the versions of constraints.txt."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[2]
OUT = ROOT / "build" / "dist"
CLEAN = ROOT / "build" / "clean"
SUFFIXES = {"wheel": "-py3-none-any.whl", "sdist": ".tar.gz"}
SITE = "lib/python*/site-packages"
PACKAGES = {"client": ("mixserve_client",), "server": ("mixserve_client", "mixserve")}


def archives(package: str, kind: str) -> list[Path]:
    """The archives of build/dist that an environment of `package` gets: the client, or the server and its client."""
    found = [list(OUT.glob(f"{name}-[0-9]*{SUFFIXES[kind]}")) for name in PACKAGES[package]]
    if any(len(files) != 1 for files in found):
        raise SystemExit(f"{OUT} lacks a {kind} of {package}, or has two: run make dist")
    return [files[0] for files in found]


def make_environment(package: str, kind: str, base: str = sys.executable) -> Path:
    """A new environment without pip, made by the Python `base`; its python is returned.

    An environment of sdists begins with the dependencies of that of the wheels, linked: installing JAX takes a minute.
    """
    folder = CLEAN / f"{package}-{kind}"
    shutil.rmtree(folder, ignore_errors=True)
    run([base, "-m", "venv", "--without-pip", folder])
    python = folder / "bin" / "python"
    pip = [base, "-m", "pip", "--disable-pip-version-check", "--python", python, "install", "--quiet"]
    found = archives(package, kind)
    if kind == "sdist":
        link_dependencies(CLEAN / f"{package}-wheel", folder)
    run([*pip, "--constraint", ROOT / "constraints.txt", *found])
    if kind == "wheel":
        # pip notes the path of a local file with the package, and the list of components would have it. Installed by
        # name, from a folder and no registry, the package has no such note.
        names = [file.name.removesuffix(SUFFIXES[kind]).replace("-", "==") for file in found]
        run([*pip, "--no-index", "--find-links", OUT, "--no-deps", "--force-reinstall", *names])
    return python


def link_dependencies(source: Path, target: Path) -> None:
    """Link the packages of one environment into another one, without ours."""
    (old,), (new,) = source.glob(SITE), target.glob(SITE)
    for found in old.iterdir():
        if not found.name.startswith("mixserve") and found.is_dir():
            shutil.copytree(found, new / found.name, copy_function=os.link)
        elif found.is_file():
            os.link(found, new / found.name)


def run(command: Iterable[str | Path]) -> None:
    command = [str(part) for part in command]
    ended = subprocess.run(command, capture_output=True, text=True)
    if ended.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{ended.stdout}{ended.stderr}")

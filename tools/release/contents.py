"""Built archives -> an error for each file that is missing from them, or should not be there."""

import subprocess
import tarfile
import zipfile
from collections.abc import Iterable
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path

ROOT = Path(__file__).parents[2]
OF_WHEEL = {"METADATA", "RECORD", "WHEEL", "licenses/LICENSE", "top_level.txt"}
OF_SDIST = {"LICENSE", "PKG-INFO", "README.md", "pyproject.toml", "setup.cfg"}
OF_EGG_INFO = {"PKG-INFO", "SOURCES.txt", "dependency_links.txt", "requires.txt", "top_level.txt"}
# Files of the server's archives that the client's lack.
COMMAND = "entry_points.txt"
MORE_OF_SDIST = {"MANIFEST.in", "client/mixserve_client/version.py"}


def tree_files(root: Path, *folders: str) -> list[str]:
    """Paths below `folders`: those that git knows; without git, all but what builds and Python leave there."""
    listed = subprocess.run(["git", "-C", root, "ls-files", "-z", *folders], capture_output=True, text=True)
    if listed.returncode == 0 and listed.stdout:
        names = listed.stdout.strip("\0").split("\0")
    else:
        files = (path.relative_to(root) for folder in folders for path in (root / folder).rglob("*") if path.is_file())
        left = ("__pycache__", "build", "dist")
        names = [
            str(file) for file in files if not any(part in left or part.endswith(".egg-info") for part in file.parts)
        ]
    return sorted(name for name in names if (root / name).exists())


def check(built: Path) -> None:
    """Raise SystemExit if an archive has other files than its package's folder, or says something wrong of itself."""
    faults = [
        *check_package(built, "mixserve_client", ROOT / "client", set(), set()),
        *check_package(built, "mixserve", ROOT, {COMMAND}, MORE_OF_SDIST),
    ]
    if faults:
        raise SystemExit("\n".join(faults))


def check_package(built: Path, name: str, root: Path, of_metadata: set[str], of_sdist: set[str]) -> Iterable[str]:
    package = set(tree_files(root, name))
    required = {f"{name}/py.typed"}
    if name == "mixserve_client":
        required |= {f"{name}/wire/_generated/mix_pb2.{suffix}" for suffix in ("py", "pyi")}
    yield from (f"the tree lacks {file}" for file in sorted(required - package))
    wheel, sdist = one(built, f"{name}-*.whl"), one(built, f"{name}-*.tar.gz")
    version = wheel.name.split("-")[1]
    base = sdist.name.removesuffix(".tar.gz")
    if base != f"{name}-{version}":
        yield f"{wheel.name} and {sdist.name} have different versions"

    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(wheel) as archive:
        found = {file for file in archive.namelist() if not file.endswith("/")}
        metadata = HeaderParser().parsestr(archive.read(f"{info}/METADATA").decode())
        yield from wrong_license(wheel, archive.read(f"{info}/licenses/LICENSE"))
    yield from differences(wheel, found, package | {f"{info}/{file}" for file in OF_WHEEL | of_metadata})
    yield from wrong_metadata(wheel, metadata, name, version)

    with tarfile.open(sdist) as archive:
        found = {member.name.removeprefix(f"{base}/") for member in archive.getmembers() if member.isfile()}
        license_file = archive.extractfile(f"{base}/LICENSE")
        assert license_file is not None
        yield from wrong_license(sdist, license_file.read())
    of_egg_info = {f"{name}.egg-info/{file}" for file in OF_EGG_INFO | of_metadata}
    yield from differences(sdist, found, package | OF_SDIST | of_egg_info | of_sdist)


def one(folder: Path, pattern: str) -> Path:
    found = list(folder.glob(pattern))
    if len(found) != 1:
        raise SystemExit(f"{pattern}: expected one file, found {len(found)}")
    return found[0]


def differences(archive: Path, found: set[str], expected: set[str]) -> Iterable[str]:
    yield from (f"{archive.name} lacks {file}" for file in sorted(expected - found))
    yield from (f"{archive.name} has {file}, which should not be there" for file in sorted(found - expected))


def wrong_license(archive: Path, license_text: bytes) -> Iterable[str]:
    if license_text != (ROOT / "LICENSE").read_bytes():
        yield f"{archive.name} has another license"


def wrong_metadata(wheel: Path, metadata: Message, name: str, version: str) -> Iterable[str]:
    expected = {
        "Name": name.replace("_", "-"),
        "Version": version,
        "License-Expression": "Apache-2.0",
        "License-File": "LICENSE",
        "Requires-Python": ">=3.11",
    }
    yield from (
        f"{wheel.name}: {field} is {metadata[field]!r}, not {value!r}"
        for field, value in expected.items()
        if metadata[field] != value
    )
    if "Typing :: Typed" not in metadata.get_all("Classifier", []):
        yield f"{wheel.name} does not say that it has types"
    required = [line for line in metadata.get_all("Requires-Dist", []) if line.startswith("mixserve")]
    if name == "mixserve" and f"mixserve-client=={version}" not in required:
        yield f"{wheel.name} requires {required}, not mixserve-client=={version}: change pyproject.toml"

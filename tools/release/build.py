"""The tree -> wheels and sdists of both packages in build/dist, checked.

Everything is built twice, from two copies of the tree in different folders with different times, and must come out with
the same bytes: a wheel built from the sdist and one built from the tree, too, so that no sdist lacks a file.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tools.release.clean import OUT, ROOT
from tools.release.contents import check, tree_files
from tools.release.sdist import pack_again

# The folder of each package's pyproject.toml. Its sdist is made of that folder, and of what MANIFEST.in names.
PACKAGES = {"mixserve-client": "client", "mixserve": "."}
# Where there is no git to ask. Zip files know no time before it.
FIRST_TIME_OF_ZIP = 315532800


def main() -> None:
    os.umask(0o022)  # the modes of files are part of the bytes
    os.environ["SOURCE_DATE_EPOCH"] = str(epoch := source_date_epoch())
    with tempfile.TemporaryDirectory() as folder:
        first, second = Path(folder, "first"), Path(folder, "of-another-name", "second")
        for copy, time in ((first, epoch), (second, epoch + 86400)):
            copy_tree(copy / "tree", time)
        for place in PACKAGES.values():
            build(first, place)  # the sdist, and the wheel from it
            build(second, place, "--sdist", "--wheel")  # both from the tree
        for sdist in (*first.glob("out/*.tar.gz"), *second.glob("out/*.tar.gz")):
            pack_again(sdist, epoch)
        require_equal(first / "out", second / "out")
        check(first / "out")
        shutil.rmtree(OUT, ignore_errors=True)
        OUT.mkdir(parents=True)
        for built in sorted((first / "out").iterdir()):
            shutil.copyfile(built, OUT / built.name)


def source_date_epoch() -> int:
    """The time that all files of an archive get: that of the variable, else of the commit, else the first of zip."""
    if wanted := os.environ.get("SOURCE_DATE_EPOCH"):
        return int(wanted)
    asked = subprocess.run(["git", "-C", ROOT, "log", "-1", "--format=%ct"], capture_output=True, text=True)
    return int(asked.stdout) if asked.returncode == 0 else FIRST_TIME_OF_ZIP


def copy_tree(target: Path, time: int) -> None:
    """Copy what the packages are made of: setuptools leaves files in the tree that it builds in, and takes old ones."""
    for name in ("LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", *tree_files(ROOT, "client", "mixserve")):
        copied = target / name
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, copied)
        os.utime(copied, (time, time))


def build(folder: Path, place: str, *what: str) -> None:
    # Without isolation, so that the pinned setuptools of this environment builds, rather than the newest one.
    command = [
        sys.executable,
        "-m",
        "build",
        "--no-isolation",
        *what,
        "--outdir",
        folder / "out",
        folder / "tree" / place,
    ]
    built = subprocess.run(command, capture_output=True, text=True)
    if built.returncode != 0:
        raise SystemExit(f"{place} cannot be built:\n{built.stdout}{built.stderr}")


def require_equal(first: Path, second: Path) -> None:
    names = sorted(file.name for file in first.iterdir())
    if names != sorted(file.name for file in second.iterdir()) or len(names) != 2 * len(PACKAGES):
        raise SystemExit(f"two builds made different files: {names} and {sorted(second.iterdir())}")
    for name in names:
        if (first / name).read_bytes() != (second / name).read_bytes():
            raise SystemExit(f"two builds of {name} differ")


if __name__ == "__main__":
    main()

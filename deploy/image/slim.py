"""Takes out of an environment what nothing needs at run time, and compiles the rest: `slim.py ENVIRONMENT`.

Dockerfile and client.Dockerfile run it where they install; docs/deploy.md has what it saves.
"""

import compileall
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from py_compile import PycInvalidationMode

# Sources and headers for compilers, and static libraries: the image has no compiler.
_TO_COMPILE = {".a", ".c", ".cc", ".cpp", ".h", ".hpp", ".pxd", ".pyx"}
# CUDA compiles on the machine that it runs on, with files that look as if nothing needed them.
_AS_IT_IS = "nvidia"


def main(environment: Path) -> None:
    """Change what is installed in `environment`. Raises CalledProcessError if a library cannot be stripped."""
    (packages,) = environment.glob("lib/python3*/site-packages")
    for path in list(_found_in(packages)):
        if path.name == "tests" and path.is_dir():
            shutil.rmtree(path)
        elif path.suffix in _TO_COMPILE and path.is_file():
            path.unlink()
        # patchelf has moved parts of what lies in NAME.libs, so that `strip` may break it.
        elif ".so" in path.suffixes and path.is_file() and not path.parent.name.endswith(".libs"):
            # The table of all symbols, which only debuggers and printed C++ stacks read; the dynamic one stays.
            subprocess.run(["strip", "--strip-unneeded", path], check=True)
    # Bytecode that holds whatever the time of its source is: layers and registries may change that. Nobody can write it
    # later, since the root is read-only.
    mode = PycInvalidationMode.UNCHECKED_HASH
    if not compileall.compile_dir(packages, quiet=1, workers=0, invalidation_mode=mode):
        sys.exit("some packages cannot be compiled")


def _found_in(packages: Path) -> Iterator[Path]:
    """All files and folders of the packages, outer folders first."""
    for package in packages.iterdir():
        if package.is_dir() and package.name != _AS_IT_IS:
            yield from package.rglob("*")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

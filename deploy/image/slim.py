"""Takes out of an environment what nothing needs at run time, and compiles the rest: `slim.py ENVIRONMENT`.

Dockerfile and client.Dockerfile run it where they install; docs/deploy.md has what it saves.
"""

import compileall
import shutil
import subprocess
import sys
from pathlib import Path

# Sources and headers for compilers, and static libraries: the image has no compiler.
_TO_COMPILE = {".a", ".c", ".cc", ".cpp", ".h", ".hpp", ".pxd", ".pyx"}


def main(environment: Path) -> None:
    (packages,) = environment.glob("lib/python3*/site-packages")
    for folder in list(packages.rglob("tests")):
        # Tests of the packages themselves. A package called tests has an owner at the top, and stays.
        if folder.is_dir() and folder.parent != packages:
            shutil.rmtree(folder, ignore_errors=True)
    for file in packages.rglob("*"):
        if file.suffix in _TO_COMPILE and file.is_file():
            file.unlink()
    for library in packages.rglob("*.so*"):
        # patchelf has moved parts of what lies in NAME.libs, so that `strip` may break it; NVIDIA ships its own stripped.
        if not any(part.endswith(".libs") or part == "nvidia" for part in library.relative_to(packages).parts):
            # The table of all symbols, which only debuggers and printed C++ stacks read; the dynamic one stays.
            subprocess.run(["strip", "--strip-unneeded", library], check=True)
    # Bytecode that holds whatever the time of its source is: layers and registries may change that. Nobody can write it
    # later, since the root is read-only.
    if not compileall.compile_dir(packages, quiet=1, workers=0, invalidation_mode=_UNCHECKED):
        sys.exit("some packages cannot be compiled")


if __name__ == "__main__":
    from py_compile import PycInvalidationMode

    _UNCHECKED = PycInvalidationMode.UNCHECKED_HASH
    main(Path(sys.argv[1]))

"""Compiled programs in a folder of this user, so that the next process need not compile them again.

A file has a header, the SHA-256 of what follows, and there the serialized program with the bits that it gave for a
probe. Its name ends with a digest of all that the program depends on: JAX, this processor, and the arithmetic. What
cannot be read, or gives other bits for the probe, counts as missing: nothing here ever fails a caller.
"""

# JAX's own signatures are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import hashlib
import inspect
import logging
import os
import pickle
import platform
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
from jax.experimental import serialize_executable

from mixserve.mixture.draw import cpu

_logger = logging.getLogger("mixserve")

_VARIABLE = "MIXSERVE_COMPILATION_CACHE"
_HEADER = b"mixserve program 1\n"
_DIGEST_BYTES = hashlib.sha256().digest_size
_MOST_BYTES = 16 << 20  # of one file; a program has 0.2 MB
_MOST_FILES = 512
_SUFFIX, _UNFINISHED = ".program", ".unfinished-"
_LONG_AGO_S = 3600.0

Call = Callable[[jax.stages.Compiled], np.ndarray]


class CompilationCache:
    """The programs in `folder`; safe to use from many threads and processes."""

    def __init__(self, folder: Path, depends_on: bytes):
        """`depends_on` is the digest of what all programs depend on.

        Raises OSError where the folder cannot be made, or is not this user's alone.
        """
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder = folder
        self._depends_on = depends_on
        self._check_folder()

    def load(self, name: str, probe: Call) -> jax.stages.Compiled | None:
        """The program of that name; None where there is none that gives what it gave when it was saved.

        `probe` calls it with arguments that are always the same.
        """
        path = self._path(name)
        try:
            self._check_folder()
            with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
                found = os.fstat(file.fileno())
                if found.st_uid != os.geteuid() or found.st_mode & 0o022:
                    raise PermissionError("another user owns it, or may write to it")
                content = file.read(_MOST_BYTES)
            body = content[len(_HEADER) + _DIGEST_BYTES :]
            if content[: len(_HEADER) + _DIGEST_BYTES] != _HEADER + hashlib.sha256(body).digest():
                raise ValueError("its digest is not that of its content")
            # Native code of this user in a folder of this user: reading it cannot do more than running it.
            serialized: Any
            given: bytes
            serialized, given = pickle.loads(body)
            program = _deserialized(serialized)
            if probe(program).tobytes() != given:
                raise ValueError("it gives other bits than it gave when it was saved")
        except FileNotFoundError:
            return None
        except Exception as error:  # whatever is wrong with it: it is compiled again
            _logger.info("the compiled program %s is not used: %s: %s", path, type(error).__name__, error)
            return None
        return program

    def save(self, name: str, program: jax.stages.Compiled, probe: Call) -> None:
        """Keep the program, if it can be kept: what JAX itself had from its own cache may not be."""
        try:
            self._check_folder()
            given, serialized = probe(program).tobytes(), serialize_executable.serialize(program)
            # Where JAX loaded the program from its own cache, this serializes without its functions, without an error.
            if probe(_deserialized(serialized)).tobytes() != given:
                raise ValueError("it gives other bits when it is loaded again")
            body = pickle.dumps((serialized, given))
            self._write(self._path(name), _HEADER + hashlib.sha256(body).digest() + body)
        except Exception as error:  # a full or read-only disk, or a JAX that cannot: the file is not needed
            _logger.info("the compiled program %s is not kept: %s: %s", name, type(error).__name__, error)

    def _check_folder(self) -> None:
        """What lies here is run. Raises OSError."""
        found = self.folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise PermissionError(f"{self.folder} must be a folder of this user alone (mode 700), and no link")

    def _path(self, name: str) -> Path:
        digest = hashlib.sha256(self._depends_on + name.encode()).hexdigest()
        return self.folder / f"{name}-{digest[:16]}{_SUFFIX}"

    def _write(self, path: Path, content: bytes) -> None:
        descriptor, unfinished = tempfile.mkstemp(dir=self.folder, prefix=_UNFINISHED)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            Path(unfinished).replace(path)
        except BaseException:
            with suppress(OSError):
                Path(unfinished).unlink()
            raise
        self._sweep()

    def _sweep(self) -> None:
        """Remove the oldest programs of too many, and what processes that were killed left unfinished."""
        programs, unfinished = list[tuple[float, str]](), list[tuple[float, str]]()
        for entry in os.scandir(self.folder):
            with suppress(OSError):  # another process removes it as well
                written = entry.stat(follow_symlinks=False).st_mtime
                if entry.name.endswith(_SUFFIX):
                    programs.append((written, entry.path))
                elif entry.name.startswith(_UNFINISHED) and written < time.time() - _LONG_AGO_S:
                    unfinished.append((written, entry.path))
        for _, path in unfinished + sorted(programs)[:-_MOST_FILES]:
            with suppress(OSError):
                Path(path).unlink()


class _Chosen:
    """What the user chose: a folder, none, or nothing yet."""

    folder: Path | bool = True


def choose_folder(folder: Path | bool) -> None:
    """Keep programs in `folder` from now on; True stands for MIXSERVE_COMPILATION_CACHE, else the user's own cache
    folder, False for nowhere."""
    _Chosen.folder = folder
    _opened.cache_clear()


def chosen_cache(*arithmetic: ModuleType) -> CompilationCache | None:
    """The cache of programs that the source of these modules makes; None where none can be had."""
    return _opened(_Chosen.folder, os.environ.get(_VARIABLE), arithmetic)


@cache
def _opened(chosen: Path | bool, variable: str | None, arithmetic: tuple[ModuleType, ...]) -> CompilationCache | None:
    if chosen is False or (chosen is True and variable == "off"):
        return None
    try:
        folder = chosen if isinstance(chosen, Path) else Path(variable) if variable else _user_folder()
        return CompilationCache(folder, _depends_on(arithmetic))
    except Exception as error:  # no home, no source, no metadata, …: the folder is not needed
        _logger.info("compiled programs are not kept, so each start compiles them: %s", error)
        return None


def _user_folder() -> Path:
    """Raises RuntimeError where this user has no home."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(given) if Path(given).is_absolute() else Path.home() / ".cache") / "mixserve"


def _depends_on(arithmetic: tuple[ModuleType, ...]) -> bytes:
    """Raises OSError and ValueError where it cannot be told."""
    described = [made_for(), os.environ.get("XLA_FLAGS", ""), str(cpu().id), *map(inspect.getsource, arithmetic)]
    return hashlib.sha256("\0".join(described).encode()).digest()


def made_for() -> str:
    """The versions and the processor that programs are compiled for, in 16 hexadecimal digits.

    Raises OSError and ValueError where they cannot be told.
    """
    described = sys.version, jax.__version__, version("jaxlib"), np.__version__, _processor()
    return hashlib.sha256("\0".join(described).encode()).hexdigest()[:16]


def _processor() -> str:
    """This processor's model and features. Raises OSError and ValueError."""
    if sys.platform == "darwin":
        asked = ["/usr/sbin/sysctl", "machdep.cpu", "hw.optional"]
        return platform.machine() + subprocess.run(asked, capture_output=True, text=True, check=False).stdout
    wanted = ("vendor_id", "cpu family", "model", "stepping", "flags", "CPU ", "Features")
    first = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    found = [line for line in first if line.startswith(wanted)]
    if not found:
        raise ValueError("this processor's features are not known")
    return "\n".join([platform.machine(), *found])


def _deserialized(serialized: Any) -> jax.stages.Compiled:
    device = cpu()
    return serialize_executable.deserialize_and_load(*serialized, backend=device.client, execution_devices=[device])

"""Compiled programs in a folder of this user, so that the next process need not compile them again.

A file has a header, the SHA-256 of the rest, and the rest: the serialized program and the bits that it returned for a
probe. The file's name ends with a digest of everything that the program depends on: JAX, this processor, and the
arithmetic. A file that cannot be read, or whose program returns other bits for the probe, counts as missing. Loading
and saving never raise.
"""

# JAX's own signatures have types in part only.
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

from mixserve.cache_folder import user_cache_folder
from mixserve.mixture.draw import cpu

_logger = logging.getLogger("mixserve")

_VARIABLE = "MIXSERVE_COMPILATION_CACHE"
_HEADER = b"mixserve program 1\n"
_DIGEST_BYTES = hashlib.sha256().digest_size
_MOST_BYTES = 16 << 20  # of one file; a program takes 0.2 MB
_MOST_FILES = 512
_SUFFIX, _UNFINISHED = ".program", ".unfinished-"
_LONG_AGO_S = 3600.0

Call = Callable[[jax.stages.Compiled], np.ndarray]


class CompilationCache:
    """The programs in one folder; safe to use from many threads and processes."""

    def __init__(self, folder: Path, depends_on: bytes):
        """`depends_on` is the digest of everything that all programs depend on.

        Raises OSError if the folder cannot be made, or if another user owns it or has access to it.
        """
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder = folder
        self._depends_on = depends_on
        self._check_folder()

    def load(self, name: str, probe: Call) -> jax.stages.Compiled | None:
        """The program of that name; None if there is none, or if its probe no longer returns the saved bits.

        `probe` calls the program with fixed arguments.
        """
        path = self._path(name)
        try:
            self._check_folder()
            with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
                found = os.fstat(file.fileno())
                if found.st_uid != os.geteuid() or found.st_mode & 0o022:
                    raise PermissionError("another user owns the file, or may write to it")
                content = file.read(_MOST_BYTES)
            body = content[len(_HEADER) + _DIGEST_BYTES :]
            if content[: len(_HEADER) + _DIGEST_BYTES] != _HEADER + hashlib.sha256(body).digest():
                raise ValueError("its digest does not match its content")
            # Unpickling may run any code, but so may the program: native code of this user, in a folder that only this
            # user may write to.
            serialized: Any
            given: bytes
            serialized, given = pickle.loads(body)
            program = _deserialize(serialized)
            if probe(program).tobytes() != given:
                raise ValueError("it returns other bits than when it was saved")
        except FileNotFoundError:
            return None
        except Exception as error:  # whatever is wrong with the file: the caller compiles the program again
            _logger.info("ignoring the compiled program %s, compiling again: %s: %s", path, type(error).__name__, error)
            return None
        return program

    def save(self, name: str, program: jax.stages.Compiled, probe: Call) -> None:
        """Write the program to its file if possible; programs from JAX's own cache may be impossible to serialize."""
        try:
            self._check_folder()
            given, serialized = probe(program).tobytes(), serialize_executable.serialize(program)
            # JAX serializes a program from its own cache without its functions and without an error; the call fails.
            if probe(_deserialize(serialized)).tobytes() != given:
                raise ValueError("it returns other bits after loading it again")
            body = pickle.dumps((serialized, given))
            self._write(self._path(name), _HEADER + hashlib.sha256(body).digest() + body)
        except Exception as error:  # a full or read-only disk, or a JAX that cannot: nothing needs the file
            _logger.info("cannot cache the compiled program %s: %s: %s", name, type(error).__name__, error)

    def _check_folder(self) -> None:
        """Raises OSError if another user may write here: this process runs what it finds in the folder."""
        found = self.folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise PermissionError(f"{self.folder} must be a folder of mode 700 that this user owns, and not a link")

    def _path(self, name: str) -> Path:
        digest = hashlib.sha256(self._depends_on + name.encode()).hexdigest()
        return self.folder / f"{name}-{digest[:16]}{_SUFFIX}"

    def _write(self, path: Path, content: bytes) -> None:
        # Written under another name and renamed: another process must never read half a program.
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
        """Remove the oldest programs above the limit, and unfinished files that killed processes left."""
        programs, unfinished = list[tuple[float, str]](), list[tuple[float, str]]()
        for entry in os.scandir(self.folder):
            with suppress(OSError):  # another process removed it first
                written = entry.stat(follow_symlinks=False).st_mtime
                if entry.name.endswith(_SUFFIX):
                    programs.append((written, entry.path))
                elif entry.name.startswith(_UNFINISHED) and written < time.time() - _LONG_AGO_S:
                    unfinished.append((written, entry.path))
        for _, path in unfinished + sorted(programs)[:-_MOST_FILES]:
            with suppress(OSError):
                Path(path).unlink()


class _Choice:
    """The user's choice: a folder, False for none, or True for the default."""

    folder: Path | bool = True


def choose_folder(folder: Path | bool) -> None:
    """Cache programs in `folder` from now on.

    True means the folder in MIXSERVE_COMPILATION_CACHE, else the user's own cache folder; False means no cache.
    """
    _Choice.folder = folder
    _open.cache_clear()


def chosen_cache(*arithmetic: ModuleType) -> CompilationCache | None:
    """The cache of programs whose code is in the modules `arithmetic`; None if caching is off or impossible."""
    return _open(_Choice.folder, os.environ.get(_VARIABLE), arithmetic)


@cache
def _open(chosen: Path | bool, variable: str | None, arithmetic: tuple[ModuleType, ...]) -> CompilationCache | None:
    if chosen is False or (chosen is True and variable == "off"):
        return None
    try:
        folder = chosen if isinstance(chosen, Path) else Path(variable) if variable else user_cache_folder()
        return CompilationCache(folder, _depends_on(arithmetic))
    except Exception as error:  # no home, no source, no metadata, …: nothing needs the folder
        _logger.info("cannot cache compiled programs, so each start compiles them: %s", error)
        return None


def _depends_on(arithmetic: tuple[ModuleType, ...]) -> bytes:
    """The digest of everything that programs depend on. Raises OSError or ValueError if that cannot be found out."""
    parts = [platform_digest(), os.environ.get("XLA_FLAGS", ""), str(cpu().id), *map(inspect.getsource, arithmetic)]
    return hashlib.sha256("\0".join(parts).encode()).digest()


def platform_digest() -> str:
    """The digest of the versions and the processor that programs are compiled for: 16 hexadecimal digits.

    Raises OSError or ValueError if they cannot be found out.
    """
    parts = sys.version, jax.__version__, version("jaxlib"), np.__version__, _processor()
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _processor() -> str:
    """This processor's model and features. Raises OSError or ValueError if they cannot be found out."""
    if sys.platform == "darwin":
        asked = ["/usr/sbin/sysctl", "machdep.cpu", "hw.optional"]
        return platform.machine() + subprocess.run(asked, capture_output=True, text=True, check=False).stdout
    wanted = ("vendor_id", "cpu family", "model", "stepping", "flags", "CPU ", "Features")
    first = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    found = [line for line in first if line.startswith(wanted)]
    if not found:
        raise ValueError("/proc/cpuinfo does not list this processor's features")
    return "\n".join([platform.machine(), *found])


def _deserialize(serialized: Any) -> jax.stages.Compiled:
    device = cpu()
    return serialize_executable.deserialize_and_load(*serialized, backend=device.client, execution_devices=[device])

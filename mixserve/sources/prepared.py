"""What sources make of their data once, such as indexes: kept in a folder, and found there by the next process."""

import fcntl
import os
import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

from mixserve.cache_folder import user_cache_folder
from mixserve.disk import sync
from mixserve.sources.progress import tell

_VARIABLE = "MIXSERVE_PREPARED"
_chosen: ContextVar[Path | None] = ContextVar("prepared", default=None)


def prepared_folder() -> Path:
    """The folder of `server.prepared`, else that in MIXSERVE_PREPARED, else `prepared` in the user's cache folder.

    Raises OSError if there is none: the user has no home.
    """
    named = os.environ.get(_VARIABLE)
    try:
        return _chosen.get() or (Path(named) if named else user_cache_folder() / "prepared")
    except RuntimeError as error:
        raise FileNotFoundError(f"{error} {_ADVICE}") from None


def chosen_folder() -> Path | None:
    """The folder of the block `preparing_in` that this is in; None if the default holds."""
    return _chosen.get()


@contextmanager
def preparing_in(folder: Path | None) -> Generator[None, None, None]:
    """Within this block, in this thread, `folder` is the prepared folder; None means the default."""
    token = _chosen.set(folder)
    try:
        yield
    finally:
        _chosen.reset(token)


def kept(name: str, digest: bytes, make: Callable[[Path], None]) -> Path:
    """The path of what `make(path)` writes to a path that does not exist: a file, or a folder of files.

    It is made if the prepared folder does not have it under that name and digest yet: under another name, synchronized
    with the disk and renamed, so that it is whole or not there. Of several processes one makes it, and the others wait.
    `name` may have folders in it. Raises OSError if the folder cannot be used, and what `make` raises.
    """
    base = prepared_folder()
    path = base / f"{name}-{digest.hex()[:32]}"
    if path.exists():
        return path
    try:
        _make_folder(path.parent)
        _remove_abandoned(path.parent)
        with _locked(path.with_name(f".{path.name}.lock")):
            if not path.exists():
                _make(path, make)
    except OSError as error:
        if error.filename is None or not str(error.filename).startswith(str(base)):
            raise
        raise OSError(
            error.errno, f"cannot keep what is prepared: {error.strerror}; {_ADVICE}", error.filename
        ) from error
    return path


def remove_damaged(path: Path, is_damaged: Callable[[], bool]) -> None:
    """Remove what `kept` has made, if it is damaged now. Raises OSError if it cannot be removed.

    Under the lock under which it is made: what another process has made again meanwhile stays.
    """
    with _locked(path.with_name(f".{path.name}.lock")):
        if path.exists() and is_damaged():
            aside = path.with_name(f".{path.name}.unfinished")
            _remove(aside)
            path.rename(aside)
            _remove(aside)


_ADVICE = f"choose another folder with server: {{prepared: FOLDER}} in the configuration, or {_VARIABLE}"


def _make(path: Path, make: Callable[[Path], None]) -> None:
    unfinished = path.with_name(f".{path.name}.unfinished")
    _remove(unfinished)  # a process that was killed may have left it; the lock says that none is writing it
    try:
        make(unfinished)
        _sync_all(unfinished)
        unfinished.rename(path)
        sync(path.parent)
    except BaseException:
        _remove(unfinished)
        raise


def _remove_abandoned(folder: Path) -> None:
    """Remove what processes that were killed left half-written, under whatever digest; they no longer hold its lock."""
    for unfinished in folder.glob(".*.unfinished"):
        lock = unfinished.with_suffix(".lock")
        with suppress(OSError):
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(descriptor), lock.stat()):
                    _remove(unfinished)
                    lock.unlink()
            finally:
                os.close(descriptor)


@contextmanager
def _locked(lock: Path) -> Generator[None, None, None]:
    """Within this block no other process or thread is in a block of the same `lock`, a file that is removed after
    it."""
    descriptor = _lock(lock)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)  # before others get the lock: they see that it is not this file any more
        os.close(descriptor)


def _lock(lock: Path) -> int:
    """The descriptor of the file `lock`, which is locked and lies at that path."""
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            _wait_for(descriptor, lock)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), lock.stat()):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its last holder removed it after it was opened here


def _wait_for(descriptor: int, lock: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        tell(f"another process prepares {lock.with_suffix('').name.removeprefix('.')} in {lock.parent}; waiting for it")
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def _make_folder(folder: Path) -> None:
    """The folder, and those above it, open to this user alone: compiled programs may lie in one of them."""
    for part in (*reversed(folder.parents), folder):
        if not part.exists():
            part.mkdir(mode=0o700, exist_ok=True)


def _sync_all(path: Path) -> None:
    """Wait until the file, or the folder and all below it, are on the disk."""
    if path.is_dir():
        for entry in path.iterdir():
            _sync_all(entry)
    sync(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)

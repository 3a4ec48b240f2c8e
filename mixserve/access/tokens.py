"""The token file of a server: read again when it changes."""

import logging
import stat
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from hmac import compare_digest
from os import PathLike, fspath
from pathlib import Path

from mixserve.access.entries import LARGEST_BYTES, BadTokens, TokenEntry, digest_of, parse_entries
from mixserve.access.identity import Identity
from mixserve.yaml_file import BadYaml, read_text
from mixserve_client.credentials import check_no_token
from mixserve_client.schema.files import version_of

_logger = logging.getLogger("mixserve")

_LOOK_EVERY_S = 1.0

Clock = Callable[[], float]


def read_tokens(path: Path, *, may_be_empty: bool = True) -> tuple[TokenEntry, ...]:
    """The entries of the file at `path`. Raises OSError and BadTokens, which name the file."""
    check_no_token(str(path), "the token file must be a path")
    try:
        text = read_text(path, LARGEST_BYTES)
        if not may_be_empty and not text.strip():  # it is being written, perhaps
            raise BadTokens("is empty; a file without tokens says so: {tokens: []}")
        return parse_entries(text)
    except (BadTokens, BadYaml) as error:
        raise BadTokens(f"the token file {path}: {error}") from None
    except OSError as error:
        # Only where there is none: somebody who may not read a file would look for the fault in its tokens.
        advice = "; mixserve token new makes one" if isinstance(error, FileNotFoundError) else ""
        raise OSError(error.errno, f"the token file {path} cannot be read: {error.strerror}{advice}") from error


class TokenFile:
    """The tokens of a file. Looks at it once per second at most, and whenever it does not know a token. Thread-safe."""

    def __init__(self, path: PathLike[str] | str, clock: Clock = time.monotonic):
        """Raises OSError and BadTokens, which name the file."""
        check_no_token(fspath(path), "the token file must be a path")
        self.path = Path(path).expanduser().absolute()
        self._clock = clock
        self._lock = threading.Lock()
        self._generation = 0
        self._version = version_of(self.path)
        self._entries = _known(read_tokens(self.path))
        self._look_at = clock() + _LOOK_EVERY_S
        self._warn_of_writers()

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"TokenFile({str(self.path)!r}, {len(self)} tokens)"

    @property
    def generation(self) -> int:
        """Another number whenever there are other tokens. Cheap: for every reply of a stream."""
        if self._clock() >= self._look_at and self._lock.acquire(blocking=False):
            try:
                self._look()
            finally:
                self._lock.release()
        return self._generation

    def find(self, token: str) -> Identity | None:
        """Whom `token` stands for; None if nobody."""
        return self.find_digest(digest_of(token))

    def find_digest(self, digest: bytes) -> Identity | None:
        """As `find`, of the token with that SHA-256."""
        _ = self.generation
        found = _find(self._entries, digest)
        if found is not None:
            return found
        # It may be newer than our last look: a client must be able to use a token as soon as it is in the file.
        with self._lock:
            self._look()
        return _find(self._entries, digest)

    def read_again(self) -> None:
        """Read the file, whether or not it has changed, and log what came of it."""
        with self._lock:
            self._read_again()

    def _look(self) -> None:
        """Read the file if it has changed. Needs the lock."""
        self._look_at = self._clock() + _LOOK_EVERY_S
        if version_of(self.path) != self._version:
            self._read_again()

    def _read_again(self) -> None:
        """As `read_again`. Needs the lock."""
        # Before it is read: a change meanwhile must be noticed. Also of a file that cannot be used: one line in the log
        # for each change.
        self._version = version_of(self.path)
        try:
            entries = _known(read_tokens(self.path, may_be_empty=False))
        except Exception as error:  # whatever it is, calls must be answered
            known = isinstance(error, OSError | BadTokens)
            said = getattr(error, "strerror", error) if known else f"the token file {self.path}: {type(error).__name__}"
            _logger.error("%s. The tokens that were read before stay valid", said)
            return
        self._warn_of_writers()
        self._entries = entries
        self._generation += 1
        _logger.info("read %d tokens from %s", len(entries), self.path)

    def _warn_of_writers(self) -> None:
        with suppress(OSError):  # it was replaced meanwhile, and will be read again
            if self.path.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                said = "others may write the token file %s, and so give themselves any role: chmod 600 it"
                _logger.warning(said, self.path)


def _find(entries: tuple[tuple[bytes, Identity], ...], digest: bytes) -> Identity | None:
    found = None
    # All of them, whichever it is: the time must not tell how far the search went.
    for known, identity in entries:
        if compare_digest(known, digest):
            found = identity
    return found


def _known(entries: tuple[TokenEntry, ...]) -> tuple[tuple[bytes, Identity], ...]:
    return tuple((bytes.fromhex(entry.sha256), entry.identity) for entry in entries)

"""The limit of file descriptors of this process."""

import resource
from contextlib import suppress

_FILES = 1 << 20
_MOST_CONNECTIONS = 10_000


def allow_many_files() -> bool:
    """Raise the soft limit of file descriptors: every slot of shared memory has one, and every mapped file has two.

    False if it cannot be raised.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):  # a sandbox may allow less than `hard`
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            return True
    return False


def connection_limit() -> int:
    """How many clients may be connected at a time: they must leave half of the descriptors for files."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST_CONNECTIONS if soft == resource.RLIM_INFINITY else min(_MOST_CONNECTIONS, max(64, soft // 2))

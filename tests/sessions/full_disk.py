"""A session whose disk is full for a while. Run as a program: `python -m tests.sessions.full_disk FOLDER HOW`.

HOW is `disk` (FOLDER is a small file system that can be filled) or `limit` (files may not grow).
"""

import resource
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from mixserve import MixDataSourcesNode, local_client
from mixserve_client import Session, StorageFailed
from tests.conftest import assert_batches_equal
from tests.sessions.test_sessions import make_node


def fill(folder: Path) -> None:
    """Fill the file system."""
    with (folder / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass


def refused(call: Callable[[], object], how: str) -> bool:
    """Whether the call is refused, with the reason."""
    try:
        call()
    except StorageFailed as error:
        assert {"disk": "No space left", "limit": "File too large"}[how] in str(error), error
        return True
    return False


def exhaust(session: Session, ours: MixDataSourcesNode, how: str) -> None:
    """Use up the space with batches, until they are refused as checkpoints are."""
    for name in ("a", "b"):
        assert refused(partial(session.save_checkpoint, name), how)
    found: list[Any] = []
    while not refused(lambda: found.append(session.next_batch(1)), how):
        assert_batches_equal(found.pop(), ours.next_batch(1))


def main(folder: Path, how: str) -> None:
    """Raises AssertionError if anything is lost."""
    node = make_node()
    ours = node.clone()
    iter(ours)
    with local_client({"train": node}, state_dir=folder / "state") as client:
        session = client.session("run")
        iter(session)
        assert_batches_equal(session.next_batch(4), ours.next_batch(4))
        session.save_checkpoint("a")
        for _ in range(2):
            if how == "disk":
                fill(folder)
                exhaust(session, ours, how)
                (folder / "filler").unlink()
            else:
                soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
                resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
                exhaust(session, ours, how)
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            assert_batches_equal(session.next_batch(4), ours.next_batch(4))
            assert list((folder / "state" / "unfinished").iterdir()) == []
        assert [saved.name for saved in session.list_checkpoints()] == ["a"]
        session.save_checkpoint("b")
        session.restore_checkpoint("a")
        assert session.index == 4
        session.restore_checkpoint("b")
        assert_batches_equal(session.next_batch(4), ours.next_batch(4))
    print("nothing was lost")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])

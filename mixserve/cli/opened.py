"""A configuration file -> its nodes, and a client of them in this process."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from mixserve.build import LeaveOut, open_nodes
from mixserve.local import local_client
from mixserve.located import starting
from mixserve.node import MixDataSourcesNode
from mixserve_client import MixClient


@contextmanager
def open_mixtures(
    file: Path, *, placement: str | None, mixture: str | None = None, leave_out: LeaveOut | None = None
) -> Generator[tuple[MixClient, dict[str, MixDataSourcesNode]], None, None]:
    """A client of the file's mixtures, and their nodes. With `mixture`, only that one's sources are read.
    `leave_out` is that of `build_nodes`.

    Raises ConfigError.
    """
    nodes = open_nodes(file, placement=placement, mixture=mixture, leave_out=leave_out)
    with starting(file):
        client = local_client(nodes)
    with client:
        yield client, nodes

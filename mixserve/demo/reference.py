"""The undisturbed run: mixture.yaml -> the digest of its batches, in one process without a server."""

import argparse
from pathlib import Path

from mixserve.build import build_nodes
from mixserve.config import load_config
from mixserve.demo.journal import JournalWriter
from mixserve.demo.stream import extend_digest, open_stream
from mixserve.local import local_client


def digest_in_process(config_file: Path, steps: int) -> str:
    """The digest of the first `steps` batches."""
    digest = ""
    with local_client(build_nodes(load_config(config_file), config_file)) as client:
        for batch in open_stream(client, steps, prefetch=0):
            digest = extend_digest(digest, batch)
    return digest


def main() -> None:
    """Write the digest to a journal. Arguments come from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config_file", type=Path)
    parser.add_argument("steps", type=int)
    parser.add_argument("journal", type=Path)
    arguments = parser.parse_args()
    digest = digest_in_process(arguments.config_file, arguments.steps)
    with JournalWriter(arguments.journal) as journal:
        journal.write(event="finished", step=arguments.steps, digest=digest)


if __name__ == "__main__":
    main()

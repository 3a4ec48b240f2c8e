"""An sdist -> the same files in an archive whose bytes depend on their names and contents alone.

setuptools writes the times, owners and order that it finds on the disk.
"""

import gzip
import io
import tarfile
from pathlib import Path


def pack_again(sdist: Path, time: int) -> None:
    """Write `sdist` again: files in order of their names, of `time`, of no owner, with plain modes."""
    packed = io.BytesIO()
    with tarfile.open(sdist) as old, tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as new:
        for member in sorted(old.getmembers(), key=lambda member: member.name):
            if not (member.isfile() or member.isdir()):
                raise SystemExit(f"{sdist.name} has {member.name}, which is neither a file nor a folder")
            plain = tarfile.TarInfo(member.name)
            plain.type, plain.size, plain.mtime = member.type, member.size, time
            plain.mode = 0o755 if member.isdir() else 0o644
            new.addfile(plain, old.extractfile(member))
    with sdist.open("wb") as file, gzip.GzipFile("", "wb", fileobj=file, mtime=time) as compressed:
        compressed.write(packed.getvalue())

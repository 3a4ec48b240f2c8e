"""The code of docs/migrate.md and docs/testing.md, run unchanged in processes of its own, and checks of its results."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tests.processes import DEADLINE_S

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "migrate.md").read_text("utf-8")
STRICT = {"PYTHONWARNINGS": "error"}
WEB, CODE = 600, 400  # records
BATCH = [32, 8]  # the shape of a whole batch
ROWS = 2048  # rows to read if there are that many: one block of the mixture `train`
END = 857  # of the mixture `once`

# Fails if a row is in neither source. A row's number is also its position in both.
_REPORT = """
import itertools, json

read = [np.asarray(batch["tokens"]) for batch in itertools.islice(batches, 64)]
rows = np.concatenate(read)
numbers = {row.tobytes(): number for number, row in enumerate(np.concatenate([web, code]).astype(rows.dtype))}
times = np.bincount([numbers[row.tobytes()] for row in rows], minlength=len(numbers)).tolist()
shapes = [list(batch.shape) for batch in read]
print(json.dumps({"web": times[:600], "code": times[600:], "shapes": shapes, "dtype": rows.dtype.name}))
"""


class Read(NamedTuple):
    """Results of up to 64 batches: how often each record of the sources came, the batches' shapes, and the dtype."""

    web: list[int]
    code: list[int]
    shapes: list[list[int]]
    dtype: str

    @property
    def rows(self) -> int:
        return sum(self.web) + sum(self.code)

    @property
    def share(self) -> float:
        """The share of the first source."""
        return sum(self.web) / self.rows

    @property
    def in_passes(self) -> bool:
        """Whether no record of a source came more than twice as often as another one."""
        return all(max(times) - min(times) <= 1 for times in (self.web, self.code))


def blocks(heading: str, language: str = "python") -> list[str]:
    """The code of one section, block by block."""
    section = re.split(rf"^## {re.escape(heading)}\n", PAGE, flags=re.MULTILINE)[1]
    return re.findall(rf"^```{language}\n(.*?)^```$", re.split(r"^## ", section, flags=re.MULTILINE)[0], re.M | re.S)


DATA, SERVER, CLIENT = blocks("The data, the server and the client")


def run(
    code: str, folder: Path, *, python: Path | str = sys.executable, environ: Mapping[str, str] | None = None
) -> str:
    """What the page's data and then `code` print in a process whose folder is `folder`."""
    script = folder / "block.py"
    script.write_text(f"{DATA}\n{code}")
    command = [str(python), str(script)]
    ended = subprocess.run(
        command, cwd=folder, env=os.environ | (environ or {}), capture_output=True, text=True, timeout=DEADLINE_S
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def read(code: str, folder: Path, address: str = "", **options: Path | Mapping[str, str]) -> Read:
    """Read `batches` after `code`; with `address` the page's client connects to that server."""
    client = f"import types\nserver = types.SimpleNamespace(address={address!r})\n{CLIENT}" if address else ""
    said = run(f"{client}\n{code}\n{_REPORT}", folder, **options)
    return Read(**json.loads(said.splitlines()[-1]))


def web_rows(folder: Path) -> np.ndarray:
    """The rows of the page's first source; its data are written to `folder`."""
    run("", folder)
    with np.load(folder / "web.npz") as arrays:
        return arrays["tokens"]


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of the page's server, in its own process, which ends with the block."""
    script = folder / "server.py"
    script.write_text(f"{DATA}\n{SERVER}\nprint(server.address, flush=True)\nserver.wait()\n")
    command = [sys.executable, str(script)]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            assert address, f"the server ended with {process.wait()}"
            yield address
        finally:
            process.kill()


def check_endless(read: Read) -> None:
    """Of a library's endless mixture: 7 in 10 rows from the first source, each source in passes."""
    assert (read.rows, read.shapes) == (ROWS, [BATCH] * 64)
    assert abs(read.share - 0.7) < 0.03
    assert read.in_passes


def check_train(read: Read) -> None:
    """Of the mixture `train`: the same, and exactly."""
    check_endless(read)
    assert sum(read.web) in (1433, 1434)
    assert read.dtype == "int32"


def check_once(read: Read) -> None:
    """Of the mixture `once`: each record of the first source once, and then the end."""
    assert (read.web, sum(read.code)) == ([1] * WEB, END - WEB)
    assert read.in_passes
    assert read.shapes == [BATCH] * 26 + [[25, 8]]
    assert read.dtype == "int32"


KEPT = """
np.testing.assert_array_equal(kept.take(np.arange(len(kept)))["tokens"], web, strict=True)
"""


def outcome_of_testing_page(folder: Path) -> dict[str, int]:
    """How many tests of docs/testing.md passed and how many were skipped, run in `folder`; none may fail."""
    code = re.findall(r"^```python\n(.*?)^```$", (DOCS / "testing.md").read_text("utf-8"), re.M | re.S)
    (folder / "test_data.py").write_text("\n".join(code))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", "test_data.py"]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=2 * DEADLINE_S)
    assert ended.returncode == 0, ended.stdout
    counted = re.findall(r"(\d+) (\w+)", ended.stdout.splitlines()[-1].partition(" in ")[0])
    return {what: int(number) for number, what in counted}

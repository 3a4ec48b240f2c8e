import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from tests.processes import DEADLINE_S

EXAMPLES = Path(__file__).parents[1] / "examples"
DOCS = Path(__file__).parents[1] / "docs"


def test_feedback_mixing_gives_the_same_bits_whoever_is_killed(tmp_path):
    picture = tmp_path / "picture.png"
    command = [sys.executable, str(EXAMPLES / "feedback_mixing.py"), "--steps", "80", "--plot", str(picture)]
    # A group of its own, so that no server outlives an example that hangs.
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as example:
        try:
            out, _ = example.communicate(timeout=DEADLINE_S)
        except BaseException:
            os.killpg(example.pid, signal.SIGKILL)
            raise
    assert example.returncode == 0, out
    lines = out.splitlines()
    killed = [line.split(": ")[1].split(" killed")[0] for line in lines if "SIGKILL" in line]
    assert killed == ["server", "trainer", "trainer and server"]
    assert [line.split()[0] for line in lines[-5:-1]] == ["source", "easy", "medium", "hard"]
    closing = r"80 batches, 8 changes of weights and the model are those of the quiet run: digest [0-9a-f]{16}; \d+ s"
    assert re.fullmatch(closing, lines[-1]), out
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_page_on_checkpoints_says_what_its_examples_print(tmp_path):
    page = (DOCS / "checkpoints.md").read_text("utf-8")
    code = "\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=DEADLINE_S
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "".join(re.findall(r"```text\n(.*?)```", page, re.DOTALL))

"""The examples, and the pages that show them, run unchanged."""

import os
import re
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

from tests.examples.page import blocks

DEADLINE_S = 240  # for hangs: each example takes a fraction of it
EXAMPLES = Path(__file__).parents[2] / "examples"
# The last line of each example on JAX.
FLAX = (
    r"(\d+) steps, (\d+) of them made twice; all losses and the parameters are those of the quiet run: "
    r"digest [0-9a-f]{16}; \d+ s"
)
PROCESSES = (
    r"(\d+) global batches, (\d+) of them twice, are those of one process; losses differ by \S+ of themselves at most: "
    r"digest [0-9a-f]{16}; \d+ s"
)


def lines_of(example, *options):
    """The lines that an example prints; its exit status must be 0."""
    command = [sys.executable, str(EXAMPLES / example), *map(str, options)]
    # In a process group of its own, so that no server survives an example that hangs.
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        try:
            out, _ = process.communicate(timeout=DEADLINE_S)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    assert process.returncode == 0, out
    return out.splitlines()


def assert_prints_what_it_says(page, folder):
    """The page's Python, run as a whole, prints the text blocks that follow its code."""
    found = blocks(page)
    code = "\n".join(text for language, text in found if language == "python")
    said = [text for (before, _), (language, text) in pairwise(found) if (before, language) == ("python", "text")]
    ended = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=DEADLINE_S)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "".join(said)


def test_feedback_mixing_gives_the_same_bits_whoever_is_killed(tmp_path):
    picture = tmp_path / "picture.png"
    lines = lines_of("feedback_mixing.py", "--steps", 80, "--plot", picture)
    killed = [line.split(": ")[1].split(" killed")[0] for line in lines if "SIGKILL" in line]
    assert killed == ["server", "trainer", "trainer and server"]
    assert [line.split()[0] for line in lines[-5:-1]] == ["source", "easy", "medium", "hard"]
    closing = r"80 batches, 8 changes of weights and the model are those of the quiet run: digest [0-9a-f]{16}; \d+ s"
    assert re.fullmatch(closing, lines[-1]), lines
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_killed_flax_trainer_goes_on_from_its_checkpoint_to_the_same_bits():
    lines = lines_of("flax_language_model.py", "--steps", 40)
    assert [line for line in lines if "SIGKILL" in line] == ["  step   30    trainer killed (SIGKILL)"]
    assert re.fullmatch(FLAX, lines[-1]).groups() == ("40", "10"), lines
    losses = [float(loss) for line in lines for loss in re.findall(r" (?:code|prose) (\d\.\d{3})", line)]
    assert len(losses) == 8
    assert losses[:4] == losses[4:]
    assert losses[2] < losses[0] < 8, lines  # bits per byte; it learns


def test_two_processes_go_on_where_four_were_killed():
    lines = lines_of("multi_process.py", "--steps", 20, "--processes", 4, 2)
    headings = [line for line in lines if line.endswith(":")]
    assert headings == ["4 processes:", "2 processes:", "one process, without a server:"]
    assert [line for line in lines if "SIGKILL" in line] == ["  step   15   all killed (SIGKILL)"]
    assert re.fullmatch(PROCESSES, lines[-1]).groups() == ("20", "5"), lines


def test_the_page_on_checkpoints_says_what_its_examples_print(tmp_path):
    assert_prints_what_it_says("checkpoints.md", tmp_path)


def test_the_page_on_jax_says_what_its_examples_print(tmp_path):
    assert_prints_what_it_says("jax.md", tmp_path)


def test_the_page_on_jax_shows_the_train_of_the_example_and_lines_that_both_examples_print():
    found = blocks("jax.md")
    example = (EXAMPLES / "flax_language_model.py").read_text("utf-8")
    train = example[example.index("def train(") : example.index("class LanguageModel")]
    assert train.strip() in "\n".join(text for language, text in found if language == "python")
    closing = [text.splitlines()[-1] for language, text in found if language == "text"]
    for pattern in (FLAX, PROCESSES):
        assert len([line for line in closing if re.fullmatch(pattern, line)]) == 1

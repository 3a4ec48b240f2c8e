"""The example on PyTorch, and the page that shows it, run unchanged."""

import re

from tests.examples.page import DOCS, blocks
from tests.examples.test_examples import assert_prints_what_it_says, lines_of

CLOSING = (
    r"(\d+) steps, (\d+) of them made twice; all losses and the parameters are those of the quiet run: "
    r"digest [0-9a-f]{16}; \d+ s"
)


def test_a_killed_torch_trainer_goes_on_from_its_checkpoint_to_the_same_bits():
    lines = lines_of("torch_language_model.py", "--steps", 40)
    assert [line for line in lines if "SIGKILL" in line] == ["  step   30    trainer killed (SIGKILL)"]
    assert re.fullmatch(CLOSING, lines[-1]).groups() == ("40", "10"), lines
    losses = [float(loss) for line in lines for loss in re.findall(r" (?:code|prose) (\d\.\d{3})", line)]
    assert len(losses) == 8
    assert losses[:4] == losses[4:]
    assert losses[2] < losses[0] < 8, lines  # bits per byte; it learns


def test_the_page_on_pytorch_says_what_its_examples_print(tmp_path):
    assert_prints_what_it_says("pytorch.md", tmp_path)


def test_the_page_on_pytorch_shows_lines_that_the_example_prints():
    closing = [text.splitlines()[-1] for language, text in blocks("pytorch.md") if language == "text"]
    assert len([line for line in closing if re.fullmatch(CLOSING, line)]) == 1


def test_the_page_on_pytorch_is_where_others_point():
    assert "docs/pytorch.md" in (DOCS.parent / "README.md").read_text("utf-8")

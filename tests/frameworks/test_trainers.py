"""The recipes of docs/trainers.md, stopped and resumed on one rank and on two, with the real libraries."""

import json
import os
import signal
import subprocess
import sys

from tests.examples.page import DOCS
from tests.examples.test_examples import DEADLINE_S
from tests.frameworks.recipes import RECIPES, SAVED, STEPS, STOP


def test_stopped_recipes_go_on_with_the_next_batch_on_any_number_of_ranks(tmp_path):
    said, report = run(tmp_path)
    assert [line for line in said.splitlines() if line in ("True", "False")] == ["True"] * 3
    assert report["readme"]
    stream = report["stream"]
    for workers in (0, 2):
        for name, runs in report[f"workers-{workers}"].items():
            assert_resumed(name, runs, stream)
    halves = [[rows[: len(rows) // 2] for rows in stream], [rows[len(rows) // 2 :] for rows in stream]]
    for rank, half in zip(report["ranks"], halves, strict=True):
        for name, runs in rank["runs"].items():
            assert_resumed(name, runs, half)
        for name, rows in rank["of one"].items():
            assert rows == after_checkpoint(name, half), f"{name} on two ranks, resumed from one"
    for name, rows in report["of two"].items():
        assert rows == after_checkpoint(name, stream), f"{name} on one rank, resumed from two"
    for number, rank in enumerate(report["ranks"]):
        wanted = f"InvalidRequest: this data set gives rank {number} of 2 its own rows, and a loader that Accelerate"
        assert len(rank["refusals"]) == 6
        assert {case: told for case, told in rank["refusals"].items() if wanted not in told} == {}
    assert report["whole batches"] == report["small stream"]
    parts = [rank["whole batches"] for rank in report["ranks"]]
    distributed = [row for pair in zip(*parts, strict=True) for rows in pair for row in rows]
    assert distributed == [row for rows in report["small stream"] for row in rows]


def assert_resumed(name, runs, stream):
    per_step = RECIPES[name]
    assert runs["whole"] == stream[: STEPS * per_step], name
    assert len(runs["stopped"]) == int(STOP * per_step + 0.5)
    assert runs["stopped"] == runs["whole"][: len(runs["stopped"])], name
    assert runs["resumed"] == after_checkpoint(name, stream), name
    assert runs["equal"], f"{name}: the parameters differ after a resume"


def after_checkpoint(name, stream):
    return stream[SAVED * RECIPES[name] : STEPS * RECIPES[name]]


def run(folder):
    """What the page prints, and the report on its recipes."""
    command = [sys.executable, "-m", "tests.frameworks.recipes", str(folder)]
    # In a process group of its own, so that neither the page's server nor a rank survives a failure.
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=DOCS.parent, start_new_session=True, **pipes) as process:
        try:
            out, errors = process.communicate(timeout=DEADLINE_S)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    assert process.returncode == 0, errors[-4000:]
    return out, json.loads((folder / "report.json").read_text())


def test_the_page_on_trainers_is_where_others_point():
    for page in (DOCS / "pytorch.md", DOCS.parent / "README.md"):
        assert "trainers.md" in page.read_text("utf-8")

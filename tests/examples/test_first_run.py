"""docs/first-run.md, followed from top to bottom."""

import re
from itertools import pairwise

from tests.examples.page import Reader, blocks, named

PAGE = "first-run.md"
# What a strict trainer gets when the weights in the file have changed; tests of the client do it through Orbax.
REFUSED = """
import json
from mixserve_client import FingerprintMismatch, MixClient

with MixClient.connect("127.0.0.1:50051") as client, client.batches(32, 7, mixture="train") as batches:
    try:
        batches.set_state(json.load(open("run/160/data/mixserve_state.json")))
    except FingerprintMismatch:
        print("refused")
"""


def test_the_first_run_prints_what_its_page_says(tmp_path):
    printed = dict[str, str]()
    with Reader(tmp_path) as reader:
        for (language, text), (after, said) in pairwise([*blocks(PAGE), ("", "")]):
            command = text.strip()
            if language in ("python", "yaml"):
                if named(text):  # the others take the place of lines of prepare.py; tests/frameworks runs one of them
                    reader.write(text)
            elif language == "sh" and command.startswith("mixserve serve"):
                reader.serve(command)
            elif language == "sh":
                if command.endswith(" --changed"):
                    assert reader.run_python(REFUSED) == "refused\n"
                printed[command] = reader.run(command)
                if after == "text":
                    assert comparable(printed[command]) == comparable(said), command
    steps = {command: re.findall("^step.*", text, re.M) for command, text in printed.items()}
    # The losses too, to the last digit.
    assert steps["python train.py run 80"] + steps["python train.py run 160"] == steps["python train.py whole 160"]
    losses = [float(loss) for line in steps["python train.py whole 160"] for loss in re.findall(r"prose (\S+)", line)]
    assert len(losses) == 4
    assert losses == sorted(losses, reverse=True)  # it learns
    explained = [text for command, text in printed.items() if command.startswith("mixserve explain")]
    assert explained[0] == explained[1]


def comparable(text):
    """The lines without what differs between machines, or versions of Python, whose texts are the data: losses,
    fingerprints, and the column of speeds."""
    text = re.sub(r"\b\d\.\d{3}\b|\b[0-9a-f]{64}\b", "#", text)
    at, lines = -1, []
    for line in text.splitlines():
        if line.startswith("┃"):
            at = line.find("records/s")
        elif line.startswith("│") and at > 0:
            line = f"{line[:at]}{'#' * 9}{line[at + 9 :]}"
        lines.append(line.rstrip())
    return lines

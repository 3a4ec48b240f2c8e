"""The commands and the code of README.md, run in the folder that it tells a reader to make."""

import re

import pytest

from tests.examples.page import Reader, blocks

BLOCKS = blocks("../README.md")
BATCH = "(256, 2048)"


def block(language, words):
    """The only block of a language that has these words."""
    (text,) = (text for tongue, text in BLOCKS if tongue == language and words in text)
    return text


CONNECT, LOOP = block("python", "MixClient.connect("), block("python", "checkpoint.exists()")
CHECK, SERVE, INFO, TOP = (re.sub(r"\s+#.*", "", line) for line in block("sh", "mixserve check").splitlines())


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    with Reader(tmp_path_factory.mktemp("readme")) as made:
        made.write(block("yaml", "sampling: epoch"))
        made.run(block("sh", "mkdir -p web code"))
        made.serve(SERVE)
        yield made


def fingerprint_in(text):
    (found,) = re.findall("[0-9a-f]{64}", text)
    return found


def test_the_first_mixture_is_checked_and_served(reader):
    checked = reader.run(CHECK)
    assert re.search(r"web .* 488 .*code .* 146 ", checked, re.DOTALL), checked
    assert fingerprint_in(reader.run(INFO)) == fingerprint_in(checked)


def test_what_the_server_does_is_shown(reader):
    shown = reader.run(f"{TOP} --once")
    assert re.search(r"train.*web.*code", shown, re.DOTALL), shown


def test_the_same_mixture_from_python_is_a_replica(reader):
    code, end, _ = block("python", "server.wait()").replace("127.0.0.1:50052", "127.0.0.1:0").partition("server.wait()")
    assert end
    show = """
from mixserve_client import MixClient
with MixClient.connect(server.address) as client:
    print(client.mixture("train").fingerprint)
server.stop(grace_s=0)
"""
    assert fingerprint_in(reader.run_python(code + show)) == fingerprint_in(reader.run(INFO))


def test_the_loop_resumes_where_its_last_checkpoint_was_saved(reader):
    def loop(steps):
        assert LOOP.count("step < 1000") == LOOP.count("step % 100 ") == 1
        return LOOP.replace("step < 1000", f"step < {steps}").replace("step % 100 ", "step % 2 ")

    show = "print(step, batches.get_state()['position'], saved['step'])\n"
    assert reader.run_python(f"{CONNECT}{loop(5)}{loop(7)}{show}") == f"uint16 {BATCH}\n7 {7 * 256} 4\n"


def test_the_code_for_each_framework_and_for_weights_runs(reader):
    after = [text for language, text in BLOCKS[BLOCKS.index(("python", LOOP)) + 1 :] if language == "python"]
    here = [text for text in after if "torch" not in text]  # PyTorch is not installed here
    assert len(after) == len(here) + 1 == 5
    show = """
print(next(on_device)["tokens"].shape, next(on_all_devices)["tokens"].shape, next(iter(dataset)).shape)
print(position, batch["source_id"].shape, batch["record_id"].shape)
"""
    shown = f"uint16 {BATCH}\n{BATCH} {BATCH} {BATCH}\n2048 (256,) (256,)\n"
    assert reader.run_python("".join([CONNECT, *here, show])) == shown

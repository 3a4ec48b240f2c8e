"""The commands of docs/deploy.md about containers, in their order, with names of the test in place of the page's."""

import json
import os
import re

import pytest

from tests.certificates import NEEDS_OPENSSL
from tests.container.conftest import CLIENT, ROOT, SERVER
from tests.container.engine import Engine, new_name
from tests.examples.page import DOCS, Reader

SECTION = re.compile(r"## Containers\n(.*?)\n## ", re.DOTALL)
IMAGES = {"mixserve:0.1.0": SERVER, "mixserve-client:0.1.0": CLIENT}
# The block before these is the trainer. The last two stop a replica, and remove what was made.
LAST = 2


def commands() -> list[str]:
    (section,) = SECTION.findall((DOCS / "deploy.md").read_text("utf-8"))
    return re.findall(r"```sh\n(.*?)```", section, re.DOTALL)


def in_test(engine: Engine, text: str, prefix: str) -> str:
    """As the page says for Podman; other images, and names of containers, network and volume."""
    if engine.command == "podman":
        text = re.sub(
            r"(?<!--format )\bdocker\b", "podman", text.replace("docker build", "docker build --format docker")
        )
    for image, ours in IMAGES.items():
        text = re.sub(rf"(?<![\w/-]){re.escape(image)}", ours, text)
    return re.sub(r"(?<![\w./-])mixserve-(replica|net|cache)\b", rf"{prefix}-\1", text)


@NEEDS_OPENSSL
@pytest.mark.skipif(os.getuid() != 0, reason="the page gives files to user 10001, as root alone can")
def test_the_commands_of_the_page(engine, images, tmp_path):
    build, *steps = commands()
    assert len(steps) > LAST
    prefix = new_name()
    print(f"\n{build}", Reader(ROOT).run(in_test(engine, build, prefix))[-300:])
    reader = Reader(tmp_path)
    try:
        for block in steps[:-LAST]:
            print(block, printed := reader.run(in_test(engine, block, prefix)))
        assert "(64, 2048)" in printed
        assert f"bulk {prefix}-replica-" in printed
        for number in (1, 2):
            name = f"{prefix}-replica-{number}"
            (found,) = json.loads(engine("inspect", name))
            assert found["HostConfig"]["ReadonlyRootfs"]
            assert found["HostConfig"]["Memory"] == 1 << 30
            assert "WARNING" not in engine.run("logs", name).stderr
        print(steps[-LAST], stopped := reader.run(in_test(engine, steps[-LAST], prefix)))
        assert stopped.split()[-1] == "0"  # the exit code
    finally:
        print(steps[-1], reader.run(in_test(engine, steps[-1], prefix)))
    assert prefix not in engine("ps", "--all", "--format", "{{.Names}}") + engine("volume", "ls", "--quiet")


def test_the_page_has_the_sizes_that_images_have(engine, images):
    """Within a tenth: the page names the base that it was measured with."""
    page = (DOCS / "deploy.md").read_text("utf-8")
    for image, row in ((SERVER, "server"), (CLIENT, "client")):
        (told,) = re.findall(rf"^\| \*\*{row}\*\* .*\| (\d+) MB \|$", page, re.MULTILINE)
        assert abs(engine.image(image)["Size"] / 1e6 / int(told) - 1) < 0.1

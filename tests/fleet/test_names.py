"""A client of a DNS name that stands for several servers, which come and go. Needs namespaces of Linux."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.fleet.name_scenarios import SCENARIOS

_NAMESPACES = ["unshare", "--user", "--map-root-user", "--net", "--mount"]
_LIMIT_S = 200


def _why_not() -> str:
    if not all(map(shutil.which, ("unshare", "ip", "mount"))):
        return "there is no unshare, ip or mount"
    made = subprocess.run([*_NAMESPACES, "ip", "link", "set", "lo", "up"], capture_output=True, text=True, check=False)
    return made.stderr.strip()


@pytest.mark.parametrize("name", [scenario.__name__ for scenario in SCENARIOS])
def test_a_name(name, tmp_path):
    if why := _why_not():
        pytest.skip(f"no namespaces: {why}")
    command = [*_NAMESPACES, sys.executable, "-m", "tests.fleet.name_scenarios", name, str(tmp_path)]
    ended = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=_LIMIT_S,
        check=False,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    print(ended.stdout)
    assert ended.returncode == 0, ended.stdout + ended.stderr

"""What is said where Ray is not installed, as in most environments."""

import subprocess
import sys
from importlib.util import find_spec

import pytest

import mixserve.ray
from mixserve_client import InvalidRequest, MixClient
from tests.processes import write_mixture

_MISSING = pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed here")


@_MISSING
def test_names_in_ray_need_it_and_addresses_do_not():
    with pytest.raises(InvalidRequest, match="Ray is not installed here: install ray, or use ray://HOST:PORT"):
        MixClient.connect("ray://mixserve")
    MixClient.connect("ray://127.0.0.1:1").close()


@_MISSING
def test_fleets_say_what_to_install(tmp_path):
    config = write_mixture(tmp_path)
    with pytest.raises(InvalidRequest, match=r"pip install 'mixserve\[ray\]'"):
        mixserve.ray.up(config)
    with pytest.raises(InvalidRequest, match=r"pip install 'mixserve\[ray\]'"):
        mixserve.ray.attach("mixserve")


def test_nothing_loads_ray_before_it_is_used():
    code = (
        "import sys, mixserve, mixserve.ray, mixserve.cli.main, mixserve_client.client; sys.exit('ray' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0

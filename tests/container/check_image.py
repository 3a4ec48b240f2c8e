"""What the two images are: user, ports, health check, labels, licenses, size; and all that is left in them works."""

from pathlib import Path

import numpy as np
import pytest
import tensorstore
import yaml

import mixserve
from mixserve import local_client
from mixserve.build import build_nodes
from mixserve.config import load_config
from mixserve_client import MixClient
from tests.container.conftest import CLIENT, ROOT, SERVE, SERVER
from tests.container.engine import LIMITED
from tests.records import example, tfrecord, write_array_record
from tests.test_megatron import write as write_megatron

HEALTH = ["CMD", "mixserve", "health", "127.0.0.1:50052"]
# Bytes of all layers, as measured with a base image from Debian's own packages (docs/deploy.md).
LARGEST = {SERVER: 900_000_000, CLIENT: 250_000_000}
# What is for other environments: an extra, a framework of the trainer's.
NEEDS_MORE = {
    SERVER: {"mixserve.demo.report", "mixserve_client.torch"},
    CLIENT: {f"mixserve_client.{name}" for name in ("grain", "jax", "jax_dtypes", "nnx", "torch")},
}
# Every module of ours, and every package that is installed beside it: what was taken out is missing nowhere.
IMPORT_ALL = """
import importlib, pkgutil
from importlib.metadata import packages_distributions
for name in {"mixserve", "mixserve_client"} & packages_distributions().keys():
    for found in pkgutil.walk_packages(importlib.import_module(name).__path__, f"{name}."):
        if found.name.endswith("__main__"):
            continue
        try:
            importlib.import_module(found.name)
        except ModuleNotFoundError:
            print(found.name)
for name in sorted(packages_distributions()):
    # `_yaml` is a part of yaml that warns of its name.
    if name.isidentifier() and name != "_yaml":
        importlib.import_module(name)
for name in ("scipy.linalg", "scipy.optimize", "scipy.sparse", "scipy.special", "scipy.stats", "numpy.testing"):
    if "scipy" in packages_distributions():
        importlib.import_module(name)
"""
WITHOUT_BYTECODE = """
import sys
from pathlib import Path
import mixserve_client.aio, numpy.testing
try:
    import mixserve.cli.serve
except ModuleNotFoundError as error:  # in the client's image
    assert error.name == "mixserve"
files = [(getattr(found, "__file__", None) or "", getattr(found, "__cached__", None)) for found in sys.modules.values()]
print([file for file, cached in files if "/opt/mixserve/" in file and cached and not Path(cached).exists()])
"""
MIXTURE = """
mixtures:
  train:
    sources:
      flat: {kind: tokens, path: "*.bin", dtype: uint8, sequence_length: 65, as: int32, weight: 4}
      shards: {kind: megatron, path: shards, sequence_length: 65, as: int32, weight: 3}
      examples: {kind: array_record, path: a.array_record, record: example, fields: {tokens: {from: ids, as: int32, length: 65}}, weight: 2}
      others: {kind: tfrecord, path: a.tfrecord, record: example, fields: {tokens: {from: ids, as: int32, length: 65}}, weight: 2}
      chunks: {kind: zarr, path: {tokens: tokens.zarr}, weight: 1}
server: {prepared: /cache/prepared}
"""  # noqa: E501


def test_user_ports_and_health_check(engine, images):
    settings = engine.image(SERVER)
    assert settings["Config"]["User"] == "10001:10001"
    assert set(settings["Config"]["ExposedPorts"]) == {"50051/tcp", "50053/tcp"}
    assert settings["Config"]["Entrypoint"] == ["mixserve"]
    assert settings["Config"]["Cmd"] == list(SERVE[:-1])
    # Docker has it in the configuration, Podman beside it.
    health_check = settings["Config"].get("Healthcheck") or settings["Healthcheck"]
    assert health_check["Test"] == HEALTH
    services = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"].values()
    servers = [service for service in services if service.get("command", [""])[0] == "serve"]
    assert servers
    for service in servers:
        assert service["healthcheck"]["test"] == HEALTH
        assert service["command"][:8] == list(SERVE[:8])
        assert any(port.endswith(":50051") for port in service["ports"])
        bulk = service["command"][service["command"].index("--bulk-port") + 1]
        assert any(port.endswith(f":{bulk}:{bulk}") for port in service["ports"])


def test_the_client_runs_as_the_server_does_and_has_no_health_check(engine, images):
    settings = engine.image(CLIENT)
    assert settings["Config"]["User"] == "10001:10001"
    health_check = settings["Config"].get("Healthcheck") or settings.get("Healthcheck") or {"Test": ["NONE"]}
    assert health_check["Test"] == ["NONE"]


@pytest.mark.parametrize("image", LARGEST)
def test_labels(engine, images, image):
    labels = engine.image(image)["Config"]["Labels"]
    assert labels["org.opencontainers.image.version"] == mixserve.__version__
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert labels["org.opencontainers.image.title"] == {SERVER: "mixserve", CLIENT: "mixserve-client"}[image]
    assert labels["org.opencontainers.image.description"]
    assert (ROOT / labels["org.opencontainers.image.documentation"]).exists()


@pytest.mark.parametrize(
    ("target", "argument", "told"),
    [
        ("dependencies", "ACCELERATOR=gpu", "ACCELERATOR must be cpu, cuda13 or tpu, got gpu"),
        ("code", "VERSION=9.9.9", "mixserve_client-9.9.9-py3-none-any.whl"),
    ],
)
def test_an_argument_that_does_not_fit_ends_the_build(engine, images, target, argument, told):
    dockerfile = ROOT / "deploy" / "Dockerfile"
    ended = engine.run("build", "--target", target, "--build-arg", argument, "--file", dockerfile, ROOT)
    assert ended.returncode != 0
    assert told in ended.stdout + ended.stderr


@pytest.mark.parametrize("image", LARGEST)
def test_size(engine, images, image):
    found = engine.image(image)["Size"]
    print(f"\n{image}: {found / 1e6:.0f} MB")
    sizes = engine("run", "--rm", "--entrypoint", "sh", image, "-c", "du -sk /opt/mixserve/lib/*/site-packages/* /usr")
    largest = sorted(((int(size), path) for size, path in map(str.split, sizes.splitlines())), reverse=True)[:10]
    print(*(f"  {size / 1000:.0f} MB {Path(path).name}" for size, path in largest), sep="\n")
    assert found < LARGEST[image]


@pytest.mark.parametrize("image", LARGEST)
def test_nothing_to_install_more_by_and_nothing_that_changes_the_user(engine, images, image):
    look = "find / -xdev -perm /6000 -type f; command -v cc strip pip pip3; python -m pip 2>/dev/null || true"
    assert engine("run", "--rm", "--user", "0", "--entrypoint", "sh", image, "-c", look) == ""


@pytest.mark.parametrize("image", LARGEST)
def test_the_licenses_are_in_the_image(engine, images, image):
    own = "/opt/mixserve/lib/python3*/site-packages/mixserve*.dist-info/licenses/LICENSE"
    look = f"ls {own} /usr/share/doc/*/copyright"
    found = engine("run", "--rm", "--entrypoint", "sh", image, "-c", look).splitlines()
    ours = [line for line in found if "mixserve" in line]
    assert len(ours) == {SERVER: 2, CLIENT: 1}[image]
    assert all(f"-{mixserve.__version__}.dist-info" in line for line in ours)
    assert len(found) - len(ours) > 50


def test_volumes_take_their_owner_from_the_image(engine, images):
    # Podman gives a new volume to the container's user, Docker to the owner of the image's folder.
    found = engine("run", "--rm", "--entrypoint", "stat", SERVER, "--format", "%n %u:%g %a", "/cache", "/state")
    assert found.splitlines() == ["/cache 10001:10001 755", "/state 10001:10001 755"]
    found = engine("run", "--rm", CLIENT, "stat", "--format", "%n %u:%g %a", "/checkpoints")
    assert found == "/checkpoints 10001:10001 755"


@pytest.mark.parametrize("image", LARGEST)
def test_all_that_is_left_can_be_imported(engine, images, image):
    flags = ("run", "--rm", *engine.hardened, *LIMITED, "--network", "none", "--entrypoint", "python")
    # scipy and others warn of what they will change.
    missing = engine(*flags, image, "-c", IMPORT_ALL).splitlines()
    assert set(missing) == NEEDS_MORE[image]


@pytest.mark.parametrize("image", LARGEST)
def test_bytecode_is_there(engine, images, image):
    """Nobody can write it later, and a start would compile hundreds of modules each time."""
    assert engine("run", "--rm", "--entrypoint", "python", image, "-c", WITHOUT_BYTECODE) == "[]"


@pytest.fixture(scope="module")
def formats(tmp_path_factory) -> Path:
    folder, random = tmp_path_factory.mktemp("formats"), np.random.default_rng(0)
    folder.chmod(0o755)

    def text(size: int) -> np.ndarray:
        return random.integers(97, 123, size).astype(np.uint8)

    text(5000).tofile(folder / "a.bin")
    write_megatron(folder / "shards", [text(int(size)) for size in random.integers(1, 400, 60)])
    records = [example({"ids": text(65).tolist()}) for _ in range(50)]
    write_array_record(folder / "a.array_record", records)
    (folder / "a.tfrecord").write_bytes(tfrecord(records))
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{folder}/tokens.zarr/"}}
    store = tensorstore.open(spec, create=True, dtype="int32", shape=[50, 65]).result()
    store[...] = np.stack([text(65) for _ in range(50)]).astype(np.int32)
    (folder / "mixture.yaml").write_text(MIXTURE)
    return folder


def test_formats_whose_libraries_were_stripped(formats, start, tmp_path):
    server = start(("--publish", "127.0.0.1::50051"), folder=formats)
    server.wait_until_serving()
    text = (formats / "mixture.yaml").read_text().replace("/cache/prepared", str(tmp_path / "prepared"))
    config = formats / "here.yaml"
    config.write_text(text)
    with MixClient.connect(server.address(), patience_s=20, bulk=False) as client:
        served = client.get_batch_at(0, 256, key=7)
    with local_client(build_nodes(load_config(config), config)) as client:
        expected = client.get_batch_at(0, 256, key=7)
    np.testing.assert_array_equal(served["tokens"], expected["tokens"], strict=True)

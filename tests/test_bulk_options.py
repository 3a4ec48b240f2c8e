"""Whether a server has bulk channels, and at which port: by its file, by flags, and in Python."""

import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from mixserve import ArraySource, MixDataSourcesConfig, MixDataSourcesNode, MixServer, serve
from mixserve.cli.main import app
from mixserve.config import ServerConfig
from mixserve.reach import reachable
from mixserve_client import MixClient
from tests.ports import free_ports
from tests.processes import DEADLINE_S, ONE_SIZE, server_process, write_mixture
from tests.test_listening import listening


def configure(folder: Path, server: str, *, with_data: bool = True) -> Path:
    config = write_mixture(folder)
    config.write_text(config.read_text().replace("{port: 0}", f"{{{server}}}"))
    if not with_data:
        (folder / "a.bin").unlink()
    return config


def transport_of(address: str) -> str:
    with MixClient.connect(address, patience_s=20, shared_memory=False) as client:
        next(client.batches(8, 1))
        return client.transport


@pytest.fixture(scope="module")
def small() -> MixDataSourcesNode:
    config = MixDataSourcesConfig(num_sources=1, weights=(1,), plan_sizes=ONE_SIZE)
    return MixDataSourcesNode(config, [ArraySource({"x": np.arange(64)})])


def test_flags_fix_the_port_and_the_log_has_it(tmp_path: Path) -> None:
    port = free_ports(2)
    other = port + 1
    config = configure(tmp_path, f"port: 0, bulk: false, bulk_port: {other}")
    with server_process(config, "--bulk", "--bulk-port", str(port)) as server:
        address, log = server.address(), server.log()
        assert log.index(f"bulk channels on 127.0.0.1:{port}") < log.index("serving on")
        assert transport_of(address) == f"bulk 127.0.0.1:{port}, grpc {address}"


def test_the_file_turns_them_off(tmp_path: Path) -> None:
    with server_process(configure(tmp_path, "port: 0, bulk: false")) as server:
        address = server.address()
        assert transport_of(address) == f"grpc {address}"
        assert "bulk" not in server.log()


@pytest.mark.parametrize(
    ("server", "bulk", "bulk_port", "expected"),
    [
        ({}, None, None, (True, 0)),
        ({"bulk_port": 7001}, None, None, (True, 7001)),
        ({"bulk_port": 7001}, None, 7002, (True, 7002)),
        ({"bulk_port": 7001}, None, 0, (True, 0)),
        ({"bulk_port": 7001}, False, None, (False, 7001)),
        ({"bulk": False}, True, 7002, (True, 7002)),
    ],
)
def test_flags_come_before_the_file(
    server: dict[str, int], bulk: bool | None, bulk_port: int | None, expected: tuple[bool, int]
) -> None:
    found = reachable(
        ServerConfig(**server),  # pyright: ignore[reportArgumentType]
        Path("mixture.yaml"),
        insecure=False,
        health_port=None,
        metrics_port=None,
        bulk=bulk,
        bulk_port=bulk_port,
    )
    assert (found.bulk, found.bulk_port) == expected
    # A port that is not used is in nobody's way.
    address = "127.0.0.1:50051" if found.bulk else "127.0.0.1:7001"
    bulk_address = [f"127.0.0.1:{found.bulk_port}"] if found.bulk and found.bulk_port else []
    assert found.addresses(address) == [address, *bulk_address]


@pytest.mark.parametrize(
    ("server", "flags", "said"),
    [
        ("bulk_port: 70000", (), "server.bulk_port: Input should be less than or equal to 65535"),
        ("bulk: maybe", (), "server.bulk: Input should be a valid boolean"),
        (
            "port: 7001, bulk_port: 7001",
            (),
            "server: bulk_port must be a port of its own, and 7001 is the server's own",
        ),
        ("port: 7001", ("--bulk-port", "7001"), "must be a port of its own, and 7001 is the server's own port"),
        ("health_port: 7002, bulk_port: 7002", (), "must be a port of its own, and 7002 is the port of health"),
        (
            "port: 0",
            ("--no-bulk", "--bulk-port", "7001"),
            "--bulk-port 7001 is for bulk channels, which are turned off",
        ),
        ("bulk: false", ("--bulk-port", "0"), "--bulk-port 0 is for bulk channels, which are turned off; add --bulk"),
        ("bulk: false, port: 0, bulk_port: 7001", (), "a.bin"),
        ("port: 7003, bulk_port: 7001", ("--processes", "3"), "port of its own, and 7003 is the server's own port"),
        ("worker_port: 7003, bulk_port: 7002", ("--processes", "2"), "port of its own, and 7003 is that of a process"),
        ("port: 0, bulk_port: 65535", ("--processes", "2"), "bulk_port 65535 leaves no ports for 2 processes"),
    ],
)
def test_wrong_ports_end_with_2(tmp_path: Path, server: str, flags: tuple[str, ...], said: str) -> None:
    config = configure(tmp_path, server, with_data=False)
    ended = CliRunner().invoke(app, ["serve", str(config), *flags])
    assert ended.exit_code == 2
    assert said in ended.stderr


def test_a_port_that_is_taken_is_said_before_data_are_opened(tmp_path: Path) -> None:
    with closing(listening()) as other:
        port = other.getsockname()[1]
        config = configure(tmp_path, f"port: 0, bulk_port: {port}", with_data=False)
        ended = CliRunner().invoke(app, ["serve", str(config)])
        assert ended.exit_code == 2
        assert f"cannot listen on 127.0.0.1:{port}: Address already in use; choose another" in ended.stderr
        assert "a.bin" in CliRunner().invoke(app, ["serve", str(config), "--no-bulk"]).stderr


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux spreads connections over processes")
def test_each_process_needs_its_own_port(tmp_path: Path) -> None:
    port = free_ports(2) + 1
    with closing(listening(port=port)):
        config = configure(tmp_path, f"port: 0, bulk_port: {port - 1}", with_data=False)
        with server_process(config, "--processes", "2") as server:
            assert server.process.wait(DEADLINE_S) == 2
            assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in server.log()


def test_in_python(small: MixDataSourcesNode, tmp_path: Path) -> None:
    port = free_ports()
    with serve({"m": small}, bulk_port=port, shared_memory=False) as server:
        assert server.bulk_port == port
        assert transport_of(server.address) == f"bulk 127.0.0.1:{port}, grpc {server.address}"
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
            serve({"m": small}, bulk_port=port, state_dir=tmp_path / "state")
        assert not (tmp_path / "state").exists()
        own = int(server.address.rpartition(":")[2])
        with pytest.raises(ValueError, match=f"{own} is the server's own port; 0 is a free one"):
            serve({"m": small}, server.address, bulk_port=own)
    with serve({"m": small}, bulk=False, shared_memory=False) as server:
        assert server.bulk_port == 0
        assert transport_of(server.address) == f"grpc {server.address}"
    for wrong in (-1, 65536, True, "7001", 1.5):
        with pytest.raises(ValueError, match="bulk_port must be a port in"):
            serve({"m": small}, bulk_port=wrong)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="bulk must be True or False"):
        serve({"m": small}, bulk="off")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="a server on a Unix socket has no port for bulk channels, got bulk_port=7001"):
        serve({"m": small}, f"unix://{tmp_path}/socket", bulk_port=7001)


def test_bench_reads_with_and_without_them(server: MixServer) -> None:
    shown = dict[str, str]()
    for flag in ("--bulk", "--no-bulk"):
        ended = CliRunner().invoke(
            app, ["bench", server.address, "--batch-size", "8", "--seconds", "0.1", "--shared-memory", "off", flag]
        )
        assert ended.exit_code == 0, ended.stderr
        shown[flag] = ended.stdout
    assert f"over bulk 127.0.0.1:{server.bulk_port}, grpc {server.address}" in shown["--bulk"].replace("\n", " ")
    assert f"over grpc {server.address}" in shown["--no-bulk"].replace("\n", " ")

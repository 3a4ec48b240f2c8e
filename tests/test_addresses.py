"""Addresses of servers and clients: which are accepted, how they are written, and the messages for the others."""

import socket

import pytest
from typer.testing import CliRunner

from mixserve import serve
from mixserve.address import check_address, check_host, join_address
from mixserve.cli.main import app
from mixserve.config import ConfigError, load_config
from mixserve_client import InvalidRequest, MixClient
from tests.processes import server_process, write_mixture


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:99999", "port in 0..65535, or unix:///path; the port is '99999'"),
        ("127.0.0.1:65536", "the port is '65536'"),
        ("127.0.0.1:-1", "the port is '-1'"),
        ("127.0.0.1:\u0665", "the port is"),
        ("127.0.0.1:" + "9" * 5000, "the port is '999"),
        ("127.0.0.1:0\n", r"the port is '0\n'"),
        ("127.0.0.1:", "the port is ''"),
        ("127.0.0.1", "the port is '127.0.0.1'"),
        ("", "the port is ''"),
        (":0", "host must not be empty"),
        ("::1:5000", "an IPv6 host must be in brackets before its port, as in [::1]:50051; got '::1:5000'"),
        ("::1", "an IPv6 host must be in brackets"),
        ("[[::1]]:0", "got '[[::1]]'"),
        ("[::1%\n]:0", r"got '[::1%\n]'"),
        ("[localhost]:0", "got '[localhost]'"),
        ("local host:0", "without spaces or slashes; got 'local host'"),
        ("\nlocalhost:0", r"got '\nlocalhost'"),
        ("\ud800:0", r"got '\ud800'"),
        ("x" * 5000 + ":0", "host must be a name"),
        ("ipv4:127.0.0.1:99999", "the port is '99999'"),
        ("dns:///localhost:0", "without a port or a scheme; got 'dns:///localhost'"),
        ("http://localhost:0", "without a port or a scheme"),
        ("unix:", "unix: must be followed by the path"),
        ("unix:///tmp/a\nb", "in printable characters"),
        ("unix:\x00abstract", "in printable characters"),
        ("unix:///" + "x" * 200, "may have at most 107 bytes"),
        (5000, "must be a text such as"),
        (None, "must be a text such as"),
    ],
)
def test_no_server_listens_where_nobody_said(address, said):
    """The address is refused before the nodes are checked: there are none."""
    with pytest.raises(OSError, match="cannot listen on") as raised:
        serve({}, address)
    assert said in str(raised.value)
    assert len(str(raised.value)) < 800


def test_hosts_and_ports_make_addresses():
    assert join_address("::1", 5) == join_address("[::1]", 5) == "[::1]:5"
    assert join_address("fe80::1%eth0", 0) == "[fe80::1%eth0]:0"
    assert join_address("localhost", 65535) == "localhost:65535"
    for address in ("localhost:0", "0.0.0.0:1", "[::]:65535", "a-b.example.:80", "unix:///tmp/s", "unix:s"):
        assert check_address(address) == address
    assert check_host("[::]") == "::"


@needs_ipv6
def test_a_server_listens_on_ipv6_and_says_so(node):
    with serve({"train": node}, "[::1]:0") as server:
        assert server.address.startswith("[::1]:")
        with MixClient.connect(server.address) as client:
            assert client.mixtures() == ("train",)


@needs_ipv6
@pytest.mark.parametrize("flags", [("--host", "[::1]"), ("--host", "::1"), ()])
def test_the_command_takes_ipv6_with_and_without_brackets(tmp_path, flags):
    config = write_mixture(tmp_path, sampling="epoch")  # epoch mode plans without a compiled program
    if not flags:
        config.write_text(config.read_text().replace("{port: 0}", "{port: 0, host: '[::1]'}"))
    with server_process(config, *flags) as server:
        assert server.address().startswith("[::1]:")
        assert f"serving on {server.address()}\n" in server.log()


@pytest.mark.parametrize(
    "host",
    ["", " ", "local host", "localhost:50051", "http://localhost", "[localhost]", "[::1", "::1]", "[::1]:5", "a\nb"],
)
def test_hosts_of_the_command_and_the_file_are_checked(tmp_path, host):
    config = write_mixture(tmp_path)
    result = CliRunner().invoke(app, ["serve", str(config), "--host", host])
    assert (result.exit_code, "mixserve: --host: host must" in result.stderr) == (2, True)
    config.write_text(config.read_text().replace("{port: 0}", "{port: 0, host: %r}" % host.replace("\n", " ")))  # noqa: UP031
    with pytest.raises(ConfigError, match=r"server\.host: host must"):
        load_config(config)


@pytest.mark.parametrize(
    "target",
    [
        "dns:///name:99999",
        "dns:name:0",
        "dns://1.1.1.1/name:65536",
        "ipv4:127.0.0.1:99999",
        "ipv4:10.0.0.1:5,10.0.0.2:99999",
        "ipv6:[::1]:70000",
        "::1:5000",
        "[::1:5000",
        "a\nb:5",
        "a\tb:5",
        "127.0.0.1:" + "9" * 5000,
        "a:\u0665",
        "dns:///a\nb:5",
    ],
)
def test_clients_refuse_addresses_that_nobody_can_mean(target):
    with pytest.raises(InvalidRequest, match="a server's address must be host:port"):
        MixClient.connect(target)
    for command in ("info", "fetch"):
        result = CliRunner().invoke(app, [command, target])
        assert (result.exit_code, "a server's address must be" in result.stderr) == (2, True)
    result = CliRunner().invoke(app, ["health", target])
    assert (result.exit_code, "a server's address must be" in result.output) == (1, True)


@pytest.mark.parametrize("grace", ["nan", "inf", "-1"])
def test_a_grace_period_that_never_ends_is_refused(tmp_path, grace):
    result = CliRunner().invoke(app, ["serve", str(write_mixture(tmp_path)), "--grace-s", grace])
    assert (result.exit_code, "--grace-s must be a finite number" in result.stderr) == (2, True)


def test_clients_take_the_addresses_that_grpc_knows():
    for target in (
        "dns:///name:5",
        "dns:name",
        "dns:///name:https",
        "ipv4:1.2.3.4:5,1.2.3.5:6",
        "ipv6:[::1]:5",
        "[::1]:5",
    ):
        MixClient.connect(target).close()

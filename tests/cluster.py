"""`mixserve serve --processes` for tests: its processes, and the addresses of each."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from mixserve import MixDataSourcesNode
from mixserve.build import build_nodes
from mixserve.cli.health import probe
from mixserve.config import load_config
from mixserve_client import MixClient, TlsOptions
from mixserve_client.credentials import TokenOptions
from mixserve_client.transport.credentials import Credentials
from mixserve_client.transport.grpc import GrpcTransport
from mixserve_client.transport.handshake import DEFAULT_FOLDER
from mixserve_client.transport.shared_memory import SharedMemoryTransport
from mixserve_client.wire import methods
from mixserve_client.wire.server import decode_server
from tests.certificates import Authority
from tests.ports import free_ports
from tests.processes import DEADLINE_S, ServerProcess, write_mixture
from tests.tokens.files import Tokens
from tests.waiting import wait_until


class Cluster:
    """`mixserve serve --processes`, with tokens, sessions on a disk, and a port of health."""

    def __init__(self, folder: Path, count: int, authority: Authority | None = None):
        """With `authority`, clients need its certificates."""
        self.config = write_mixture(folder)
        self.tokens = Tokens(folder / "tokens.yaml", {role: (role, None) for role in ("reader", "trainer", "admin")})
        self.bulk_port = free_ports(count)
        options = f"port: 0, processes: {count}, bulk_port: {self.bulk_port}, tokens: tokens.yaml"
        self.tls = dict[str, Any]()
        if authority is not None:
            ours, theirs = authority.issue("server"), authority.issue("client")
            options += f", tls: {{certificate: {ours.certificate}, key: {ours.key}, client_ca: {authority.ca}}}"
            self.tls = {"tls": TlsOptions(ca=authority.ca, certificate=theirs.certificate, key=theirs.key)}
        self.config.write_text(self.config.read_text().replace("{port: 0}", f"{{{options}}}"))
        self.server = ServerProcess(
            self.config, "--state-dir", str(folder / "state"), "--health-port", "0", "--grace-s", "10", real=True
        )

    @property
    def node(self) -> MixDataSourcesNode:
        """What the server serves, in this process."""
        return build_nodes(load_config(self.config), self.config)["train"].clone()

    @property
    def health(self) -> str:
        return self.server.wait_for_log(r"health on (\S+)").group(1)

    def connect(self, address: str | None = None, role: str = "trainer", **options: Any) -> MixClient:
        options = {"token": self.tokens[role], "patience_s": DEADLINE_S} | self.tls | options
        return MixClient.connect(address or self.server.address(), **options)

    def connect_to_one(self, address: str, shared_memory: bool) -> MixClient:
        """A client that keeps to one worker."""
        transport: Any = GrpcTransport(address, Credentials(None, TokenOptions(self.tokens["reader"])))
        if shared_memory:
            transport = SharedMemoryTransport(transport, DEFAULT_FOLDER)
        return MixClient([transport], patience_s=DEADLINE_S)

    def own_addresses(self) -> list[str]:
        """Those that the workers do not share."""
        address = self.server.address()
        with self.connect() as client:
            told = decode_server(client.catalog.resources.here.caller.call(methods.GET_SERVER, b"")).workers
        return [address.rpartition(":")[0] + one for one in told]

    def workers(self) -> list[int]:
        """The processes that serve, as the system knows them."""
        return children(self.server.process.pid)

    def worker(self, number: int) -> int:
        """The process of the worker of that number: the one that listens at its address."""
        place = self.own_addresses()[number].rpartition(":")[2]
        listening = [pid for pid in self.workers() if int(place) in listening_ports(pid)]
        assert len(listening) == 1
        return listening[0]

    def wait_until_all_serve(self) -> None:
        wait_until(lambda: probe(self.health, 5) == "SERVING", "that all processes serve")


def children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def listening_ports(pid: int) -> set[int]:
    """The ports that a process listens at."""
    sockets = open_files(pid)
    found: set[int] = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                found.add(int(fields[1].rpartition(":")[2], 16))
    return found


def open_files(pid: int) -> set[str]:
    """What the descriptors of a process lead to."""
    found: set[str] = set()
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):  # closed meanwhile
            found.add(str(file.readlink()))
    return found


def unix_sockets(pid: int) -> list[str]:
    """The paths of the sockets of the system that a process knows of."""
    lines = Path(f"/proc/{pid}/net/unix").read_text().splitlines()
    found, files = [line.split() for line in lines[1:]], open_files(pid)
    return [fields[7] for fields in found if len(fields) > 7 and f"socket:[{fields[6]}]" in files]

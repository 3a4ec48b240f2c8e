"""A real server under any requests, frames and bytes at all its doors: it goes on answering right, in bounded memory.

MIXSERVE_FUZZ_REQUESTS sets the number of requests, MIXSERVE_FUZZ_SEED repeats them.
"""

import array
import os
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from itertools import islice
from pathlib import Path

import grpc
import numpy as np
import pytest

from mixserve import local_client
from mixserve.build import build_nodes
from mixserve.config import load_config
from mixserve_client import MixClient
from mixserve_client.transport.handshake import SLOT_PACKET
from mixserve_client.wire import methods
from mixserve_client.wire.bulk import HELLO, Kind, encode_bulk_request, encode_header
from mixserve_client.wire.error import ERROR_METADATUM
from mixserve_client.wire.server import decode_server
from tests.conftest import assert_batches_equal
from tests.fuzz.http2 import attack
from tests.fuzz.mutations import mutate
from tests.fuzz.requests import STREAMS, Requests
from tests.processes import DEADLINE_S, ServerProcess, server_process, write_mixture
from tests.test_sessions_live import status

REQUESTS = int(os.environ.get("MIXSERVE_FUZZ_REQUESTS") or 2000)
SEED = int(os.environ.get("MIXSERVE_FUZZ_SEED") or random.SystemRandom().randrange(1 << 32))
THREADS, TIMEOUT_S, MOST_REPLIES = 4, 5.0, 20
GROWTH_BYTES = 256 << 20  # of a server that has met all of this, beyond what it had after the first
PROGRESS_S = 10
# What no request may make of a server: everything else says what is wrong with the request.
FAULTS = ("ServerFault", "INTERNAL", "UNKNOWN")


class Attackers:
    """Threads that attack until so many requests were sent."""

    def __init__(self, server: ServerProcess, address: str):
        self.sent = 0
        self.ended = Counter[str]()  # calls, by how they ended
        self.faults = list[str]()
        host, _, port = address.rpartition(":")
        self._grpc, self._target = (host, int(port)), address
        self._server = server
        self._lock = threading.Lock()

    def run(self, count: int) -> None:
        with ThreadPoolExecutor(THREADS) as threads:
            for done in [threads.submit(self._attack, number, count) for number in range(THREADS)]:
                done.result()

    def _attack(self, number: int, count: int) -> None:
        choice = random.Random(f"{SEED} {number}")
        requests = Requests("train", choice)
        ways: dict[Callable[[random.Random, Requests], int], int] = {
            self._call: 40,
            self._speak_http2: 2,
            self._speak_bulk: 3,
            self._say_anything: 2,
            self._hand_in_memory: 2,
        }
        while self.sent < count:
            (way,) = choice.choices(list(ways), list(ways.values()))
            sent = way(choice, requests)
            with self._lock:
                self.sent += sent
            assert self._server.process.poll() is None, f"the server has ended: {self._server.log()[-3000:]}"

    def _call(self, choice: random.Random, requests: Requests) -> int:
        """Calls over one channel of gRPC."""
        count = choice.randint(1, 100)
        with grpc.insecure_channel(self._target) as channel:
            for _ in range(count):
                method, data = requests()
                kind = channel.unary_stream if method in STREAMS else channel.unary_unary
                try:
                    if method in STREAMS:
                        call = kind(method)(data, timeout=TIMEOUT_S)
                        for _ in islice(call, choice.randrange(MOST_REPLIES)):
                            pass
                        call.cancel()
                    else:
                        kind(method)(data, timeout=TIMEOUT_S)
                    self._note("answered", method, data)
                except grpc.RpcError as error:
                    self._note(_name_of(error), method, data)
        return count

    def _note(self, how: str, method: str, data: bytes) -> None:
        with self._lock:
            self.ended[how] += 1
            if how in FAULTS:
                self.faults.append(f"{how}: {method} {data[:300].hex()}")

    def _speak_http2(self, choice: random.Random, requests: Requests) -> int:
        return attack(self._grpc, choice, requests)

    def _offer(self):
        with grpc.insecure_channel(self._target) as channel:
            return decode_server(channel.unary_unary(methods.GET_SERVER)(b"", timeout=DEADLINE_S))

    def _speak_bulk(self, choice: random.Random, requests: Requests) -> int:
        """Damaged frames on a bulk channel that was let in."""
        offer, count = self._offer().bulk, choice.randint(1, 50)
        assert offer is not None
        with closing(socket.create_connection((self._grpc[0], offer.port), DEADLINE_S)) as made, suppress(OSError):
            made.settimeout(0.05)
            made.sendall(HELLO + offer.token)
            for number in range(count):
                sent = encode_bulk_request(number, *requests())
                if choice.random() < 0.3:
                    sent = mutate(choice, [sent, encode_header(Kind.CANCEL, number)], 64 << 10)
                made.sendall(sent)
                if choice.random() < 0.5:
                    with suppress(TimeoutError):
                        made.recv(1 << 20)
        return count

    def _say_anything(self, choice: random.Random, requests: Requests) -> int:
        """Bytes of any meaning at one of the ports."""
        offer = self._offer().bulk
        assert offer is not None
        port = choice.choice((self._grpc[1], offer.port))
        with closing(socket.create_connection((self._grpc[0], port), DEADLINE_S)) as made, suppress(OSError):
            made.settimeout(0.05)
            made.sendall(
                choice.choice((b"", HELLO, b"GET / HTTP/1.1\r\n\r\n")) + choice.randbytes(choice.randrange(999))
            )
            made.recv(100)
        return 1

    def _hand_in_memory(self, choice: random.Random, requests: Requests) -> int:
        """Packets with any numbers and descriptors, at the socket of shared memory."""
        path, count = self._offer().shared_memory, choice.randint(1, 20)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as made, suppress(OSError):
            made.settimeout(0.2)
            made.connect(path)
            for _ in range(count):
                size = choice.choice((0, 1, 4096, 1 << 40, -1, -0x626C6B, choice.randrange(1 << 62)))
                packet = SLOT_PACKET.pack(size, choice.randrange(1 << 64))
                packet = packet if choice.random() < 0.8 else choice.randbytes(choice.randrange(1, 40))
                with _descriptors(choice) as descriptors:
                    sent = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
                    made.sendmsg([packet], sent if descriptors else [])
                if choice.random() < 0.5:
                    made.recv(512)
        return count


class _descriptors:  # noqa: N801
    """A few descriptors of kinds drawn at random."""

    def __init__(self, choice: random.Random):
        self._made = list[int]()
        for _ in range(choice.choice((0, 1, 1, 1, 2, 6))):
            match choice.randrange(4):
                case 0:
                    self._made.append(os.memfd_create("fuzz"))
                case 1:
                    self._made.append(os.memfd_create("fuzz", os.MFD_ALLOW_SEALING))
                    os.ftruncate(self._made[-1], 4096)
                case 2:
                    self._made.append(os.open("/dev/null", os.O_RDWR))
                case _:
                    self._made += os.pipe()

    def __enter__(self) -> list[int]:
        return self._made

    def __exit__(self, *_: object) -> None:
        for one in self._made:
            os.close(one)


def _name_of(error: grpc.RpcError) -> str:
    """Our name of the error, or gRPC's code."""
    found = dict(error.trailing_metadata() or ())  # pyright: ignore
    return str(found.get(ERROR_METADATUM, error.code().name))  # pyright: ignore


class Honest:
    """A reader that must go on getting right batches."""

    def __init__(self, address: str, config: Path):
        self.waits_s = list[float]()
        self._address, self._config = address, config
        self._over = threading.Event()

    def run(self) -> None:
        node = build_nodes(load_config(self._config), self._config)["train"]
        with (
            MixClient.connect(self._address, shared_memory=False, patience_s=DEADLINE_S) as client,
            local_client({"train": node}) as near,
        ):
            number = 0
            while not self._over.wait(0.05):
                began = time.monotonic()
                batch = client.get_batch_at(number, 16, 3, timeout_s=DEADLINE_S)
                self.waits_s.append(time.monotonic() - began)
                assert_batches_equal(batch, near.get_batch_at(number, 16, 3))
                number += 16

    def stop(self) -> None:
        self._over.set()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_mixture(tmp_path)


@pytest.mark.timeout(300 + REQUESTS // 20)
def test_a_server_goes_on_under_any_requests(config, tmp_path):
    print(f"\nMIXSERVE_FUZZ_REQUESTS={REQUESTS} MIXSERVE_FUZZ_SEED={SEED}")
    flags = ("--state-dir", str(tmp_path / "state"), "--session-ttl-s", "2")
    with server_process(config, *flags) as server:
        address = server.address()
        attackers, honest = Attackers(server, address), Honest(address, config)
        with ThreadPoolExecutor(2) as threads:
            reading = threads.submit(honest.run)
            attackers.run(REQUESTS // 10)  # what is made once
            before, cpu_s, sent, began = status(server, "VmRSS"), _cpu_s(server), attackers.sent, time.monotonic()
            attacking = threads.submit(attackers.run, REQUESTS)
            while not attacking.done():
                with suppress(TimeoutError):
                    attacking.exception(PROGRESS_S)
                grown = (status(server, "VmRSS") - before) >> 20
                print(f"{time.monotonic() - began:6.0f} s  {attackers.sent:,} requests, {grown} MiB more", flush=True)
                assert not reading.done() or reading.result()
            honest.stop()
            attacking.result()
            reading.result()
        grown, largest = status(server, "VmRSS") - before, status(server, "VmHWM")
        each_ms = 1e3 * (_cpu_s(server) - cpu_s) / max(1, attackers.sent - sent)
        p99_s = float(np.quantile(honest.waits_s, 0.99))
        print(
            f"{attackers.sent:,} requests in {time.monotonic() - began:.0f} s, {dict(attackers.ended.most_common())}; "
            f"the server took {each_ms:.2f} ms of CPU time for each, has {grown >> 20} MiB more than after the first "
            f"tenth, and had {largest >> 20} MiB at most; {len(honest.waits_s)} batches beside it, longest wait "
            f"{max(honest.waits_s):.2f} s, p99 {1e3 * p99_s:.0f} ms"
        )
        assert attackers.faults == []
        assert "Traceback" not in server.log(), server.log()[-5000:]
        assert grown < GROWTH_BYTES
        assert server.terminate() == 0


def _cpu_s(server: ServerProcess) -> float:
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

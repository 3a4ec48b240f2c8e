"""A client of a server whose replies are damaged, over gRPC and bulk channels: each call ends soon, with a right answer
or an error of ours, and in bounded memory.

MIXSERVE_FUZZ_REPLIES sets the number of damaged replies, MIXSERVE_FUZZ_SEED repeats them.
"""

import os
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from mixserve_client import CorruptReply, MixClient, MixserveError
from mixserve_client.wire import methods
from mixserve_client.wire.bulk import (
    HEADER_BYTES,
    HELLO,
    TOKEN_BYTES,
    WELCOME,
    Kind,
    decode_bulk_request,
    encode_bulk_error,
    encode_header,
)
from mixserve_client.wire.server import decode_server
from tests.bulk.peers import HostileBulk, exactly, frame, hostile_bulk
from tests.bulk.test_hostile_servers import resident
from tests.client.test_hostile import NAMES, check_answer
from tests.conftest import make_node
from tests.fuzz.mutations import mutate
from tests.processes import ONE_SIZE

REPLIES = int(os.environ.get("MIXSERVE_FUZZ_REPLIES") or 500)
SEED = int(os.environ.get("MIXSERVE_FUZZ_SEED") or random.SystemRandom().randrange(1 << 32))
THREADS, CALLS_OF_A_CLIENT = 16, 6  # threads mostly wait for what never comes
DAMAGED = 0.3
GROWTH_BYTES = 128 << 20
PROGRESS_S = 10
STREAMS = ("batches", "provenance", "positions")  # calls that read streams, for which there are bulk channels


class Damage:
    """Damages some of a server's replies, and counts them. Thread-safe."""

    def __init__(self) -> None:
        self.count = Counter[str]()
        self._choice = random.Random(SEED)
        self._lock = threading.Lock()

    def reply(self, way: str, data: bytes, others: tuple[bytes, ...] = ()) -> bytes:
        with self._lock:
            if self._choice.random() >= DAMAGED:
                return data
            self.count[way] += 1
            return mutate(self._choice, [data, data, *others], 1 << 20)

    def ends(self) -> bool:
        """Whether the server ends a connection after a frame of a wrong length: otherwise clients mostly wait."""
        with self._lock:
            return self._choice.random() < 0.9


class Server:
    """Answers as a server does, and damages replies."""

    def __init__(self, damage: Damage):
        self._damage = damage
        self.made: HostileBulk | None = None

    def answer(self, method: str, request: bytes) -> Iterator[bytes]:
        """Over gRPC."""
        assert self.made is not None
        for data in self.made.answer(method, request):
            damaged = self._damage.reply("gRPC", bytes(data))
            yield bytes(data) if method == methods.GET_SERVER and _leads_away(damaged) else damaged

    def behave(self, connection: socket.socket) -> None:
        """Over a bulk channel."""
        exactly(connection, len(HELLO) + TOKEN_BYTES)  # a token that may have been damaged
        connection.sendall(WELCOME)
        while True:
            found, payload = frame(connection)
            if found.kind != Kind.REQUEST:
                continue
            try:
                for data in self._replies(payload):
                    sent = encode_header(Kind.REPLY, found.stream, len(data)) + data
                    damaged = self._damage.reply("bulk", sent, (sent[:HEADER_BYTES],))
                    connection.sendall(damaged)
                    if len(damaged) != len(sent) and self._damage.ends():
                        return
                end = encode_header(Kind.END, found.stream)
            except MixserveError as error:  # the client believed a damaged description
                end = encode_bulk_error(found.stream, error)
            connection.sendall(self._damage.reply("bulk", end))

    def _replies(self, payload: bytes) -> Iterator[bytes]:
        assert self.made is not None
        return map(bytes, self.made.services.stream(*decode_bulk_request(payload)))


def _leads_away(reply: bytes) -> bool:
    """Whether a client would follow this description of a server to other hosts, or to this user's other servers."""
    try:
        found = decode_server(reply)
    except CorruptReply:
        return False
    return bool(found.workers or found.shared_memory or (found.bulk and found.bulk.host))


def read(address: str, number: int, damage: Damage) -> Counter[str]:
    """Call everything until there were enough damaged replies."""
    choice, done = random.Random(f"{SEED} {number}"), Counter[str]()
    while damage.count.total() < REPLIES:
        bulk = choice.random() < 0.6
        with MixClient.connect(address, shared_memory=False, bulk=bulk, patience_s=0.05) as client:
            for _ in range(CALLS_OF_A_CLIENT):
                name = choice.choice(STREAMS if bulk else NAMES)
                check_answer(client, name)
                done[name] += 1
    return done


@pytest.mark.timeout(300 + REPLIES // 20)
def test_a_client_bears_any_replies(caplog):
    caplog.set_level("CRITICAL")
    print(f"\nMIXSERVE_FUZZ_REPLIES={REPLIES} MIXSERVE_FUZZ_SEED={SEED}")
    damage = Damage()
    served = Server(damage)
    with (
        hostile_bulk(make_node(plan_sizes=ONE_SIZE), served.behave) as (address, made),
        ThreadPoolExecutor(3) as threads,
    ):
        served.made, made.hook = made, served.answer
        before, began = 0, time.monotonic()
        running = [threads.submit(read, address, number, damage) for number in range(THREADS)]
        while not all(one.done() for one in running):
            time.sleep(0.1)
            count = damage.count.total()
            before = before or (resident() if count >= REPLIES // 10 else 0)
            if time.monotonic() - began > PROGRESS_S:
                began += PROGRESS_S
                print(f"{count:,} damaged replies, {(resident() - before) >> 20 if before else 0} MiB more", flush=True)
        calls = sum((one.result() for one in running), Counter[str]())
        grown = resident() - (before or resident())
    print(f"{dict(damage.count)} damaged replies to {dict(calls)}; {grown >> 20} MiB more than after the first tenth")
    assert grown < GROWTH_BYTES

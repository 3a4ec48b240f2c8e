"""Batches through shared memory: never overwritten, nothing left over, and gRPC as the fallback."""

import fcntl
import gc
import logging
import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixserve import MixDataSourcesNode, MixServer, local_client, serve
from mixserve.servicer import Services
from mixserve.serving.shared_memory import SharedMemory
from mixserve_client import DeadlineExceeded, MixClient, Unavailable
from mixserve_client.reading import ranges as ranges_module
from mixserve_client.reading.background import BackgroundStream
from mixserve_client.transport import slots as slots_module
from tests.conftest import assert_batches_equal
from tests.forked import Forked, wait_for_line
from tests.memory_server import memory_server

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="shared memory needs memfds")
as_root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root")

DEADLINE_S = 60
GONE_S = 5.0  # how long a server may take to forget a client that has gone
SIZE, ROW = 8, 4096  # a batch of 128 KiB
BATCH_BYTES = SIZE * ROW * 4
MANY = 4 * SIZE  # rows of a batch that arrives as a stream
NOBODY = 65534


def until(condition: Callable[[], Any], deadline_s: float = DEADLINE_S) -> Any:
    """The result of `condition` as soon as it is true."""
    deadline = time.monotonic() + deadline_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.01)
    return found


def slot_mappings(pid: int | str = "self") -> list[tuple[int, int]]:
    """(first, end) addresses of every slot that the process has mapped."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    spans = [line.split()[0].split("-") for line in lines if "memfd:mixserve-slot" in line]
    return [(int(first, 16), int(last, 16)) for first, last in spans]


def slot_descriptors(pid: int) -> int:
    return sum("memfd:" in target for target in descriptors(pid))


def descriptors(pid: int) -> list[str]:
    found: list[str] = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            found.append(str(entry.readlink()))
    return found


def is_in_slot(array: np.ndarray) -> bool:
    return any(first <= array.ctypes.data < last for first, last in slot_mappings())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shm")


@pytest.fixture(scope="module")
def near(big_node, folder) -> Iterator[MixServer]:
    """A server in this process that accepts memory of clients."""
    with serve({"train": big_node}, shared_memory=str(folder)) as server:
        yield server


def connect(server: MixServer, folder: Path, **options: Any) -> MixClient:
    return MixClient.connect(server.address, shared_memory=str(folder), **{"patience_s": 20} | options)


@pytest.fixture(scope="module")
def expected(near) -> np.ndarray:
    """The rows of 300 batches under the key 3, over plain gRPC."""
    with MixClient.connect(near.address, shared_memory=False, bulk=False) as plain:
        rows = plain.get_batch_at(0, 300 * SIZE, 3)["tokens"]
        assert not is_in_slot(rows)
        return rows.reshape(300, SIZE, ROW)


@pytest.fixture
def few_slots(monkeypatch) -> int:
    """New clients have slots for a few replies only, and prefetch little; returns the number of bytes of slots."""
    monkeypatch.setattr(slots_module, "_BYTES", 4 << 20)
    monkeypatch.setattr(ranges_module, "_READ_AHEAD_BYTES", 2 << 20)
    return 4 << 20


# (a), (i): memory that is in use is not overwritten

KEEP: list[Callable[[np.ndarray], Any]] = [
    lambda tokens: tokens,
    lambda tokens: tokens[3:],
    lambda tokens: tokens[1:7][2:4, 5:],
    lambda tokens: tokens[:, ::3],
    memoryview,
    lambda tokens: np.frombuffer(memoryview(tokens[5]), np.int16)[9:],
    jax.device_put,
    lambda tokens: jax.device_put(tokens[2]),
    lambda tokens: jnp.asarray(tokens)[1],
]


@pytest.mark.parametrize("seed", range(3))
def test_what_is_held_stays_while_slots_turn_over(near, folder, expected, few_slots, seed):
    rng = random.Random(seed)
    held, in_slots, over_grpc = list[tuple[int, int, Any]](), 0, 0

    def check(number: int, how: int, kept: Any) -> None:
        assert np.asarray(kept).tobytes() == np.asarray(KEEP[how](expected[number])).tobytes(), (number, how)

    with connect(near, folder) as client:
        for number, batch in enumerate(client.batches(SIZE, 3, stop=300 * SIZE)):
            tokens = batch["tokens"]
            if is_in_slot(tokens):
                in_slots += 1
            else:
                over_grpc += 1
            if rng.random() < 0.2:
                how = rng.randrange(len(KEEP))
                held.append((number, how, KEEP[how](tokens)))
            if held and rng.random() < 0.3:
                check(*held.pop(rng.randrange(len(held))))
            if rng.random() < 0.1:
                for kept in held:
                    check(*kept)
                held.clear()
        for kept in held:
            check(*kept)
    assert in_slots * BATCH_BYTES > 2 * few_slots, "slots did not turn over"
    assert over_grpc > 0, "there was a slot for everything"
    for kept in held:  # the client has gone, and the server has forgotten it
        check(*kept)


def test_arrays_on_the_device_stay_right_while_slots_turn_over(near, folder, expected, few_slots):
    ahead, in_slots = deque[tuple[int, jax.Array, jax.Array]](), 0
    doubled = jax.jit(lambda tokens: tokens * 2)
    with connect(near, folder) as client:
        for number, batch in enumerate(client.batches(SIZE, 3, stop=300 * SIZE)):
            in_slots += is_in_slot(batch["tokens"])
            tokens = jax.device_put(batch["tokens"])
            ahead.append((number, tokens, doubled(tokens)))
            if len(ahead) > 6:
                number, tokens, twice = ahead.popleft()
                np.testing.assert_array_equal(tokens, expected[number])
                np.testing.assert_array_equal(twice, expected[number] * 2)
                del tokens, twice
    assert in_slots * BATCH_BYTES > 2 * few_slots


def test_batches_of_all_sizes_come_through_slots_as_they_are(near, folder, expected, few_slots):
    rows = expected.reshape(-1, ROW)
    with connect(near, folder) as client:
        for size in (1, 3, 5, 8, 13, 64, 130, 390, 7):
            for number, batch in enumerate(client.batches(size, 3, start=1, stop=1 + 6 * size)):
                np.testing.assert_array_equal(batch["tokens"], rows[1 + number * size :][:size])
            np.testing.assert_array_equal(client.get_batch_at(2, size, 3)["tokens"], rows[2:][:size])
        shard = client.batches(33, 3, shard=(1, 3), stop=330)
        for number, batch in enumerate(shard):
            np.testing.assert_array_equal(batch["tokens"], rows[33 * number + 11 :][:11])
        assert client.transport.startswith("shared memory")


def test_many_threads_share_the_slots_of_a_client(near, folder, expected, few_slots):
    failed: list[Any] = []

    def read(client: MixClient, first: int) -> None:
        with client.batches(SIZE, 3, start=first * SIZE, stop=(first + 60) * SIZE) as batches:
            for number, batch in enumerate(batches, first):
                if not np.array_equal(batch["tokens"], expected[number]):
                    failed.append(number)

    with connect(near, folder) as client:
        threads = [threading.Thread(target=read, args=(client, 7 * i)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE_S)
            assert not thread.is_alive()
    assert failed == []


# (h): closed iterators


def test_iterators_that_are_dropped_midway_lose_no_memory_for_good(near, folder, expected, few_slots):
    def mapped() -> int:
        return sum(last - first for first, last in slot_mappings())

    rng, before = random.Random(0), mapped()
    with connect(near, folder) as client:
        for round_ in range(50):
            batches = client.batches(SIZE, 3)
            for number in range(rng.randrange(6)):
                np.testing.assert_array_equal(next(batches)["tokens"], expected[number])
            if round_ % 2:
                batches.close()
            del batches
        # Client and server both map every slot, and unmap lost ones.
        until(lambda: mapped() <= before + 2 * few_slots)
        came = [is_in_slot(batch["tokens"]) for batch in client.batches(SIZE, 3, stop=200 * SIZE)]
        assert sum(came) * BATCH_BYTES > few_slots
        assert mapped() <= before + 2 * few_slots


def test_closed_iterators_give_their_memory_back_at_once(near, folder, few_slots):
    """Not at the next run of the cycle collector, which may come much later: until then gRPC would carry everything."""
    gc.collect()
    before = [known for known in gc.get_objects() if isinstance(known, BackgroundStream)]  # of other tests
    gc.disable()
    try:
        with connect(near, folder) as client:
            for count in range(20):
                batches = client.batches(SIZE, 3)
                for _ in range(1 + count % 5):
                    next(batches)
                batches.close()
            with pytest.raises(DeadlineExceeded):  # the error refers to its frames, and so to the iterator
                next(client.batches(SIZE, 3, timeout_s=1e-6))
            del batches
            until(lambda: sum(isinstance(known, BackgroundStream) for known in gc.get_objects()) <= len(before))
    finally:
        gc.enable()


# (g): what does without it


def test_false_turns_a_way_off_on_either_side_and_the_transport_says_what_is_used(near, folder, big_node, expected):
    with serve({"train": big_node}, shared_memory=False) as without:
        routes = [
            (connect(near, folder), f"shared memory, grpc {near.address}", True),
            (connect(near, folder, bulk=False), f"shared memory, grpc {near.address}", True),
            (MixClient.connect(near.address, shared_memory=False), rf"bulk 127.0.0.1:\d+, grpc {near.address}", False),
            (connect(without, folder), rf"bulk 127.0.0.1:\d+, grpc {without.address}", False),
            (MixClient.connect(near.address, shared_memory=False, bulk=False), f"grpc {near.address}", False),
            (connect(without, folder, bulk=False), f"grpc {without.address}", False),
            (local_client({"train": big_node}), "in-process", False),
        ]
        for client, name, is_shared in routes:
            with client:
                came = list(client.batches(SIZE, 3, stop=20 * SIZE))
                np.testing.assert_array_equal([batch["tokens"] for batch in came], expected[:20])
                assert any(is_in_slot(batch["tokens"]) for batch in came) == is_shared
                assert re.fullmatch(name, client.transport)
                assert client.transport in repr(client)
            del came
    assert not list(folder.glob("*/*.sock")) or len(list(folder.glob("*/*.sock"))) == 1


def test_a_folder_that_cannot_be_had_leaves_grpc(tmp_path, big_node, expected, caplog):
    open_to_all = tmp_path / "open"
    (open_to_all / f"mixserve-{os.getuid()}").mkdir(parents=True, mode=0o755)
    for odd in (tmp_path / "none", open_to_all):
        caplog.clear()
        with serve({"train": big_node}, shared_memory=str(odd)) as server, connect(server, odd) as client:
            assert "no shared memory" in caplog.text
            np.testing.assert_array_equal(client.get_batch_at(0, MANY, 3)["tokens"], expected[:4].reshape(MANY, ROW))
            assert "shared memory" not in client.transport


def test_a_folder_whose_name_is_too_long_for_a_socket_costs_no_descriptor(tmp_path):
    long = tmp_path / ("x" * 120)
    long.mkdir()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with suppress(OSError):
            SharedMemory(long)
            pytest.fail("it listens")
        gc.collect()
    assert [str(warning.message) for warning in caught if warning.category is ResourceWarning] == []


def test_a_closed_client_keeps_no_slots(near, folder, few_slots):
    gc.collect()
    before = len(slot_mappings())
    client = connect(near, folder)
    assert is_in_slot(client.get_batch_at(0, MANY, 3)["tokens"])
    client.close()
    until(lambda: len(slot_mappings()) <= before, GONE_S)
    assert client.transport


def test_a_signal_while_slots_are_made_loses_none(near, folder, few_slots, monkeypatch):
    pool = slots_module.SlotPool(str(next(folder.glob("*/*"))), str(folder), time.monotonic() + GONE_S)
    create, sizes = pool._create, [1 << 20] * 4
    calls = iter([True, True, False])

    def interrupted(size: int, until: float) -> slots_module.Slot:
        if not next(calls):
            raise KeyboardInterrupt
        return create(size, until)

    with monkeypatch.context() as patch:
        patch.setattr(pool, "_create", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pool.take(4, sizes[0], time.monotonic() + GONE_S)
    taken = pool.take(4, sizes[0], time.monotonic() + GONE_S)
    pool.close()
    assert len(taken) == 4  # including the two that were made before: 4 MiB hold no more


def test_a_server_may_be_stopped_twice(big_node, tmp_path):
    server = serve({"train": big_node}, shared_memory=str(tmp_path))
    server.stop()
    server.stop()


# (e): untrusted paths


class Elsewhere:
    """Slots of a servicer that advertises any path, and knows none."""

    def __init__(self, path: Path):
        self.path = str(path)

    def path_for(self, peer: str) -> str:
        return self.path

    def memory(self, slot: int) -> None:
        return None


@contextmanager
def listen_at(path: Path, mode: int = 0o700) -> Iterator[socket.socket]:
    """A socket like a server's, in a folder of that mode."""
    path.parent.mkdir(mode=0o700)
    path.parent.chmod(mode)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as found:
        found.bind(str(path))
        found.listen()
        yield found


@contextmanager
def advertise(node: MixDataSourcesNode, path: Path) -> Iterator[MixServer]:
    """A server that advertises shared memory at `path`."""
    server = MixServer(Services({"train": node}, slots=Elsewhere(path)), "127.0.0.1:0")
    server.start()
    with server:
        yield server


def comes_over_grpc(node: MixDataSourcesNode, path: Path, folder: Path, rows: np.ndarray) -> bool:
    """Whether a client of a server that advertises `path` avoids it; the batches are right in any case."""
    with advertise(node, path) as server, connect(server, folder) as client:
        np.testing.assert_array_equal(client.get_batch_at(0, MANY, 3)["tokens"], rows)
        return "shared memory" not in client.transport


def test_a_socket_that_is_private_and_where_it_should_be_is_connected_to(tmp_path, big_node, expected):
    """Shows that the other tests of paths can fail."""
    path = tmp_path / "own" / "x.sock"
    with listen_at(path) as there:
        there.settimeout(DEADLINE_S)
        came = threading.Thread(target=lambda: there.accept()[0].close())
        came.start()
        assert not comes_over_grpc(big_node, path, tmp_path, expected[:4].reshape(MANY, ROW))
        came.join(DEADLINE_S)
        assert not came.is_alive()


def link_to_the_socket(own: Path) -> Path:
    (own / "link.sock").symlink_to(own / "x.sock")
    return own / "link.sock"


def link_to_the_folder(own: Path) -> Path:
    (own.parent / "link").symlink_to(own)
    return own.parent / "link" / "x.sock"


def detour(own: Path) -> Path:
    return own / ".." / own.name / "x.sock"


def deeper(own: Path) -> Path:
    (own / "more").mkdir(mode=0o700)
    (own / "x.sock").rename(own / "more" / "x.sock")
    return own / "more" / "x.sock"


def shallower(own: Path) -> Path:
    (own / "x.sock").rename(own.parent / "x.sock")
    return own.parent / "x.sock"


def open_folder(own: Path) -> Path:
    own.chmod(0o755)
    return own / "x.sock"


def group_folder(own: Path) -> Path:
    own.chmod(0o710)
    return own / "x.sock"


def plain_file(own: Path) -> Path:
    (own / "file.sock").write_bytes(b"")
    return own / "file.sock"


def directory(own: Path) -> Path:
    (own / "folder.sock").mkdir()
    return own / "folder.sock"


def nothing(own: Path) -> Path:
    return own / "none.sock"


def no_folder(own: Path) -> Path:
    return own.parent / "none" / "x.sock"


def relative(own: Path) -> Path:
    return Path(own.name) / "x.sock"


def somebody_elses_socket(own: Path) -> Path:
    os.chown(own / "x.sock", NOBODY, NOBODY)
    return own / "x.sock"


def somebody_elses_folder(own: Path) -> Path:
    os.chown(own, NOBODY, NOBODY)
    return own / "x.sock"


UNTRUSTED = [
    link_to_the_socket,
    link_to_the_folder,
    detour,
    deeper,
    shallower,
    open_folder,
    group_folder,
    plain_file,
    directory,
    nothing,
    no_folder,
    relative,
    pytest.param(somebody_elses_socket, marks=as_root),
    pytest.param(somebody_elses_folder, marks=as_root),
]


@pytest.mark.parametrize("bend", UNTRUSTED, ids=lambda bend: bend.__name__)
def test_paths_that_are_not_to_be_trusted_are_not_connected_to(tmp_path, big_node, expected, caplog, bend):
    caplog.set_level(logging.INFO, "mixserve_client")
    with listen_at(tmp_path / "own" / "x.sock") as there:
        assert comes_over_grpc(big_node, bend(tmp_path / "own"), tmp_path, expected[:4].reshape(MANY, ROW))
        assert "batches do not come through shared memory" in caplog.text
        there.setblocking(False)
        with pytest.raises(BlockingIOError):  # no client has connected
            there.accept()


def test_a_socket_that_was_not_there_yet_is_found_later(tmp_path, big_node, expected):
    """The server that a client asked had just ended, or its folder was not mounted yet."""
    with serve({"train": big_node}, shared_memory=str(tmp_path)) as server:
        (socket_path,) = tmp_path.glob("*/*.sock")
        hidden = socket_path.with_suffix(".hidden")
        socket_path.rename(hidden)
        with connect(server, tmp_path) as client:
            for start in (0, 5):
                assert not is_in_slot(client.get_batch_at(start, MANY, 3)["tokens"])
            hidden.rename(socket_path)
            until(lambda: is_in_slot(client.get_batch_at(0, MANY, 3)["tokens"]))
            np.testing.assert_array_equal(client.get_batch_at(0, MANY, 3)["tokens"], expected[:4].reshape(MANY, ROW))
            assert client.transport.startswith("shared memory")


def test_a_socket_outside_of_the_clients_folder_is_not_connected_to(tmp_path, big_node, expected, caplog):
    caplog.set_level(logging.INFO, "mixserve_client")
    (tmp_path / "other").mkdir()
    with listen_at(tmp_path / "own" / "x.sock"):
        assert comes_over_grpc(
            big_node, tmp_path / "own" / "x.sock", tmp_path / "other", expected[:4].reshape(MANY, ROW)
        )
    assert "pass the server's folder to connect()" in caplog.text


def test_a_socket_that_nobody_listens_on_is_left_alone(tmp_path, big_node, expected, caplog):
    caplog.set_level(logging.INFO, "mixserve_client")
    with listen_at(tmp_path / "own" / "x.sock"):
        pass
    assert comes_over_grpc(big_node, tmp_path / "own" / "x.sock", tmp_path, expected[:4].reshape(MANY, ROW))
    assert "batches do not come through shared memory" in caplog.text


@contextmanager
def another_user(script: str, folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process of another user that works in `folder`, after it has printed `ready`."""
    code = f"import os, socket, sys\nos.chdir(sys.argv[1])\nos.setgid({NOBODY}); os.setuid({NOBODY})\n{script}"
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdin=pipe, stdout=pipe, text=True)
    with process:
        try:
            yield process
        finally:
            process.kill()


@as_root
def test_a_socket_that_another_user_serves_is_left_alone(tmp_path, big_node, expected, caplog):
    caplog.set_level(logging.INFO, "mixserve_client")
    own = tmp_path / "own"
    own.mkdir()
    os.chown(own, NOBODY, NOBODY)
    script = (
        "there = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); there.bind('x.sock'); there.listen()\n"
        "print('ready', flush=True); sys.stdin.read()"
    )
    with another_user(script, own) as process:
        assert process.stdout.readline() == "ready\n"
        for path in (own, own / "x.sock"):
            os.chown(path, 0, 0)
        own.chmod(0o700)
        assert comes_over_grpc(big_node, own / "x.sock", tmp_path, expected[:4].reshape(MANY, ROW))
    assert "is served by another user" in caplog.text


@as_root
def test_processes_of_other_users_are_turned_away(tmp_path, big_node, expected):
    with serve({"train": big_node}, shared_memory=str(tmp_path)) as server:
        (path,) = tmp_path.glob("*/*.sock")
        path.parent.chmod(0o711)  # so that only the server's own check of the peer remains
        path.chmod(0o777)
        script = (
            "there = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); there.settimeout(20)\n"
            f"there.connect({path.name!r})\n"
            "try: there.send(bytes(16))\n"
            "except OSError: pass\n"
            "try: print(there.recv(99), flush=True)\n"
            "except ConnectionError: print(b'', flush=True)"
        )
        with another_user(script, path.parent) as process:
            assert process.stdout.readline() == "b''\n"
        path.parent.chmod(0o700)
        with connect(server, tmp_path) as client:
            np.testing.assert_array_equal(client.get_batch_at(0, MANY, 3)["tokens"], expected[:4].reshape(MANY, ROW))
            assert client.transport.startswith("shared memory")


# (f): no memory left

SHORT_OF_MEMORY = """
import logging, resource, signal, sys
import numpy as np
from mixserve_client import MixClient
logging.basicConfig(level=logging.INFO, stream=sys.stderr)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
address, folder, limit, size = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
shared, plain = MixClient.connect(address, shared_memory=folder), MixClient.connect(address, shared_memory=False)
if limit == 0:
    next(shared.batches(size // 4, 3))  # some slots are there already when memory runs out
    limit = 1
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
pairs = zip(shared.batches(size, 3, stop=60 * size), plain.batches(size, 3, stop=60 * size), strict=True)
print(sum(np.array_equal(a["tokens"], b["tokens"]) for a, b in pairs))
"""


@pytest.mark.parametrize("limit", [1, 300_000, 0], ids=["nothing", "less than a slot", "later"])
def test_where_memory_is_short_batches_come_over_grpc(near, folder, limit):
    arguments = [near.address, str(folder), str(limit), str(SIZE)]
    done = subprocess.run(
        [sys.executable, "-c", SHORT_OF_MEMORY, *arguments], capture_output=True, text=True, timeout=DEADLINE_S
    )
    assert (done.returncode, done.stdout) == (0, "60\n"), done.stderr
    assert "shared memory stays at" in done.stderr


def test_the_limit_of_that_test_is_in_the_way_of_a_slot():
    code = (
        "import os, resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))\n"
        "os.posix_fallocate(os.memfd_create('x'), 0, 600_000)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE_S)
    assert "File too large" in done.stderr


# Separate processes


def make_clients(address: str, folder: str) -> None:
    """For each line of standard input, fork a client that iterates until it is killed."""
    for _ in sys.stdin:
        pid = os.fork()
        if pid == 0:
            client, held = MixClient.connect(address, shared_memory=folder), []
            for batch in client.batches(8, 0):
                held = [*held[-20:], batch]
        print(pid, flush=True)
        os.waitpid(pid, 0)


def serving_on(process: Forked) -> str:
    """The address of a server process; waits until it serves."""
    return wait_for_line(process, lambda log: re.search(r"serving on (\S+)", log), DEADLINE_S).group(1)


@pytest.fixture(scope="module")
def far(tmp_path_factory) -> Iterator[tuple[Forked, str, Path]]:
    """A server in its own process: the process, its address and its folder."""
    folder = tmp_path_factory.mktemp("far")
    with memory_server(folder) as process:
        yield process, serving_on(process), folder


def goes_on(far: tuple[Forked, str, Path]) -> None:
    """The server still answers and accepts memory."""
    _, address, folder = far
    with MixClient.connect(address, shared_memory=str(folder), patience_s=20) as client:
        assert client.get_batch_at(0, MANY, 3)["tokens"].shape == (MANY, ROW)
        assert client.transport.startswith("shared memory")


# (b): killed clients


def test_a_server_forgets_clients_that_are_killed(far, tmp_path):
    server, address, folder = far
    rng, were_mapped = random.Random(0), 0
    makes_clients = Forked(make_clients, address, str(folder), log=tmp_path / "clients.log")
    try:
        for round_ in range(10):
            makes_clients.tell("")
            until(lambda count=round_: makes_clients.log().count("\n") > count)
            pid = int(makes_clients.log().split()[-1])
            if round_ % 2:
                until(lambda: slot_mappings(server.pid))
            time.sleep(rng.uniform(0, 0.2))  # any moment will do
            were_mapped += bool(slot_mappings(server.pid))
            os.kill(pid, signal.SIGKILL)
            until(lambda: not slot_mappings(server.pid), GONE_S)
            until(lambda: not slot_descriptors(server.pid), GONE_S)
            (own,) = (entry for entry in folder.iterdir() if entry.is_dir())
            (left,) = own.iterdir()
            assert left.is_socket()
    finally:
        makes_clients.kill()
    assert were_mapped >= 5
    goes_on(far)


def test_memory_of_a_client_that_closes_is_forgotten_too(far):
    server, address, folder = far
    with MixClient.connect(address, shared_memory=str(folder), patience_s=20) as client:
        batch = client.get_batch_at(0, MANY, 3)
        before = batch["tokens"].copy()
        assert slot_mappings(server.pid)
    until(lambda: not slot_mappings(server.pid), GONE_S)
    np.testing.assert_array_equal(batch["tokens"], before)


# (c): killed servers


def test_a_killed_server_comes_back_and_shared_memory_with_it(tmp_path, monkeypatch):
    monkeypatch.setattr(ranges_module, "_READ_AHEAD_BYTES", 2 << 20)

    def sockets() -> list[Path]:
        return list(tmp_path.glob("*/*.sock"))

    came: list[tuple[np.ndarray, bool]] = []
    with memory_server(tmp_path) as first:
        address = serving_on(first)
        client = MixClient.connect(address, shared_memory=str(tmp_path), patience_s=DEADLINE_S)
        batches = client.batches(SIZE, 3)
        for _ in range(30):
            tokens = next(batches)["tokens"]
            came.append((tokens, is_in_slot(tokens)))  # kept, so that the slots of the dead server stay in use
        (stale,) = sockets()
        first.kill()
    assert stale.is_socket()
    with memory_server(tmp_path, address) as second:
        while not (client.transport.startswith("shared memory") and slot_mappings(second.pid)):
            came.append((next(batches)["tokens"], False))
            assert len(came) < 1000
        for _ in range(100):
            tokens = next(batches)["tokens"]
            came.append((tokens.copy(), is_in_slot(tokens)))
        assert any(shared for _, shared in came[:30])
        assert any(shared for _, shared in came[-50:])
        with MixClient.connect(address, shared_memory=False) as plain:
            expected = plain.get_batch_at(0, len(came) * SIZE, 3)["tokens"].reshape(-1, SIZE, ROW)
        np.testing.assert_array_equal([tokens for tokens, _ in came], expected)
        (fresh,) = sockets()
        assert fresh != stale
        with MixClient.connect(address, shared_memory=str(tmp_path), patience_s=0.5) as other:
            lost = other.batches(SIZE, 3)
            next(lost)
            second.kill()
            with pytest.raises(Unavailable, match="patience_s"):
                for _ in range(100_000):  # batches in flight may still arrive
                    next(lost)
    client.close()


# (d): hostile clients


def memfd(size: int, seals: int = fcntl.F_SEAL_SHRINK, *, filled: bool = True) -> int:
    descriptor = os.memfd_create("hostile", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, size)
    if filled and size:
        os.posix_fallocate(descriptor, 0, size)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


def dev_shm_file() -> int:
    descriptor = os.open("/dev/shm", os.O_TMPFILE | os.O_RDWR, 0o600)
    os.ftruncate(descriptor, 1 << 16)
    return descriptor


def disk_file() -> int:
    return os.open(__file__, os.O_RDONLY)


def pipe_end() -> int:
    reading, writing = os.pipe()
    os.close(writing)
    return reading


def read_only() -> int:
    descriptor = memfd(1 << 16)
    reopened = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY)
    os.close(descriptor)
    return reopened


@contextmanager
def connection(far: tuple[Forked, str, Path]) -> Iterator[socket.socket]:
    (path,) = far[2].glob("*/*.sock")
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)) as found:
        found.settimeout(GONE_S)
        found.connect(str(path))
        yield found


def hand_in(there: socket.socket, size: int, *descriptors: int) -> tuple[int, str]:
    """Hand in memory; returns the id and the reason that the server answers."""
    socket.send_fds(there, [struct.pack("<qQ", size, 0)], descriptors)
    for descriptor in descriptors:
        os.close(descriptor)
    answer = there.recv(1000)
    return struct.unpack_from("<Q", answer)[0], answer[8:].decode()


@contextmanager
def no_leaks(far: tuple[Forked, str, Path]) -> Iterator[None]:
    """After the block the server has no more descriptors and mappings than before, and still works."""
    server = far[0]
    until(lambda: not slot_descriptors(server.pid))
    before = sum("socket:" not in target for target in descriptors(server.pid))
    yield
    until(lambda: sum("socket:" not in target for target in descriptors(server.pid)) <= before, GONE_S)
    assert "memfd:" not in Path(f"/proc/{server.pid}/maps").read_text()
    goes_on(far)


K64 = 1 << 16
HOSTILE: list[Any] = [
    pytest.param(K64, [lambda: memfd(K64, 0)], "sealed against shrinking", id="no seals"),
    pytest.param(K64, [lambda: memfd(K64, fcntl.F_SEAL_GROW)], "sealed against shrinking", id="another seal"),
    pytest.param(K64, [dev_shm_file], "must be", id="file in /dev/shm"),
    pytest.param(100, [disk_file], "must be a memfd", id="file on a disk"),
    pytest.param(K64, [pipe_end], "must be a memfd", id="pipe"),
    pytest.param(K64, [read_only], "Permission denied", id="read-only"),
    pytest.param(K64, [lambda: memfd(K64, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_WRITE)], "", id="sealed against writing"),
    pytest.param(K64, [lambda: memfd(K64 - 4096)], f"{K64} were announced", id="shorter"),
    pytest.param(K64, [lambda: memfd(0)], "only 0 bytes", id="empty"),
    pytest.param(K64, [lambda: memfd(K64, filled=False)], "only 0 bytes", id="no memory reserved"),
    pytest.param(-1, [lambda: memfd(K64)], "must have 1..", id="negative"),
    pytest.param(-(2**63), [lambda: memfd(K64)], "must have 1..", id="most negative"),
    pytest.param(2**63 - 1, [lambda: memfd(K64)], "must have 1..", id="huge"),
    pytest.param(1 << 32, [lambda: memfd(K64)], f"only {K64} bytes", id="4 GiB announced"),
    pytest.param((1 << 32) + 1, [lambda: memfd((1 << 32) + 1, filled=False)], "must have 1..", id="more than 4 GiB"),
    pytest.param(K64, [], "exactly one descriptor must come with a slot, got 0", id="no descriptor"),
    pytest.param(K64, [lambda: memfd(K64)] * 2, "exactly one descriptor must come with a slot, got 2", id="two"),
    pytest.param(K64, [lambda: memfd(K64)] * 50, "exactly one descriptor must come with a slot, got", id="fifty"),
]


@pytest.mark.parametrize(("size", "made", "said"), HOSTILE)
def test_memory_that_could_end_the_server_is_refused_with_a_reason(far, size, made, said):
    with no_leaks(far), connection(far) as there:
        for _ in range(3):
            slot, reason = hand_in(there, size, *[make() for make in made])
            assert slot == 0
            assert reason
            assert said in reason
        good, reason = hand_in(there, K64, memfd(K64))  # over the same connection
        assert good != 0
        assert reason == ""


GARBAGE = [
    b"",
    b"\0",
    bytes(15),
    bytes(17),
    b"\xff" * 16,
    b"\xff" * 200,
    bytes(60_000),
    random.Random(0).randbytes(999),
]


@pytest.mark.parametrize("packet", GARBAGE, ids=lambda packet: f"{packet[:1].hex()} {len(packet)}")
@pytest.mark.parametrize("count", [0, 1, 9])
def test_garbage_ends_a_connection_at_most(far, packet, count):
    with no_leaks(far):
        for _ in range(3):
            with connection(far) as there:
                found = [memfd(K64) for _ in range(count)]
                if packet or count:
                    socket.send_fds(there, [packet], found)
                else:
                    there.shutdown(socket.SHUT_WR)
                for descriptor in found:
                    os.close(descriptor)


def test_sizes_of_0_and_unknown_slots_are_passed_over(far):
    with no_leaks(far), connection(far) as there:
        for slot in (0, 1, 2**64 - 1):
            descriptor = memfd(K64)
            socket.send_fds(there, [struct.pack("<qQ", 0, slot)], [descriptor])
            os.close(descriptor)
        assert hand_in(there, K64, memfd(K64))[0] != 0  # the next answer belongs to this request


def test_a_slot_is_not_taken_back_over_another_connection_and_once_only(far):
    server = far[0]

    def mapped() -> int:
        return Path(f"/proc/{server.pid}/maps").read_text().count("memfd:hostile")

    with no_leaks(far), connection(far) as there, connection(far) as other:
        slot, _ = hand_in(there, K64, memfd(K64))
        other.send(struct.pack("<qQ", 0, slot))
        assert hand_in(other, K64, memfd(K64))[0] not in (0, slot)  # the server has processed the earlier messages
        assert mapped() == 2
        there.send(struct.pack("<qQ", 0, slot))
        there.send(struct.pack("<qQ", 0, slot))
        hand_in(there, 0 - 1, memfd(K64))
        until(lambda: mapped() == 1, GONE_S)


def test_a_client_may_hand_in_a_bounded_number_of_slots(far):
    with no_leaks(far), connection(far) as there:
        answers = [hand_in(there, 4096, memfd(4096)) for _ in range(300)]
    taken = [slot for slot, _ in answers if slot]
    assert len(taken) == len(set(taken)) < 300
    assert all("slots" in reason for slot, reason in answers if not slot)


def test_a_client_that_reads_no_answers_does_not_hold_up_others(far):
    with no_leaks(far), connection(far) as there:
        there.setblocking(False)
        with suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            for _ in range(5000):
                there.send(struct.pack("<qQ", -1, 0))
        goes_on(far)


def test_a_sealed_slot_cannot_be_cut_short(far):
    with no_leaks(far), connection(far) as there:
        descriptor = memfd(K64, fcntl.F_SEAL_SHRINK)
        slot, _ = hand_in(there, K64, os.dup(descriptor))
        assert slot
        with pytest.raises(PermissionError):
            os.ftruncate(descriptor, 0)
        os.close(descriptor)


def test_the_clients_own_slots_cannot_be_cut_short_or_unsealed(near, folder):
    with connect(near, folder) as client:
        batch = client.get_batch_at(0, MANY, 3)
        assert is_in_slot(batch["tokens"])
        found: list[Path] = []
        for entry in Path("/proc/self/fd").iterdir():
            with suppress(FileNotFoundError):
                found += [entry] if "memfd:mixserve-slot" in str(entry.readlink()) else []
        assert found
        for entry in found:
            descriptor = os.open(entry, os.O_RDWR)
            size = os.fstat(descriptor).st_size
            for change in (0, size - 1, size + 1):
                with pytest.raises(PermissionError):
                    os.ftruncate(descriptor, change)
            with pytest.raises(PermissionError):
                fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
            os.close(descriptor)
        assert_batches_equal(client.get_batch_at(0, MANY, 3), batch)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning", "ignore:.*fork:RuntimeWarning")
@pytest.mark.parametrize("size", [MANY, 32 * MANY], ids=["slot", "landed or slot"])
@pytest.mark.parametrize("shared", [True, False], ids=["shared memory", "grpc"])
def test_what_a_forked_process_holds_stays_while_its_parent_reads_on(near, folder, size, shared):
    with MixClient.connect(near.address, patience_s=20, shared_memory=str(folder) if shared else False) as client:
        held = client.get_batch_at(0, size, 3)["tokens"]
        expected = held.tobytes()
        go = os.pipe()
        child = os.fork()
        if child == 0:
            os.read(go[0], 1)
            os._exit(0 if held.tobytes() == expected else 1)
        del held
        for start in range(1, 20):
            client.get_batch_at(start * size, size, 3)
        os.write(go[1], b"x")
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        for end in go:
            os.close(end)


def test_a_server_starts_beside_one_that_takes_no_more_connections(tmp_path):
    kind = socket.AF_UNIX, socket.SOCK_SEQPACKET
    with ExitStack() as opened, closing(SharedMemory(str(tmp_path))), socket.socket(*kind) as stuck:
        (folder,) = tmp_path.iterdir()
        stuck.bind(str(folder / "stuck.sock"))
        stuck.listen(1)
        with suppress(BlockingIOError):
            while True:
                waiting = opened.enter_context(socket.socket(*kind))
                waiting.setblocking(False)
                waiting.connect(str(folder / "stuck.sock"))
        SharedMemory(str(tmp_path)).close()
        assert (folder / "stuck.sock").exists()

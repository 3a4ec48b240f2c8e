"""Two threads at one bulk channel: one may still wait for the end of a stream that its reader has left."""

import socket
import threading
import time

from mixserve_client.errors import MixserveError
from mixserve_client.transport.buffers import MemoryPool
from mixserve_client.transport.bulk_connection import BulkConnection
from mixserve_client.transport.pipes import PlainPipe
from mixserve_client.transport.waits import acquire
from mixserve_client.wire import methods
from mixserve_client.wire.bulk import Kind
from tests.bulk.peers import DEADLINE_S, TOKEN, header, let_in, until


class Server:
    """What a connection needs of its server, and this one does not."""

    def ask(self, timeout_s: float) -> list[bytes]:
        raise NotImplementedError

    def note_reply(self) -> None:
        pass

    def note_loss(self, error: OSError) -> None:
        raise error

    def convert(self, error: MixserveError) -> MixserveError:
        return error


def test_a_thread_that_waits_for_an_end_takes_nothing_of_the_next_stream() -> None:
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    whole = bytes(range(256)) * 256
    with theirs:
        answering = threading.Thread(target=let_in, args=(theirs,))
        answering.start()
        until_s = time.monotonic() + DEADLINE_S
        connection = BulkConnection(PlainPipe(mine), "channel", TOKEN, until_s, MemoryPool(), Server(), False)
        answering.join()
        first, second = (connection.open(methods.STREAM_BATCHES, b"") for _ in range(2))
        theirs.sendall(header(Kind.REPLY, first.number, 3) + b"abc")
        replies, ends = iter(first), list[object]()
        assert bytes(next(replies)) == b"abc"
        waiting = threading.Thread(target=lambda: ends.append(next(replies, None)))
        waiting.start()
        until(connection._reading.locked)
        second.cancel()  # the connection stays, for the end of the first
        third, found = connection.open(methods.STREAM_BATCHES, b""), list[bytes]()
        reading = threading.Thread(target=lambda: found.extend(bytes(reply) for reply in third))
        reading.start()
        sent = header(Kind.END, first.number) + header(Kind.END, second.number)
        sent += header(Kind.REPLY, third.number, len(whole)) + whole + header(Kind.END, third.number)
        for at in range(0, len(sent), 500):  # in many pieces, so that two threads would each get some
            theirs.sendall(sent[at : at + 500])
            time.sleep(0)
        for thread in (waiting, reading):
            thread.join(DEADLINE_S)
        assert ends == [None]
        assert found == [whole]
        connection.close()


def test_a_deadline_that_no_lock_can_wait_for_is_no_error() -> None:
    lock = threading.Lock()
    with lock:
        waiting = threading.Thread(target=acquire, args=(lock, time.monotonic() + 1e12))
        waiting.start()
        waiting.join(0.05)
        assert waiting.is_alive()  # an OverflowError would have ended it
    waiting.join(DEADLINE_S)
    assert not waiting.is_alive()

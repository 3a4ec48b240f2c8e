"""Readers that stop reading, and the speed of the other clients before and after."""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

from benchmarks.common.spread import spread
from benchmarks.common.targets import Row
from benchmarks.crowd.iterating import MODULE as ITERATING
from benchmarks.crowd.iterating import TCP, total_speed
from benchmarks.crowd.scenario import Outcome, Step, Window, ask, children, new_key, server
from mixserve_client.schema.keys import key_words
from mixserve_client.schema.requests import BatchRequest, StreamRequest
from mixserve_client.wire import methods
from mixserve_client.wire.request import encode_stream_request

MODULE = "benchmarks.crowd.stalled"
_READERS, _CLIENTS = 6, 2
_SIZE = 256
_COUNT = 1 << 20  # batches that are never read: 2 TiB
_WARM_UP_S, _SECONDS = 0.7, 2.0
_AFTER_S = 15.0
_FILLED_S, _LOOKED_S = 2.0, 1.0
_UNREAD_REPLIES = 32  # of 2 MiB, more than connections hold
_STALLED_BYTES = 1 << 12  # per second on a stalled connection: pings
_RECEIVED = slice(128, 136)  # tcpi_bytes_received in Linux's struct tcp_info


def run(repetitions: int, step: Step) -> Outcome:
    figures = []
    with (
        server() as (address, _),
        children(_CLIENTS, ITERATING, address, TCP) as clients,
        children(_READERS, MODULE, address) as readers,
    ):
        total_speed(clients, _SIZE, Window.after(3.0, 0.1))  # connects all clients
        for number in range(repetitions):
            step(f"{_READERS} stalled readers, repetition {number + 1}")
            before = total_speed(clients, _SIZE, Window.after(_WARM_UP_S, _SECONDS))
            opened = time.monotonic()
            stalled = ask(readers, [{"key": new_key()} for _ in readers])
            during = total_speed(clients, _SIZE, Window.after(_WARM_UP_S, _SECONDS))
            time.sleep(max(0.0, opened + _AFTER_S - _WARM_UP_S - time.monotonic()))
            after = total_speed(clients, _SIZE, Window.after(_WARM_UP_S, _SECONDS))
            ended = ask(readers, [{"key": None}] * _READERS)
            figures.append(
                {"before": before, "during": during, "after": after, "readers": _merge(stalled, ended)},
            )
    row = Row(
        f"{_CLIENTS} clients, batches of {_SIZE}, GB/s, {_AFTER_S:g} s after {_READERS} readers stopped reading",
        "before",
        ">=",
        0.9,
        spread([one["after"] / one["before"] for one in figures]),
    )
    return Outcome([row], [_note(figures)], figures)


def _merge(stalled: list[dict[str, Any]], ended: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**first, **last} for first, last in zip(stalled, ended, strict=True)]


def _note(figures: list[dict[str, Any]]) -> str:
    readers = [reader for one in figures for reader in one["readers"]]
    grown = [reader["grew_bytes"] for reader in readers]
    if None in grown:
        proven = "this system does not tell whether they stalled"
    else:
        proven = f"{sum(one <= _STALLED_BYTES for one in grown)} of {len(readers)} had stalled after {_FILLED_S:g} s"
    ended = sum(reader["ended"] for reader in readers)
    before, during, after = (spread([one[name] for one in figures]) for name in ("before", "during", "after"))
    return (
        f"Stalled readers: {proven}; the server had ended {ended} of their streams at the end. The others had {before} "
        f"GB/s before, {during} while they were stalled, and {after} after {_AFTER_S:g} s."
    )


@contextmanager
def answering(address: str) -> Iterator[Callable[..., dict[str, Any]]]:
    """With a key: open a stream, never read it, and report what arrived; without: report its status and drop it."""
    opened: list[tuple[grpc.Channel, Any]] = []

    def answer(key: int | None) -> dict[str, Any]:
        if key is None:
            channel, call = opened.pop()
            code = end_status(call)
            call.cancel()
            channel.close()
            return {"ended": code is not None, "code": code}
        channel = grpc.insecure_channel(address, options=[("grpc.max_receive_message_length", -1)])
        request = StreamRequest(BatchRequest("", 0, _SIZE, key_words(key)), _SIZE, _COUNT, _SIZE)
        opened.append((channel, channel.unary_stream(methods.STREAM_BATCHES)(encode_stream_request(request))))
        # First the buffers of gRPC and the kernel fill; only then does a stream that is not read stand still.
        time.sleep(_FILLED_S)
        filled = received_bytes(int(address.rpartition(":")[2]))
        time.sleep(_LOOKED_S)
        later = received_bytes(int(address.rpartition(":")[2]))
        grew = None if filled is None or later is None else later - filled
        return {"received_bytes": filled, "grew_bytes": grew}

    yield answer


def end_status(call: Iterator[bytes]) -> str | None:
    """The status with which a stream ended, which follows the unread replies; None if it continues."""
    try:
        for _ in range(_UNREAD_REPLIES):
            if next(call, None) is None:
                return grpc.StatusCode.OK.name
    except grpc.RpcError as error:
        return error.code().name
    return None


def received_bytes(port: int) -> int | None:
    """How many bytes this process's connections to the port received; None if the system does not tell (macOS)."""
    if not hasattr(socket, "TCP_INFO"):
        return None
    received = 0
    for path in Path("/proc/self/fd").iterdir():
        try:
            connection = socket.socket(fileno=int(path.name))
        except OSError:  # not a socket
            continue
        try:
            if connection.family in (socket.AF_INET, socket.AF_INET6) and connection.getpeername()[1] == port:
                information = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _RECEIVED.stop)
                received += int.from_bytes(information[_RECEIVED], "little")
        except OSError:  # not connected
            pass
        finally:
            connection.detach()  # gRPC owns the descriptor, and closing it here would break the stream
    return received

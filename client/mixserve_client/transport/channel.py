"""A gRPC channel that can be replaced while its streams run."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from mixserve_client.transport.credentials import Credentials
from mixserve_client.transport.forking import GATE
from mixserve_client.wire.reply import LARGEST_REPLY_BYTES

# The limit on replies admits one row of the largest size; what reads a smaller kind of reply checks its own limit.
# gRPC pings no peer by default, so a call to one that froze, or whose host is gone, would wait forever. It counts pings
# that nothing else goes with, and by default stops after two.
_OPTIONS = [
    ("grpc.max_receive_message_length", LARGEST_REPLY_BYTES),
    ("grpc.max_send_message_length", -1),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.min_reconnect_backoff_ms", 5_000),  # also the time limit of one attempt to connect
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # A name is looked up again when its server is lost; by default not before 30 s after the last time.
    ("grpc.dns_min_time_between_resolutions_ms", 1_000),
    # gRPC's own retries, of calls that no server has seen: with them, a stream that cannot connect now and then never
    # ends (tests/soak/test_lost_workers.py). The client itself tries again, wherever a call fails.
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),  # gRPC obeys http_proxy by default; web proxies seldom reach data servers
]


KEEPALIVE_S = 5
# What servers of before accept: they end connections that ping more often.
SELDOM_S = 20
# An answer to a ping comes after the data in the buffers of a slow network: 4 MB take 20 s with 200 kB/s.
_ANSWER_FACTOR, _LONGEST_ANSWER_S = 4, 20


class Channel:
    """A channel under the credentials of the moment; connects at its first call. A call takes it, and returns it."""

    def __init__(self, target: str, credentials: Credentials, keepalive_s: int = KEEPALIVE_S, number: int = 0):
        """A quiet peer is pinged every `keepalive_s` seconds, and has four times as long to answer, 20 s at most.

        Channels of one process share a connection if they have the same target, options and `number`.

        Raises InvalidRequest if a file of TLS cannot be used.
        """
        self.opened_at = time.monotonic()
        self.version = credentials.channel_version()
        answer_s = min(_LONGEST_ANSWER_S, _ANSWER_FACTOR * keepalive_s)
        pings = [
            ("grpc.keepalive_time_ms", keepalive_s * 1000),
            # Without this, a server's process that is stopped is waited for longer than 60 s: the timeout of keepalive
            # is the kernel's (TCP_USER_TIMEOUT), for hosts that are gone.
            ("grpc.http2.ping_timeout_ms", answer_s * 1000),
        ]
        # gRPC does not know this option. It shares the connections of channels whose options are equal.
        own = [("mixserve.number", number)] * bool(number)
        self._channel = credentials.open_channel(target, [*_OPTIONS, *pings, *own])
        self._methods: dict[str, Callable[..., Any]] = {}
        self._lock = threading.Lock()
        self._calls = 0
        self._is_retired = False

    def take(self, method: str, kind: str) -> Callable[..., Any]:
        """The method, for one call, after which `put_back` must be called."""
        with self._lock:
            self._calls += 1
            if method not in self._methods:
                self._methods[method] = getattr(self._channel, kind)(method)
            return self._methods[method]

    def put_back(self) -> None:
        """A call has ended. Any thread may say so, also gRPC's own."""
        with self._lock:
            self._calls -= 1
            is_last = self._is_retired and self._calls == 0
        # gRPC's thread says that a stream has ended before it has told the stream's reader, and `close` waits until it
        # has: in that thread it would wait for ever, and the reader too.
        if is_last:
            with suppress(RuntimeError):  # there are no more threads: the channel is closed when it is collected
                threading.Thread(target=self.close, name="mixserve-close", daemon=True).start()

    def retire(self) -> None:
        """Close the channel when its last call has ended."""
        with self._lock:
            self._is_retired = True
            is_idle = self._calls == 0
        if is_idle:
            self.close()

    def close(self) -> None:
        """End the calls in flight, and the channel."""
        with GATE.count():
            self._channel.close()

"""The client: batches of a mixture that lives on a server."""

import os
import secrets
import socket
from collections.abc import Iterable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self

from mixserve_client.assembly import Batch
from mixserve_client.batch_stream import BatchStream, check_fingerprint, decoded
from mixserve_client.connection import Connection, Connections, MakeTransports
from mixserve_client.errors import CorruptReply, DeadlineExceeded, InvalidRequest
from mixserve_client.iterator import BatchIterator
from mixserve_client.leases import Leases
from mixserve_client.memory import MemoryPool
from mixserve_client.reading import Reading
from mixserve_client.retry import PatientCaller, deadline_in
from mixserve_client.schedule import Pairs, Schedule
from mixserve_client.session import Session, SessionView, is_definite
from mixserve_client.spans import Scattered, Span
from mixserve_client.transport import Transport
from mixserve_client.transport.grpc import GrpcTransport
from mixserve_client.transport.handshake import DEFAULT_FOLDER
from mixserve_client.transport.shared_memory import SharedMemoryTransport
from mixserve_client.view import View
from mixserve_client.wire import methods
from mixserve_client.wire.description import MixtureDescription, decode_mixture, decode_names
from mixserve_client.wire.key import key_words
from mixserve_client.wire.request import (
    Content,
    check_any_positions,
    check_mixture,
    check_positions,
    check_truth,
    encode_batch_request,
    encode_mixture_request,
)
from mixserve_client.wire.schedule import decode_schedule
from mixserve_client.wire.session import (
    HeldSession,
    OpenRequest,
    SessionDescription,
    check_name,
    decode_opened,
    decode_sessions,
    encode_list_request,
    encode_open_request,
)
from mixserve_client.workers import Workers

# A larger batch comes as a stream, in pieces that suit its way.
_CALL_BYTES = 128 << 10


class MixClient:
    """Batches of the mixtures of one server, or of several replicas of it; safe to use from many threads.

    Every batch is a pure function of (mixture, key, start, size), so a call that finds no server is repeated, on the
    next replica where there is one, until `patience_s` seconds have passed without an answer. The fingerprint of a
    mixture is learnt at its first use and holds from then on: a server that comes back with another mixture gets a
    FingerprintMismatch, never a mixed-up training run.
    """

    def __init__(self, transports: Iterable[Transport], *, patience_s: float = 600.0):
        if isinstance(transports, str):
            raise InvalidRequest(f"a client of an address is made by MixClient.connect({transports!r:.100})")
        made = tuple(transports)
        if any(isinstance(transport, str) for transport in made):
            raise InvalidRequest(f"a client of addresses is made by MixClient.connect({list(made)!r:.100})")
        self._begin(lambda: made, patience_s)

    @classmethod
    def connect(
        cls, address: str | Iterable[str], *, patience_s: float = 600.0, shared_memory: bool | str = True
    ) -> Self:
        """A client of the server at `address`: `host:port`, `dns:///name:port`, `unix:///path`, or a list of replicas.

        Never blocks: the first call connects. `patience_s` is how long a call goes on looking for a server. A server
        on this host, of the same user, hands batches over in shared memory; `shared_memory` is the folder that its
        socket is in, where that is not /dev/shm; False forces gRPC.
        """
        addresses = tuple(address) if not isinstance(address, str) and isinstance(address, Iterable) else (address,)  # pyright: ignore[reportUnnecessaryIsInstance]
        if not isinstance(shared_memory, bool | str) or (not shared_memory and shared_memory is not False):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidRequest(f"shared_memory must be True, False or a folder, got {shared_memory!r:.100}")
        client = cls.__new__(cls)
        client._begin(partial(_transports, addresses, shared_memory), patience_s)
        client._pickled = addresses, patience_s, shared_memory
        return client

    def _begin(self, make_transports: MakeTransports, patience_s: float) -> None:
        self._connections = Connections(partial(Connection, make_transports, patience_s))
        _ = self._connections.here  # what is wrong with the arguments shows now
        self._pickled: tuple[tuple[str, ...], float, bool | str] | None = None
        self._mixtures: dict[str, MixtureDescription] = {}

    @property
    def transport(self) -> str:
        """How batches travel at present: `in-process`, `grpc` and the address, or `shared memory, grpc` and that."""
        return self._caller.transport.name

    def mixtures(self, *, timeout_s: float | None = None) -> tuple[str, ...]:
        """The names of the mixtures that the server holds, sorted."""
        return decode_names(self._caller.call(methods.LIST_MIXTURES, b"", deadline_in(timeout_s)))

    def mixture(self, name: str | None = None, *, timeout_s: float | None = None) -> MixtureDescription:
        """What the mixture holds, as the server describes it now; `name` may be left out where there is only one.

        Raises UnknownMixture, FingerprintMismatch where it is no longer the mixture that this client has used, and
        whatever a call may raise.
        """
        return self._mixture(name, deadline_in(timeout_s))

    def end(
        self, *, mixture: str | None = None, schedule: Pairs | None = None, timeout_s: float | None = None
    ) -> int | None:
        """The first position that does not exist, under a schedule of your own where one is given; None for no end."""
        deadline = deadline_in(timeout_s)
        return self._end(Schedule.of(self._described(mixture, deadline), schedule), deadline)

    def get_batch_at(
        self,
        start: int,
        size: int,
        key: Any,
        *,
        mixture: str | None = None,
        schedule: Pairs | None = None,
        provenance: bool = False,
        allow_short: bool = False,
        timeout_s: float | None = None,
    ) -> Any:
        """The rows at the positions [start, start + size): arrays by field, each of shape (size, *field.shape).

        Records that are nested on the server come back nested.

        `key` is an integer seed in 0..2^32-1, two uint32 words, or a threefry2x32 `jax.random.key`. The arrays have
        the stored dtypes and are read-only where that saves a copy. `size` has no limit: large
        batches come as streams.

        `schedule` has weights of your own, pairs (from position, weights), in place of what the mixture has from the
        first of them on; in epoch mode they begin at the next border of a block. `provenance` adds two arrays of shape
        (size,): `source_id`, int32, the place in `mixture().leaves`, and `record_id`, int64. Where a mixture ends,
        `allow_short` gives the rows that there are before the end instead of an error.

        Raises InvalidRequest, OutOfRange, UnknownMixture, FingerprintMismatch, Unavailable,
        DeadlineExceeded after `timeout_s`, CorruptReply and ServerFault.
        """
        content = Content.RECORDS_AND_PROVENANCE if check_truth("provenance", provenance) else Content.RECORDS
        start, size = check_positions(start, size)
        deadline = deadline_in(timeout_s)
        view = self._view(key, mixture, schedule, content, deadline)
        size = self._size(view, start, size, deadline, allow_short)
        return view.record(self._rows(view, start, size, deadline))

    def get_batch_by_positions(
        self,
        positions: Any,
        key: Any,
        *,
        mixture: str | None = None,
        schedule: Pairs | None = None,
        provenance: bool = False,
        timeout_s: float | None = None,
    ) -> Any:
        """The rows at any positions, in the order in which they are given: arrays of shape (len(positions),
        *field.shape). Row i is that of `get_batch_at(positions[i], 1, key)`.

        `positions` is a list or array of integers, each as often as wanted. In epoch mode every block that has one of
        them is planned whole, so that those of few blocks come faster. Other arguments and errors are those of
        `get_batch_at`.
        """
        content = Content.RECORDS_AND_PROVENANCE if check_truth("provenance", provenance) else Content.RECORDS
        wanted = Scattered(check_any_positions(positions))
        deadline = deadline_in(timeout_s)
        view = self._view(key, mixture, schedule, content, deadline)
        return view.record(self._streamed(view, wanted, deadline))

    def get_plan_at(
        self,
        start: int,
        size: int,
        key: Any,
        *,
        mixture: str | None = None,
        schedule: Pairs | None = None,
        allow_short: bool = False,
        timeout_s: float | None = None,
    ) -> Batch:
        """Which records are at the positions [start, start + size): `source_id` and `record_id`, as in `get_batch_at`.

        No data is read, so it costs the same for any mixture. Arguments and errors are those of `get_batch_at`.
        """
        start, size = check_positions(start, size)
        deadline = deadline_in(timeout_s)
        view = self._view(key, mixture, schedule, Content.PROVENANCE, deadline)
        return self._rows(view, start, self._size(view, start, size, deadline, allow_short), deadline)

    def batches(
        self,
        batch_size: int,
        key: Any,
        *,
        mixture: str | None = None,
        start: int = 0,
        stop: int | None = None,
        shard: tuple[int, int] = (0, 1),
        worker: tuple[int, int] = (0, 1),
        schedule: Pairs | None = None,
        provenance: bool = False,
        skip: Sequence[tuple[int, int]] = (),
        drop_remainder: bool = False,
        strict: bool = True,
        prefetch: int = 2,
        timeout_s: float | None = None,
    ) -> BatchIterator:
        """An iterator over the batches from position `start` on, which keeps the next `prefetch` batches in flight,
        and of small batches as many as make up 32 MiB.

        `batch_size` is global: shard (i, n) yields the rows [i*size//n, (i+1)*size//n) of every batch. `stop` is the
        position to stop before, None for the mixture's end; the last batch may be short, and `drop_remainder` leaves a
        short one out. `schedule` and `provenance`
        are those of `get_batch_at`; `skip` has ranges of positions, pairs (from, to), that are left out: batches are
        made of the others. `timeout_s` holds for each batch. `strict=False` takes states of a mixture that has changed
        since, and goes on at their position.

        For loaders that take batches from several workers in turn: worker (w, m) yields the w-th of every m batches.
        """
        return BatchIterator(
            self,
            batch_size=batch_size,
            key=key,
            mixture=mixture,
            start=start,
            stop=stop,
            shard=shard,
            worker=worker,
            schedule=schedule,
            provenance=provenance,
            skip=skip,
            drop_remainder=drop_remainder,
            strict=strict,
            prefetch=prefetch,
            timeout_s=timeout_s,
        )

    def session(
        self,
        name: str,
        *,
        mixture: str | None = None,
        fresh: bool = False,
        take_over: bool = False,
        strict: bool = True,
        timeout_s: float | None = None,
    ) -> Session:
        """Open the session of that name: a private copy of the mixture's node on the server, with its checkpoints.

        A session that is known goes on where it stood; `fresh` begins it anew. It is this client's until it is closed:
        the client renews its lease by itself, and others are refused with SessionTaken until it has been silent for the
        server's `session_ttl_s`, unless they say `take_over`. Where the mixture is no longer the one that the session
        was begun with, it is refused, unless `strict` is False: then it goes on from the same index. `timeout_s` holds
        for each call.

        A name has 1 to 128 letters of ASCII, digits, ".", "_" and "-". Raises SessionTaken, FingerprintMismatch,
        CorruptCheckpoint where its journal is damaged, StorageFailed, InvalidRequest where this client has several
        servers, and what every call may raise.
        """
        self._check_one_server()
        deadline = deadline_in(timeout_s)
        described = self._described(mixture, deadline)
        held = HeldSession(described.name, check_name("session", name), secrets.token_hex(16))
        request = OpenRequest(
            *held,
            holder=f"process {os.getpid()} on {socket.gethostname()}",
            fresh=check_truth("fresh", fresh),
            take_over=check_truth("take_over", take_over),
            strict=check_truth("strict", strict),
            expected_fingerprint=described.fingerprint,
        )
        self._leases.settle(described.name, name, deadline)
        try:
            reply = self._caller.call(methods.OPEN_SESSION, encode_open_request(request), deadline)
            return Session(self._connections, held, decode_opened(reply), timeout_s, described.fields)
        except BaseException as error:
            # The server may have given it all the same.
            if isinstance(error, DeadlineExceeded):
                self._leases.abandon(held)
            elif not is_definite(error):
                self._leases.release(held, deadline=deadline)
            raise

    def view_session(self, name: str, *, mixture: str | None = None, timeout_s: float | None = None) -> SessionView:
        """What may be asked of a session that others hold: its state, and its checkpoints."""
        self._check_one_server()
        described = self._described(mixture, deadline_in(timeout_s))
        return SessionView(self._connections, described.name, name, timeout_s)

    def sessions(self, *, mixture: str | None = None, timeout_s: float | None = None) -> tuple[SessionDescription, ...]:
        """The sessions that the server knows, of one mixture or of all, sorted by mixture and name."""
        self._check_one_server()
        request = encode_list_request(check_mixture(mixture))
        found = decode_sessions(self._caller.call(methods.LIST_SESSIONS, request, deadline_in(timeout_s)))
        other = next((session.mixture for session in found if mixture and session.mixture != mixture), None)
        if other is not None:
            raise CorruptReply(f"the server lists sessions of the mixture {other!r:.100}, {mixture!r} was asked for")
        return found

    def close(self) -> None:
        """Let go of sessions, end the calls under way and the connections; closing twice is closing once."""
        self._workers.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"MixClient({self.transport!r})"

    def __reduce__(self) -> Any:
        """A client of the same servers, which expects the mixtures that this one knows."""
        if self._pickled is None:
            raise TypeError("this client cannot be pickled: its server is this process; use MixClient.connect(...)")
        return _unpickled, (type(self), *self._pickled, dict(self._mixtures))

    @property
    def _caller(self) -> PatientCaller:
        return self._connections.here.caller

    @property
    def _leases(self) -> Leases:
        return self._connections.here.leases

    @property
    def _workers(self) -> Workers:
        return self._connections.here.workers

    @property
    def _memory(self) -> MemoryPool:
        return self._connections.here.memory

    def _check_one_server(self) -> None:
        if self._caller.replicas > 1:
            raise InvalidRequest(
                f"a session lives on one server, and this client has {self._caller.replicas}; connect another client "
                "to the one that shall hold it"
            )

    def _mixture(self, name: str | None, deadline: float | None) -> MixtureDescription:
        request = encode_mixture_request(name or "")
        fresh = decode_mixture(self._caller.call(methods.GET_MIXTURE, request, deadline))
        if name and fresh.name != name:
            raise CorruptReply(f"the server describes the mixture {fresh.name!r:.100}, {name!r:.100} was asked for")
        known = self._mixtures.setdefault(fresh.name, fresh)
        check_fingerprint(known, fresh.fingerprint)
        if not name:
            self._mixtures.setdefault("", known)
        return fresh

    def _described(self, mixture: str | None, deadline: float | None) -> MixtureDescription:
        return self._mixtures.get(check_mixture(mixture)) or self._mixture(mixture, deadline)

    def _view(
        self, key: Any, mixture: str | None, schedule: Pairs | None, content: Content, deadline: float | None
    ) -> View:
        words = key_words(key)
        described = self._described(mixture, deadline)
        return View(described, words, Schedule.of(described, schedule), content)

    def _end(self, schedule: Schedule, deadline: float | None) -> int | None:
        """The mixture's end under a schedule."""
        if schedule.mixture.stop == "never" or not schedule.entries:
            return schedule.mixture.end
        (definition,) = schedule.definitions(whole=False)
        reply = self._caller.call(methods.DEFINE_SCHEDULE, definition, deadline, schedule.definitions)
        return decode_schedule(reply).end

    def _size(self, view: View, start: int, size: int, deadline: float | None, allow_short: bool) -> int:
        """How many of the rows [start, start + size) to ask for."""
        end = self._end(view.schedule, deadline) if check_truth("allow_short", allow_short) else None
        return size if end is None or start >= end else min(size, end - start)

    def _start(self, view: View, span: Span | Scattered, after: Reading | None) -> Reading:
        """The batches of `span`, fetched in the background once those of `after` are nearly here."""
        return Reading(BatchStream(self._caller, view, span, self._memory), self._workers, after)

    def _rows(self, view: View, start: int, size: int, deadline: float | None) -> Batch:
        if size <= view.mixture.limits.size and size * view.row_bytes <= _CALL_BYTES:
            return self._fetch(view, start, size, deadline)
        return self._streamed(view, Span(start, size, size, 1), deadline)

    def _streamed(self, view: View, span: Span | Scattered, deadline: float | None) -> Batch:
        """The one batch of `span`."""
        stream = BatchStream(self._caller, view, span, self._memory, deadline)
        (batch,) = (batch for batches in stream for batch in batches)
        return batch

    def _fetch(self, view: View, start: int, size: int, deadline: float | None) -> Batch:
        request = encode_batch_request(view.request(start, size))
        reply = self._caller.call(methods.GET_BATCH_AT, request, deadline, view.schedule.definitions)
        batch, rows = decoded(reply, view)
        if rows != size:
            raise CorruptReply(f"the server sent {rows} rows where {size} were asked for")
        return batch


def _transports(addresses: tuple[str, ...], shared_memory: bool | str) -> list[Transport]:
    transports: list[Transport] = [GrpcTransport(target) for target in addresses]
    if shared_memory is False:
        return transports
    folder = DEFAULT_FOLDER if shared_memory is True else shared_memory
    return [SharedMemoryTransport(transport, folder) for transport in transports]


def _unpickled(
    cls: type[MixClient],
    addresses: tuple[str, ...],
    patience_s: float,
    shared_memory: bool | str,
    mixtures: dict[str, MixtureDescription],
) -> MixClient:
    client = cls.connect(addresses, patience_s=patience_s, shared_memory=shared_memory)
    client._mixtures.update(mixtures)  # pyright: ignore[reportPrivateUsage]
    return client

"""The client: batches of a mixture that lives on a server."""

import os
import secrets
import socket
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from mixserve_client.errors import CorruptReply, DeadlineExceeded, InvalidRequest
from mixserve_client.options import BatchOptions, ConnectOptions
from mixserve_client.reading.assembly import Batch
from mixserve_client.reading.batches import Batches
from mixserve_client.reading.catalog import MixtureCatalog
from mixserve_client.reading.iterator import BatchIterator
from mixserve_client.reading.ranges import PositionList
from mixserve_client.reading.reader import Reader
from mixserve_client.rpc.deadlines import deadline_in
from mixserve_client.rpc.resources import ClientResources, Resources
from mixserve_client.rpc.retry import RetryingCaller
from mixserve_client.schema.checks import check_mixture, check_truth
from mixserve_client.schema.fields import Content
from mixserve_client.schema.mixture import MixtureDescription
from mixserve_client.schema.positions import check_any_positions, check_positions
from mixserve_client.schema.schedule import Pairs
from mixserve_client.schema.sessions import HeldSession, OpenRequest, SessionDescription, check_name
from mixserve_client.sessions.leases import LeaseKeeper, SharedLeases, leases_of
from mixserve_client.sessions.session import Session, SessionView, is_definite
from mixserve_client.transport.base import Transport
from mixserve_client.wire import methods
from mixserve_client.wire.mixture import decode_names
from mixserve_client.wire.session import decode_opened, decode_sessions, encode_list_request, encode_open_request


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
        self._begin(MixtureCatalog(Resources(lambda: ClientResources(made, patience_s))))
        _ = self.catalog.resources.here  # what is wrong with the arguments shows now

    @classmethod
    def connect(
        cls, address: str | Iterable[str], *, patience_s: float = 600.0, shared_memory: bool | str = True
    ) -> Self:
        """A client of the server at `address`: `host:port`, `dns:///name:port`, `unix:///path`, or a list of replicas.

        Never blocks: the first call connects. `patience_s` is how long a call goes on looking for a server. A server
        on this host, of the same user, hands batches over in shared memory; `shared_memory` is the folder that its
        socket is in, where that is not /dev/shm; False forces gRPC.
        """
        options = ConnectOptions(address, patience_s=patience_s, shared_memory=shared_memory)
        return cls._of(MixtureCatalog.connect(options))

    @classmethod
    def _of(cls, catalog: MixtureCatalog) -> Self:
        client = cls.__new__(cls)
        client._begin(catalog)
        return client

    def _begin(self, catalog: MixtureCatalog) -> None:
        self.catalog = catalog
        self._shared_leases: SharedLeases = leases_of(catalog.resources)

    @property
    def transport(self) -> str:
        """How batches travel at present: `in-process`, `grpc` and the address, or `shared memory, grpc` and that."""
        return self.catalog.resources.here.caller.transport.name

    def mixtures(self, *, timeout_s: float | None = None) -> tuple[str, ...]:
        """The names of the mixtures that the server holds, sorted."""
        return decode_names(self._caller.call(methods.LIST_MIXTURES, b"", deadline_in(timeout_s)))

    def mixture(self, name: str | None = None, *, timeout_s: float | None = None) -> MixtureDescription:
        """What the mixture holds, as the server describes it now; `name` may be left out where there is only one.

        Raises UnknownMixture, FingerprintMismatch where it is no longer the mixture that this client has used, and
        whatever a call may raise.
        """
        return self.catalog.ask(check_mixture(name), deadline_in(timeout_s))

    def end(
        self, *, mixture: str | None = None, schedule: Pairs | None = None, timeout_s: float | None = None
    ) -> int | None:
        """The first position that does not exist, under a schedule of your own where one is given; None for no end."""
        deadline = deadline_in(timeout_s)
        return self.catalog.reader(0, mixture, schedule, Content.RECORDS, deadline).end(deadline)

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
        reader = self.catalog.reader(key, mixture, schedule, content, deadline)
        size = _existing(reader, start, size, deadline, allow_short=allow_short)
        return reader.selection.record(reader.rows(start, size, deadline))

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
        wanted = PositionList(check_any_positions(positions))
        deadline = deadline_in(timeout_s)
        reader = self.catalog.reader(key, mixture, schedule, content, deadline)
        return reader.selection.record(reader.batch(wanted, deadline))

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
        reader = self.catalog.reader(key, mixture, schedule, Content.PROVENANCE, deadline)
        return reader.rows(start, _existing(reader, start, size, deadline, allow_short=allow_short), deadline)

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
        options = BatchOptions(
            batch_size,
            key,
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
        return BatchIterator(Batches(self.catalog, options))

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
        described = self.catalog.get(mixture, deadline)
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
            return Session(
                self.catalog.resources, self._leases, held, decode_opened(reply), timeout_s, described.fields
            )
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
        described = self.catalog.get(mixture, deadline_in(timeout_s))
        return SessionView(self.catalog.resources, described.name, name, timeout_s)

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
        self.catalog.resources.here.close()

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
        return type(self)._of, (self.catalog,)

    @property
    def _caller(self) -> RetryingCaller:
        return self.catalog.resources.here.caller

    @property
    def _leases(self) -> LeaseKeeper:
        return self._shared_leases.here

    def _check_one_server(self) -> None:
        if self._caller.replicas > 1:
            raise InvalidRequest(
                f"a session lives on one server, and this client has {self._caller.replicas}; connect another client "
                "to the one that shall hold it"
            )


def _existing(reader: Reader, start: int, size: int, deadline: float | None, *, allow_short: bool) -> int:
    """How many of the rows [start, start + size) to ask for."""
    end = reader.end(deadline) if check_truth("allow_short", allow_short) else None
    return size if end is None or start >= end else min(size, end - start)


def _unpickled(  # pyright: ignore[reportUnusedFunction]
    cls: type[MixClient],
    addresses: tuple[str, ...],
    patience_s: float,
    shared_memory: bool | str,
    mixtures: Mapping[str, MixtureDescription],
) -> MixClient:
    """What pickles of older clients call."""
    client = cls.connect(addresses, patience_s=patience_s, shared_memory=shared_memory)
    client.catalog.expect(mixtures)
    return client

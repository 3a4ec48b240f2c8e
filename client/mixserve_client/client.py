"""`MixClient`: single batches, descriptions, iterators and sessions of the mixtures of a server."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from os import PathLike
from types import TracebackType
from typing import Any, Self

from mixserve_client.credentials import TlsOptions
from mixserve_client.errors import InvalidRequest
from mixserve_client.options import BatchOptions, ConnectOptions
from mixserve_client.reading.batches import Batches
from mixserve_client.reading.catalog import MixtureCatalog
from mixserve_client.reading.iterator import BatchIterator
from mixserve_client.reading.ranges import PositionList
from mixserve_client.rpc.deadlines import deadline_in
from mixserve_client.rpc.replicas import ATTEMPT_S
from mixserve_client.rpc.resources import ClientResources, Resources, check_transports
from mixserve_client.rpc.retry import RetryingCaller
from mixserve_client.rpc.server_stats import server_stats
from mixserve_client.schema.checks import check_mixture, check_truth
from mixserve_client.schema.fields import Batch, Content
from mixserve_client.schema.mixture import MixtureDescription
from mixserve_client.schema.positions import check_any_positions, check_positions
from mixserve_client.schema.schedule import Pairs
from mixserve_client.schema.sessions import SessionDescription
from mixserve_client.schema.stats import Metric
from mixserve_client.schema.text import show
from mixserve_client.sessions.leases import LeaseKeeper, SharedLeases, leases_of
from mixserve_client.sessions.opening import check_one_server, list_sessions, open_session
from mixserve_client.sessions.session import Session, SessionView
from mixserve_client.transport.base import Transport
from mixserve_client.wire import methods
from mixserve_client.wire.mixture import decode_names


def check_client(client: Any) -> "MixClient":
    """`client` itself. Raises InvalidRequest, for example for an address."""
    if not hasattr(client, "get_batch_at"):  # not isinstance: a wrapper with the same calls is as good
        raise InvalidRequest(f"client must be a MixClient, such as MixClient.connect('HOST:PORT'), got {show(client)}")
    return client


class MixClient:
    """Reads batches of the mixtures of one server, or of several replicas of it. Safe to use from many threads.

    Every batch is a pure function of (mixture, key, start, size). So if no server answers, the client repeats the call,
    on the next replica if there is one, for up to `patience_s` seconds. It remembers the fingerprint of a mixture from
    its first use: if a server comes back with another mixture, calls raise FingerprintMismatch instead of returning
    other data.
    """

    def __init__(
        self,
        transports: Iterable[Transport],
        *,
        patience_s: float = 600.0,
        attempt_s: float = ATTEMPT_S,
        hedge: bool = False,
        name: str | None = None,
    ):
        make = partial(ClientResources, check_transports(transports), patience_s, attempt_s, hedge=hedge, name=name)
        self._set_up(MixtureCatalog(Resources(make)))
        _ = self.catalog.resources.here  # makes them now, so that wrong arguments raise here and not at the first call

    @classmethod
    def connect(
        cls,
        address: str | Iterable[str],
        *,
        patience_s: float = 600.0,
        shared_memory: bool | str = True,
        tls: bool | str | PathLike[str] | TlsOptions | None = None,
        token: str | None = None,
        token_file: str | PathLike[str] | None = None,
        bulk: bool = True,
        attempt_s: float = ATTEMPT_S,
        hedge: bool = False,
        checksum: bool | None = None,
        name: str | None = None,
        zone: str | None = None,
    ) -> Self:
        """A client of the server at `address`: `host:port`, `dns:///name:port`, `unix:///path`, `ray://…` or a list.

        Never blocks: the first call connects. `patience_s` is how many seconds a call keeps trying to reach a server.
        With several replicas, one that lets a call wait `attempt_s` seconds for a reply is left for another one, and
        with `hedge` another one is asked as well when a reply is late, for up to 5 % more requests.

        A server on this host, run by the same user, passes batches in shared memory. Set `shared_memory` to the folder
        of that server's socket if it is not /dev/shm, or to False for none. Other servers send batches over a bulk
        channel, a plain TCP connection, unless `bulk` is False. gRPC carries what neither of them does.

        - `tls` encrypts, and checks that the server is the one of `address`: True trusts the authorities that gRPC
          brings, a path those in that file (PEM), and `TlsOptions` has a certificate of the client's own too.
        - `token` is what `mixserve token new` printed, or `token_file` the path of a file that has it. Pickles of the
          client have the path, and the token only if it was given as text.
        - `checksum`: True notices bits that flip on the way, and asks again. Needs the extra `checksum` at both ends.
        - `name` of this client in the server's statistics and log, 1 to 64 printable characters (None: HOST/PID).
        - `zone`: replicas of this zone (`server.zone`) are asked, others only while none of these answers.

        Files are read again when they change. Raises InvalidRequest.
        """
        options = ConnectOptions(
            address,
            patience_s=patience_s,
            shared_memory=shared_memory,
            tls=tls,
            token=token,
            token_file=token_file,
            bulk=bulk,
            attempt_s=attempt_s,
            hedge=hedge,
            checksum=checksum,
            name=name,
            zone=zone,
        )
        return cls._of(MixtureCatalog.connect(options))

    @classmethod
    def _of(cls, catalog: MixtureCatalog) -> Self:
        client = cls.__new__(cls)  # `__init__` takes transports, which cannot be pickled; a catalog of addresses can
        client._set_up(catalog)
        return client

    def _set_up(self, catalog: MixtureCatalog) -> None:
        self.catalog = catalog
        self._shared_leases: SharedLeases = leases_of(catalog.resources)

    @property
    def transport(self) -> str:
        """How batches travel at present: `in-process`, `grpc ADDRESS`, and before the latter `bulk HOST:PORT, ` or
        `shared memory, ` when these carry streams.

        Of a server with several processes it names the one that was used last.
        """
        return self.catalog.resources.here.caller.transport.name

    def mixtures(self, *, timeout_s: float | None = None) -> tuple[str, ...]:
        """The names of the server's mixtures, sorted."""
        return decode_names(self._caller.call(methods.LIST_MIXTURES, b"", deadline_in(timeout_s)))

    def mixture(self, name: str | None = None, *, timeout_s: float | None = None) -> MixtureDescription:
        """The mixture's current description from the server. You may leave out `name` if there is only one mixture.

        Raises UnknownMixture, FingerprintMismatch if the mixture has changed since this client first used it, and what
        every call may raise.
        """
        return self.catalog.ask(check_mixture(name), deadline_in(timeout_s))

    def end(
        self, *, mixture: str | None = None, schedule: Pairs | None = None, timeout_s: float | None = None
    ) -> int | None:
        """The first position that does not exist; None if there is no end. `schedule` is as in `get_batch_at`."""
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
    ) -> Batch:
        """The rows at the positions [start, start + size): arrays by field, each of shape (size, *field.shape).

        Records that are nested on the server come back nested. The arrays have the stored dtypes; copy them before you
        write to them, since views of a reply are read-only.

        - `size` has no limit: the client reads a large batch as streams.
        - `key` selects the random stream: an integer seed in 0..2^32-1, two uint32 words, or a threefry2x32
          `jax.random.key`. The same key and positions always give the same rows.
        - `mixture` may be left out if the server holds only one.
        - `schedule` has your own weights, as pairs (from position, weights). From the first pair on they replace the
          mixture's own; in epoch mode they take effect at the next block boundary.
        - `provenance` adds two arrays of shape (size,): `source_id`, int32, an index into `mixture().leaves`, and
          `record_id`, int64.
        - `allow_short` returns the rows that are left before the mixture's end, instead of raising OutOfRange.
        - `timeout_s` bounds the whole call, in seconds.

        Raises InvalidRequest, OutOfRange, UnknownMixture, FingerprintMismatch, Unavailable,
        DeadlineExceeded after `timeout_s`, CorruptReply and ServerFault.
        """
        content = Content.RECORDS_AND_PROVENANCE if check_truth("provenance", provenance) else Content.RECORDS
        start, size = check_positions(start, size)
        deadline = deadline_in(timeout_s)
        reader = self.catalog.reader(key, mixture, schedule, content, deadline)
        size = reader.cut_at_end(start, size, deadline, allow_short=allow_short)
        batch = reader.selection.record(reader.rows(start, size, deadline))
        reader.note_batch(size)
        return batch

    def get_batch_by_positions(
        self,
        positions: Any,
        key: Any,
        *,
        mixture: str | None = None,
        schedule: Pairs | None = None,
        provenance: bool = False,
        timeout_s: float | None = None,
    ) -> Batch:
        """The rows at any positions, in your order: arrays of shape (len(positions), *field.shape). Row i equals
        `get_batch_at(positions[i], 1, key)`.

        `positions` is a list or array of integers; repeats are allowed. In epoch mode the server plans every block that
        contains one of the positions as a whole, so positions from few blocks come faster. Other arguments and errors
        are as in `get_batch_at`.
        """
        content = Content.RECORDS_AND_PROVENANCE if check_truth("provenance", provenance) else Content.RECORDS
        wanted = PositionList(check_any_positions(positions))
        deadline = deadline_in(timeout_s)
        reader = self.catalog.reader(key, mixture, schedule, content, deadline)
        batch = reader.selection.record(reader.batch(wanted, deadline))
        reader.note_batch(wanted.size)
        return batch

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
        """Which records are at the positions [start, start + size): `source_id` and `record_id`, each of shape (size,).

        The server reads no data for this, so the size of records does not matter. Dtypes, arguments and errors are as
        in `get_batch_at`.
        """
        start, size = check_positions(start, size)
        deadline = deadline_in(timeout_s)
        reader = self.catalog.reader(key, mixture, schedule, Content.PROVENANCE, deadline)
        return reader.rows(start, reader.cut_at_end(start, size, deadline, allow_short=allow_short), deadline)

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
        """An iterator over the batches from position `start` on. It prefetches, and its state resumes it anywhere.

        - `batch_size`: the rows of a batch over all shards.
        - `key`: selects the random stream: an integer seed in 0..2^32-1, two uint32 words, or a threefry2x32
          `jax.random.key`. All hosts, shards and workers of a run pass the same key.
        - `mixture`: its name; may be left out if the server holds only one.
        - `start`, `stop`: the first position, and the one to stop before (None: the mixture's end).
        - `shard`: (i, n) yields the rows [i*batch_size//n, (i+1)*batch_size//n) of every batch.
        - `worker`: (w, m) yields the w-th of every m batches, for loaders that take batches from m workers in turn.
        - `schedule`, `provenance`: as in `get_batch_at`.
        - `skip`: ranges of positions to leave out, as pairs (from, to); batches are made of the remaining positions.
        - `drop_remainder`: leave out the last batch if it is short.
        - `strict`: False accepts states of a mixture that has changed since, and resumes at their position.
        - `prefetch`: keep at least so many batches in flight, and of small batches as many as make up 32 MiB; with 0
          nothing is prefetched.
        - `timeout_s`: bounds the wait for each batch, in seconds.

        Sends nothing yet. Raises InvalidRequest and OutOfRange.
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
        """Open the session `name`: a private copy of the mixture's node on the server, with its checkpoints.

        The client holds the session until you close it, and renews its lease in the background. Other clients get
        SessionTaken until the holder has been silent for the server's `session_ttl_s`, or until one takes it over.

        - `name`: 1 to 128 ASCII letters, digits, ".", "_" and "-".
        - `fresh`: restart the session, instead of resuming it.
        - `take_over`: take the session from its holder, whose calls then raise SessionTaken.
        - `strict`: False resumes a session of a mixture that has changed since, from the same index, instead of raising
          FingerprintMismatch.
        - `timeout_s`: bounds each call of the session, and this one, in seconds.

        Raises SessionTaken, FingerprintMismatch, CorruptCheckpoint if the session's journal is damaged, StorageFailed,
        InvalidRequest if this client has several servers, and what every call may raise.
        """
        check_one_server(self.catalog.resources.here)
        deadline = deadline_in(timeout_s)
        description = self.catalog.get(mixture, deadline)
        return open_session(
            self.catalog.resources,
            self._leases,
            description,
            name,
            deadline,
            timeout_s,
            fresh=fresh,
            take_over=take_over,
            strict=strict,
        )

    def view_session(self, name: str, *, mixture: str | None = None, timeout_s: float | None = None) -> SessionView:
        """A view of a session that another client may hold: its state and its checkpoints."""
        check_one_server(self.catalog.resources.here)
        description = self.catalog.get(mixture, deadline_in(timeout_s))
        return SessionView(self.catalog.resources, description.name, name, timeout_s)

    def sessions(self, *, mixture: str | None = None, timeout_s: float | None = None) -> tuple[SessionDescription, ...]:
        """The server's sessions, of one mixture or of all, sorted by mixture and name."""
        return list_sessions(self.catalog.resources.here, mixture, deadline_in(timeout_s))

    def stats(self) -> dict[str, Metric]:
        """What this client has counted in this process, by the metrics' names (docs/client.md). Sends nothing."""
        return self.catalog.resources.here.stats()

    def server_stats(self, *, timeout_s: float | None = None) -> dict[str, Metric]:
        """What the server has counted and measured, by the metrics' names; docs/operations.md lists them.

        Each has a label more, `server`: `mixserve:50051`, as the client was given it, or `in-process`. Of several
        replicas, those that do not answer at the first try are left out. With a token, what it may see.

        Raises Unavailable if no server answers, and what every call may raise.
        """
        return server_stats(self._caller, deadline_in(timeout_s))

    def close(self) -> None:
        """Release the sessions, end running calls, and close the connections. You may call it more than once."""
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


def _unpickled(  # pyright: ignore[reportUnusedFunction]
    cls: type[MixClient],
    addresses: tuple[str, ...],
    patience_s: float,
    shared_memory: bool | str,
    mixtures: Mapping[str, MixtureDescription],
) -> MixClient:
    """Pickles of older clients name this function."""
    client = cls.connect(addresses, patience_s=patience_s, shared_memory=shared_memory)
    client.catalog.expect(mixtures)
    return client

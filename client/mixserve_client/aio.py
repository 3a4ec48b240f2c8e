"""The client for asyncio: every call of the client, its iterators and sessions, awaited while a thread makes it."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

from mixserve_client.assembly import Batch
from mixserve_client.client import MixClient
from mixserve_client.errors import InvalidRequest, Unavailable
from mixserve_client.forks import PerProcess, leave_to_parent, renew_in_forks
from mixserve_client.iterator import BatchIterator
from mixserve_client.schedule import Pairs, Weights
from mixserve_client.session import Checkpoint, Session, SessionView, State
from mixserve_client.state_file import read_state
from mixserve_client.wire.description import MixtureDescription
from mixserve_client.wire.key import key_words
from mixserve_client.wire.session import SessionDescription
from mixserve_client.workers import Workers

T = TypeVar("T")
_THREADS = 16
_CLOSE_S = 2.0
_END: Any = object()  # in the place of StopIteration, which no future can hold


class _Turns:
    """The calls on one object: one at a time, each in a thread. One whose caller was cancelled runs on."""

    def __init__(self, workers: PerProcess[Workers]):
        self._workers = workers
        self._lock = asyncio.Lock()
        self._running: Future[Any] | None = None  # for nobody
        self._kept: tuple[tuple[Any, ...], Future[Any]] | None = None  # the answer that nobody took, and to what
        renew_in_forks(self, _Turns.renew_after_fork)

    def renew_after_fork(self) -> None:
        """No call runs in this process."""
        leave_to_parent((self._running, self._kept))
        self._lock, self._running, self._kept = asyncio.Lock(), None, None

    async def again(self, task: Callable[[], T]) -> T:
        """What `task` gives, which may be run twice where a caller was cancelled."""
        async with self._lock:
            await self._quiet()
            return await self._answer(_begun(task, self._workers))

    async def once(self, task: Callable[[], T], *name: Any) -> T:
        """What `task` gives, or what it gave to a caller of the same name who was cancelled.

        That answer is kept until another task is to be run once.
        """
        async with self._lock:
            await self._quiet()
            kept, self._kept = self._kept, None
            if kept is not None and kept[0] == name:
                return kept[1].result()
            future = _begun(task, self._workers)
            try:
                return await self._answer(future)
            except asyncio.CancelledError:
                self._kept = kept if future.cancelled() else (name, future)
                raise

    async def at_last(self, task: Callable[[], None]) -> None:
        """Run `task` when no call runs any more, and wait for that: but not long for one that runs for nobody."""
        async with self._lock:
            self._kept = None
            with suppress(TimeoutError):
                await asyncio.wait_for(self._quiet(), _CLOSE_S)
            if self._running is None:
                await self._answer(_begun(task, self._workers))
            else:
                last: Future[None] = Future()
                last.set_running_or_notify_cancel()
                self._running.add_done_callback(lambda _: _finish(last, task))
                self._running = last

    async def _quiet(self) -> None:
        if self._running is not None:
            with suppress(Exception):  # which is for the caller who went away
                await asyncio.wrap_future(self._running)
            self._running = None

    async def _answer(self, future: "Future[T]") -> T:
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if not future.cancel():  # it has begun
                self._running = future
            raise


class AsyncMixClient:
    """A `MixClient` for asyncio: the same calls, arguments, results and errors, awaited.

    Up to 16 calls are under way at a time, each in a thread, and others wait for one. `timeout_s` counts from when a
    thread begins a call: waiting for a thread, and for the turn of an iterator's or a session's calls, is not counted;
    `asyncio.timeout` bounds that as well. A call that is cancelled runs on in its thread, and what it gives is dropped.
    Of iterators and sessions nothing gets lost: their calls take turns, and the same call made again gives what the
    cancelled one would have given.

    A client, its iterators and its sessions are for one event loop at a time.
    """

    def __init__(self, client: MixClient):
        """Take over `client`, also one of `mixserve.local_client`: it ends with this one."""
        if not isinstance(client, MixClient):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidRequest(
                f"an asyncio client is made of a MixClient, or by AsyncMixClient.connect(address); got {client!r:.100}"
            )
        self._client = client
        self._workers = PerProcess(partial(Workers, _THREADS, on_exit=client.close))
        self._opening = _Turns(self._workers)
        self._opened: Session | None = None  # and given to nobody

    @classmethod
    def connect(
        cls, address: str | Iterable[str], *, patience_s: float = 600.0, shared_memory: bool | str = True
    ) -> Self:
        """A client of the server at `address`, as `MixClient.connect` makes it. Never blocks."""
        return cls(MixClient.connect(address, patience_s=patience_s, shared_memory=shared_memory))

    def __reduce__(self) -> Any:
        """A client of the same servers, as that of `MixClient`."""
        return type(self), (self._client,)

    @property
    def transport(self) -> str:
        """How batches travel at present, as `MixClient.transport` says it."""
        return self._client.transport

    async def mixtures(self, *, timeout_s: float | None = None) -> tuple[str, ...]:
        """The names of the mixtures that the server holds, sorted."""
        return await self._call(partial(self._client.mixtures, timeout_s=timeout_s))

    async def mixture(self, name: str | None = None, *, timeout_s: float | None = None) -> MixtureDescription:
        """What the mixture holds: `MixClient.mixture`."""
        return await self._call(partial(self._client.mixture, name, timeout_s=timeout_s))

    async def end(
        self, *, mixture: str | None = None, schedule: Pairs | None = None, timeout_s: float | None = None
    ) -> int | None:
        """The first position that does not exist, None for no end: `MixClient.end`."""
        return await self._call(partial(self._client.end, mixture=mixture, schedule=schedule, timeout_s=timeout_s))

    async def get_batch_at(
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
        """The rows at the positions [start, start + size), arrays of shape (size, *field.shape): as
        `MixClient.get_batch_at` gives them."""
        return await self._call(
            partial(
                self._client.get_batch_at,
                start,
                size,
                key,
                mixture=mixture,
                schedule=schedule,
                provenance=provenance,
                allow_short=allow_short,
                timeout_s=timeout_s,
            )
        )

    async def get_batch_by_positions(
        self,
        positions: Any,
        key: Any,
        *,
        mixture: str | None = None,
        schedule: Pairs | None = None,
        provenance: bool = False,
        timeout_s: float | None = None,
    ) -> Any:
        """The rows at any positions, arrays of shape (len(positions), *field.shape): as
        `MixClient.get_batch_by_positions` gives them."""
        return await self._call(
            partial(
                self._client.get_batch_by_positions,
                positions,
                key,
                mixture=mixture,
                schedule=schedule,
                provenance=provenance,
                timeout_s=timeout_s,
            )
        )

    async def get_plan_at(
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
        """Which records are at the positions [start, start + size): `MixClient.get_plan_at`."""
        return await self._call(
            partial(
                self._client.get_plan_at,
                start,
                size,
                key,
                mixture=mixture,
                schedule=schedule,
                allow_short=allow_short,
                timeout_s=timeout_s,
            )
        )

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
    ) -> "AsyncBatchIterator":
        """An iterator over the batches from position `start` on, as `MixClient.batches` makes it. Asks for nothing."""
        iterator = self._client.batches(
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
        return AsyncBatchIterator(iterator, self._workers)

    async def session(
        self,
        name: str,
        *,
        mixture: str | None = None,
        fresh: bool = False,
        take_over: bool = False,
        strict: bool = True,
        timeout_s: float | None = None,
    ) -> "AsyncSession":
        """Open the session of that name: `MixClient.session`.

        Where this was cancelled, the session may be this client's: the same call again gives it, and opening another
        one, or closing the client, lets go of it.
        """

        def open_it() -> Session:
            unwanted, self._opened = self._opened, None
            if unwanted is not None:
                unwanted.close()
            self._opened = self._client.session(
                name, mixture=mixture, fresh=fresh, take_over=take_over, strict=strict, timeout_s=timeout_s
            )
            return self._opened

        session = await self._opening.once(open_it, name, mixture, fresh, take_over, strict, timeout_s)
        self._opened = None
        return AsyncSession(session, self._workers)

    async def view_session(
        self, name: str, *, mixture: str | None = None, timeout_s: float | None = None
    ) -> "AsyncSessionView":
        """What may be asked of a session that others hold: its state, and its checkpoints."""
        view = await self._call(partial(self._client.view_session, name, mixture=mixture, timeout_s=timeout_s))
        return AsyncSessionView(view, self._workers)

    async def sessions(
        self, *, mixture: str | None = None, timeout_s: float | None = None
    ) -> tuple[SessionDescription, ...]:
        """The sessions that the server knows, of one mixture or of all, sorted by mixture and name."""
        return await self._call(partial(self._client.sessions, mixture=mixture, timeout_s=timeout_s))

    async def close(self) -> None:
        """Let go of sessions, end the calls under way and the connections; closing twice is closing once."""
        # Not in a thread of its own: all of them may be in calls that this is to end.
        await asyncio.to_thread(self._workers.here.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"Async{self._client!r}"

    async def _call(self, task: Callable[[], T]) -> T:
        return await asyncio.wrap_future(_begun(task, self._workers))


class AsyncBatchIterator:
    """Yields dicts of arrays; made by `AsyncMixClient.batches`. A `BatchIterator` whose calls take turns.

    The state is the position behind the last batch that somebody got: one whose `anext` was cancelled comes next.
    """

    def __init__(self, iterator: BatchIterator, workers: PerProcess[Workers]):
        self._iterator = iterator
        self._turns = _Turns(workers)
        self._got = iterator._place  # pyright: ignore[reportPrivateUsage]
        renew_in_forks(self, AsyncBatchIterator._renew_after_fork)

    def __reduce__(self) -> Any:
        raise TypeError("an asyncio iterator cannot be pickled: pickle its client, and keep its get_state()")

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        batch = await self._turns.once(partial(next, self._iterator, _END), "next")
        self._got = self._iterator._place  # pyright: ignore[reportPrivateUsage]
        if batch is _END:
            raise StopAsyncIteration
        return batch

    async def schedule_weights(self, weights: Weights, from_position: int | None = None) -> int:
        """Change the weights from `from_position` on, the next batch where it is None; returns from where they hold:
        `BatchIterator.schedule_weights`."""
        return await self._call(partial(self._iterator.schedule_weights, weights, from_position))

    async def skip(self, start: int, stop: int) -> None:
        """Leave out the positions [start, stop) as well: `BatchIterator.skip`."""
        await self._call(partial(self._iterator.skip, start, stop))

    async def get_state(self) -> dict[str, Any]:
        """Where this iterator is, in plain JSON types; a `BatchIterator` can go on there, and the other way round."""
        return await self._call(self._iterator.get_state)

    async def set_state(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken: `BatchIterator.set_state`."""
        await self._call(partial(self._iterator.set_state, state))

    async def state_dict(self) -> dict[str, Any]:
        """`get_state` by another name: `BatchIterator.state_dict`."""
        return await self.get_state()

    async def load_state_dict(self, state: dict[str, Any]) -> None:
        """`set_state` by another name: `BatchIterator.load_state_dict`."""
        await self.set_state(state)

    async def save(self, directory: Any) -> Awaitable[None]:
        """What Orbax calls to save this iterator beside a model: `BatchIterator.save`."""
        return await self._call(lambda: asyncio.run(self._iterator.save(directory)))

    async def load(self, directory: Any) -> Awaitable[None]:
        """What Orbax calls to go on where `save` was called: `BatchIterator.load`."""

        async def take() -> None:
            await self.set_state(state)

        state = await self._call(lambda: read_state(directory))
        return take()

    async def reset(self) -> None:
        """Go back to where this iterator began: `BatchIterator.reset`."""
        await self._call(self._iterator.reset)

    async def start_prefetch(self) -> None:
        """Ask for the first batches now: `BatchIterator.start_prefetch`."""
        await self._call(self._iterator.start_prefetch)

    async def element_spec(self) -> Any:
        """The structure of a batch, a Field in the place of each array: `BatchIterator.element_spec`."""
        return await self._call(self._iterator.element_spec)

    async def close(self) -> None:
        """Drop what is in flight, and end a wait for it; the client stays open. Closing twice is closing once."""
        # At once, also if a cancelled call is still in flight: its thread drops what it requested.
        self._iterator.close()
        await self._turns.at_last(self._iterator.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"Async{self._iterator!r}"

    def _renew_after_fork(self) -> None:
        """Resume after the last batch that a caller got: the parent may have been inside a call."""
        self._iterator._renew_after_fork()  # pyright: ignore[reportPrivateUsage]
        self._iterator._return_to(self._got)  # pyright: ignore[reportPrivateUsage]

    async def _call(self, task: Callable[[], T]) -> T:
        """What `task` gives in the place of a batch that nobody got."""
        iterator = self._iterator

        def in_place() -> T:
            if iterator._place != self._got:  # pyright: ignore[reportPrivateUsage]
                iterator._return_to(self._got)  # pyright: ignore[reportPrivateUsage]
            try:
                return task()
            finally:
                self._got = iterator._place  # pyright: ignore[reportPrivateUsage]

        return await self._turns.once(in_place, object())


class AsyncSessionView:
    """What anybody may ask of a session, whoever holds it; made by `AsyncMixClient.view_session`."""

    def __init__(self, view: SessionView, workers: PerProcess[Workers]):
        self._view = view
        self._turns = _Turns(workers)

    def __reduce__(self) -> Any:
        raise TypeError("a session cannot be pickled: it is one process's; pickle the client, and open it there")

    @property
    def name(self) -> str:
        """The session's name."""
        return self._view.name

    @property
    def mixture(self) -> str:
        """The name of its mixture."""
        return self._view.mixture

    async def get_state(self) -> State:
        """The node's state, for `set_state` of a session of the same mixture."""
        return await self._turns.again(self._view.get_state)

    async def get_statistics(self) -> dict[str, Any] | None:
        """The precomputed statistics where configured, else those computed or set last, else None."""
        return await self._turns.again(self._view.get_statistics)

    async def get_operation_stats(self) -> dict[str, int]:
        """How many calls of `process` gave a result (`applied_count`), and how many were refused (`skipped_count`)."""
        return await self._turns.again(self._view.get_operation_stats)

    async def save_checkpoint(self, name: str, *, keep_last: int | None = None) -> Checkpoint:
        """Keep the session's state on the server under `name`: `SessionView.save_checkpoint`."""
        return await self._turns.again(partial(self._view.save_checkpoint, name, keep_last=keep_last))

    async def list_checkpoints(self) -> tuple[Checkpoint, ...]:
        """The session's checkpoints, in the order in which they were saved."""
        return await self._turns.again(self._view.list_checkpoints)

    async def delete_checkpoint(self, name: str) -> Checkpoint:
        """Delete a checkpoint, and say what it was. Raises UnknownCheckpoint and StorageFailed."""
        return await self._turns.once(partial(self._view.delete_checkpoint, name), "delete_checkpoint", name)

    def __repr__(self) -> str:
        return f"Async{self._view!r}"


class AsyncSession(AsyncSessionView):
    """A `Session` for asyncio, made by `AsyncMixClient.session`. A context manager that lets go of the session.

    A call that was cancelled may have moved the session all the same. Make it again, and it gives what it would have
    given; until then the records of a cancelled read count as read, in `index` and in states, and another read goes on
    behind them.
    """

    def __init__(self, session: Session, workers: PerProcess[Workers]):
        super().__init__(session, workers)
        self._session = session

    @property
    def resumed(self) -> bool:
        """Whether the session was known when it was opened, so that it goes on where it stood."""
        return self._session.resumed

    @property
    def index(self) -> int:
        """How many records of the epoch have been read."""
        return self._session.index

    @property
    def epoch(self) -> int:
        """How many epochs have been started."""
        return self._session.epoch

    def __aiter__(self) -> "_Epoch":
        """The records of an epoch, which is started when the first of them is asked for."""
        return _Epoch(self)

    async def start_epoch(self) -> None:
        """`epoch` + 1, `index` 0: what `iter(session)` does for a `Session`."""
        await self._turns.once(partial(iter, self._session), "start_epoch")

    async def next_record(self) -> Any:
        """The record at `index`, what `next(session)` is for a `Session`. Raises StopAsyncIteration at the end."""
        return self._unless_ended(await self._turns.once(partial(next, self._session, _END), "next_record"))

    async def next_batch(self, size: int) -> Any:
        """The records from `index` on as arrays of shape (size, *field.shape), fewer at the epoch's end.

        Raises StopAsyncIteration where there is none left.
        """
        return self._unless_ended(await self._turns.once(partial(_next_batch, self._session, size), "next_batch", size))

    async def reset(self) -> None:
        """Set `index` and `epoch` to 0, and reset the sources that can be."""
        await self._turns.once(self._session.reset, "reset")

    async def set_state(self, state: State) -> None:
        """Take over a state that `get_state` gave: `Session.set_state`."""
        await self._turns.once(partial(self._session.set_state, state), object())

    async def compute_statistics(self, start: int, size: int, key: Any) -> dict[str, Any] | None:
        """What the mixture's `batch_stats_fn` says of the batch at these positions; None where none is configured."""
        return await self._turns.again(partial(self._session.compute_statistics, start, size, key))

    async def set_statistics(self, stats: dict[str, Any]) -> None:
        """Keep `stats`, a dict of arrays, numbers and strings, in the place of computed ones."""
        await self._turns.again(partial(self._session.set_statistics, stats))

    async def reset_statistics(self) -> None:
        """Forget computed statistics, and leave precomputed ones unmentioned."""
        await self._turns.again(self._session.reset_statistics)

    async def reset_operation_stats(self) -> None:
        """Set both counts to zero."""
        await self._turns.again(self._session.reset_operation_stats)

    async def reset_cache(self) -> None:
        """Forget the batches that the node keeps. All sessions of a mixture share them."""
        await self._turns.again(self._session.reset_cache)

    async def process(self, start: int, size: int, key: Any = None) -> Any:
        """The batch at these positions, counted in `get_operation_stats`: `Session.process`."""
        task = partial(self._session.process, start, size, key)
        return await self._turns.once(task, "process", start, size, _comparable(key))

    async def restore_checkpoint(self, name: str, *, session: str | None = None, strict: bool = True) -> None:
        """Go on where a checkpoint was saved: `Session.restore_checkpoint`."""
        task = partial(self._session.restore_checkpoint, name, session=session, strict=strict)
        await self._turns.once(task, "restore_checkpoint", name, session, strict)

    async def close(self) -> None:
        """Let others open the session; its journal and its checkpoints stay. Closing twice is closing once.

        A cancelled call that still looks for its server two seconds later lets go of the session when it ends.
        """
        await self._turns.at_last(self._session.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @staticmethod
    def _unless_ended(value: Any) -> Any:
        if value is _END:
            raise StopAsyncIteration
        return value


class _Epoch:
    """What `async for` over a session goes through."""

    def __init__(self, session: AsyncSession):
        self._session = session
        self._started = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        if not self._started:
            await self._session.start_epoch()
            self._started = True
        return await self._session.next_record()


def _begun(task: Callable[[], T], workers: PerProcess[Workers]) -> "Future[T]":
    """`task` in a thread, or here once the client is closed: nothing waits any more then, and states can be had."""
    try:
        return workers.here.submit(task)
    except Unavailable:
        future: Future[T] = Future()
        _finish(future, task)
        return future


def _finish(future: "Future[T]", task: Callable[[], T]) -> None:
    try:
        future.set_result(task())
    except Exception as error:
        future.set_exception(error)


def _next_batch(session: Session, size: int) -> Any:
    try:
        return session.next_batch(size)
    except StopIteration:
        return _END


def _comparable(key: Any) -> Any:
    """Equal for equal keys."""
    try:
        return None if key is None else tuple(key_words(key).tolist())
    except InvalidRequest:
        return object()

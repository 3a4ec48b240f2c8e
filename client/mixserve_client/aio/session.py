"""`AsyncSession` and `AsyncSessionView`, which lose no record if a call is cancelled."""

import inspect
from collections.abc import Callable, Coroutine
from functools import partial
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from mixserve_client.aio.turns import END, Turns
from mixserve_client.errors import InvalidRequest
from mixserve_client.forks import PerProcess
from mixserve_client.rpc.forwarding import named_as
from mixserve_client.rpc.threads import DaemonThreadPool
from mixserve_client.schema.fields import Batch
from mixserve_client.schema.keys import key_words
from mixserve_client.sessions.session import Session, SessionView

P = ParamSpec("P")
T = TypeVar("T")


def again(method: Callable[Concatenate[Any, P], T]) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]:
    """The call as a coroutine function, for calls that may run twice: one that is cancelled and made again does."""

    async def call(self: "AsyncSessionView", *args: P.args, **kwargs: P.kwargs) -> T:
        return await self.turns.again(partial(method, self.session, *args, **kwargs))

    return named_as(method, call)


def once(method: Callable[Concatenate[Any, P], T]) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]:
    """The call as a coroutine function; after a cancelled call, the same call again returns the answer of that one."""
    signature = inspect.signature(method)

    async def call(self: "AsyncSessionView", *args: P.args, **kwargs: P.kwargs) -> T:
        given = signature.bind(self, *args, **kwargs)
        given.apply_defaults()
        values = tuple(map(_comparable, tuple(given.arguments.values())[1:]))
        return await self.turns.once(partial(method, self.session, *args, **kwargs), method.__name__, *values)

    return named_as(method, call)


class AsyncSessionView:
    """A `SessionView` for asyncio: the calls that any client may make. Made by `AsyncMixClient.view_session`."""

    def __init__(self, view: SessionView, workers: PerProcess[DaemonThreadPool]):
        self.session = view
        self.turns = Turns(workers)

    def __reduce__(self) -> Any:
        raise TypeError(
            "a session cannot be pickled, since it belongs to one process: pickle the client, and open the session in "
            "the other process"
        )

    @property
    def name(self) -> str:
        """The session's name."""
        return self.session.name

    @property
    def mixture(self) -> str:
        """The name of the session's mixture."""
        return self.session.mixture

    get_state = again(SessionView.get_state)
    get_statistics = again(SessionView.get_statistics)
    get_operation_stats = again(SessionView.get_operation_stats)
    save_checkpoint = again(SessionView.save_checkpoint)
    list_checkpoints = again(SessionView.list_checkpoints)
    delete_checkpoint = once(SessionView.delete_checkpoint)

    def __repr__(self) -> str:
        return f"Async{self.session!r}"


class AsyncSession(AsyncSessionView):
    """A `Session` for asyncio, made by `AsyncMixClient.session`. As a context manager it closes at the end.

    A cancelled call may have moved the session all the same. The same call again returns what the cancelled one would
    have returned. Until then the records of a cancelled read count as read, in `index` and in states, and another read
    continues after them.
    """

    def __init__(self, session: Session, workers: PerProcess[DaemonThreadPool]):
        super().__init__(session, workers)
        self._session = session  # `self.session` with the type of a Session

    @property
    def resumed(self) -> bool:
        """Whether the session existed when this client opened it, and so continues from where it was."""
        return self._session.resumed

    @property
    def index(self) -> int:
        """The number of records read in this epoch."""
        return self._session.index

    @property
    def epoch(self) -> int:
        """The number of epochs started."""
        return self._session.epoch

    def __aiter__(self) -> "_Epoch":
        """The records of a new epoch, which the first `anext` starts."""
        return _Epoch(self)

    async def start_epoch(self) -> None:
        """Start an epoch: `epoch` + 1, `index` 0. The same as `iter(session)` of a `Session`."""
        await self.turns.once(partial(iter, self._session), "start_epoch")

    async def next_record(self) -> Any:
        """The record at `index`, as `next(session)` of a `Session`. Raises StopAsyncIteration at the epoch's end."""
        return self._unless_ended(await self.turns.once(partial(next, self._session, END), "next_record"))

    async def next_batch(self, size: int) -> Batch:
        """The records from `index` on as arrays of shape (size, *field.shape), fewer at the epoch's end.

        Raises StopAsyncIteration if none is left.
        """
        return self._unless_ended(await self.turns.once(partial(_next_batch, self._session, size), "next_batch", size))

    reset = once(Session.reset)
    set_state = once(Session.set_state)
    process = once(Session.process)
    restore_checkpoint = once(Session.restore_checkpoint)
    compute_statistics = again(Session.compute_statistics)
    set_statistics = again(Session.set_statistics)
    reset_statistics = again(Session.reset_statistics)
    reset_operation_stats = again(Session.reset_operation_stats)
    reset_cache = again(Session.reset_cache)

    async def close(self) -> None:
        """Release the session, so that other clients can open it; its journal and its checkpoints stay.

        If a cancelled call is still running after two seconds, this returns, and the session is released when that call
        ends. You may call it more than once.
        """
        await self.turns.at_last(self._session.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @staticmethod
    def _unless_ended(value: Any) -> Any:
        if value is END:
            raise StopAsyncIteration
        return value


class _Epoch:
    """The iterator of `async for` over a session."""

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


def _next_batch(session: Session, size: int) -> Any:
    try:
        return session.next_batch(size)
    except StopIteration:
        return END


def _comparable(value: Any) -> Any:
    """A value that is equal for equal arguments, also for keys; for one that cannot be compared it equals nothing."""
    if value is None or isinstance(value, str | bool):
        return value
    try:
        return tuple(key_words(value).tolist())
    except InvalidRequest:
        return value if isinstance(value, int | float) else object()

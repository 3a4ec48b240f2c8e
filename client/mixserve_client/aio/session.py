"""Sessions for asyncio, which lose no record when a call is cancelled."""

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
from mixserve_client.schema.keys import key_words
from mixserve_client.sessions.session import Session, SessionView

P = ParamSpec("P")
T = TypeVar("T")


def again(method: Callable[Concatenate[Any, P], T]) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]:
    """The operation for asyncio: it moves nothing, so that it may be done twice if a caller is cancelled."""

    async def call(self: "AsyncSessionView", *args: P.args, **kwargs: P.kwargs) -> T:
        return await self.turns.again(partial(method, self.session, *args, **kwargs))

    return named_as(method, call)


def once(method: Callable[Concatenate[Any, P], T]) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]:
    """The operation for asyncio: the same call after a cancelled one gives the answer of that one."""
    signature = inspect.signature(method)

    async def call(self: "AsyncSessionView", *args: P.args, **kwargs: P.kwargs) -> T:
        given = signature.bind(self, *args, **kwargs)
        given.apply_defaults()
        values = tuple(map(_comparable, tuple(given.arguments.values())[1:]))
        return await self.turns.once(partial(method, self.session, *args, **kwargs), method.__name__, *values)

    return named_as(method, call)


class AsyncSessionView:
    """What anybody may ask of a session, whoever holds it; made by `AsyncMixClient.view_session`."""

    def __init__(self, view: SessionView, workers: PerProcess[DaemonThreadPool]):
        self.session = view
        self.turns = Turns(workers)

    def __reduce__(self) -> Any:
        raise TypeError("a session cannot be pickled: it is one process's; pickle the client, and open it there")

    @property
    def name(self) -> str:
        """The session's name."""
        return self.session.name

    @property
    def mixture(self) -> str:
        """The name of its mixture."""
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
    """A `Session` for asyncio, made by `AsyncMixClient.session`. A context manager that lets go of the session.

    A call that was cancelled may have moved the session all the same. Make it again, and it gives what it would have
    given; until then the records of a cancelled read count as read, in `index` and in states, and another read goes on
    behind them.
    """

    def __init__(self, session: Session, workers: PerProcess[DaemonThreadPool]):
        super().__init__(session, workers)
        self._session = session  # in its own type

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
        await self.turns.once(partial(iter, self._session), "start_epoch")

    async def next_record(self) -> Any:
        """The record at `index`, what `next(session)` is for a `Session`. Raises StopAsyncIteration at the end."""
        return self._unless_ended(await self.turns.once(partial(next, self._session, END), "next_record"))

    async def next_batch(self, size: int) -> Any:
        """The records from `index` on as arrays of shape (size, *field.shape), fewer at the epoch's end.

        Raises StopAsyncIteration where there is none left.
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
        """Let others open the session; its journal and its checkpoints stay. Closing twice is closing once.

        A cancelled call that still looks for its server two seconds later lets go of the session when it ends.
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


def _next_batch(session: Session, size: int) -> Any:
    try:
        return session.next_batch(size)
    except StopIteration:
        return END


def _comparable(value: Any) -> Any:
    """Equal for equal arguments, keys among them; what cannot be compared equals nothing."""
    if value is None or isinstance(value, str | bool):
        return value
    try:
        return tuple(key_words(value).tolist())
    except InvalidRequest:
        return value if isinstance(value, int | float) else object()

"""The client for asyncio: every call of the client, awaited while a thread makes it."""

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from mixserve_client.aio.iterator import AsyncBatchIterator
from mixserve_client.aio.session import AsyncSession, AsyncSessionView
from mixserve_client.aio.turns import Turns, begin
from mixserve_client.client import MixClient
from mixserve_client.errors import InvalidRequest
from mixserve_client.forks import PerProcess
from mixserve_client.rpc.forwarding import named_as, with_arguments_of, with_class_arguments_of
from mixserve_client.rpc.threads import DaemonThreadPool
from mixserve_client.sessions.session import Session

P = ParamSpec("P")
T = TypeVar("T")
_THREADS = 16


def awaited(method: Callable[Concatenate[Any, P], T]) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]:
    """The call of `MixClient`, made in a thread."""

    async def call(self: "AsyncMixClient", *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.wrap_future(begin(partial(method, self.client, *args, **kwargs), self.workers))

    return named_as(method, call)


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
        self.client = client
        self.workers = PerProcess(partial(DaemonThreadPool, _THREADS, on_exit=client.close))
        self._opening = Turns(self.workers)
        self._opened: Session | None = None  # and given to nobody

    @classmethod
    @with_class_arguments_of(MixClient.connect)
    def connect(cls, *args: Any, **options: Any) -> Self:
        """A client of the server at `address`, as `MixClient.connect` makes it. Never blocks."""
        return cls(MixClient.connect(*args, **options))

    def __reduce__(self) -> Any:
        """A client of the same servers, as that of `MixClient`."""
        return type(self), (self.client,)

    @property
    def transport(self) -> str:
        """How batches travel at present, as `MixClient.transport` says it."""
        return self.client.transport

    mixtures = awaited(MixClient.mixtures)
    mixture = awaited(MixClient.mixture)
    end = awaited(MixClient.end)
    get_batch_at = awaited(MixClient.get_batch_at)
    get_batch_by_positions = awaited(MixClient.get_batch_by_positions)
    get_plan_at = awaited(MixClient.get_plan_at)
    sessions = awaited(MixClient.sessions)

    @with_arguments_of(MixClient.batches)
    def batches(self, *args: Any, **options: Any) -> AsyncBatchIterator:
        """An iterator over the batches from position `start` on, as `MixClient.batches` makes it. Asks for nothing."""
        return AsyncBatchIterator(self.client.batches(*args, **options), self.workers)

    @with_arguments_of(MixClient.session)
    async def session(self, *args: Any, **options: Any) -> AsyncSession:
        """Open the session of that name: `MixClient.session`.

        Where this was cancelled, the session may be this client's: the same call again gives it, and opening another
        one, or closing the client, lets go of it.
        """

        def open_it() -> Session:
            unwanted, self._opened = self._opened, None
            if unwanted is not None:
                unwanted.close()
            self._opened = self.client.session(*args, **options)
            return self._opened

        session = await self._opening.once(open_it, args, tuple(sorted(options.items())))
        self._opened = None
        return AsyncSession(session, self.workers)

    @with_arguments_of(MixClient.view_session)
    async def view_session(self, *args: Any, **options: Any) -> AsyncSessionView:
        """What may be asked of a session that others hold: its state, and its checkpoints."""
        view = await asyncio.wrap_future(begin(partial(self.client.view_session, *args, **options), self.workers))
        return AsyncSessionView(view, self.workers)

    async def close(self) -> None:
        """Let go of sessions, end the calls under way and the connections; closing twice is closing once."""
        # Not in a thread of its own: all of them may be in calls that this is to end.
        await asyncio.to_thread(self.workers.here.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"Async{self.client!r}"

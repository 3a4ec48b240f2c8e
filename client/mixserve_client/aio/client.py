"""`AsyncMixClient`: each call of `MixClient`, made by a thread and awaited."""

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
from mixserve_client.schema.stats import Metric
from mixserve_client.sessions.session import Session

P = ParamSpec("P")
T = TypeVar("T")
_THREADS = 16


def in_thread(method: Callable[Concatenate[Any, P], T]) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]:
    """A coroutine function that makes the call of `MixClient` in a thread."""

    async def call(self: "AsyncMixClient", *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.wrap_future(begin(partial(method, self.client, *args, **kwargs), self.workers))

    return named_as(method, call)


_view_session = in_thread(MixClient.view_session)


class AsyncMixClient:
    """A `MixClient` for asyncio: the same calls, arguments, results and errors, awaited.

    Up to 16 calls run at a time, each in a thread; others wait for a thread. `timeout_s` counts from when a thread
    begins the call, without the wait for a thread or for the turn of an iterator's or session's call; `asyncio.timeout`
    bounds these waits too. A cancelled call runs on in its thread, and the client drops its result. Iterators and
    sessions lose nothing by that: their calls take turns, and the same call made again returns what the cancelled one
    would have returned.

    A client, its iterators and its sessions are for one event loop at a time.
    """

    def __init__(self, client: MixClient):
        """Take over `client`, which may be one of `mixserve.local_client`: closing this one closes it.

        Raises InvalidRequest if it is not a MixClient.
        """
        if not isinstance(client, MixClient):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidRequest(
                f"client must be a MixClient, got {client!r:.100}; for an address use AsyncMixClient.connect(address)"
            )
        self.client = client
        self.workers = PerProcess(partial(DaemonThreadPool, _THREADS, on_exit=client.close))
        self._opening = Turns(self.workers)
        self._opened: Session | None = None  # a session that a cancelled call opened, and no caller has yet

    @classmethod
    @with_class_arguments_of(MixClient.connect)
    def connect(cls, *args: Any, **options: Any) -> Self:
        """A client of the server at `address`; arguments and errors are as in `MixClient.connect`. Never blocks."""
        return cls(MixClient.connect(*args, **options))

    def __reduce__(self) -> Any:
        """A client of the same servers, as a pickled `MixClient` is."""
        return type(self), (self.client,)

    @property
    def transport(self) -> str:
        """How batches travel at present; the values are those of `MixClient.transport`."""
        return self.client.transport

    mixtures = in_thread(MixClient.mixtures)
    mixture = in_thread(MixClient.mixture)
    end = in_thread(MixClient.end)
    get_batch_at = in_thread(MixClient.get_batch_at)
    get_batch_by_positions = in_thread(MixClient.get_batch_by_positions)
    get_plan_at = in_thread(MixClient.get_plan_at)
    sessions = in_thread(MixClient.sessions)
    server_stats = in_thread(MixClient.server_stats)

    def stats(self) -> dict[str, Metric]:
        """What this client has counted and measured: `MixClient.stats`. Sends nothing, so it is not a coroutine."""
        return self.client.stats()

    @with_arguments_of(MixClient.batches)
    def batches(self, *args: Any, **options: Any) -> AsyncBatchIterator:
        """An iterator over the batches from position `start` on; options and errors are as in `MixClient.batches`.

        Sends nothing yet, so it is not a coroutine.
        """
        return AsyncBatchIterator(self.client.batches(*args, **options), self.workers)

    @with_arguments_of(MixClient.session)
    async def session(self, *args: Any, **options: Any) -> AsyncSession:
        """Open the session `name`; options and errors are as in `MixClient.session`.

        If this call is cancelled, the client may hold the session all the same. The same call again returns it; opening
        another session, or closing the client, releases it.
        """

        def open_it() -> Session:
            # One that an earlier, cancelled call opened: nothing else would close it.
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
        """A view of a session that another client may hold: its state and its checkpoints."""
        return AsyncSessionView(await _view_session(self, *args, **options), self.workers)

    async def close(self) -> None:
        """Release the sessions, end running calls, and close the connections. You may call it more than once."""
        # Not in a thread of the pool: all of them may be busy with the calls that this ends.
        await asyncio.to_thread(self.workers.here.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"Async{self.client!r}"

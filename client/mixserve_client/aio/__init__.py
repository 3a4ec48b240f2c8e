"""The client for asyncio: every call of the client, its iterators and sessions, awaited while a thread makes it."""

from mixserve_client.aio.client import AsyncMixClient
from mixserve_client.aio.iterator import AsyncBatchIterator
from mixserve_client.aio.session import AsyncSession, AsyncSessionView

__all__ = ["AsyncBatchIterator", "AsyncMixClient", "AsyncSession", "AsyncSessionView"]

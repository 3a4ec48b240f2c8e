"""The client for asyncio: a thread makes each call of the client, its iterators and its sessions; you await it."""

from mixserve_client.aio.client import AsyncMixClient
from mixserve_client.aio.iterator import AsyncBatchIterator
from mixserve_client.aio.session import AsyncSession, AsyncSessionView

__all__ = ["AsyncBatchIterator", "AsyncMixClient", "AsyncSession", "AsyncSessionView"]

"""What a type checker knows of users' code: `make check` reads this file, which no test runs."""

from typing import Any, assert_type

import jax
import numpy.typing as npt

from mixserve_client import AsyncMixClient, MixClient
from mixserve_client.jax import device_batches

Arrays = dict[str, npt.NDArray[Any]]


def batches(client: MixClient) -> None:
    assert_type(client.get_batch_at(0, 8, 7), Arrays)
    assert_type(client.get_batch_by_positions([0, 5], 7), Arrays)
    with client.batches(8, 7) as batches:
        for batch in batches:
            assert_type(batch, Arrays)
        assert_type(next(batches), Arrays)
    with device_batches(client.batches(8, 7)) as on_device:
        assert_type(next(on_device), dict[str, jax.Array])
    with client.session("run-1") as session:
        assert_type(session.next_batch(8), Arrays)


async def awaited(client: AsyncMixClient) -> None:
    assert_type(await client.get_batch_at(0, 8, 7), Arrays)
    async with client.batches(8, 7) as batches:
        async for batch in batches:
            assert_type(batch, Arrays)

"""A server in its own process, its clients, and tensors in a comparable form."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from mixserve_client import MixClient
from tests.conftest import ROUTES
from tests.frameworks.serving import served


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    with served() as where:
        yield where


@pytest.fixture(params=ROUTES)
def client(request: pytest.FixtureRequest, address: str) -> Iterator[MixClient]:
    with MixClient.connect(address, patience_s=20, **ROUTES[request.param]) as made:
        yield made


@pytest.fixture
def connected(address: str) -> Iterator[MixClient]:
    with MixClient.connect(address, patience_s=20) as made:
        yield made


def plain(tree: Any) -> Any:
    """A tree of tensors or arrays as dtypes, shapes and bytes; equal only if all bits are equal."""
    if isinstance(tree, dict):
        return {key: plain(value) for key, value in tree.items()}
    if isinstance(tree, tuple | list):
        return [plain(value) for value in tree]
    if isinstance(tree, torch.Tensor):
        data = tree.reshape(-1).view(torch.uint8).numpy().tobytes() if tree.numel() else b""
        return str(tree.dtype).removeprefix("torch."), tuple(tree.shape), data
    array = np.asarray(tree)
    return array.dtype.name, array.shape, array.tobytes()


def all_plain(batches: Any) -> list[Any]:
    return [plain(batch) for batch in batches]

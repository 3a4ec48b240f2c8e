from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest

from mixserve import ArraySource, ServerLimits, serve
from tests.hanging_source import HangingSource
from tests.load.hanging import Hanging, node_of


@pytest.fixture
def make(tmp_path) -> Iterator[Callable[..., Hanging]]:
    """Serves with these limits."""
    with ExitStack() as stack:

        def start(*, alone: bool = False, **limits: Any) -> Hanging:
            switch = tmp_path / "hangs"
            source = HangingSource(switch)
            array = ArraySource({"x": np.arange(100, dtype=np.int32)}, name="array")
            nodes = {"hangs": node_of(source)} | ({} if alone else {"train": node_of(array)})
            server = stack.enter_context(serve(nodes, limits=ServerLimits(**limits)))
            stack.callback(switch.unlink, missing_ok=True)  # or threads would hang on
            source.taken = 0
            return Hanging(server, source, switch)

        yield start

"""The memory that replies are made in, if not in a client's."""

from typing import Protocol

import numpy as np
import numpy.typing as npt

Memory = npt.NDArray[np.uint8]
Message = bytes | memoryview


class ReplyMemory(Protocol):
    """Memory of one way to send replies. Thread-safe."""

    @property
    def piece_bytes(self) -> int:
        """Rows are cut into replies of up to this many bytes."""
        ...

    def take(self, size: int) -> tuple[Message, Memory]:
        """A message of `size` undefined bytes, and a writable view to fill it before other code sees it."""
        ...

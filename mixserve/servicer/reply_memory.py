"""The memory that replies are made in, if not in a client's."""

from typing import Protocol

import numpy as np
import numpy.typing as npt

from mixserve_client.wire import frame

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


class BytesMemory:
    """Fresh bytes objects, for gRPC, which sends nothing else."""

    piece_bytes = 2 << 20  # measured: gRPC moves the most bytes per second in messages of this size

    def take(self, size: int) -> tuple[bytes, Memory]:
        """A bytes object of `size` undefined bytes, and a writable view to fill it before other code sees it."""
        return frame.empty_bytes(size)

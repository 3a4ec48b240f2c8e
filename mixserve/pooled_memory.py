"""Memory of replies that do not go over gRPC, which sends bytes objects only, and these best in pieces."""

import numpy as np
import numpy.typing as npt

from mixserve_client.transport.buffers import MemoryPool

# A batch comes whole up to this size, so that it needs no memory and no copy to be put together.
_LARGEST_BYTES = 64 << 20
# While replies take more than this, others are cut as they are for gRPC.
_MOST_BYTES, _SMALL_BYTES = 256 << 20, 2 << 20


class PooledMemory:
    """Memory that is reused when the last view of a reply is gone. Thread-safe."""

    def __init__(self) -> None:
        self._pool = MemoryPool()

    @property
    def piece_bytes(self) -> int:
        """Rows are cut into replies of up to this many bytes."""
        return _LARGEST_BYTES if self._pool.lent_bytes < _MOST_BYTES else _SMALL_BYTES

    def take(self, size: int) -> tuple[memoryview, npt.NDArray[np.uint8]]:
        """A read-only message of `size` undefined bytes, and a writable view to fill it."""
        memory = self._pool.borrow(size)[:size]
        return memoryview(memory).toreadonly(), memory  # pyright: ignore[reportArgumentType]

    def drop_idle(self) -> None:
        """Return what no reply uses to the system."""
        self._pool.drop_idle()

"""Holders that hide host data from NNX, and the Variable type for device data."""

import weakref
from typing import Any

from flax import nnx


class OpaqueHolder:
    """Holds what NNX must neither see, copy nor trace: host data, caches.

    NNX would turn NumPy and memory-mapped attributes into JAX arrays at the first `nnx.jit`, narrow 64-bit integers,
    and copy the data with the module. It hashes and compares this holder by identity, and shares it between clones.
    """

    __slots__ = ("value",)

    def __init__(self, value: Any):
        self.value = value

    def __copy__(self) -> "OpaqueHolder":
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "OpaqueHolder":
        return self


class ModuleOwned(OpaqueHolder):
    """Holds what one module alone may change. NNX shares it with clones, which can tell that it is not theirs."""

    __slots__ = ("_owner",)

    def __init__(self, owner: nnx.Module | None, value: Any):
        super().__init__(value)
        self._owner = None if owner is None else weakref.ref(owner)

    def belongs_to(self, module: nnx.Module) -> bool:
        """Whether `module` is the one that it was made for."""
        return self._owner is not None and self._owner() is module

    def __reduce__(self) -> Any:
        return ModuleOwned, (None, self.value)  # a module that comes out of a pickle is a clone


class DeviceData(nnx.Variable):
    """Data on the device: an input of compiled programs, to be left out of a module's state with `nnx.Not`."""

"""Holders that hide host data from NNX, and the Variable type for device data."""

import weakref
from typing import Any

from flax import nnx


class OpaqueHolder:
    """Holds host data and caches, which NNX must not see, copy or trace.

    NNX would turn NumPy and memory-mapped attributes into JAX arrays at the first `nnx.jit`, narrow 64-bit integers,
    and copy the data with the module. It hashes and compares this holder by identity, and clones share it.
    """

    __slots__ = ("value",)

    def __init__(self, value: Any):
        self.value = value

    def __copy__(self) -> "OpaqueHolder":
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "OpaqueHolder":
        return self


class ModuleOwned(OpaqueHolder):
    """Holds what only one module may change. NNX shares it with clones, which use `belongs_to` to find that out."""

    __slots__ = ("_owner",)

    def __init__(self, owner: nnx.Module | None, value: Any):
        super().__init__(value)
        # Weak, since the module holds this object: neither may keep the other alive.
        self._owner = None if owner is None else weakref.ref(owner)

    def belongs_to(self, module: nnx.Module) -> bool:
        """Whether this holder was made for `module`."""
        return self._owner is not None and self._owner() is module

    def __reduce__(self) -> Any:
        return ModuleOwned, (None, self.value)  # an unpickled module is a clone: it makes its own holder


class DeviceData(nnx.Variable):
    """Data on the device: an input of compiled programs; `nnx.Not(DeviceData)` leaves it out of a module's state."""

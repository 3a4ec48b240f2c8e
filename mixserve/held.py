"""The former names of `mixserve.module.holders`, under which nodes that earlier versions pickled look for them."""

from mixserve.module.holders import DeviceData
from mixserve.module.holders import ModuleOwned as Owned
from mixserve.module.holders import OpaqueHolder as Opaque

__all__ = ["DeviceData", "Opaque", "Owned"]

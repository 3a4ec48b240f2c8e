"""Former names of `mixserve.module.holders`: pickles of nodes from earlier versions look for them here."""

from mixserve.module.holders import DeviceData
from mixserve.module.holders import ModuleOwned as Owned
from mixserve.module.holders import OpaqueHolder as Opaque

__all__ = ["DeviceData", "Opaque", "Owned"]

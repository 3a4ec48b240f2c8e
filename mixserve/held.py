"""The former names of `mixserve.module.holders`, under which nodes that earlier versions pickled look for them."""

from mixserve.module.holders import DeviceData, Opaque, Owned

__all__ = ["DeviceData", "Opaque", "Owned"]

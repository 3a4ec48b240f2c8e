"""Requests' bytes in, replies' bytes out; knows no gRPC."""

from mixserve.servicer.servicer import MixServicer

__all__ = ["MixServicer"]

"""Requests' bytes in, replies' bytes out; knows no gRPC."""

from mixserve.servicer.services import Services

__all__ = ["Services"]

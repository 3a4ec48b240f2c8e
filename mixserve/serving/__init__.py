"""gRPC at the edge: the server, its health and its end."""

from mixserve.serving.server import MixServer, serve

__all__ = ["MixServer", "serve"]

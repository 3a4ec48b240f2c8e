"""gRPC at the edge: the server, its health and its end."""

from typing import TYPE_CHECKING

from mixserve.lazy import lazy_attributes

if TYPE_CHECKING:
    from mixserve.serving.server import MixServer
    from mixserve.serving.start import serve

__all__ = ["MixServer", "serve"]

# Imported at first use: the process that starts workers answers for their health, and needs no JAX for that.
__getattr__ = lazy_attributes(__name__, {"MixServer": "mixserve.serving.server", "serve": "mixserve.serving.start"})

"""The light client of mixserve: batches of a mixture that lives on a server, bit for bit reproducible.

>>> from mixserve_client import MixClient
>>> with MixClient.connect("localhost:50051") as client:
...     batch = client.get_batch_at(0, 256, key=7)
"""

from mixserve_client.client import MixClient
from mixserve_client.errors import (
    CorruptReply,
    DeadlineExceeded,
    FingerprintMismatch,
    InvalidRequest,
    MixserveError,
    OutOfRange,
    Overloaded,
    PermissionDenied,
    ServerFault,
    Unauthenticated,
    Unavailable,
    UnknownMixture,
    UnknownSchedule,
)
from mixserve_client.iterator import BatchIterator
from mixserve_client.wire.description import Field, Limits, MixtureDescription, SourceDescription

__all__ = [
    "BatchIterator",
    "CorruptReply",
    "DeadlineExceeded",
    "Field",
    "FingerprintMismatch",
    "InvalidRequest",
    "Limits",
    "MixClient",
    "MixserveError",
    "MixtureDescription",
    "OutOfRange",
    "Overloaded",
    "PermissionDenied",
    "ServerFault",
    "SourceDescription",
    "Unauthenticated",
    "Unavailable",
    "UnknownMixture",
    "UnknownSchedule",
]
__version__ = "0.1.0"

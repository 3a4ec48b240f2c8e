"""The light client of mixserve: reads bit-for-bit reproducible batches of a mixture from a server.

>>> from mixserve_client import MixClient
>>> with MixClient.connect("localhost:50051") as client:
...     batch = client.get_batch_at(0, 256, key=7)
"""

from mixserve_client.aio import AsyncBatchIterator, AsyncMixClient, AsyncSession, AsyncSessionView
from mixserve_client.client import MixClient
from mixserve_client.credentials import TlsOptions
from mixserve_client.errors import (
    CorruptCheckpoint,
    CorruptReply,
    DeadlineExceeded,
    FingerprintMismatch,
    InvalidRequest,
    MixserveError,
    OutOfRange,
    Overloaded,
    PermissionDenied,
    ServerFault,
    SessionTaken,
    SourceChanged,
    StorageFailed,
    Unauthenticated,
    Unavailable,
    UnknownCheckpoint,
    UnknownMixture,
    UnknownSchedule,
    UnknownSession,
    UnknownSource,
)
from mixserve_client.reading.iterator import BatchIterator
from mixserve_client.schema.fields import Batch, Field
from mixserve_client.schema.mixture import Limits, MixtureDescription, SourceDescription
from mixserve_client.schema.sessions import SessionDescription
from mixserve_client.sessions.session import Checkpoint, Session, SessionView
from mixserve_client.version import __version__ as __version__

__all__ = [
    "AsyncBatchIterator",
    "AsyncMixClient",
    "AsyncSession",
    "AsyncSessionView",
    "Batch",
    "BatchIterator",
    "Checkpoint",
    "CorruptCheckpoint",
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
    "Session",
    "SessionDescription",
    "SessionTaken",
    "SessionView",
    "SourceChanged",
    "SourceDescription",
    "StorageFailed",
    "TlsOptions",
    "Unauthenticated",
    "Unavailable",
    "UnknownCheckpoint",
    "UnknownMixture",
    "UnknownSchedule",
    "UnknownSession",
    "UnknownSource",
]

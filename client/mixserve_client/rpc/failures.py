"""What an error of one replica means for the request."""

import math
from enum import Enum

from mixserve_client.errors import (
    CorruptReply,
    DeadlineExceeded,
    FingerprintMismatch,
    MixserveError,
    Overloaded,
    ServerFault,
    SourceChanged,
    Unavailable,
    UnknownMixture,
    UnknownSource,
)


class Kind(Enum):
    """What to do about an error."""

    LOST = "lost"  # the replica does not answer: ask others, and wait for one that does
    BUSY = "busy"  # it answers later
    WRONG = "wrong"  # it has another mixture, or other data: others may have the right one
    FAULT = "fault"  # it cannot answer this request: each of the others may be asked once
    FINAL = "final"  # every replica would say the same


_KINDS: tuple[tuple[type[MixserveError], Kind], ...] = (
    (Unavailable, Kind.LOST),
    (DeadlineExceeded, Kind.LOST),  # the server's own, or that of one attempt
    (FingerprintMismatch, Kind.WRONG),
    (UnknownMixture, Kind.WRONG),
    (UnknownSource, Kind.WRONG),
    (SourceChanged, Kind.WRONG),
    (ServerFault, Kind.FAULT),
    (CorruptReply, Kind.FAULT),
)


def kind_of(error: MixserveError) -> Kind:
    """What the error means."""
    if isinstance(error, Overloaded):
        # An infinite delay is a limit of gRPC or of a proxy, which the same server would meet again.
        return Kind.FAULT if error.retry_after_s == math.inf else Kind.BUSY
    return next((kind for cls, kind in _KINDS if isinstance(error, cls)), Kind.FINAL)

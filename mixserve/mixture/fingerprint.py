"""Everything that decides the bytes of a batch -> 64 hexadecimal digits. Equal fingerprints mean equal batches."""

import hashlib
import json
from collections.abc import Sequence

import numpy as np

from mixserve.mixture.leaves import AnyPlanner
from mixserve.mixture.programs import PROBE_POSITIONS
from mixserve.mixture.sampling import EPOCH, Sampling
from mixserve_client.schema.dtypes import dtype_name
from mixserve_client.schema.fields import Field
from mixserve_client.schema.keys import IMPLEMENTATION

# Raise it with any change to the arithmetic of plans or to what this digest covers: servers and states of different
# versions must refuse each other.
ALGORITHM_VERSION = 2
_PROBE_KEY = np.array([0x6D697873, 0x65727665], np.uint32)


def fingerprint(
    *,
    names: tuple[str, ...],
    lengths: Sequence[int],
    identities: Sequence[bytes],
    fields: tuple[Field, ...],
    sampling: Sampling,
    planner: AnyPlanner,
) -> str:
    """The SHA-256 of the algorithm, the sources and their content, the sampling, and a probe of this machine.

    `identities` represent the content of the sources; an empty one means that the content is unknown.
    """
    covered = {
        "algorithm": ALGORITHM_VERSION,
        "prng": IMPLEMENTATION,
        "sampling": [sampling.mode, *([sampling.block_size, sampling.stop] if sampling.mode == EPOCH else [])],
        "fields": _describe(fields),
        "sources": [
            [name, length, identity.hex()] for name, length, identity in zip(names, lengths, identities, strict=True)
        ],
        "schedule": [[start, [share.hex() for share in shares]] for start, shares in sampling.schedule.entries],
        "probe": planner.score_words(_PROBE_KEY, PROBE_POSITIONS).hex(),
    }
    return hashlib.sha256(json.dumps(covered, sort_keys=True).encode()).hexdigest()


def records_fingerprint(fields: tuple[Field, ...], length: int, identity: bytes) -> str:
    """The SHA-256 of what decides the records of one source. How they are drawn is no part of it."""
    # Versions with other plans read each other's records.
    covered = {"records": 1, "fields": _describe(fields), "length": length, "content": identity.hex()}
    return hashlib.sha256(json.dumps(covered, sort_keys=True).encode()).hexdigest()


def _describe(fields: tuple[Field, ...]) -> list[list[object]]:
    return [[field.name, dtype_name(field.dtype), list(field.shape)] for field in fields]

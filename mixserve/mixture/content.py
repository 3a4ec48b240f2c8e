"""The sources of a mixture -> the identities of their content: ids, digests, or samples of their records."""

import hashlib
import logging
import threading
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

import numpy as np

from mixserve.error_boundary import WrongRecord
from mixserve.failed_read import naming_source
from mixserve.sources import RecordIds, ReferenceSource, content_bytes, is_keyed
from mixserve_client.schema.fields import Field
from mixserve_client.schema.tree import flatten

_logger = logging.getLogger("mixserve")

# The limit for all sources of a mixture together: a server reads their samples before it starts.
SAMPLING_S = 5.0
_SPREAD = 65
SAMPLED_RECORDS = _SPREAD + 1
_THREADS = 8
_BYTES_AT_ONCE = 64 << 20
_LONGEST_ID, _LONGEST_FAILURE = 256, 300


class Content(NamedTuple):
    """What is known about a source's content.

    `identity` goes into the fingerprint; it is empty if nothing identifies the content. `sample` is the digest of some
    records if two readings of them were equal. `is_sampled`: the source says that its digest is that of a sample.
    """

    identity: bytes
    sample: bytes | None = None
    is_sampled: bool = False


def check_id(name: str, content_id: Any) -> str | None:
    """The `content_id` of the source `name`. Raises ValueError unless it is None or a string of 1 to 256 characters."""
    if content_id is None or (isinstance(content_id, str) and 0 < len(content_id) <= _LONGEST_ID):
        return content_id
    raise ValueError(
        f"the content_id of the source {name!r} must be a string of 1 to {_LONGEST_ID} characters, "
        f"got {content_id!r:.300}"
    )


def identify(
    names: Sequence[str], sources: Sequence[Any], content_ids: Sequence[str | None], fields: Sequence[Field]
) -> list[Content]:
    """The content of each source, identified by its `content_id`, else its `content_digest()`, else a sample.

    The sample is the first record, the last one and 64 spread between them, read twice. A source gets no identity, and
    the log a warning, if its records cannot be read, differ between the readings, or if the samples of all sources take
    longer than 5 s.
    """
    found = dict[int, Content]()
    unknown = dict[int, _Sample]()
    for place, (source, content_id) in enumerate(zip(sources, content_ids, strict=True)):
        with naming_source(names[place], "the content digest"):
            digest = b"" if content_id is not None else content_bytes(source)
        if content_id is not None:
            # Before the source's own digest: only the user knows what a rewritten file means.
            found[place] = Content(_tag("content_id", content_id.encode(errors="surrogatepass")))
        elif digest:
            found[place] = Content(digest, is_sampled=getattr(source, "content_sampled", False) is True)
        elif len(source) == 0:
            found[place] = Content(b"")
        else:
            unknown[place] = _Sample(source, fields)
    _read(unknown.values())
    for place, sample in unknown.items():
        found[place], doubt = sample.result()
        if doubt:
            _logger.warning(
                "the fingerprint does not cover the content of the source %r: %s. Changes of its records, and "
                "differences between replicas, will go unnoticed; give the source a content_id",
                names[place],
                doubt,
            )
    return [found[place] for place in range(len(sources))]


class _Sample:
    """Some records of a source, read twice and compared."""

    def __init__(self, source: Any, fields: Sequence[Field]):
        self._source = source
        self._fields = {field.name: (field.dtype, field.shape) for field in fields}
        row_bytes = sum(field.nbytes for field in fields)
        self._step = max(1, _BYTES_AT_ONCE // max(1, row_bytes))
        self._digests: list[bytes] = []
        self._failure = ""

    def read(self, until: float) -> None:
        """Read the sample twice, but begin no read after the time `until`."""
        try:
            if isinstance(self._source, ReferenceSource):
                self._source.warm_up()
            while len(self._digests) < 2 and (digest := self._digest(until)):
                self._digests.append(digest)
        except BaseException as error:  # user code, which may raise anything
            self._failure = f"reading its records failed: {type(error).__name__}: {error}"[:_LONGEST_FAILURE]

    def result(self) -> tuple[Content, str]:
        """What the reads found so far, and why that is not an identity, else an empty string."""
        # A snapshot: a thread whose source is too slow may still be reading.
        digests, doubt = tuple(self._digests), self._failure
        if len(set(digests)) > 1:
            return Content(b""), "its records differ when they are read again"
        sample = digests[0] if digests else None
        if not doubt and len(digests) < 2:
            doubt = f"reading {SAMPLED_RECORDS} of its records twice takes longer than {SAMPLING_S:g} s"
        return Content(b"" if doubt or sample is None else _tag("sample", sample), sample), doubt

    def _digest(self, until: float) -> bytes | None:
        """The digest of the sample's records; None if reading them takes too long."""
        last, digest = len(self._source) - 1, hashlib.sha256()
        ids = np.unique([last * i // _SPREAD for i in range(_SPREAD + 1)])
        for at in range(0, len(ids), self._step):
            if time.monotonic() > until:
                return None
            for name, leaf in flatten(self._take(ids[at : at + self._step])).items():
                array = np.ascontiguousarray(leaf)
                if (array.dtype, array.shape[1:]) != self._fields.get(name):
                    raise WrongRecord(f"the leaf {name!r:.100} came as {array.dtype}{list(array.shape[1:])}")
                digest.update(f"{name} {array.dtype.name} {array.shape}".encode())
                digest.update(array.tobytes())
        return digest.digest()

    def _take(self, record_ids: RecordIds) -> Any:
        if is_keyed(self._source):
            return self._source.take_keyed(record_ids, np.zeros((len(record_ids), 2), np.uint32))
        return self._source.take(record_ids)


def _read(samples: Collection[_Sample]) -> None:
    """Read all samples, in threads, until the time is up."""
    waiting, until = SimpleQueue[_Sample](), time.monotonic() + SAMPLING_S
    for sample in samples:
        waiting.put(sample)

    def work() -> None:
        with suppress(Empty):
            while time.monotonic() < until:
                waiting.get_nowait().read(until)

    # Daemons: a source that never answers must not keep the server from starting or the process from ending.
    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(_THREADS, len(samples)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))


def _tag(kind: str, content: bytes) -> bytes:
    """A digest with the kind mixed in, so that an id never equals a sample or a digest that a source returned."""
    return hashlib.sha256(f"mixserve {kind}:".encode() + content).digest()

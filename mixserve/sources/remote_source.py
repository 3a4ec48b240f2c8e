"""A source on another mixserve server -> a source here, with the same records, length and identity."""

import logging
import time
from collections.abc import Callable, Iterable
from functools import partial
from os import PathLike
from typing import Any

import jax
import numpy as np

from mixserve.sources.hops import current_hops
from mixserve.sources.source import ElementSpec, RecordIds, Records
from mixserve_client.credentials import TlsOptions
from mixserve_client.errors import (
    DeadlineExceeded,
    FingerprintMismatch,
    MixserveError,
    Overloaded,
    ServerFault,
    SourceChanged,
    Unavailable,
    UnknownMixture,
    UnknownSource,
    class_of,
)
from mixserve_client.limited_log import LimitedLog
from mixserve_client.options import ConnectOptions
from mixserve_client.reading.records import PendingRecords, RecordReader
from mixserve_client.schema.checks import check_mixture, check_source
from mixserve_client.schema.text import describe_error, show_names
from mixserve_client.schema.tree import unflatten

PATIENCE_S = 30.0
# Servers end streams whose readers take nothing for 10 s. After a pause, ask for what was asked for ahead once more.
_FRESH_S = 5.0
_SHOWN = 1000
_PASSING = (Unavailable, Overloaded, DeadlineExceeded)
_CHANGED = (FingerprintMismatch, UnknownMixture, UnknownSource, SourceChanged)

_logger = logging.getLogger("mixserve")


class RemoteSource:
    """The records of the source `source` of the mixture `mixture` of the server at `address`, or of its replicas.

    Length, element spec and content are those of that source, as they were when this was made: what it has after a
    change is refused. So a mixture has the same fingerprint and the same batches as with the source itself.

    It can be pickled, and used after a fork: each process has connections of its own, which the sources with equal
    addresses and options share.
    """

    def __init__(
        self,
        address: str | Iterable[str],
        *,
        mixture: str | None = None,
        source: str | None = None,
        tls: bool | str | PathLike[str] | TlsOptions | None = None,
        token: str | None = None,
        token_file: str | PathLike[str] | None = None,
        patience_s: float = PATIENCE_S,
        zone: str | None = None,
        name: str | None = None,
    ):
        """`address`, `tls`, `token`, `token_file` and `zone` are as in `MixClient.connect`; the token needs the role
        reader. `name` is the source's in a mixture here.

        `mixture` and `source` may be left out if the server has only one. A source of a nested mixture is named
        `outer/inner`. `patience_s` is how many seconds a read keeps trying to reach a server, and this too.

        Raises Unavailable if no server answers; UnknownMixture and UnknownSource; InvalidRequest for wrong arguments,
        and for a source whose records depend on a key too; Unauthenticated and PermissionDenied.
        """
        options = ConnectOptions(address, patience_s=patience_s, tls=tls, token=token, token_file=token_file, zone=zone)
        wanted = check_mixture(mixture), check_source(source)
        try:
            reader = RecordReader.connect(options, *wanted)
        except MixserveError as error:
            said = f"{_which(options.addresses, *wanted)}: {describe_error(error, _SHOWN)}"
            if isinstance(error, Unavailable):
                said += "; a server does not answer before all of its sources are open, so it cannot read from itself"
            raise _like(error, said) from error
        self._set_up(reader, name)

    def _set_up(self, reader: RecordReader, name: str | None) -> None:
        self.name = name
        self._reader = reader
        self._failed = LimitedLog(_logger)

    @property
    def content_sampled(self) -> bool:
        """Whether records that are not in a sample can change without a change of `content_digest()`."""
        return self._reader.source.content_sampled

    def __len__(self) -> int:
        return self._reader.source.length

    def element_spec(self) -> ElementSpec:
        fields = self._reader.source.fields
        return unflatten({field.name: jax.ShapeDtypeStruct(field.shape, field.dtype) for field in fields})

    def take(self, record_ids: RecordIds) -> Records:
        """Raises Unavailable and the like if the servers do not answer, SourceChanged, and ServerFault."""
        return self.begin_take(record_ids)()

    def begin_take(self, record_ids: RecordIds) -> Callable[[], Records]:
        """Ask for these records, and return the function that waits for them."""
        ids, hops = np.asarray(record_ids, np.int64), current_hops() + 1
        if not len(ids):
            return self._no_records
        return partial(self._result, ids, hops, time.monotonic(), self._reader.begin(ids, hops))

    def _no_records(self) -> Records:
        fields = self._reader.source.fields
        return unflatten({field.name: np.empty((0, *field.shape), field.dtype) for field in fields})

    def _result(self, ids: RecordIds, hops: int, since: float, pending: PendingRecords) -> Records:
        if time.monotonic() > since + _FRESH_S:
            pending = self._reader.begin(ids, hops)
        try:
            return unflatten(pending.result())
        except MixserveError as error:
            raise self._failure(error) from error

    def _failure(self, error: MixserveError) -> MixserveError:
        """What `error` is for those who read the mixture here: they know nothing of the other server."""
        said = f"{self._which()}: {describe_error(error, _SHOWN)}"
        if isinstance(error, _PASSING):
            return _like(error, said)
        self._failed.warn("%s: %s", type(error).__name__, said)
        if isinstance(error, _CHANGED):
            return SourceChanged(f"{said}. Restart this server to serve it as it is now, under another fingerprint")
        return ServerFault(said)

    def _which(self) -> str:
        source = self._reader.source
        return _which(self._reader.addresses, source.mixture, source.name)

    def content_digest(self) -> bytes:
        """The identity of the content in a mixture's fingerprint."""
        return self._reader.source.content

    def locate(self, record_id: int) -> str:
        """The server and the source that have the record."""
        return f"record {record_id:,} of {self._which()}"

    def __reduce__(self) -> Any:
        return _with_reader, (type(self), self._reader, self.name)

    def __repr__(self) -> str:
        source = self._reader.source
        where = show_names(self._reader.addresses)
        return (
            f"RemoteSource({where}, mixture={source.mixture!r:.100}, source={source.name!r:.100}, length={len(self)})"
        )


def _with_reader(cls: type[RemoteSource], reader: RecordReader, name: str | None) -> RemoteSource:
    source = cls.__new__(cls)
    source._set_up(reader, name)  # pyright: ignore[reportPrivateUsage]
    return source


def _which(addresses: Iterable[str], mixture: str, source: str) -> str:
    """Which source it is; empty names are those of the only ones."""
    named = f"the source {source!r:.100}" if source else "the only source"
    where = f"the mixture {mixture!r:.100}" if mixture else "the only mixture"
    return f"{named} of {where} at {show_names(addresses)}"


def _like(error: MixserveError, said: str) -> MixserveError:
    """An error of the same class that says more."""
    if isinstance(error, Overloaded):
        return Overloaded(said, error.retry_after_s)
    return class_of(error)(said)

"""Records of one source of a server, read by their ids: as servers read the sources of other servers."""

import weakref
from typing import Any

from mixserve_client.errors import CorruptReply
from mixserve_client.options import ConnectOptions
from mixserve_client.reading.catalog import MixtureCatalog
from mixserve_client.reading.ranges import PositionList
from mixserve_client.reading.record_selection import RecordSelection
from mixserve_client.reading.stream import BatchStream
from mixserve_client.rpc.asking import Asking
from mixserve_client.rpc.resources import ClientResources, Resources
from mixserve_client.schema.fields import Batch
from mixserve_client.schema.positions import Positions
from mixserve_client.schema.records import RecordSource
from mixserve_client.wire import methods
from mixserve_client.wire.source import decode_source, encode_source_request

# A mixture may read many sources of one server: these share connections, and the memory for replies.
_resources: "weakref.WeakValueDictionary[ConnectOptions, Resources]" = weakref.WeakValueDictionary()


class RecordReader:
    """Reads records of `source`, and refuses those of a source that has another fingerprint. Thread-safe.

    It can be pickled: the copy connects to the same servers, and expects the same source. Readers with equal options
    share their connections, which end when the last of them is collected.
    """

    def __init__(self, options: ConnectOptions, source: RecordSource):
        """Sends nothing."""
        self.source = source
        self._options = options
        self._resources = _resources_for(options)

    @classmethod
    def connect(cls, options: ConnectOptions, mixture: str, source: str) -> "RecordReader":
        """A reader of a source that a server describes; names may be empty if there is only one.

        Raises UnknownMixture, UnknownSource, InvalidRequest for a source whose records depend on a key, and what every
        call may raise.
        """
        resources = _resources_for(options)

        def decode(reply: bytes) -> RecordSource:
            found = decode_source(reply)
            if (mixture and found.mixture != mixture) or (source and found.name != source):
                raise CorruptReply(
                    f"the server describes the source {found.name!r:.100} of {found.mixture!r:.100}, not "
                    f"{source!r:.100} of {mixture!r:.100}"
                )
            return found

        # The first replica of the list decides, whichever is quickest.
        request, asking = encode_source_request(mixture, source), Asking(in_order=True)
        return cls(options, resources.here.caller.ask(methods.GET_SOURCE, request, decode, None, asking))

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where the servers are, one for each replica."""
        return self._options.addresses

    def begin(self, record_ids: Positions, hops: int = 0) -> "PendingRecords":
        """Ask for the records of these ids (int64, at least one), in this order. Does not wait for them.

        `hops` is how many servers have asked for others before.
        """
        return PendingRecords(self._resources.here, RecordSelection(self.source, hops), record_ids)

    def __reduce__(self) -> Any:
        return RecordReader, (self._options, self.source)


def _resources_for(options: ConnectOptions) -> Resources:
    # No lock, which a fork could leave locked: if threads race, the worst is that they do not share.
    found = _resources.get(options)
    return _resources.setdefault(options, MixtureCatalog.connect(options).resources) if found is None else found


class PendingRecords:
    """Records that were asked for. They are asked for no longer when this is dropped. For one thread at a time."""

    def __init__(self, resources: ClientResources, records: RecordSelection, record_ids: Positions):
        self._resources = resources  # which end when nothing holds them
        self._stream = BatchStream(
            resources.caller, records, resources.sender, PositionList(record_ids), resources.buffers
        )
        self._stream.begin()
        self._drop = weakref.finalize(self, self._stream.cancel)
        self._drop.atexit = False

    def result(self) -> Batch:
        """Wait for the records: arrays by field, each of shape (size, *field.shape), which may be read-only. Once.

        Raises FingerprintMismatch if the source has changed, and what every call may raise.
        """
        (batch,) = (batch for batches in self._stream for batch in batches)
        self._drop.detach()
        return batch

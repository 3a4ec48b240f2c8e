"""A method's path and a request's bytes -> the reply's bytes, computed from the hosted nodes."""

import logging
import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, nullcontext
from functools import partial

from mixserve import tracing
from mixserve.access.identity import check_mixture, current_caller
from mixserve.error_boundary import error_boundary
from mixserve.failed_read import naming_positions
from mixserve.limits import ServerLimits
from mixserve.metrics.present import PresentReaders
from mixserve.metrics.replies import clock
from mixserve.mixture.gather import SourceReader
from mixserve.mixture.sampling import check_end
from mixserve.servicer.hosted import HostedMixture, ServedSelection
from mixserve.servicer.jobs import Abandoned
from mixserve.servicer.mixtures import Mixtures
from mixserve.servicer.pending_reply import Pending, SlotTarget
from mixserve.servicer.replies import AnySelection, NoSlots, Replies, Slots, StreamedRequest
from mixserve.servicer.reply_memory import BytesMemory, Message, ReplyMemory
from mixserve.servicer.schedules import Schedules
from mixserve.servicer.stream_reply import MadeReply, StreamReply
from mixserve.servicer.taken import NO_KEY, TakenSources
from mixserve.servicer.thread_share import ThreadShare
from mixserve.servicer.turns import Turns
from mixserve_client.errors import InvalidRequest, MixserveError, Overloaded, PermissionDenied
from mixserve_client.forks import renew_in_forks
from mixserve_client.limited_log import LimitedLog
from mixserve_client.schema.fields import Content, provenance_obstacle
from mixserve_client.schema.keys import KeyWords
from mixserve_client.schema.positions import Range, check_positions
from mixserve_client.schema.requests import BatchRequest, PositionsRequest, Sender, StreamRequest
from mixserve_client.schema.server import ServerDescription
from mixserve_client.schema.stats import Metric, counter
from mixserve_client.schema.text import describe_error, shorten
from mixserve_client.wire import methods
from mixserve_client.wire.checksum import ReplyTo, load_crc32c
from mixserve_client.wire.mixture import encode_names
from mixserve_client.wire.request import (
    check_small,
    decode_batch_request,
    decode_empty_request,
    decode_mixture_request,
    decode_positions_request,
    decode_records_request,
    decode_stream_request,
)
from mixserve_client.wire.schedule import decode_schedule_request, encode_schedule
from mixserve_client.wire.server import decode_server_request, encode_server
from mixserve_client.wire.source import decode_source_request, encode_source

_logger = logging.getLogger("mixserve")
_CUT_SHORT = LimitedLog(_logger)
_SHOWN = 1000
_FREE = nullcontext()
# In which memory the replies of a stream are made, for which checksum of a request, and under which limits.
_Way = tuple[ReplyMemory, int | None, ThreadShare | None]
_DECODERS = {
    methods.STREAM_BATCHES: decode_stream_request,
    methods.STREAM_POSITIONS: decode_positions_request,
    methods.TAKE_RECORDS: decode_records_request,
}


class MixServicer:
    """Answers the pure calls. Thread-safe."""

    def __init__(
        self,
        mixtures: Mixtures,
        *,
        slots: Slots | None = None,
        memory: ReplyMemory | None = None,
        workers: Sequence[str] = (),
        zone: str = "",
        limits: ServerLimits | None = None,
    ):
        """`slots` is the memory that clients share with this process, and `memory` that of the replies of streams, if
        these need not be bytes objects. `workers` and `zone` are told by GetServer."""
        limits = ServerLimits() if limits is None else limits
        self._mixtures = mixtures
        self._handlers = {
            methods.LIST_MIXTURES: self._list_mixtures,
            methods.GET_MIXTURE: self._get_mixture,
            methods.GET_SOURCE: self._get_source,
            methods.DEFINE_SCHEDULE: self._define_schedule,
            methods.GET_SERVER: self._get_server,
        }
        self._streams = {
            methods.STREAM_BATCHES: self._stream_batches,
            methods.STREAM_POSITIONS: self._stream_positions,
            methods.TAKE_RECORDS: self._take_records,
        }
        # Streams take turns to copy rows, which leaves the GIL to single calls: with 200 readers on two cores, a call
        # took 64 instead of 1,188 ms (p99). Streams that wait for devices or slow sources need no turn.
        self._renew()
        renew_in_forks(self, MixServicer._renew)
        self._slots = slots or NoSlots()
        self._replies = Replies(self._slots)
        self._bytes = BytesMemory()
        self._memory: ReplyMemory = memory or self._bytes
        self._schedules = Schedules(limits.schedule_bytes)
        # Those under the mixtures' own schedules: few, and each knows its fields and their sizes.
        self._selections: dict[tuple[HostedMixture, Content], ServedSelection] = {}
        self._taken = {mixture: TakenSources(mixture) for mixture in mixtures}
        self._workers, self._zone = tuple(workers), zone
        self.present = PresentReaders()

    def _renew(self) -> None:
        self._turns = Turns(max(1, _cores() // 2))

    @property
    def methods(self) -> tuple[str, ...]:
        """The paths of the methods for `handle`."""
        return *self._handlers, methods.GET_BATCH_AT

    @property
    def streams(self) -> tuple[str, ...]:
        """The paths of the methods for `stream`."""
        return tuple(self._streams)

    def warm_up(self) -> None:
        """Compute fingerprints and load or compile programs, so that the first requests are as fast as later ones.

        Raises ValueError if two mixtures have the same fingerprint and different records.
        """
        for mixture in self._mixtures:  # all begin before the first is waited for
            mixture.node.begin_to_compile(first=True)
        for mixture in self._mixtures:
            mixture.warm_up()
        self._mixtures.check_contents()
        for mixture in self._mixtures:  # the other programs compile while the server serves
            mixture.node.begin_to_compile(first=False)

    def handle(self, method: str, request: bytes, share: ThreadShare | None = None) -> bytes:
        """The reply to `request`. The thread belongs to the pool of `share` (None: to the caller, without limits).

        Raises MixserveError: the request's own error, or ServerFault with an id under which the log has its cause.
        """
        with error_boundary(method):
            check_small(method, request)
            if method == methods.GET_BATCH_AT:
                return self._get_batch_at(request, share)
            return self._handlers[method](request)

    def stream(
        self,
        method: str,
        request: bytes,
        memory: ReplyMemory | None = None,
        checksum: int | None = None,
        share: ThreadShare | None = None,
    ) -> Generator[Message]:
        """The replies to `request`, each made when it is taken, in `memory` (None: as the constructor says).

        They have checksums if the request had the one that is given. `share` is as in `handle`. The iteration raises as
        `handle` does.
        """
        check_small(method, request)
        way = memory or self._memory, checksum, share
        with closing(self._streams[method](request, way)) as replies:
            while True:
                with error_boundary(method):  # not around the yield: a reader that stops early is not a fault
                    reply = next(replies, None)
                if reply is None:
                    return
                yield reply

    def copies_rows(self, method: str, request: bytes) -> bool:
        """Whether each reply of a stream is a copy of rows in memory, which takes about as long as it takes to say so.

        False for a request that will be refused.
        """
        try:
            wanted = _DECODERS[method](request)
            mixture = self._mixtures.get((wanted.first if isinstance(wanted, StreamRequest) else wanted).mixture)
        except (KeyError, MixserveError):
            return False
        return mixture.is_gathered_by_copying and not mixture.is_cold()

    def stats(self) -> Iterator[Metric]:
        """The metrics of what all mixtures share."""
        hits, misses = self._replies.cache_hits
        yield counter("mixserve_reply_cache_hits_total", "Replies that readers of the same rows shared.", {(): hits})
        yield counter("mixserve_reply_cache_misses_total", "Replies that could be shared, and were made.", {(): misses})

    def drop_old(self) -> None:
        """Drop replies that were kept for readers who did not come."""
        self._replies.drop_old()

    def _list_mixtures(self, request: bytes) -> bytes:
        decode_empty_request("ListMixturesRequest", request)
        return encode_names(self._mixtures.names)

    def _get_mixture(self, request: bytes) -> bytes:
        return self._mixtures.get(decode_mixture_request(request)).encoded_description

    def _get_source(self, request: bytes) -> bytes:
        mixture, source = decode_source_request(request)
        taken = self._taken[self._mixtures.get(mixture)]
        return encode_source(taken.describe(taken.number(source)))

    def _get_server(self, request: bytes) -> bytes:
        wanted = decode_server_request(request)
        if wanted.reader is not None:
            (self.present.leave_for_another if wanted.leaves else self.present.expect)(wanted.reader)
        path = self._slots.path_for(current_caller().peer())
        has_checksums, load = load_crc32c() is not None, self.present.load()
        return encode_server(
            ServerDescription(path, workers=self._workers, checksums=has_checksums, zone=self._zone, load=load)
        )

    def _get_batch_at(self, request: bytes, share: ThreadShare | None) -> bytes:
        wanted = decode_batch_request(request)
        selection = self._selection(wanted, wanted.start, wanted.size)
        check_positions(wanted.start, wanted.size, selection.mixture.description.limits.size)
        target = self._replies.slot_target(selection, wanted.size, wanted.slots[0]) if wanted.slots else None
        ranges, name = [(wanted.start, wanted.size)], selection.mixture.name
        working, reader = (_FREE, None) if share is None else (share.work(name), share.reader(name))
        notes = selection.notes(wanted.sender, wanted.key)
        reading, since = self.present.come(wanted.sender), clock()
        try:
            with working, naming_positions(ranges):
                pending = self._replies.begin(selection, wanted.key, ranges, target, self._bytes, None, reader)
                message = bytes(pending.result())
        finally:
            self.present.leave(reading)
        self.present.note_reply(clock() - since)
        notes.note(pending, ranges)
        return message

    def _stream_batches(self, request: bytes, way: _Way) -> Generator[Message]:
        wanted = decode_stream_request(request)
        selection = self._selection(wanted.first, wanted.first.start, wanted.rows)
        first, (last, _) = wanted.first.start, wanted.ranges(wanted.rows - 1, 1)[0]
        check_end(selection.blocks.end, first, last + 1 - first)
        yield from self._in_replies(selection, wanted.first.key, wanted, way)

    def _stream_positions(self, request: bytes, way: _Way) -> Generator[Message]:
        wanted = decode_positions_request(request)
        selection = self._selection(wanted, int(wanted.positions[0]), wanted.rows)
        check_end(selection.blocks.end, int(wanted.positions.max()), 1)
        yield from self._in_replies(selection, wanted.key, wanted, way)

    def _take_records(self, request: bytes, way: _Way) -> Generator[Message]:
        wanted = decode_records_request(request)
        if tracing.spans is not None:
            tracing.spans.read(wanted.mixture, wanted.sender, int(wanted.record_ids[0]), wanted.rows)
        mixture = self._mixtures.get(wanted.mixture)
        _note_call(mixture, wanted.sender)
        yield from self._in_replies(self._taken[mixture].select(wanted), NO_KEY, wanted, way)

    def _in_replies(
        self, selection: AnySelection, key: KeyWords, wanted: StreamedRequest, way: _Way
    ) -> Iterator[Message]:
        has_sent = False
        sender = (wanted.first if isinstance(wanted, StreamRequest) else wanted).sender
        notes = selection.notes(sender, key)
        reading = self.present.come(sender)
        try:
            for made in self._made_replies(selection, key, wanted, way):
                check_mixture(selection.mixture.name)  # for each reply: a token may lose its right to it meanwhile
                notes.note(made.pending, made.ranges)
                message, lacking, span, since = made.message, made.lacking, made.span, clock()
                del made  # this frame must not keep its memory while the reply is sent
                try:
                    yield message
                finally:
                    sent_s = clock() - since
                    if span is not None:
                        span.sent(sent_s)
                notes.sent_s = sent_s
                has_sent = True
                if lacking:
                    break
            else:
                return
        except Exception as error:
            if not has_sent or isinstance(error, PermissionDenied | Abandoned):
                raise
            if isinstance(error, Overloaded):  # the client's next request is refused, and told when to come back
                return
            lacking = describe_error(error)
        finally:
            notes.end()
            self.present.leave(reading)
        # Not with the error: clients and proxies need not deliver what comes before one. The client requests the other
        # rows, as after any stream that ends early, and that request fails, or the source reads them now.
        _CUT_SHORT.warn("a stream ends early: %s", shorten(lacking, _SHOWN))

    def _made_replies(
        self, selection: AnySelection, key: KeyWords, wanted: StreamedRequest, way: _Way
    ) -> Iterator[MadeReply]:
        # Each reply begins before the previous one is finished, so that a device gathers during the previous copy.
        # The first does not wait for a second: its reader is waiting. Copies from arrays do not overlap: nothing runs
        # between their beginning and their result.
        pending: StreamReply | None = None
        copying = selection.is_gathered_by_copying
        memory, checksum, share = way
        name = selection.mixture.name
        turns = self._turns if copying else _FREE if share is None else share.work(name)
        reader = None if share is None else share.reader(name)
        is_first = True
        for number, (at, rows, target) in enumerate(self._replies.cut(selection, wanted, memory)):
            ranges = partial(wanted.ranges, at)
            to = None if checksum is None else ReplyTo(checksum, number)
            since = clock()
            with turns:  # not around the yield: a reader that is slow to take its reply must not hold a turn
                begin = partial(self._begin, selection, key, target, memory, to, reader)
                following = StreamReply(rows, begin, ranges, selection.locate)
                # While rows come from a disk, the next reply's are announced before this one's are copied. A reply that
                # waits since then goes first.
                if pending is None and (is_first or (copying and not selection.mixture.is_cold())):
                    pending, following = following, None
                made = None if pending is None else pending.result()
            is_first = False
            if made is not None:
                self.present.note_reply(clock() - since)
                yield made
            pending = following
        if pending is not None:
            since = clock()
            with turns:
                made = pending.result()
            self.present.note_reply(clock() - since)
            yield made

    def _begin(
        self,
        selection: AnySelection,
        key: KeyWords,
        target: SlotTarget | None,
        memory: ReplyMemory,
        to: ReplyTo | None,
        reader: SourceReader | None,
        ranges: Sequence[Range],
    ) -> Pending:
        return self._replies.begin(selection, key, ranges, target, memory, to, reader)

    def _define_schedule(self, request: bytes) -> bytes:
        wanted = decode_schedule_request(request)
        mixture = self._mixtures.get_expected(wanted.mixture, wanted.expected_fingerprint)
        return encode_schedule(self._schedules.define(mixture, wanted.parent, wanted.entries))

    def _selection(self, wanted: BatchRequest | PositionsRequest, position: int, rows: int) -> ServedSelection:
        """What the request's positions refer to, of which `position` is the first. `rows` are those of the call."""
        if tracing.spans is not None:
            tracing.spans.read(wanted.mixture, wanted.sender, position, rows)
        mixture = self._mixtures.get_expected(wanted.mixture, wanted.expected_fingerprint)
        if wanted.content == Content.RECORDS_AND_PROVENANCE:
            obstacle = provenance_obstacle(mixture.description.fields)
            if obstacle is not None:
                raise InvalidRequest(obstacle)
        _note_call(mixture, wanted.sender)
        if wanted.schedule:
            known = self._schedules.get(mixture, wanted.schedule)
            return ServedSelection(mixture, known.blocks, wanted.schedule, wanted.content, known.schedule)
        selection = self._selections.get((mixture, wanted.content))
        if selection is None:
            own = mixture.node.mixture
            selection = ServedSelection(mixture, own.blocks, "", wanted.content, own.sampling.schedule)
            self._selections[mixture, wanted.content] = selection
        return selection


def _note_call(mixture: HostedMixture, sender: Sender) -> None:
    """The call that this thread answers has been read."""
    call = current_caller().call
    if call is not None:
        call.is_for(mixture.name, sender)


def _cores() -> int:
    # Not cpu_count alone: the process may be bound to fewer (taskset, cpusets).
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

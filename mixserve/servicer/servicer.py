"""A method's path and a request's bytes -> the reply's bytes, computed from the hosted nodes."""

import logging
import os
import secrets
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, nullcontext

from mixserve.mixture.sampling import check_end
from mixserve.node import MixDataSourcesNode
from mixserve.servicer.hosted import HostedMixture, View
from mixserve.servicer.replies import NoSlots, Replies, Slots
from mixserve.servicer.schedules import Schedules
from mixserve_client.errors import FingerprintMismatch, InvalidRequest, MixserveError, ServerFault, UnknownMixture
from mixserve_client.wire import methods
from mixserve_client.wire.description import encode_mixture, encode_names, provenance_obstacle
from mixserve_client.wire.request import (
    BatchRequest,
    Content,
    check_positions,
    decode_batch_request,
    decode_empty_request,
    decode_mixture_request,
    decode_stream_request,
)
from mixserve_client.wire.schedule import decode_schedule_request, encode_schedule
from mixserve_client.wire.server import ServerDescription, encode_server

_logger = logging.getLogger("mixserve")


class MixServicer:
    """Answers the pure calls for named nodes; safe to use from many threads."""

    def __init__(
        self, nodes: Mapping[str, MixDataSourcesNode], *, placement: str | None = None, slots: Slots | None = None
    ):
        """`placement` overrides that of every node; `slots` is the memory that clients hand in.

        Raises ValueError where there are no nodes, or a name is empty.
        """
        if not nodes or not all(isinstance(name, str) and name and name.isprintable() for name in nodes):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"a server needs at least one mixture, each with a printable name; got {list(nodes)}")
        self._mixtures = {name: HostedMixture(name, nodes[name].placed(placement)) for name in sorted(nodes)}
        self._handlers = {
            methods.LIST_MIXTURES: self._list_mixtures,
            methods.GET_MIXTURE: self._get_mixture,
            methods.GET_BATCH_AT: self._get_batch_at,
            methods.DEFINE_SCHEDULE: self._define_schedule,
            methods.GET_SERVER: self._get_server,
        }
        self._streams = {methods.STREAM_BATCHES: self._stream_batches}
        # Streams copy rows in turns, and so leave the interpreter's lock to single calls: with 200 readers on two
        # cores, a call took 64 instead of 1,188 ms (p99). Devices and slow sources are waited for side by side.
        self._turns = threading.Semaphore(max(1, _cores() // 2))
        self._slots = slots or NoSlots()
        self._replies = Replies(self._slots)
        self._schedules = Schedules()

    def warm_up(self) -> None:
        """Compute fingerprints and compile programs, so that the first requests cost what all others cost."""
        for mixture in self._mixtures.values():
            mixture.warm_up()

    def handle(self, method: str, request: bytes) -> bytes:
        """The reply to `request`.

        Raises MixserveError: the request's own error, or ServerFault with an id under which the log has the cause.
        """
        with _faults(method):
            return self._handlers[method](request)

    def stream(self, method: str, request: bytes) -> Iterator[bytes]:
        """The replies to `request`, made one by one as they are taken; the iteration raises as `handle` does."""
        with _faults(method):
            yield from self._streams[method](request)

    def _list_mixtures(self, request: bytes) -> bytes:
        decode_empty_request("ListMixturesRequest", request)
        return encode_names(tuple(self._mixtures))

    def _get_mixture(self, request: bytes) -> bytes:
        return encode_mixture(self._mixture(decode_mixture_request(request)).description)

    def _get_server(self, request: bytes) -> bytes:
        decode_empty_request("GetServerRequest", request)
        return encode_server(ServerDescription(self._slots.path))

    def _get_batch_at(self, request: bytes) -> bytes:
        wanted = decode_batch_request(request)
        view = self._view(wanted)
        check_positions(wanted.start, wanted.size, view.mixture.description.limits.size)
        place = self._replies.place(view, wanted.size, next(iter(wanted.slots), 0))
        return self._replies.begin(view, wanted.key, [(wanted.start, wanted.size)], place)()

    def _stream_batches(self, request: bytes) -> Iterator[bytes]:
        wanted = decode_stream_request(request)
        view = self._view(wanted.first)
        first, (last, _) = wanted.first.start, wanted.ranges(wanted.rows - 1, 1)[0]
        check_end(view.blocks.end, first, last + 1 - first)
        # One reply is begun before the one before it is finished: a device gathers while the last copy is under way.
        begun: Callable[[], bytes] | None = None
        turns = self._turns if view.mixture.is_gathered_by_copying else nullcontext()
        for at, rows, place in self._replies.cut(view, wanted):
            with turns:
                following = self._replies.begin(view, wanted.first.key, wanted.ranges(at, rows), place)
                reply = None if begun is None else begun()
            if reply is not None:
                yield reply
            begun = following
        if begun is not None:
            with turns:
                reply = begun()
            yield reply

    def _define_schedule(self, request: bytes) -> bytes:
        wanted = decode_schedule_request(request)
        mixture = self._expected(wanted.mixture, wanted.expected_fingerprint)
        return encode_schedule(self._schedules.define(mixture, wanted.parent, wanted.entries))

    def _view(self, wanted: BatchRequest) -> View:
        """What the request's positions stand for."""
        mixture = self._expected(wanted.mixture, wanted.expected_fingerprint)
        if wanted.content == Content.RECORDS_AND_PROVENANCE:
            obstacle = provenance_obstacle(mixture.description.fields)
            if obstacle is not None:
                raise InvalidRequest(obstacle)
        blocks = self._schedules.get(mixture, wanted.schedule) if wanted.schedule else mixture.node.mixture.blocks
        return View(mixture, blocks, wanted.schedule, wanted.content)

    def _expected(self, name: str, fingerprint: str) -> HostedMixture:
        """The mixture of that name, known to be the one that the request expects."""
        mixture = self._mixture(name)
        described = mixture.description
        if fingerprint not in ("", described.fingerprint):
            raise FingerprintMismatch(
                f"the mixture {described.name!r} has the fingerprint {described.fingerprint}, expected "
                f"{fingerprint:.100}: its batches would be others; ask GetMixture what it holds now"
            )
        return mixture

    def _mixture(self, name: str) -> HostedMixture:
        known = f"{', '.join(map(repr, self._mixtures)):.1000}"
        if not name:
            if len(self._mixtures) > 1:
                raise InvalidRequest(f"mixture is required where a server holds several; it must be one of {known}")
            return next(iter(self._mixtures.values()))
        try:
            return self._mixtures[name]
        except KeyError:
            shown = f"{name!r:.100}"
            raise UnknownMixture(f"mixture must be one of {known}, got {shown}") from None


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _faults(method: str) -> Generator[None]:
    """Turns what is no error of ours into one that tells the client nothing but where to look."""
    try:
        yield
    except MixserveError:
        raise
    except Exception as error:
        fault = secrets.token_hex(4)
        _logger.exception("fault %s in %s", fault, method)
        raise ServerFault(f"the server failed on this request; its log has the cause under the id {fault}") from error

"""A method's path and a request's bytes -> the reply's bytes, computed from the hosted nodes."""

import logging
import secrets
from collections.abc import Mapping

from mixserve.node import MixDataSourcesNode
from mixserve.servicer.hosted import HostedMixture
from mixserve_client.errors import FingerprintMismatch, InvalidRequest, MixserveError, ServerFault, UnknownMixture
from mixserve_client.wire import methods
from mixserve_client.wire.batch import frame_batch
from mixserve_client.wire.description import encode_mixture, encode_names
from mixserve_client.wire.request import (
    check_positions,
    decode_batch_request,
    decode_list_request,
    decode_mixture_request,
)

_logger = logging.getLogger("mixserve")


class MixServicer:
    """Answers the pure calls for named nodes; safe to use from many threads."""

    def __init__(self, nodes: Mapping[str, MixDataSourcesNode], *, placement: str | None = None):
        """`placement` overrides that of every node. Raises ValueError where there are no nodes, or a name is empty."""
        if not nodes or not all(isinstance(name, str) and name and name.isprintable() for name in nodes):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"a server needs at least one mixture, each with a printable name; got {list(nodes)}")
        self._mixtures = {name: HostedMixture(name, nodes[name].placed(placement)) for name in sorted(nodes)}
        self._handlers = {
            methods.LIST_MIXTURES: self._list_mixtures,
            methods.GET_MIXTURE: self._get_mixture,
            methods.GET_BATCH_AT: self._get_batch_at,
        }

    def warm_up(self) -> None:
        """Compute fingerprints and compile programs, so that the first requests cost what all others cost."""
        for mixture in self._mixtures.values():
            mixture.warm_up()

    def handle(self, method: str, request: bytes) -> bytes:
        """The reply to `request`.

        Raises MixserveError: the request's own error, or ServerFault with an id under which the log has the cause.
        """
        try:
            return self._handlers[method](request)
        except MixserveError:
            raise
        except Exception as error:
            fault = secrets.token_hex(4)
            _logger.exception("fault %s in %s", fault, method)
            raise ServerFault(
                f"the server failed on this request; its log has the cause under the id {fault}"
            ) from error

    def _list_mixtures(self, request: bytes) -> bytes:
        decode_list_request(request)
        return encode_names(tuple(self._mixtures))

    def _get_mixture(self, request: bytes) -> bytes:
        return encode_mixture(self._mixture(decode_mixture_request(request)).description)

    def _get_batch_at(self, request: bytes) -> bytes:
        wanted = decode_batch_request(request)
        mixture = self._mixture(wanted.mixture)
        described = mixture.description
        check_positions(wanted.start, wanted.size, described.limits.size)
        if wanted.expected_fingerprint not in ("", described.fingerprint):
            raise FingerprintMismatch(
                f"the mixture {described.name!r} has the fingerprint {described.fingerprint}, expected "
                f"{wanted.expected_fingerprint:.100}: its batches would be others; ask GetMixture what it holds now"
            )
        reply, buffers = frame_batch(described.fingerprint, described.fields, wanted.size)
        mixture.node.read_into(wanted.start, wanted.key, buffers)
        return reply

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

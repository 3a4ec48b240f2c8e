"""The mixtures of a client's servers, and the check that they stay what they were at their first use."""

import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Self

from mixserve_client.errors import CorruptReply, MixserveError
from mixserve_client.metrics.reading import IteratorFigures
from mixserve_client.metrics.requests import RequestFigures
from mixserve_client.options import ConnectOptions
from mixserve_client.reading.reader import Reader
from mixserve_client.reading.schedule import Schedule
from mixserve_client.reading.selection import Selection, check_fingerprint
from mixserve_client.rpc.asking import Asking
from mixserve_client.rpc.resources import ClientResources, Resources
from mixserve_client.schema.checks import check_mixture
from mixserve_client.schema.fields import Content
from mixserve_client.schema.keys import key_words
from mixserve_client.schema.mixture import MixtureDescription
from mixserve_client.schema.schedule import Pairs
from mixserve_client.transport.connect import transports_of
from mixserve_client.wire import methods
from mixserve_client.wire.mixture import decode_mixture
from mixserve_client.wire.request import encode_mixture_request

_logger = logging.getLogger("mixserve_client")

_FIND_S = 10.0
_SELECTIONS = 64  # a client that reads more streams in turns makes one for each call


class MixtureCatalog:
    """What a client shares with its iterators: descriptions of mixtures, and the resources for reading them.

    Safe to use from many threads. A catalog that `connect` made can be pickled: the copy connects to the same servers,
    and expects the same mixtures.
    """

    def __init__(self, resources: Resources, options: ConnectOptions | None = None):
        self.resources = resources
        self._options = options
        self._known: dict[str, MixtureDescription] = {}
        self._selections: dict[tuple[int, str | None, Content], Selection] = {}

    @classmethod
    def connect(cls, options: ConnectOptions, known: Mapping[str, MixtureDescription] | None = None) -> Self:
        """A catalog of the servers of `options`, which expects the mixtures in `known`. Sends nothing."""
        catalog = cls(Resources(partial(_resources, options)), options)
        catalog.expect(known or {})
        return catalog

    @property
    def can_travel(self) -> bool:
        """Whether this can be pickled and used in another process: not if its server is in this one."""
        return self._options is not None

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where the servers are, one for each replica."""
        return ("in-process",) if self._options is None else self._options.addresses

    def expect(self, known: Mapping[str, MixtureDescription]) -> None:
        """Remember these descriptions, as if a server had sent them."""
        self._known.update(known)
        self._selections.clear()

    def ask(self, name: str | None, deadline: float | None) -> MixtureDescription:
        """The mixture's current description from a server; `name` may be None if there is only one.

        Raises UnknownMixture, FingerprintMismatch if the mixture has changed since its first use, and what every call
        may raise.
        """
        known = self._known.get(name or "")
        # Without a mixture to look for, the first replica of the list decides, whichever is quickest.
        asking = Asking(in_order=True) if known is None else Asking(fingerprint=known.fingerprint)
        fresh = self._describe(name or "", known, asking, deadline)
        known = self._known.setdefault(fresh.name, fresh)  # one step: racing threads agree on the first answer
        check_fingerprint(known, fresh.fingerprint, fresh)
        if not name:
            self._known.setdefault("", known)
        return fresh

    def find(self, known: MixtureDescription, fingerprint: str) -> MixtureDescription:
        """The mixture of that fingerprint, which is the client's from then on, if a replica answers that has it.

        Otherwise the known one.
        """
        caller = self.resources.here.caller
        if caller.replicas == 1:
            return known
        try:
            until = time.monotonic() + _FIND_S
            wanted = replace(known, fingerprint=fingerprint)
            found = self._describe(known.name, wanted, Asking(fingerprint=fingerprint), until)
        except MixserveError:
            return known
        _logger.warning(
            "the mixture %r is the one of a state, with the fingerprint %s, and no longer the one with %s",
            known.name,
            fingerprint,
            known.fingerprint,
        )
        self.expect({name: found for name, one in self._known.items() if one is known})
        return found

    def _describe(
        self, name: str, known: MixtureDescription | None, asking: Asking, deadline: float | None
    ) -> MixtureDescription:
        """The description of a replica that has the mixture `known`, if there is one."""

        def decode(reply: bytes) -> MixtureDescription:
            fresh = decode_mixture(reply)
            if name and fresh.name != name:
                raise CorruptReply(f"the server describes the mixture {fresh.name!r:.100}, not {name!r:.100}")
            if known is not None and fresh.name == known.name:
                check_fingerprint(known, fresh.fingerprint, fresh)
            return fresh

        caller = self.resources.here.caller
        return caller.ask(methods.GET_MIXTURE, encode_mixture_request(name), decode, deadline, asking)

    def get(self, name: str | None, deadline: float | None) -> MixtureDescription:
        """The mixture's description; asks a server at its first use only. Raises what `ask` raises."""
        return self._known.get(check_mixture(name)) or self.ask(name, deadline)

    def reader(
        self,
        key: Any,
        mixture: str | None,
        schedule: Pairs | None,
        content: Content,
        deadline: float | None,
        iterator: IteratorFigures | None = None,
    ) -> Reader:
        """A reader of a mixture under a key and a schedule, for a single call or the `iterator`.

        Raises InvalidRequest, and what `ask` raises.
        """
        selection = self._selection(key, mixture, schedule, content, deadline)
        return Reader(self.resources, selection, partial(self.ask, selection.mixture.name), iterator)

    def _selection(
        self, key: Any, mixture: str | None, schedule: Pairs | None, content: Content, deadline: float | None
    ) -> Selection:
        # Single batches come one after another from the same stream; to make its selection takes longer than to use it.
        # By type, since True is equal to 1, and since a wrong mixture may be no key of a dict.
        is_plain = type(key) is int and (mixture is None or type(mixture) is str) and schedule is None
        found = self._selections.get((key, mixture, content)) if is_plain else None
        if found is not None:
            return found
        words = key_words(key)
        description = self.get(mixture, deadline)
        selection = Selection(description, words, Schedule.of(description, schedule), content)
        if is_plain:
            if len(self._selections) >= _SELECTIONS:
                self._selections.clear()
            self._selections[key, mixture, content] = selection
        return selection

    def __reduce__(self) -> Any:
        if self._options is None:
            raise TypeError(
                "this client cannot be pickled, since its server runs in this process: serve(...) the node, and use "
                "MixClient.connect(...)"
            )
        return MixtureCatalog.connect, (self._options, dict(self._known))


def _resources(options: ConnectOptions) -> ClientResources:
    figures = RequestFigures()
    return ClientResources(
        transports_of(options, figures),
        options.patience_s,
        options.attempt_s,
        hedge=options.hedge,
        name=options.name,
        zone=options.zone,
        requests=figures,
    )

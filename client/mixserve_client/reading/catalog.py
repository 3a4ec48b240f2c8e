"""The mixtures of a client's servers: what they are, and that they stay what they were at their first use."""

from collections.abc import Mapping
from typing import Any, Self

from mixserve_client.errors import CorruptReply
from mixserve_client.options import ConnectOptions
from mixserve_client.reading.reader import Reader
from mixserve_client.reading.schedule import Schedule
from mixserve_client.reading.selection import Selection, check_fingerprint
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


class MixtureCatalog:
    """What a client and its iterators share: the mixtures that they know, and the resources that they read with.

    Safe to use from many threads. It can be pickled where it was made by `connect`: it reaches the same servers, and
    expects the same mixtures.
    """

    def __init__(self, resources: Resources, options: ConnectOptions | None = None):
        self.resources = resources
        self._options = options
        self._known: dict[str, MixtureDescription] = {}

    @classmethod
    def connect(cls, options: ConnectOptions, known: Mapping[str, MixtureDescription] | None = None) -> Self:
        """The mixtures of the servers of `options`, of which those in `known` are expected. Nothing is sent."""
        catalog = cls(Resources(lambda: ClientResources(transports_of(options), options.patience_s)), options)
        catalog.expect(known or {})
        return catalog

    @property
    def can_travel(self) -> bool:
        """Whether this can be pickled, and used in another process: its servers are not in this one."""
        return self._options is not None

    def expect(self, known: Mapping[str, MixtureDescription]) -> None:
        """Take these mixtures for known, as if a server had described them."""
        self._known.update(known)

    def ask(self, name: str | None, deadline: float | None) -> MixtureDescription:
        """What the mixture holds, as a server describes it now; `name` may be None if there is only one.

        Raises UnknownMixture, FingerprintMismatch if it is no longer the mixture that was used before, and what every
        call may raise.
        """
        request = encode_mixture_request(name or "")
        fresh = decode_mixture(self.resources.here.caller.call(methods.GET_MIXTURE, request, deadline))
        if name and fresh.name != name:
            raise CorruptReply(f"the server describes the mixture {fresh.name!r:.100}, {name!r:.100} was asked for")
        known = self._known.setdefault(fresh.name, fresh)
        check_fingerprint(known, fresh.fingerprint)
        if not name:
            self._known.setdefault("", known)
        return fresh

    def get(self, name: str | None, deadline: float | None) -> MixtureDescription:
        """What the mixture holds, asked for at its first use. Raises what `ask` raises."""
        return self._known.get(check_mixture(name)) or self.ask(name, deadline)

    def reader(
        self, key: Any, mixture: str | None, schedule: Pairs | None, content: Content, deadline: float | None
    ) -> Reader:
        """What reads a mixture under a key and a schedule. Raises InvalidRequest, and what `ask` raises."""
        words = key_words(key)
        described = self.get(mixture, deadline)
        return Reader(self.resources, Selection(described, words, Schedule.of(described, schedule), content))

    def __reduce__(self) -> Any:
        if self._options is None:
            raise TypeError("this client cannot be pickled: its server is this process; use MixClient.connect(...)")
        return MixtureCatalog.connect, (self._options, dict(self._known))

"""The mixtures that a server hosts, by name. Callers get those that they may use, and do not learn of others."""

from collections.abc import Iterator, Mapping
from itertools import combinations

from mixserve.access.identity import check_mixture, usable
from mixserve.metrics.clients import ClientNames
from mixserve.node import MixDataSourcesNode
from mixserve.servicer.hosted import HostedMixture
from mixserve_client.errors import FingerprintMismatch, InvalidRequest, UnknownMixture
from mixserve_client.schema.text import show


class Mixtures:
    """Iteration, by the server itself, is over all in order of name."""

    def __init__(self, nodes: Mapping[str, MixDataSourcesNode], placement: str | None = None):
        """`placement` overrides every node's own. Raises ValueError without nodes, and for unprintable names."""
        if not isinstance(nodes, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f'nodes must be a dict such as {{"train": node}}, got {type(nodes).__name__}')
        if not nodes or not all(isinstance(name, str) and name and name.isprintable() for name in nodes):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(
                f"a server needs at least one mixture, each with a printable name; got {list(nodes)!r:.200}"
            )
        for name, node in nodes.items():
            if not isinstance(node, MixDataSourcesNode):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise ValueError(
                    f"the mixture {name!r} must be a MixDataSourcesNode, got {type(node).__name__}; put sources into a "
                    "node first"
                )
        self.clients = ClientNames()
        self._mixtures = {
            name: HostedMixture(name, nodes[name].placed(placement), self.clients) for name in sorted(nodes)
        }

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the mixtures that the caller may use, sorted."""
        return tuple(usable(self._mixtures))

    def __iter__(self) -> Iterator[HostedMixture]:
        return iter(self._mixtures.values())

    def get(self, name: str) -> HostedMixture:
        """The mixture called `name`, which may be empty if the caller may use only one.

        Raises PermissionDenied, UnknownMixture, and InvalidRequest for an empty name if there are several.
        """
        if name:
            check_mixture(name)
            try:
                return self._mixtures[name]
            except KeyError:
                raise UnknownMixture(f"mixture must be one of {self._known()}, got {f'{name!r:.100}'}") from None
        names = self.names
        if len(names) > 1:
            raise InvalidRequest(f"mixture is required: this server has several; it must be one of {self._known()}")
        if not names:
            raise UnknownMixture("this server has none of the mixtures that this token is for")
        return self._mixtures[names[0]]

    def _known(self) -> str:
        return f"{', '.join(map(repr, self.names)) or 'none':.1000}"

    def check_contents(self) -> None:
        """Raises ValueError if two mixtures have the same fingerprint, and records that are known to differ."""
        # Clients cannot tell such mixtures apart: a state of one would resume in the other without an error.
        for first, second in combinations(self, 2):
            if first.node.mixture.fingerprint == second.node.mixture.fingerprint:
                source = first.node.mixture.differing_leaf(second.node.mixture)
                if source is not None:
                    raise ValueError(
                        f"the mixtures {first.name!r} and {second.name!r} have the same fingerprint, but the records "
                        f"of their sources {source!r} differ: give each its own content_id or content_digest()"
                    )

    def get_expected(self, name: str, fingerprint: str) -> HostedMixture:
        """The mixture called `name`, if it has the expected fingerprint; an empty fingerprint accepts any.

        Raises as `get` does, and FingerprintMismatch.
        """
        mixture = self.get(name)
        if not fingerprint:
            return mixture
        description = mixture.description
        if fingerprint != description.fingerprint:
            raise FingerprintMismatch(
                f"the mixture {description.name!r} has the fingerprint {description.fingerprint}, expected "
                f"{show(fingerprint, 100)}: its batches would differ; ask GetMixture for its description"
            )
        return mixture

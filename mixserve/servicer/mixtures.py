"""The mixtures that a server hosts, by name."""

from collections.abc import Iterator, Mapping
from itertools import combinations

from mixserve.node import MixDataSourcesNode
from mixserve.servicer.hosted import HostedMixture
from mixserve_client.errors import FingerprintMismatch, InvalidRequest, UnknownMixture


class Mixtures:
    """Iterates over them, sorted by name."""

    def __init__(self, nodes: Mapping[str, MixDataSourcesNode], placement: str | None = None):
        """`placement` overrides that of every node. Raises ValueError where there are no nodes, or a name is empty."""
        if not isinstance(nodes, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f'nodes must be a dict such as {{"train": node}}, got a {type(nodes).__name__}')
        if not nodes or not all(isinstance(name, str) and name and name.isprintable() for name in nodes):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(
                f"a server needs at least one mixture, each with a printable name; got {list(nodes)!r:.200}"
            )
        for name, node in nodes.items():
            if not isinstance(node, MixDataSourcesNode):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise ValueError(f"the mixture {name!r} must be a MixDataSourcesNode, got a {type(node).__name__}")
        self._mixtures = {name: HostedMixture(name, nodes[name].placed(placement)) for name in sorted(nodes)}

    @property
    def names(self) -> tuple[str, ...]:
        """Their names, sorted."""
        return tuple(self._mixtures)

    def __iter__(self) -> Iterator[HostedMixture]:
        return iter(self._mixtures.values())

    def named(self, name: str) -> HostedMixture:
        """The mixture of that name, which may be empty where there is only one. Raises UnknownMixture."""
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

    def check_contents(self) -> None:
        """Raises ValueError if two mixtures have one fingerprint, and records that are known to differ."""
        for first, second in combinations(self, 2):
            if first.node.mixture.fingerprint == second.node.mixture.fingerprint:
                source = first.node.mixture.differing_leaf(second.node.mixture)
                if source is not None:
                    raise ValueError(
                        f"the mixtures {first.name!r} and {second.name!r} have one fingerprint, but the records of "
                        f"their sources {source!r} differ: give these a content_id, or a content_digest(), each its own"
                    )

    def expected(self, name: str, fingerprint: str) -> HostedMixture:
        """The mixture of that name, known to be the one that a request expects; an empty fingerprint accepts any.

        Raises UnknownMixture and FingerprintMismatch.
        """
        mixture = self.named(name)
        if not fingerprint:
            return mixture
        described = mixture.description
        if fingerprint != described.fingerprint:
            raise FingerprintMismatch(
                f"the mixture {described.name!r} has the fingerprint {described.fingerprint}, expected "
                f"{fingerprint:.100}: its batches would be others; ask GetMixture what it holds now"
            )
        return mixture

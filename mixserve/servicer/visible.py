"""The metrics that a caller may see."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from mixserve.access.identity import Identity, Role
from mixserve_client.schema.stats import Metric

_LABEL = "mixture"


def visible(metrics: Iterable[Metric], identity: Identity) -> Iterator[Metric]:
    """All `metrics` for an admin of all mixtures; for others the samples of those that they may use."""
    if identity.role == Role.ADMIN and identity.mixtures is None:
        yield from metrics
        return
    for metric in metrics:
        if _LABEL in metric.labels:
            at = metric.labels.index(_LABEL)
            samples = (sample for sample in metric.samples if sample.labels[at] and identity.may_use(sample.labels[at]))
            yield replace(metric, samples=tuple(samples))

"""Statistics <-> bytes."""

from collections.abc import Iterable, Mapping

from mixserve_client.errors import CorruptReply
from mixserve_client.schema.stats import Metric, MetricKind, Sample
from mixserve_client.wire._generated import mix_pb2
from mixserve_client.wire.reply import parse_reply

# 256 clients, and thousands of sources, need less than one.
_MOST_BYTES = 8 << 20
_KINDS = {kind.value: kind for kind in MetricKind}


def encode_stats_request() -> bytes:
    """The GetStatsRequest message."""
    return mix_pb2.GetStatsRequest().SerializeToString()


def encode_stats(metrics: Iterable[Metric]) -> bytes:
    """The Stats message."""
    return mix_pb2.Stats(metrics=map(_metric_message, metrics)).SerializeToString()


def decode_stats(data: bytes) -> Mapping[str, Metric]:
    """The metrics in `data`, by name. Raises CorruptReply."""
    if len(data) > _MOST_BYTES:
        raise CorruptReply(f"statistics have at most {_MOST_BYTES} bytes, got {len(data)}")
    found = dict[str, Metric]()
    for message in parse_reply(mix_pb2.Stats, data).metrics:
        if not message.name or message.name in found:  # the first, since each takes some microseconds
            raise CorruptReply(f"metrics have names, and each comes once; got {message.name!r:.100}")
        found[message.name] = _metric(message)
    return found


def _metric_message(metric: Metric) -> mix_pb2.Metric:
    return mix_pb2.Metric(
        name=metric.name,
        help=metric.help,
        kind=metric.kind.value,
        labels=metric.labels,
        bounds=metric.bounds,
        samples=[mix_pb2.Sample(labels=one.labels, value=one.value, counts=one.counts) for one in metric.samples],
    )


def _metric(message: mix_pb2.Metric) -> Metric:
    kind, labels, bounds = _KINDS.get(message.kind), tuple(message.labels), tuple(message.bounds)
    if kind is None:
        raise CorruptReply(f"a metric is one of {', '.join(_KINDS)}, got {message.kind!r:.100}")
    counts = len(bounds) + 1 if kind == MetricKind.HISTOGRAM else 0
    samples = dict[tuple[str, ...], Sample]()
    for sample in message.samples:
        if len(sample.labels) != len(labels) or len(sample.counts) != counts:
            raise CorruptReply(
                f"a sample of {message.name!r:.100} must have {len(labels)} labels and {counts} counts, got "
                f"{len(sample.labels)} and {len(sample.counts)}"
            )
        values = tuple(sample.labels)
        if values in samples:
            raise CorruptReply(f"{message.name!r:.100} has two samples with the labels {values!r:.200}")
        samples[values] = Sample(values, sample.value, tuple(sample.counts))
    return Metric(message.name, message.help, kind, labels, tuple(samples.values()), bounds)

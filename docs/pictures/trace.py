"""Draws docs/trace.png: the spans of one batch, from a trainer's step over `next` to two sources and back."""

import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from mixserve import MixDataSourcesConfig, MixDataSourcesNode, serve
from mixserve_client import MixClient

RECORDS, WIDTH, ROWS, STEPS = 500, 8192, 64, 50
TRAINER, SERVER = "#5b87b8", "#a58a4d"
DARK, GREY = "#222222", "#777777"
# Those that the server ends when it learns that its reply was taken; all others end before the batch is there.
LATE = ("mixserve.StreamBatches", "reply", "send")
LAST_S = 10.0


class Compressed:
    """Records that are decompressed when they are read: code of a source."""

    def __init__(self, name: str, level: int, seed: int):
        self.name = self.content_id = name
        values = np.random.default_rng(seed).integers(0, 50, (RECORDS, WIDTH), np.int32)
        self._records = [zlib.compress(row.tobytes(), level) for row in values]

    def __len__(self) -> int:
        return RECORDS

    def element_spec(self) -> dict[str, Any]:
        return {"tokens": jax.ShapeDtypeStruct((WIDTH,), np.int32)}

    def take(self, record_ids: np.ndarray) -> dict[str, np.ndarray]:
        rows = [np.frombuffer(zlib.decompress(self._records[i]), np.int32) for i in record_ids]
        return {"tokens": np.stack(rows)}


def main() -> None:
    """Write the picture."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    config = MixDataSourcesConfig(num_sources=2, weights=(0.7, 0.3))
    node = MixDataSourcesNode(config, [Compressed("web", 6, 1), Compressed("code", 1, 2)])
    with serve({"train": node}) as server, MixClient.connect(server.address, shared_memory=False, bulk=False) as client:
        batches = client.batches(ROWS, key=1, prefetch=0)
        for _ in range(5):  # connections, programs and caches are there
            next(batches)
        for _ in range(STEPS):
            with trace.get_tracer("trainer").start_as_current_span("training step"):
                next(batches)
        settle(exporter)
    spans = exporter.get_finished_spans()
    # The one that other programs have disturbed least.
    step = min((span for span in spans if span.name == "training step"), key=duration_ns)
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    draw(figure.subplots(), [span for span in spans if trace_of(span) == trace_of(step)])
    figure.savefig(Path(__file__).parents[1] / "trace.png", dpi=150)


def duration_ns(span: ReadableSpan) -> int:
    """How long it took."""
    return (span.end_time or 0) - (span.start_time or 0)


def trace_of(span: ReadableSpan) -> int:
    """The id of its trace."""
    assert span.context is not None
    return span.context.trace_id


def settle(exporter: InMemorySpanExporter) -> None:
    """Wait until the server has ended the spans of its last call."""
    until = time.monotonic() + LAST_S
    while time.monotonic() < until:
        ended = exporter.get_finished_spans()
        if sum(s.name == "mixserve.StreamBatches" for s in ended) == sum(s.name == "mixserve.next" for s in ended):
            return
        time.sleep(0.01)
    raise TimeoutError("the server's spans have not ended")


def draw(axes: Axes, spans: list[ReadableSpan]) -> None:
    """A bar for every span, below that of its parent."""
    (root,) = (span for span in spans if span.parent is None)
    begin, lines = root.start_time or 0, list(in_order(spans, root, 0))
    longest = max((span.end_time or 0) - begin for span in spans) / 1e6
    for line, (span, depth) in enumerate(lines):
        start, end = ((at or 0) - begin for at in (span.start_time, span.end_time))
        start, end = start / 1e6, end / 1e6
        colour = TRAINER if span.name in ("training step", "mixserve.next", "mixserve.request") else SERVER
        axes.barh(line, end - start, left=start, height=0.62, color=colour, alpha=0.45 if span.name in LATE else 1.0)
        axes.text(end + longest * 0.008, line, f"{end - start:.2f} ms{said(span)}", va="center", fontsize=8, color=GREY)
        axes.text(
            -0.02, line, "    " * depth + span.name, va="center", fontsize=9, color=DARK, transform=label_at(axes)
        )
    axes.set(xlim=(0, longest * 1.34), ylim=(len(lines) - 0.4, -0.6), yticks=[])
    axes.set_xlabel("milliseconds since the step began", fontsize=9, color=GREY)
    axes.tick_params(labelsize=9, colors=GREY)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="x", color="#e6e6e6")
    axes.set_axisbelow(True)
    taken = Patch(color=SERVER, alpha=0.45, label="server, until it knows that the reply was taken")
    axes.legend(
        handles=[Patch(color=TRAINER, label="trainer"), Patch(color=SERVER, label="server"), taken],
        loc="upper right",
        bbox_to_anchor=(1.0, 1.1),
        ncols=3,
        frameon=False,
        fontsize=9,
    )


def label_at(axes: Axes) -> Any:
    """Labels begin left of the bars, all at the same place."""
    from matplotlib.transforms import ScaledTranslation, blended_transform_factory

    figure = axes.figure
    return blended_transform_factory(axes.transAxes, axes.transData) + ScaledTranslation(
        -2.0, 0, figure.dpi_scale_trans
    )


def in_order(spans: list[ReadableSpan], parent: ReadableSpan, depth: int) -> Iterator[tuple[ReadableSpan, int]]:
    """The spans with their depths, each after its parent, in the order of their beginnings."""
    yield parent, depth
    assert parent.context is not None
    children = [span for span in spans if span.parent is not None and span.parent.span_id == parent.context.span_id]
    for child in sorted(children, key=lambda span: span.start_time or 0):
        yield from in_order(spans, child, depth + 1)


def said(span: ReadableSpan) -> str:
    """The attributes that are worth their room."""
    about = span.attributes or {}
    if span.name.startswith("source"):
        return f", {about['mixserve.records']} records, {int(str(about['mixserve.bytes'])) / 1e6:.1f} MB"
    if span.name == "mixserve.next":
        return f", rows {about['mixserve.position']} to {int(str(about['mixserve.position'])) + ROWS}"
    return ""


if __name__ == "__main__":
    main()

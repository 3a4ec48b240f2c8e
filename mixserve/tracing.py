"""Whether calls leave spans. They do if the user has configured OpenTelemetry; until then none of it is imported."""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mixserve.spans import Spans

# None: nothing is traced. What could leave a span looks at this first, and that is all that it costs.
spans: "Spans | None" = None


def look() -> None:
    """Trace from now on, if this process has a provider of tracers. Servers call this when they are made."""
    global spans
    if spans is None and "opentelemetry.trace" in sys.modules:  # who has configured it has imported it
        from mixserve.spans import Spans, configured_tracer

        tracer = configured_tracer("mixserve")
        spans = None if tracer is None else Spans(tracer)

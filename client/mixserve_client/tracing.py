"""Whether calls leave spans. They do if the user has configured OpenTelemetry; until then none of it is imported."""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mixserve_client.spans import Spans

# None: nothing is traced. What could leave a span looks at this first, and that is all that it costs.
spans: "Spans | None" = None


def look() -> None:
    """Trace from now on, if this process has a provider of tracers.

    Clients and iterators call this when they are made: a provider should be there before them.
    """
    global spans
    if spans is None and "opentelemetry.trace" in sys.modules:  # who has configured it has imported it
        from mixserve_client.spans import Spans, configured_tracer

        tracer = configured_tracer("mixserve_client")
        spans = None if tracer is None else Spans(tracer)

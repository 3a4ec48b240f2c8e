"""docs/tracing.md names the spans and attributes that there are."""

import re
from pathlib import Path

from mixserve import serve
from mixserve_client import MixClient
from tests.conftest import ROUTES
from tests.processes import DEADLINE_S
from tests.tracing.recorded import about, recording
from tests.tracing.test_failures import Broken, node_of

PAGE = (Path(__file__).parents[2] / "docs" / "tracing.md").read_text()


def test_the_page_names_all_spans_and_attributes(node):
    with (
        recording() as recorded,
        serve({"train": node, "broken": node_of(Broken())}) as server,
        MixClient.connect(server.address, patience_s=DEADLINE_S, checksum=True, **ROUTES["bulk"]) as client,
    ):
        for mixture in ("train", "broken"):
            with client.batches(4, key=1, mixture=mixture, stop=64) as batches:
                try:
                    list(batches)
                except Exception:
                    assert mixture == "broken"
        recorded.wait_for(lambda: len(recorded.named("mixserve.StreamBatches")) > 2)
        spans = recorded.all
    table = PAGE[PAGE.index("| span |") : PAGE.index("- **Prefetched batches**")]
    told = set(re.findall(r"`([^`]+)`", table)) | {"error.type"}
    names = {re.sub("^source .*", "source NAME", span.name) for span in spans}
    calls = {name for name in names if re.fullmatch(r"mixserve\.[A-Z]\w+", name)}
    assert names - calls <= told
    assert {"mixserve.next", "mixserve.request", "reply", "plan", "encode", "checksum", "gather", "send"} <= names
    attributes = {name for span in spans for name in about(span)}
    assert attributes - {"rpc.system", "rpc.service", "rpc.method"} <= told
    assert "`error.type`" in PAGE
    assert {event.name for span in spans for event in span.events} <= told

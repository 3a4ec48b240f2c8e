"""docs/operations.md against a running server and the errors that there are."""

import inspect
import re
from pathlib import Path

from mixserve import serve
from mixserve_client import MixClient, errors
from mixserve_client.wire import methods
from mixserve_client.wire.stats import decode_stats, encode_stats_request

PAGE = (Path(__file__).parents[2] / "docs/operations.md").read_text("utf-8")
# Only servers with TLS, and supervisors of several processes, have them.
OF_OTHERS = {
    "mixserve_certificate_expiry_timestamp_seconds": (),
    "mixserve_worker_restarts_total": ("worker",),
    "mixserve_workers": ("state",),
}
# They have no samples on a server that has just begun.
WITHOUT_SAMPLES = {
    "mixserve_checkpoints_total",
    "mixserve_client_wait_share",
    "mixserve_errors_total",
    "mixserve_faults_total",
    "mixserve_wait_share",
}


def rows() -> dict[str, tuple[str, ...]]:
    """The labels of each metric in the page's table."""
    found = dict[str, tuple[str, ...]]()
    for names, labels in re.findall(r"^\| ((?:`mixserve_\w+`,? ?)+)\| ([\w, ]*)\|", PAGE, re.MULTILINE):
        for name in re.findall(r"\w+", names):
            found[name] = tuple(re.findall(r"\w+", labels))
    return found


def test_the_table_has_the_metrics_of_a_server(node):
    with serve({"train": node}) as server, MixClient.connect(server.address, patience_s=20) as client:
        list(client.batches(8, key=1, stop=64))
        client.get_batch_at(0, 8, key=1)
        told = decode_stats(client._caller.call(methods.GET_STATS, encode_stats_request()))
    assert rows() == {name: metric.labels for name, metric in told.items()} | OF_OTHERS
    assert all(metric.samples for name, metric in told.items() if name not in WITHOUT_SAMPLES)
    assert all(re.fullmatch(r"mixserve_[a-z_]+", name) and metric.help for name, metric in told.items())


def test_the_runbook_has_a_section_for_each_error():
    known = {
        name
        for name, one in inspect.getmembers(errors, inspect.isclass)
        if issubclass(one, errors.MixserveError) and one is not errors.MixserveError
    }
    assert set(re.findall(r"^### (\w+)$", PAGE.partition("## Runbook")[2], re.MULTILINE)) == known

"""Replicas are replaced one by one with SIGTERM, and no trainer notices: the short form of `make rolling`."""

import pytest

from tests.proxies.running import Route, why_not
from tests.rolling.upgrade import PLAIN, REPLICAS, WAYS, run

_LONGEST_S = 20.0  # on a machine that does other things; `make rolling` prints what it is


@pytest.mark.parametrize("route", [None, *PLAIN], ids=lambda route: "directly" if route is None else route.name)
def test_no_error_reaches_a_trainer_and_no_batch_differs(route: Route | None, tmp_path):
    if route is not None and (why := why_not(route.proxy)):
        pytest.skip(why)
    rows = run(route, tmp_path / "replicas", batches=15)
    assert [row.way for row in rows] == list(WAYS)
    for row in rows:
        assert row.batches >= 15 * (REPLICAS + 1)
        assert (row.wrong, row.late) == (0, 0)
        assert row.longest_s < _LONGEST_S

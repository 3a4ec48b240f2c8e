"""Every error of a call names the id under which the server's log speaks of it, on every route."""

import logging
import pickle
import re
import threading
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import grpc
import pytest

from mixserve import MixDataSourcesConfig, MixDataSourcesNode, MixServer, ServerLimits, local_client, serve
from mixserve_client import InvalidRequest, MixClient, MixserveError, OutOfRange, ServerFault
from mixserve_client.errors import Overloaded, PermissionDenied, Unauthenticated, Unavailable, UnknownMixture
from mixserve_client.schema.keys import key_words
from mixserve_client.schema.requests import BatchRequest, StreamRequest
from mixserve_client.wire import methods
from mixserve_client.wire._generated import mix_pb2
from mixserve_client.wire.error import REQUEST_METADATUM, error_metadata, error_of
from mixserve_client.wire.request import encode_batch_request, encode_stream_request
from tests.conftest import ROUTES
from tests.logs.faulty import FaultySource
from tests.processes import ONE_SIZE
from tests.tokens.files import Tokens

DEADLINE_S = 20
ID = re.compile(r"[0-9a-f]{8}")
keys = count()


def node_of(source: FaultySource) -> MixDataSourcesNode:
    """With a source of another name for each test, whose faults are not like those of the test before."""
    names = (f"disk-{next(keys)}",)
    config = MixDataSourcesConfig(num_sources=1, weights=(1,), plan_sizes=ONE_SIZE, source_names=names)
    return MixDataSourcesNode(config, [source])


@pytest.fixture
def switch(tmp_path: Path) -> Path:
    return tmp_path / "fails"


@pytest.fixture
def server(switch: Path):
    with serve({"train": node_of(FaultySource(switch))}) as running:
        yield running


def unknown_mixture(client: MixClient) -> object:
    return client.get_batch_at(0, 4, 0, mixture="other", timeout_s=DEADLINE_S)


def bad_stream(client: MixClient) -> object:
    """A stream that its server refuses: the client checks nothing of this."""
    wanted = StreamRequest(BatchRequest("other", 0, 4, key_words(next(keys))), 4, 1, 4)
    asked = encode_stream_request(wanted)
    return list(client._caller.transport.stream(methods.STREAM_BATCHES, asked, DEADLINE_S, 1, 1000))


def session_of_another(client: MixClient) -> object:
    return client.session("run", mixture="other", timeout_s=DEADLINE_S)


def lines_of(caplog: pytest.LogCaptureFixture, request_id: str) -> list[logging.LogRecord]:
    return [record for record in caplog.records if getattr(record, "request", "") == request_id]


def raised_by(task: Callable[[], object]) -> MixserveError:
    with pytest.raises(MixserveError) as caught:
        task()
    return caught.value


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("way", [unknown_mixture, bad_stream, session_of_another])
def test_an_error_has_the_id_of_its_call_which_the_log_has_at_level_debug(server, route, way, caplog):
    caplog.set_level(logging.DEBUG, "mixserve")
    with MixClient.connect(server.address, **ROUTES[route]) as client:
        client.get_batch_at(0, 4, 0, timeout_s=DEADLINE_S)
        found, other = raised_by(lambda: way(client)), raised_by(lambda: way(client))
    assert isinstance(found, UnknownMixture)
    assert ID.fullmatch(found.request_id)
    assert found.request_id != other.request_id
    (line,) = lines_of(caplog, found.request_id)
    assert "ended with UnknownMixture: mixture must be one of 'train'" in line.getMessage()
    assert line.error == "UnknownMixture"


@pytest.mark.parametrize("route", ROUTES)
def test_a_fault_has_the_id_of_the_line_with_its_traceback_and_the_line_says_where(server, route, switch, caplog):
    def ask() -> object:
        wanted = encode_batch_request(BatchRequest("train", 8, 1, key_words(next(keys))))
        message = mix_pb2.GetBatchAtRequest.FromString(wanted)
        message.sender.client = "run-7"
        return client._caller.call(methods.GET_BATCH_AT, message.SerializeToString())

    with MixClient.connect(server.address, **ROUTES[route]) as client:
        client.get_batch_at(0, 4, next(keys), timeout_s=DEADLINE_S)
        switch.touch()
        faults = [raised_by(ask) for _ in range(5)]
        switch.unlink()
    assert all(type(fault) is ServerFault for fault in faults)
    lines = [record for record in caplog.records if record.exc_info]
    for fault in faults:
        assert str(fault).endswith(f"; the server's log has the cause under the id {fault.request_id}")
        (line,) = [one for one in lines if one.request == fault.request_id]
        assert "is on fire" in line.exc_text
    assert len(lines) < len(faults)
    assert (line.method, line.mixture, line.error) == ("GetBatchAt", "train", "ValueError")
    assert line.source.startswith("disk-")
    assert line.position == 8
    assert 0 <= line.record < 100
    assert line.client == "run-7"
    assert line.peer.startswith(("ipv4:127.0.0.1:", "ipv6:[::1]:"))
    assert line.who == "everybody"
    assert not hasattr(line, "retry_after_s")
    assert [record for record in lines if "fault " in record.getMessage()] == lines


def test_in_process_a_fault_has_an_id_too(switch, caplog):
    with local_client({"train": node_of(FaultySource(switch))}) as client:
        client.get_batch_at(0, 4, next(keys))
        switch.touch()
        fault = raised_by(lambda: client.get_batch_at(0, 1, next(keys)))
        bad = raised_by(lambda: client.get_batch_at(-1, 1, next(keys)))
    assert fault.request_id in str(fault)
    assert fault.request_id in caplog.text
    assert isinstance(bad, (InvalidRequest, OutOfRange))
    assert bad.request_id == ""


def test_refused_calls_have_an_id_which_the_audit_has(tmp_path, switch, caplog):
    caplog.set_level(logging.INFO, "mixserve")
    tokens = Tokens(tmp_path / "tokens.yaml", {"reader": ("reader", None), "other": ("reader", ["other"])})
    with serve({"train": node_of(FaultySource(switch))}, tokens=tokens.path) as server:
        for token, kind in ((None, Unauthenticated), (tokens["reader"], PermissionDenied), ("other", PermissionDenied)):
            given = tokens["other"] if token == "other" else token
            with MixClient.connect(server.address, token=given, shared_memory=False, bulk=False) as client:
                if token == tokens["reader"]:
                    error = raised_by(lambda client=client: client.session("run", mixture="train"))
                else:
                    error = raised_by(lambda client=client: client.get_batch_at(0, 4, 0, mixture="train"))
            assert type(error) is kind
            assert ID.fullmatch(error.request_id)
            said = [record.audit for record in caplog.records if hasattr(record, "audit")]
            assert error.request_id in [one["request"] for one in said if one["status"] == kind.__name__]


def test_a_server_that_drains_names_the_call_too(server):
    server._answers.not_ready = "is stopping"
    try:
        with MixClient.connect(server.address, patience_s=0.5, shared_memory=False) as client:
            error = raised_by(lambda: client.mixtures())
    finally:
        server._answers.not_ready = None
    assert isinstance(error, Unavailable)
    assert ID.fullmatch(error.request_id)  # that of the last request, in the error that patience_s ran out


def test_streams_beyond_those_of_a_connection_are_told_and_logged_with_their_id(switch, caplog):
    with (
        serve({"train": node_of(FaultySource(switch))}, limits=ServerLimits(streams_per_connection=1)) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        call = channel.stream_stream(methods.STREAM_BATCHES)
        waiting = [call(never_sends(), timeout=DEADLINE_S) for _ in range(3)]
        deadline = time.monotonic() + DEADLINE_S
        while not (ended := [one for one in waiting if one.done()]):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        metadata = dict(ended[0].trailing_metadata())
        for one in waiting:
            one.cancel()
    error = error_of(ended[0].code().name, ended[0].details(), metadata.items())
    assert isinstance(error, Overloaded)
    assert ID.fullmatch(error.request_id)
    (line,) = [record for record in caplog.records if "streams_per_connection" in record.getMessage()]
    assert (line.error, line.retry_after_s) == ("Overloaded", 1.0)


def never_sends():
    threading.Event().wait(DEADLINE_S)
    yield b""


@pytest.mark.parametrize("given", ["", "a b", "x" * 65, "é", "a\n", "<b>"])
def test_an_id_that_is_none_is_left_out(given):
    assert error_of("INTERNAL", "no", [("mixserve-error", "ServerFault"), (REQUEST_METADATUM, given)]).request_id == ""


def test_the_id_survives_the_wire_and_pickles():
    error = ServerFault("no")
    assert REQUEST_METADATUM not in dict(error_metadata(error))
    error.request_id = "0a1b2c3d"
    found = error_of("INTERNAL", "no", error_metadata(error))
    assert found.request_id == pickle.loads(pickle.dumps(found)).request_id == "0a1b2c3d"
    assert MixserveError.request_id == ""


def test_servers_set_fields_on_records_of_our_loggers_only(server, caplog):
    assert isinstance(server, MixServer)
    assert logging.getLogger().filters == []
    logging.getLogger("mixserve").error("outside of a call")
    assert not hasattr(caplog.records[-1], "request")

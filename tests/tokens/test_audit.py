"""What is written about callers, and that no token is."""

import logging
import pickle
from typing import Any

import pytest

from mixserve import serve
from mixserve_client import MixClient
from mixserve_client.wire import methods
from mixserve_client.wire._generated import mix_pb2
from tests.tokens.calling import bearer, client_of, status_of
from tests.tokens.files import Tokens, replace_file


def events(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [record.__dict__["audit"] for record in caplog.records if record.name == "mixserve.audit"]


def test_the_audit_says_who_did_what_from_where(server, tokens, caplog):
    caplog.set_level(logging.INFO, logger="mixserve.audit")
    with client_of(server, tokens["trainer"]) as client, client_of(server, tokens["trainer-a"]) as other:
        session = client.session("audited", mixture="a")
        session.save_checkpoint("one", keep_last=3)
        session.restore_checkpoint("one")
        with other.session("audited", mixture="a", take_over=True) as taken:
            taken.delete_checkpoint("one")
    forged = mix_pb2.GetMixtureRequest(mixture="x\nevent=session-opened who=admin").SerializeToString()
    assert status_of(server, methods.GET_MIXTURE, bearer(tokens["trainer-a"]), forged)[0] == "PERMISSION_DENIED"
    said = [(event["event"], event["who"]) for event in events(caplog)]
    assert said == [
        ("session-opened", "trainer"),
        ("checkpoint-saved", "trainer"),
        ("checkpoint-restored", "trainer"),
        ("session-taken-over", "trainer-a"),
        ("checkpoint-deleted", "trainer-a"),
        ("session-released", "trainer-a"),
        ("refused", "trainer-a"),
    ]
    lines = [record.getMessage() for record in caplog.records if record.name == "mixserve.audit"]
    for event, line in zip(events(caplog), lines, strict=True):
        assert line.startswith(f"event={event['event']} who={event['who']} peer=ipv4:127.0.0.1:")
        assert "\n" not in line
        assert all(token not in f"{line} {event}" for token in tokens.by_name.values())
    about = {"mixture": "a", "session": "audited"}
    assert about.items() <= events(caplog)[1].items()
    assert {"checkpoint": "one", "keep_last": 3}.items() <= events(caplog)[1].items()
    assert {"status": "PermissionDenied", "method": "GetMixture", "calls": 1}.items() <= events(caplog)[6].items()


def test_a_server_without_tokens_audits_everybody(nodes, caplog):
    caplog.set_level(logging.INFO, logger="mixserve.audit")
    with serve(nodes, shared_memory=False) as server, client_of(server, None) as client:
        client.session("s", mixture="a").close()
    assert [(event["event"], event["who"]) for event in events(caplog)] == [
        ("session-opened", "everybody"),
        ("session-released", "everybody"),
    ]


def test_pickles_have_the_path_of_a_token_and_not_the_token(server, tokens, tmp_path):
    mine = tmp_path / "token"
    mine.write_text(f"{tokens['reader']}\n")
    with MixClient.connect(server.address, token_file=mine) as client:
        pickled = pickle.dumps(client)
        assert tokens["reader"].encode() not in pickled
        assert str(mine).encode() in pickled
        with pickle.loads(pickled) as other:
            assert other.mixtures() == ("a", "b")
        with client.batches(4, 7, mixture="a") as batches:
            next(batches)
            assert tokens["reader"] not in f"{client!r} {batches!r} {batches.get_state()!r} {client.catalog!r}"


class Ending(logging.Handler):
    """A handler that ends the process, as it means to."""

    def emit(self, record: logging.LogRecord) -> None:
        raise SystemExit(record.getMessage())


def test_a_log_that_raises_ends_no_server(nodes, tmp_path):
    tokens = Tokens(tmp_path / "tokens.yaml", {"a": ("reader", None)})
    ending = Ending()
    with serve(nodes, tokens=tokens.path, shared_memory=False) as server:
        logger = logging.getLogger("mixserve")
        logger.addHandler(ending)
        try:
            replace_file(tokens.path, "broken: [")
            assert status_of(server, methods.LIST_MIXTURES, bearer("mixserve_unknown"))[0] != "OK"
            assert status_of(server, methods.LIST_MIXTURES, bearer(tokens["a"]))[0] == "OK"
        finally:
            logger.removeHandler(ending)

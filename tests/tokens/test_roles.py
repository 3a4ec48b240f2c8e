"""Who may call what: by role, by what the metadata have, and how often it failed before."""

import json
import threading
import time
from collections.abc import Iterator

import grpc
import pytest

from mixserve import serve
from mixserve.access import failures
from mixserve.cli.health import probe
from mixserve.serving import guard
from mixserve_client import AsyncMixClient, Unauthenticated
from mixserve_client.wire import methods
from tests.tokens.calling import (
    DEADLINE_S,
    NEEDED,
    PURE,
    STATE,
    bearer,
    client_of,
    status_of,
)
from tests.tokens.files import Tokens


@pytest.mark.parametrize("method", NEEDED)
def test_each_role_may_call_what_the_table_says(server, tokens, method):
    for rank, role in enumerate(("reader", "trainer", "admin")):
        status, said = status_of(server, method, bearer(tokens[role]))
        if rank >= NEEDED[method]:
            assert status in ("OK", "INVALID_ARGUMENT"), (role, status, said)
        else:
            needed = ("reader", "trainer or above", "admin")[NEEDED[method]]
            assert (status, said) == (
                "PERMISSION_DENIED",
                f"{method.rpartition('/')[2]} needs a token of the role {needed}, and this one has the role {role}",
            )
    assert status_of(server, method, None)[0] == "UNAUTHENTICATED"
    assert status_of(server, method, bearer("mixserve_unknown"))[0] == "UNAUTHENTICATED"


@pytest.mark.parametrize(
    "metadata",
    [
        lambda right: (),
        lambda right: (("authorization", right),),
        lambda right: (("authorization", "Bearer"),),
        lambda right: (("authorization", "Bearer "),),
        lambda right: (("authorization", f"Basic {right}"),),
        lambda right: (("authorization", f"Bearer {right} {right}"),),
        lambda right: (("authorization", f"Bearer  {right}"),),
        lambda right: (("authorization", f"Bearer {right}x"),),
        lambda right: (("authorization", f"Bearer {right[:-1]}"),),
        lambda right: (("authorization", f"Bearer {right.swapcase()}"),),
        lambda right: (("authorization", f"Bearer {right}" + "x" * 1024),),
        lambda right: (("authorization", f"Bearer {right}" + "x" * 6000),),
        lambda right: (("authorization", f"Bearer {right}"), ("authorization", f"Bearer {right}")),
        lambda right: (("authorization", f"Bearer {right}"), ("authorization", "Bearer mixserve_other")),
        lambda right: (("authorization-bin", f"Bearer {right}".encode()),),
        lambda right: (("x-authorization", f"Bearer {right}"),),
        lambda right: (("authorization", f"Bearer {right}, Bearer {right}"),),
    ],
)
def test_metadata_without_a_right_token_are_refused_and_not_shown(server, tokens, metadata):
    right = tokens["admin"]
    status, said = status_of(server, methods.LIST_MIXTURES, metadata(right))
    assert status == "UNAUTHENTICATED"
    assert "authorization: Bearer TOKEN" in said
    assert right[9:20] not in said
    assert len(said) < 300


def test_the_scheme_may_be_written_in_any_case(server, tokens):
    for scheme in ("bearer", "BEARER"):
        metadata = (("authorization", f"{scheme} {tokens['reader']}"),)
        assert status_of(server, methods.LIST_MIXTURES, metadata)[0] == "OK"


def test_health_needs_no_token(server):
    assert probe(server.address, 5) == "SERVING"


def test_a_refused_call_is_answered_though_its_request_never_comes_and_takes_no_thread(server, tokens, quick):
    waits = threading.Event()

    def never() -> Iterator[bytes]:
        waits.wait(DEADLINE_S)
        yield from ()

    with grpc.insecure_channel(server.address) as channel:
        try:
            calls = [channel.stream_unary(method).future(never()) for method in (*STATE, *PURE) for _ in range(20)]
            with client_of(server, tokens["trainer"]) as client:
                assert client.mixtures(timeout_s=DEADLINE_S) == ("a", "b")
                assert client.sessions(timeout_s=DEADLINE_S) == ()
            for call in calls:
                with pytest.raises(grpc.RpcError):
                    call.result(DEADLINE_S)
                assert call.code() == grpc.StatusCode.UNAUTHENTICATED
        finally:
            waits.set()


def test_wrong_tokens_are_not_retried(server):
    began = time.monotonic()
    with client_of(server, "mixserve_wrong") as client:
        with pytest.raises(Unauthenticated, match="does not know this token"):
            client.mixtures()
        with pytest.raises(Unauthenticated), client.batches(4, 7, mixture="a") as batches:
            next(batches)
    assert time.monotonic() - began < 5


def test_the_asynchronous_client_sends_its_token(server, tokens):
    import asyncio

    async def names() -> tuple[str, ...]:
        async with AsyncMixClient.connect(server.address, token=tokens["reader-a"]) as client:
            return await client.mixtures()

    assert asyncio.run(names()) == ("a",)


def test_failures_of_a_host_are_slowed_and_right_tokens_are_not(server, tokens, monkeypatch):
    monkeypatch.setattr(failures, "_FIRST_DELAY_S", 0.25)
    monkeypatch.setattr(failures, "_LONGEST_DELAY_S", 0.5)
    took = list[float]()
    for number in range(7):
        began = time.monotonic()
        assert status_of(server, methods.LIST_MIXTURES, bearer(f"mixserve_{number}"))[0] == "UNAUTHENTICATED"
        took.append(time.monotonic() - began)
    assert min(took[:5]) < 0.25, took
    assert took[5] >= 0.25, took
    assert took[6] >= 0.5, took
    threads = [
        threading.Thread(target=status_of, args=(server, methods.LIST_MIXTURES, bearer("mixserve_x")))
        for _ in range(30)
    ]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    right = time.monotonic()
    assert status_of(server, methods.LIST_MIXTURES, bearer(tokens["reader"]))[0] == "OK"
    assert status_of(server, methods.LIST_SESSIONS, bearer(tokens["trainer"]))[0] == "OK"
    assert time.monotonic() - right < 1.0
    for thread in threads:  # four wait; all others are answered at once
        thread.join()
    assert time.monotonic() - began < 3


def test_refused_calls_wait_in_threads_of_their_own(nodes, tokens, monkeypatch):
    monkeypatch.setattr(guard, "_MOST_WAITING", 100)
    monkeypatch.setattr(failures, "_FREE", 0)
    monkeypatch.setattr(failures, "_FIRST_DELAY_S", 20.0)  # or until the server stops
    monkeypatch.setattr(failures, "_LONGEST_DELAY_S", 20.0)
    with (
        serve(nodes, tokens=tokens.path, shared_memory=False) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        calls = [channel.unary_unary(method).future(b"") for method in (*PURE, *STATE) for _ in range(10)]
        began = time.monotonic()
        for method, token in ((methods.LIST_MIXTURES, "reader"), (methods.LIST_SESSIONS, "trainer")):
            assert status_of(server, method, bearer(tokens[token]))[0] == "OK"
        assert time.monotonic() - began < 10
        assert not any(call.done() for call in calls)


def test_a_unix_socket_asks_for_a_token_too(nodes, tokens, tmp_path):
    with serve(nodes, f"unix://{tmp_path}/socket", tokens=tokens.path, shared_memory=False) as server:
        assert status_of(server, methods.LIST_MIXTURES, None)[0] == "UNAUTHENTICATED"
        assert status_of(server, methods.LIST_MIXTURES, bearer(tokens["reader"]))[0] == "OK"
        server._answers.not_ready = "is stopping"  # strangers do not learn of it
        assert status_of(server, methods.LIST_MIXTURES, None)[0] == "UNAUTHENTICATED"
        assert status_of(server, methods.LIST_MIXTURES, bearer(tokens["reader"]))[0] == "UNAVAILABLE"


def test_wrong_files_are_refused_before_anything_else(nodes, tmp_path):
    with pytest.raises(OSError, match="cannot be read"):
        serve(nodes, tokens=tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("tokens: 3")
    with pytest.raises(ValueError, match="tokens must be a list"):
        serve(nodes, tokens=str(tmp_path / "bad.yaml"))


def test_a_token_file_without_tokens_lets_nobody_in(nodes, tmp_path):
    path = tmp_path / "tokens.yaml"
    path.write_text("tokens: []")
    with serve(nodes, tokens=path, shared_memory=False) as server:
        assert status_of(server, methods.LIST_MIXTURES, None)[0] == "UNAUTHENTICATED"
        made = Tokens(path, {"a": ("reader", None)})
        assert json.dumps(status_of(server, methods.LIST_MIXTURES, bearer(made["a"]))) == '["OK", ""]'

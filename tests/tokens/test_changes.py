"""Tokens that are revoked, changed or replaced while calls run."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from mixserve import MixServer, serve
from mixserve.serving import streams
from mixserve_client import MixClient, Unauthenticated
from mixserve_client.wire import methods
from mixserve_client.wire._generated import mix_pb2
from tests.tokens.calling import DEADLINE_S, KEY, bearer, client_of, look
from tests.tokens.files import Tokens, replace_file


@contextmanager
def endless_stream(server: MixServer, token: str, mixture: str) -> Iterator[Iterator[bytes]]:
    first = mix_pb2.GetBatchAtRequest(mixture=mixture, key=KEY, size=64)
    request = mix_pb2.StreamBatchesRequest(first=first, stride=64, count=1 << 20, reply_rows=64)
    with grpc.insecure_channel(server.address) as channel:
        call = channel.unary_stream(methods.STREAM_BATCHES)(request.SerializeToString(), metadata=bearer(token))
        yield call
        call.cancel()


def ends_with(call: Iterator[bytes], limit_s: float) -> tuple[str, str]:
    """The status with which a stream ends within `limit_s`, and its text."""
    deadline = time.monotonic() + limit_s
    try:
        for _ in call:
            assert time.monotonic() < deadline, "it goes on"
    except grpc.RpcError as error:
        assert isinstance(error, grpc.Call)
        return error.code().name, error.details() or ""
    return "OK", ""


@pytest.mark.parametrize("change", ["revoked", "another mixture"])
def test_a_stream_that_runs_ends_when_its_token_loses_its_rights(server, tokens, monkeypatch, change):
    monkeypatch.setattr(streams, "_STALLED_S", 60.0)
    with (
        endless_stream(server, tokens["reader-a"], "a") as call,
        endless_stream(server, tokens["reader"], "a") as other,
    ):
        next(call)
        next(other)
        if change == "revoked":
            tokens.write("reader-a")
        else:
            tokens.rights["reader-a"] = "reader", ["b"]
            tokens.write()
        status, said = ends_with(call, 4)
        if change == "revoked":
            assert (status, said) == (
                "UNAUTHENTICATED",
                "the token of this call was revoked while it ran; call with another one",
            )
        else:
            assert status == "PERMISSION_DENIED"
            assert "not for the mixture 'a'" in said
        for _ in range(50):
            next(other)


def test_a_reflection_stream_ends_when_its_token_is_revoked(server, tokens):
    more = threading.Semaphore(1)

    def asked() -> Iterator[reflection_pb2.ServerReflectionRequest]:
        while more.acquire(timeout=DEADLINE_S):
            yield reflection_pb2.ServerReflectionRequest(list_services="")

    with grpc.insecure_channel(server.address) as channel:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        call = stub.ServerReflectionInfo(asked(), metadata=bearer(tokens["admin"]))
        services = {service.name for service in next(call).list_services_response.service}
        assert {methods.SERVICE_NAME, methods.STATE_SERVICE_NAME} <= services
        tokens.write("admin")
        look(server)
        more.release()
        with pytest.raises(grpc.RpcError) as refused:
            next(call)
        assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_a_reflection_stream_that_says_nothing_ends_when_its_token_is_revoked(server, tokens):
    over = threading.Event()

    def asked() -> Iterator[reflection_pb2.ServerReflectionRequest]:
        yield reflection_pb2.ServerReflectionRequest(list_services="")
        over.wait(DEADLINE_S)

    with grpc.insecure_channel(server.address) as channel:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        call = stub.ServerReflectionInfo(asked(), metadata=bearer(tokens["admin"]))
        next(call)
        tokens.write("admin")
        status, said = ends_with(call, 4)
        over.set()
    assert (status, said) == (
        "UNAUTHENTICATED",
        "the token of this call was revoked while it ran; call with another one",
    )


def test_a_session_of_a_revoked_token_is_refused_and_another_token_goes_on(server, tokens):
    with client_of(server, tokens["trainer"]) as client:
        session = client.session("rotated", mixture="a")
        next(session)
        tokens.write("trainer")
        look(server)
        with pytest.raises(Unauthenticated):
            next(session)
    with (
        client_of(server, tokens["trainer-a"]) as client,
        client.session("rotated", mixture="a", take_over=True) as session,
    ):
        assert session.index == 1
        next(session)


def test_trainers_go_on_while_tokens_are_replaced(nodes, tmp_path):
    tokens = Tokens(tmp_path / "tokens.yaml", {"first": ("trainer", None)})
    mine = tmp_path / "token"
    replace_file(mine, tokens["first"])
    read, failed, stopping = [0, 0], list[BaseException](), threading.Event()

    with serve(nodes, tokens=tokens.path) as server:

        def train(number: int) -> None:
            try:
                with MixClient.connect(server.address, token_file=mine, shared_memory=number == 0) as client:
                    session = client.session(f"s{number}", mixture="b")
                    with client.batches(16, number, mixture="a", prefetch=8) as batches:
                        while not stopping.is_set():
                            next(batches)
                            next(session)
                            read[number] += 1
            except BaseException as error:
                failed.append(error)

        def wait_for_more() -> None:
            before, deadline = list(read), time.monotonic() + DEADLINE_S
            while any(now < then + 20 for now, then in zip(read, before, strict=True)):
                assert not failed, failed
                assert time.monotonic() < deadline
                time.sleep(0.01)

        trainers = [threading.Thread(target=train, args=(number,)) for number in range(2)]
        for trainer in trainers:
            trainer.start()
        try:
            wait_for_more()
            for old, new in (("first", "second"), ("second", "third")):
                began, generation = time.monotonic(), server._guard.generation
                made = tokens.add(new, "trainer")
                replace_file(mine, made)
                tokens.write("first", old)  # at once: calls with the old token are refused, and made again
                look(server)
                assert server._guard.generation > generation
                wait_for_more()
                assert time.monotonic() - began < 5
        finally:
            stopping.set()
            for trainer in trainers:
                trainer.join(DEADLINE_S)
        assert not failed

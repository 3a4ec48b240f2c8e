"""A token for some mixtures: it sees and gets no others."""

from collections.abc import Callable

import pytest

from mixserve_client import InvalidRequest, MixClient, PermissionDenied, Unauthenticated, UnknownMixture
from mixserve_client.wire import methods
from mixserve_client.wire._generated import mix_pb2
from tests.tokens.calling import KEY, bearer, client_of, status_of


def test_a_token_for_some_mixtures_shows_no_others(server, tokens):
    with client_of(server, tokens["trainer-a"]) as client:
        assert client.mixtures() == ("a",)
        assert client.mixture().name == "a"  # the only one that it may use
        assert client.get_batch_at(0, 2, 7)["x"].shape == (2, 1024)
        assert client.sessions() == ()
        with client_of(server, tokens["trainer"]) as other, other.session("of-b", mixture="b") as session:
            next(session)
            assert [found.name for found in other.sessions()] == ["of-b"]
            assert client.sessions() == ()
        with pytest.raises(UnknownMixture, match=r"must be one of 'a', got 'not here'$"):
            client.mixture("not here")
    with client_of(server, tokens["reader-ab"]) as client, pytest.raises(InvalidRequest, match=r"one of 'a', 'b'$"):
        client.mixture()
    with client_of(server, tokens["reader-c"]) as client:
        assert client.mixtures() == ()
        with pytest.raises(UnknownMixture, match="none of the mixtures that this token is for"):
            client.mixture()


CALLS: dict[str, Callable[[MixClient, str], object]] = {
    "mixture": lambda client, name: client.mixture(name),
    "batch": lambda client, name: client.get_batch_at(0, 2, 7, mixture=name),
    "sessions": lambda client, name: client.sessions(mixture=name),
    "session": lambda client, name: client.session("s", mixture=name),
    "checkpoints": lambda client, name: client.view_session("s", mixture=name).list_checkpoints(),
}


@pytest.mark.parametrize("call", CALLS)
def test_mixtures_that_are_there_and_that_are_not_are_refused_alike(server, tokens, call):
    said = list[str]()
    with client_of(server, tokens["trainer-a"]) as client:
        for name in ("b", "z"):
            with pytest.raises(PermissionDenied, match=r"^this token is not for the mixture '.'") as refused:
                CALLS[call](client, name)
            said.append(str(refused.value).replace(f"'{name}'", "X"))
    assert said[0] == said[1]
    assert "role reader" in said[0] or "role trainer" in said[0]


def requests_for(name: str) -> dict[str, bytes]:
    """A good request of each method for the mixture of that name."""
    entry = mix_pb2.ScheduleEntry(start=0, weights=[1.0])
    first = {"mixture": name, "key": KEY, "start": 0, "size": 4}
    made = {
        methods.GET_MIXTURE: mix_pb2.GetMixtureRequest(mixture=name),
        methods.GET_BATCH_AT: mix_pb2.GetBatchAtRequest(**first),
        methods.STREAM_BATCHES: mix_pb2.StreamBatchesRequest(
            first=mix_pb2.GetBatchAtRequest(**first), stride=4, count=2, reply_rows=4
        ),
        methods.DEFINE_SCHEDULE: mix_pb2.DefineScheduleRequest(mixture=name, entries=[entry]),
    }
    return {method: message.SerializeToString() for method, message in made.items()}


@pytest.mark.parametrize(
    "method", [methods.GET_MIXTURE, methods.GET_BATCH_AT, methods.STREAM_BATCHES, methods.DEFINE_SCHEDULE]
)
def test_what_others_have_read_or_defined_is_refused_too(server, tokens, method):
    for token, status in (("reader", "OK"), ("reader-a", "PERMISSION_DENIED"), ("reader", "OK")):
        assert status_of(server, method, bearer(tokens[token]), requests_for("b")[method])[0] == status, token
    assert status_of(server, method, bearer(tokens["reader-a"]), requests_for("a")[method])[0] == "OK"


def test_a_schedule_that_others_have_defined_gives_no_rows(server, tokens):
    with client_of(server, tokens["reader"]) as client:
        with client.batches(4, 7, mixture="b", schedule=[(8, (1.0,))]) as batches:
            next(batches)
        (_, known), *_ = server._services.mix._schedules._known
    for name, status, said in (("b", "PERMISSION_DENIED", "is not for the mixture 'b'"), ("a", "NOT_FOUND", "know")):
        request = mix_pb2.GetBatchAtRequest(mixture=name, key=KEY, size=4, schedule=known)
        found = status_of(server, methods.GET_BATCH_AT, bearer(tokens["reader-a"]), request.SerializeToString())
        assert found[0] == status
        assert said in found[1]


def test_shared_memory_gives_what_the_token_allows(server, tokens):
    with client_of(server, tokens["reader-a"], shared_memory=True) as client:
        with client.batches(64, 7) as batches:
            for _ in range(4):
                assert next(batches)["x"].shape == (64, 1024)
        assert "shared memory" in client.transport
        with pytest.raises(PermissionDenied):
            client.get_batch_at(0, 64, 7, mixture="b")
    with client_of(server, None, shared_memory=True) as client, pytest.raises(Unauthenticated):
        client.get_batch_at(0, 64, 7, mixture="a")

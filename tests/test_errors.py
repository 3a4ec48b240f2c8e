"""Errors cross the wire: with their class, a text that fits, and their advice on retrying."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixserve import ServerLimits, local_client, serve
from mixserve.servicer import Services
from mixserve.serving import MixServer
from mixserve_client import MixClient, Overloaded, StorageFailed, UnknownCheckpoint, errors
from mixserve_client.transport.in_process import InProcessTransport
from mixserve_client.wire import methods
from mixserve_client.wire.error import RETRY_AFTER_METADATUM, error_metadata, error_of, shorten
from tests.conftest import make_node
from tests.processes import ONE_SIZE

DEADLINE_S = 30


class Refusing(Services):
    """Answers calls with the error that it is given, for as long as there is one."""

    def __init__(self):
        super().__init__({"train": make_node(plan_sizes=ONE_SIZE)})
        self.errors: list[BaseException] = []
        self.asked: list[float] = []

    def handle(self, method, request, *more):
        self.asked.append(time.monotonic())
        if self.errors:
            raise self.errors.pop(0)
        return super().handle(method, request, *more)

    def stream(self, method, request, *more):
        self.asked.append(time.monotonic())
        if self.errors:
            raise self.errors.pop(0)
        yield from super().stream(method, request, *more)

    def refuse(self, *errors: BaseException) -> None:
        self.errors, self.asked = list(errors), []


@pytest.fixture(scope="module")
def refusing() -> Refusing:
    return Refusing()


@pytest.fixture(scope="module")
def address(refusing) -> Iterator[str]:
    server = MixServer(refusing, "127.0.0.1:0")
    server.start()
    yield server.address
    server.stop(grace_s=0)


TEXTS = {
    "of 20,000 letters": "begin " + "x" * 20_000 + " end",
    "of 3,000 letters that are encoded": "begin " + "ü" * 3_000 + " end",
    "of percent signs": "begin " + "%" * 9_000 + " end",
    "of lines": "begin " + "\n" * 9_000 + " end",
    "of what UTF-8 cannot hold": "begin " + "\udcff" * 10 + " end",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("cls", errors._CLASSES, ids=lambda cls: cls.__name__)
def test_every_error_arrives_as_the_class_that_it_is_however_long_its_text(refusing, address, cls, text):
    refusing.refuse(*[cls(text)] * 9)  # some calls are retried
    with MixClient.connect(address, patience_s=0.01) as client, pytest.raises(cls) as caught:
        client.mixtures()
    assert type(caught.value) is cls
    said = str(caught.value)
    assert len(said) < 5000
    assert "begin" in said
    assert "end" in said


def test_an_error_of_a_class_of_the_users_own_arrives_as_the_one_that_it_is_made_from(refusing, address):
    class Größer(errors.InvalidRequest):
        code = "NO SUCH CODE"

    refusing.refuse(Größer("why"))
    with MixClient.connect(address) as client, pytest.raises(errors.InvalidRequest, match="why"):
        client.mixtures()


@given(st.text(max_size=60) | st.text(alphabet="aü…\n%\U0001f600", max_size=300), st.integers(20, 200))
def test_a_text_is_cut_in_its_middle_to_what_fits(text, most):
    short = shorten(text, most)
    encoded = "".join(c if " " <= c <= "~" and c != "%" else "%%%" * len(c.encode()) for c in short)
    assert len(encoded) <= most
    if short != text:
        first, last = short.split(" … ", 1) if short.count(" … ") == 1 else (short[:1], short[-1:])
        assert text.startswith(first)
        assert text.endswith(last)


def test_a_text_of_many_megabytes_is_cut_at_once():
    text, began = "ü" * (64 << 20), time.thread_time()
    assert len(shorten(text)) < 4096
    assert time.thread_time() - began < 1


def test_a_checkpoint_that_is_not_there_among_many_is_unknown(tmp_path):
    folder = tmp_path / "checkpoints" / "train" / "run"
    node = make_node(plan_sizes=ONE_SIZE)
    with local_client({"train": node}, state_dir=tmp_path) as client, client.session("run") as session:
        session.save_checkpoint("a")
        (made,) = folder.iterdir()
        for number in range(100):
            (folder / f"{'name' * 30}-{number}.{made.name.rpartition('.')[2]}").mkdir()
        with pytest.raises(UnknownCheckpoint) as caught:
            session.restore_checkpoint("b")
    assert len(str(caught.value)) < 2000


def test_arguments_and_states_of_any_names_give_short_errors(node):
    with (
        serve({"train": node}, shared_memory=False) as server,
        MixClient.connect(server.address) as client,
        client.session("long", fresh=True) as session,
    ):
        for state in ({"x" * 100_000: 1}, {"y" * 10: {"z" * 100_000: 1}}):
            with pytest.raises(errors.InvalidRequest) as caught:
                session.set_state(state)
            assert len(str(caught.value)) < 2000
        with pytest.raises(errors.InvalidRequest, match="is required") as caught:
            session._move("set_state", **{"a" * 100_000: 1})
        assert len(str(caught.value)) < 2000


# Overloaded


def ways(refusing: Refusing, address: str) -> list[MixClient]:
    refusing.refuse()  # nothing that earlier tests left
    connected = MixClient.connect(address, patience_s=DEADLINE_S)
    return [connected, MixClient([InProcessTransport(refusing)], patience_s=DEADLINE_S)]


def test_an_overloaded_server_is_asked_again_when_it_says(refusing, address):
    for client in ways(refusing, address):
        with client:
            client.mixture("train")
            refusing.refuse(Overloaded("busy", retry_after_s=0.3))
            assert client.mixtures() == ("train",)
            assert refusing.asked[1] - refusing.asked[0] >= 0.3
            refusing.refuse(Overloaded("busy", retry_after_s=0.3))
            assert client.get_batch_by_positions([1, 2], 0)["id"].shape == (2,)
            assert refusing.asked[1] - refusing.asked[0] >= 0.3


def test_an_overloaded_server_is_not_asked_faster_than_any_other(refusing, address):
    refusing.refuse(*[Overloaded("busy", retry_after_s=0) for _ in range(3)])
    with MixClient.connect(address) as client:
        assert client.mixtures() == ("train",)
    assert refusing.asked[-1] - refusing.asked[0] >= 0.05 + 0.1 + 0.2


def test_overloaded_stays_when_patience_or_time_runs_out(refusing, address):
    refusing.refuse(*[Overloaded("busy", retry_after_s=0.2)] * 50)
    with MixClient.connect(address, patience_s=0.5) as client:
        with pytest.raises(Overloaded, match=r"busy; patience_s = 0\.5 ran out") as caught:
            client.mixtures()
        assert caught.value.retry_after_s == 0.2
        assert 2 <= len(refusing.asked) <= 4
    refusing.refuse(Overloaded("busy", retry_after_s=60))
    with MixClient.connect(address) as client, pytest.raises(errors.DeadlineExceeded, match="busy"):
        client.mixtures(timeout_s=0.5)


def test_another_replica_is_asked_at_once(refusing, address):
    refusing.refuse(Overloaded("busy", retry_after_s=60))
    with MixClient.connect([address, address], patience_s=DEADLINE_S) as client:
        assert client.mixtures() == ("train",)
    assert refusing.asked[1] - refusing.asked[0] < 10


def test_a_server_that_cannot_write_is_not_asked_again(refusing, address):
    refusing.refuse(StorageFailed("full"), StorageFailed("full"))
    with MixClient.connect(address) as client, pytest.raises(StorageFailed, match="full"):
        client.mixtures()
    assert len(refusing.errors) == 1


@pytest.mark.parametrize("word", ["nan", "inf", "-1", "1e300", "soon", ""])
def test_a_time_that_cannot_be_waited_is_not_believed(word):
    metadata = [("mixserve-error", "Overloaded"), (RETRY_AFTER_METADATUM, word)]
    error = error_of("RESOURCE_EXHAUSTED", "busy", metadata)
    assert isinstance(error, Overloaded)
    assert error.retry_after_s == 1.0


def test_a_limit_that_is_not_of_our_server_is_not_waited_for():
    def refuse(request, context):
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "of a proxy")

    server = grpc.server(ThreadPoolExecutor(1))
    handlers = {"ListMixtures": grpc.unary_unary_rpc_method_handler(refuse)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(methods.SERVICE_NAME, handlers)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    began = time.monotonic()
    with MixClient.connect(f"127.0.0.1:{port}") as client, pytest.raises(Overloaded, match="of a proxy"):
        client.mixtures()
    assert time.monotonic() - began < 5
    server.stop(0)


def test_metadata_holds_what_was_said():
    for after_s in (0, 0.25, 3600):
        error = error_of("RESOURCE_EXHAUSTED", "busy", error_metadata(Overloaded("busy", after_s)))
        assert isinstance(error, Overloaded)
        assert error.retry_after_s == after_s


def test_a_session_beyond_the_last_is_opened_when_another_is_let_go():
    # Without a state folder, from which one could come back.
    services = Services({"train": make_node(plan_sizes=ONE_SIZE)}, limits=ServerLimits(sessions=1))
    server = MixServer(services, "127.0.0.1:0")
    server.start()
    refused = threading.Event()
    handle = services.handle

    def watched(method, request, *more):
        try:
            return handle(method, request, *more)
        except Overloaded:
            refused.set()
            raise

    services.handle = watched
    with MixClient.connect(server.address) as client, MixClient.connect(server.address, patience_s=0.1) as other:
        held = client.session("a")
        with pytest.raises(Overloaded, match="1 sessions"):
            other.session("b")
        refused.clear()
        opened: list[object] = []
        opening = threading.Thread(target=lambda: opened.append(client.session("b")), daemon=True)
        opening.start()
        assert refused.wait(DEADLINE_S)
        held.close()
        opening.join(DEADLINE_S)
        assert opened
    server.stop(grace_s=0)

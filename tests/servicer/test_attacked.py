"""Findings of an attack on the server: small requests that cost much, and names that no message can hold."""

import jax
import numpy as np
import pytest

from mixserve import ArraySource, MixDataSourcesConfig, MixDataSourcesNode, RandomAccessSource, local_client
from mixserve.servicer import Services
from mixserve_client import InvalidRequest, MixClient
from mixserve_client.schema.fields import Content
from mixserve_client.schema.keys import key_words
from mixserve_client.schema.requests import BatchRequest, StreamRequest
from mixserve_client.wire import methods
from mixserve_client.wire.request import encode_stream_request
from tests.processes import ONE_SIZE


def node(sources: int = 2, plan_sizes: tuple[int, ...] = ONE_SIZE, **options: object) -> MixDataSourcesNode:
    config = MixDataSourcesConfig(num_sources=sources, weights=(1.0,) * sources, plan_sizes=plan_sizes, **options)  # type: ignore[arg-type]
    return MixDataSourcesNode(config, [ArraySource({"x": np.arange(9) + i}, name=f"{i}") for i in range(sources)])


@pytest.fixture(scope="module")
def services() -> Services:
    return Services({"train": node()})


def test_so_many_entries_and_slots_are_taken(services):
    with pytest.raises(InvalidRequest, match="may have at most 65536 entries"):
        services.handle(methods.DEFINE_SCHEDULE, b"\x22\x00" * 100_000)
    first = BatchRequest("train", 0, 8, key_words(1))
    stream = encode_stream_request(StreamRequest(first, 8, 1, 8)) + b"\x78\x01" * 10_000
    with pytest.raises(InvalidRequest, match="may name at most"):
        list(services.stream(methods.STREAM_BATCHES, stream))


def test_a_batch_larger_than_what_is_planned_at_once_comes_in_parts(services):
    size = 400_000
    first = BatchRequest("train", 0, size, key_words(1), content=Content.PROVENANCE)
    replies = list(services.stream(methods.STREAM_BATCHES, encode_stream_request(StreamRequest(first, size, 1, size))))
    assert len(replies) >= 4
    with MixClient([_Transport(services)]) as client:
        plan = client.get_plan_at(0, size, 1)
        assert plan["source_id"].tolist() == node().mixture.planner.plan(key_words(1), 0, size).source_ids.tolist()


class _Transport:
    """Like InProcessTransport, but its services outlive it."""

    def __new__(cls, services):
        from mixserve_client.transport.in_process import InProcessTransport

        return InProcessTransport(services)


def test_one_call_plans_no_more_than_others_may_wait_for():
    # Planned in 512 positions, since 4096 of 3000 sources would take most of the test's time.
    many, blocks = node(3000, plan_sizes=(512,)), node(300, sampling="epoch", block_size=1)
    with local_client({"many": many, "few": node(2), "blocks": blocks}) as client:
        assert client.mixture("few").limits.size == 1 << 16
        assert client.mixture("many").limits.size == (1 << 20) // 3000
        assert client.mixture("blocks").limits.size == (1 << 20) // 301
        assert len(client.get_batch_at(0, 2000, 1, mixture="many")["x"]) == 2000  # as a stream


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ArraySource({"x": np.arange(3)}, name="\ud800"), "name of a source must be text"),
        (lambda: ArraySource({"\ud800": np.arange(3)}), "UTF-8|utf-8"),
    ],
)
def test_names_that_no_message_holds_are_refused_at_once(make, said):
    with pytest.raises(ValueError, match=said):
        MixDataSourcesNode(MixDataSourcesConfig(num_sources=1, weights=(1.0,)), [make()])


class Odd:
    """A source that declares impossible fields, or gives others."""

    def __init__(self, shape=(), digest=None, dtype=np.int32):
        self._shape, self._dtype = shape, dtype
        if digest is not None:
            self.content_digest = digest

    def __len__(self):
        return 3

    def element_spec(self):
        return {"x": jax.ShapeDtypeStruct((2,), np.int32)} if self._shape == () else {"x": _Spec(self._shape)}

    def take(self, record_ids):
        return {"x": np.zeros((len(record_ids), 2), self._dtype)}


class _Spec:
    def __init__(self, shape):
        self.shape, self.dtype = shape, np.dtype(np.int32)


def one(source: object) -> MixDataSourcesNode:
    return MixDataSourcesNode(MixDataSourcesConfig(num_sources=1, weights=(1.0,), plan_sizes=ONE_SIZE), [source])


def test_what_a_source_declares_wrongly_is_said_at_once(caplog):
    with pytest.raises(ValueError, match="cannot have the shape"):
        one(Odd(shape=(-1,)))
    with pytest.raises(TypeError, match="must return bytes"):
        _ = one(Odd(digest=lambda: "text")).mixture.fingerprint
    assert one(Odd(digest=b"as an attribute")).mixture.fingerprint
    made = one(Odd(dtype=np.float32))
    assert made.mixture.unknown_contents() == [True]
    assert "float32" in caplog.text


def test_a_checkpoint_beside_one_of_the_largest_number_is_found(tmp_path):
    with local_client({"train": one(RandomAccessSource([{"x": 1}] * 9))}, state_dir=tmp_path) as client:
        session = client.session("run")
        session.save_checkpoint("a")
        (folder,) = (tmp_path / "checkpoints" / "train" / "run").iterdir()
        folder.rename(folder.with_name("a." + "9" * 18))
        session.save_checkpoint("b")
        assert [one.name for one in session.list_checkpoints()] == ["b"]
        session.restore_checkpoint("b")
        session.close()


def test_lists_go_on_where_a_folder_of_sessions_is_a_file(tmp_path):
    with local_client({"train": node()}, state_dir=tmp_path) as client:
        (tmp_path / "sessions").mkdir(exist_ok=True)
        (tmp_path / "sessions" / "train").write_text("")
        assert client.sessions() == ()


def test_a_signal_is_heard_although_the_users_code_changed_how(tmp_path):
    from tests.processes import server_process

    (tmp_path / "spoils.py").write_text(
        "import atexit, signal, threading, time, numpy as np\n"
        "from mixserve import ArraySource\n"
        "def make():\n"
        "    signal.set_wakeup_fd(-1)\n"
        "    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "    threading.Thread(target=lambda: time.sleep(1000)).start()\n"
        "    atexit.register(lambda: time.sleep(1000))\n"
        "    return ArraySource({'x': np.arange(9)})\n"
    )
    config = tmp_path / "mixture.yaml"
    config.write_text(
        "mixtures: {m: {sources: {a: {kind: factory, function: 'spoils:make', weight: 1}}}}\nserver: {port: 0}\n"
    )
    with server_process(config) as server, MixClient.connect(server.address()) as client:
        assert len(client.get_batch_at(0, 4, 1)["x"]) == 4
        assert server.terminate() == 0
    assert "stopped" in server.log()

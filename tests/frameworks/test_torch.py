"""Remote batches as tensors and as a data set for PyTorch's own loaders."""

import gc
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from mixserve import local_client
from mixserve_client import FingerprintMismatch, InvalidRequest, MixClient, UnknownMixture
from mixserve_client.torch import RemoteIterableDataset, _tensors, to_tensors
from tests.frameworks.conftest import all_plain, plain
from tests.frameworks.serving import FOREIGN, TYPED, nodes
from tests.processes import DEADLINE_S

# JAX, which computes the expected values, warns at every fork, and PyTorch if there are more workers than CPUs. The
# processes of `run` avoid both, and ignore no warning.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*fork:RuntimeWarning", "ignore:.*fork:DeprecationWarning", "ignore:This DataLoader will create:UserWarning"
)

SIZE, KEY = 8, 7


def made(client, mixture="train", **options):
    return RemoteIterableDataset(client, **({"batch_size": SIZE, "key": KEY, "mixture": mixture} | options))


def loaded(dataset, workers=0, **options):
    return DataLoader(dataset, batch_size=None, num_workers=workers, **options)


def expected(client, mixture="train", **options):
    return all_plain(client.batches(SIZE, KEY, mixture=mixture, **options))


def run(code, *arguments):
    """What `code` prints in a fresh process in which warnings are errors; it must write nothing to stderr."""
    command = [sys.executable, "-W", "error", "-c", code, *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert (ended.returncode, ended.stderr) == (0, ""), ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def local():
    with local_client(nodes(), placement="host") as client:
        yield client


def test_every_dtype_has_the_bits_of_the_node(local, client):
    wanted = [local.get_batch_at(start, SIZE, KEY, mixture="typed") for start in range(0, 40, SIZE)]
    for source in (local, client):
        batches = list(made(source, "typed", stop=40))
        assert all_plain(batches) == all_plain(wanted)
        assert {name: batches[0][name].dtype for name in TYPED} == {name: getattr(torch, name) for name in TYPED}


def test_records_nest_as_they_do_on_the_server(client):
    dataset = made(client, "nested", stop=20, provenance=True)
    batch = next(iter(dataset))
    assert isinstance(batch["text"]["pair"], tuple)
    assert plain(batch) == plain(client.batches(SIZE, KEY, mixture="nested", provenance=True).__next__())
    # PyTorch's default conversion, for loaders without another `collate_fn`, makes lists of tuples.
    assert isinstance(next(iter(loaded(dataset)))["text"]["pair"], list)
    assert isinstance(next(iter(loaded(dataset, collate_fn=lambda batch: batch)))["text"]["pair"], tuple)


def test_a_dtype_that_torch_lacks_is_refused_before_a_batch_is_taken(client):
    batches = iter(made(client, "foreign"))
    for _ in range(2):
        with pytest.raises(
            InvalidRequest, match=rf"the field 'odd' is of {FOREIGN[0]}, which PyTorch .* lacks; it has"
        ):
            next(batches)
    assert batches.state_dict()["position"] == 0
    with pytest.raises(InvalidRequest, match="'odd'"):
        to_tensors(client.get_batch_at(0, 2, KEY, mixture="foreign"))


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
@pytest.mark.parametrize(
    "options",
    [
        {"stop": 5 * SIZE},  # in a group of two, and of three
        {"stop": 7 * SIZE + 3},  # in a batch
        {"start": 5, "stop": 90, "skip": [(9, 14), (40, 41)], "provenance": True},
        {"stop": 90, "schedule": [(20, (0.0, 1.0))], "prefetch": 0},
        {"mixture": "ends", "start": 100},
    ],
)
def test_any_number_of_workers_gives_one_stream(connected, workers, options):
    wanted = expected(connected, **options)
    loader = loaded(made(connected, **options), workers)
    assert len(loader) == len(wanted) > 4
    assert all_plain(loader) == wanted
    assert all_plain(loader) == wanted  # every iteration begins at the start


def test_an_iterator_without_prefetch_keeps_its_channel(client):
    list(client.batches(SIZE, KEY, mixture="train", stop=SIZE))  # the first stream finds out which way there is
    before = client.stats()["mixserve_client_connections_total"].value(transport="bulk")
    reading = iter(made(client, prefetch=0))
    for _ in range(20):
        next(reading)
    # As tests/client/test_channels.py says.
    assert client.stats()["mixserve_client_connections_total"].value(transport="bulk") - before <= 2


def test_what_has_no_end_has_no_length(connected):
    assert next(iter(loaded(made(connected)))) is not None
    for options in ({}, {"mixture": "typed", "shard": (1, 2)}):
        for endless in (made(connected, **options), iter(made(connected, **options))):
            with pytest.raises(TypeError, match=r"no end, .*; pass stop= to RemoteIterableDataset\("):
                len(endless)
    assert len(made(connected, start=20, stop=20)) == 0
    assert len(made(connected, stop=3, shard=(7, 8))) == 1


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_of_any_kind_reach_the_server(client, method):
    client.get_batch_at(0, 2, KEY, mixture="wide")  # so that the parent has connections of its own
    before = iter(made(client, "wide", stop=10 * SIZE))
    first = next(before)
    wanted = expected(client, "wide", stop=10 * SIZE)
    loader = loaded(made(client, "wide", stop=10 * SIZE), 2, multiprocessing_context=method, persistent_workers=True)
    assert all_plain(loader) == wanted
    assert all_plain(loader) == wanted
    assert all_plain([first, *before]) == wanted


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_client_of_this_process_says_what_to_do_instead_of_workers(local, method):
    assert len(list(loaded(made(local, stop=20)))) == 3
    with pytest.raises(InvalidRequest, match=r"num_workers=0, or serve\(\.\.\.\) and MixClient\.connect"):
        next(iter(loaded(made(local), 1, multiprocessing_context=method, timeout=DEADLINE_S)))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_keeps_its_type_on_its_way_from_a_worker(connected, workers):
    with pytest.raises(UnknownMixture, match=r"must be one of .*train"):
        next(iter(loaded(made(connected, "nothing"), workers)))
    gc.collect()  # ends the workers: the error holds the loader's iterator


@pytest.mark.parametrize("workers", [0, 2])
def test_the_shards_of_a_batch_make_it_up(connected, workers):
    stop = 4 * SIZE + 2  # one rank has no row of the last batch
    shards = [list(loaded(made(connected, shard=(rank, 3), stop=stop), workers)) for rank in range(3)]
    assert [len(batch["id"]) for batch in shards[0]] == [2, 2, 2, 2, 0]
    whole = [{"id": torch.cat([part["id"] for part in parts])} for parts in zip(*shards, strict=True)]
    assert all_plain(whole) == expected(connected, stop=stop)


RANK = """
import os, sys
import torch.distributed as distributed
from torch.utils.data import DataLoader
from mixserve_client import MixClient
from mixserve_client.torch import RemoteIterableDataset

if __name__ == "__main__":
    client = MixClient.connect(sys.argv[1], patience_s=20)
    dataset = RemoteIterableDataset(client, batch_size=8, key=7, mixture="train", stop=43)
    distributed.init_process_group(
        "gloo", init_method=f"file://{sys.argv[2]}", rank=int(sys.argv[3]), world_size=2
    )
    for workers, method in ((0, None), (2, "fork"), (2, "spawn")):
        loader = DataLoader(dataset, batch_size=None, num_workers=workers, multiprocessing_context=method)
        print([batch["id"].tolist() for batch in loader])
    distributed.destroy_process_group()
"""


def test_the_ranks_of_a_group_take_their_own_rows(address, connected, tmp_path):
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    commands = [[sys.executable, str(script), address, str(tmp_path / "store"), str(rank)] for rank in range(2)]
    ranks = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    try:
        said = [rank.communicate(timeout=DEADLINE_S)[0].splitlines() for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    for number in range(2):
        shard = connected.batches(SIZE, KEY, mixture="train", shard=(number, 2), stop=43)
        assert said[number] == 3 * [str([batch["id"].tolist() for batch in shard])]
        assert shard.get_state()["position"] == 43


def test_states_are_those_of_any_batch_iterator(connected):
    dataset = made(connected, stop=20 * SIZE, skip=[(50, 53)])
    batches = iter(dataset)
    first = [next(batches) for _ in range(3)]
    state = pickle.loads(pickle.dumps(dataset.state_dict()))
    assert state == batches.state_dict()
    assert set(state) == {"version", "mixture", "fingerprint", "key", "position", "sources", "skip"}
    later = all_plain(batches)
    assert all_plain([*first, *made(connected, stop=20 * SIZE, skip=[(50, 53)])][:3]) == all_plain(first)
    of_numpy = connected.batches(SIZE, 1, mixture="train", stop=20 * SIZE)
    of_numpy.set_state(state)
    assert all_plain(of_numpy) == later
    of_numpy.set_state(state)
    next(of_numpy)
    other = made(connected, stop=20 * SIZE, key=3)
    other.load_state_dict(of_numpy.get_state())
    assert other.state_dict() == of_numpy.get_state()
    assert all_plain(other) == later[1:]
    assert len(list(other)) == len(later) + 3  # from the start again
    # Workers, too, start where another number of readers stopped.
    other.load_state_dict(state)
    assert all_plain(loaded(other, 2)) == later


def test_what_was_not_read_here_has_no_state(connected):
    dataset = made(connected, stop=20)
    list(loaded(dataset, 2))
    with pytest.raises(InvalidRequest, match="StatefulDataLoader"):
        dataset.state_dict()


def test_a_state_of_another_mixture_is_refused_and_stays_loaded(connected):
    batches = connected.batches(SIZE, KEY, mixture="other")
    next(batches)
    dataset = made(connected)
    dataset.load_state_dict(batches.get_state())
    for _ in range(2):
        with pytest.raises(FingerprintMismatch, match="strict=False"):
            iter(dataset)
    lenient = made(connected, strict=False, stop=3 * SIZE)
    lenient.load_state_dict(batches.get_state())
    assert all_plain(lenient) == expected(connected, start=SIZE, stop=3 * SIZE)
    dataset.load_state_dict({"position": 3})
    with pytest.raises(InvalidRequest, match="a state must be"):
        iter(dataset)


@pytest.mark.parametrize(
    "wrong",
    [{"batch_size": 0}, {"batch_size": True}, {"key": -1}, {"shard": (2, 2)}, {"stop": -1}, {"prefetch": -1}],
)
def test_what_cannot_be_is_refused_at_once(connected, wrong):
    with pytest.raises(InvalidRequest, match=next(iter(wrong)).replace("batch_size", "size")):
        made(connected, **wrong)


def test_options_that_are_not_the_callers_are_refused_at_once(connected):
    with pytest.raises(
        TypeError, match=r"RemoteIterableDataset\(\.\.\.\) takes no worker=: the loader's workers decide"
    ):
        made(connected, worker=(0, 2))
    with pytest.raises(
        TypeError,
        match=r"RemoteIterableDataset\(\.\.\.\) has no option nonsense; it has batch_size, key, shard, mixture,",
    ):
        made(connected, nonsense=1)


def test_a_schedule_that_a_state_overrides_is_named(connected, caplog):
    batches = connected.batches(SIZE, KEY, mixture="train")
    next(batches)
    dataset = made(connected, schedule=[(0, (0.0, 1.0))], stop=3 * SIZE)
    dataset.load_state_dict(batches.get_state())
    assert all_plain(loaded(dataset)) == expected(connected, start=SIZE, stop=3 * SIZE)
    assert [message[:48] for message in caplog.messages] == ["schedule= of this iterator is not used: a state "]


GROUPLESS = """
import os, sys
from torch.utils.data import DataLoader
from mixserve_client import MixClient
from mixserve_client.torch import RemoteIterableDataset

if __name__ == "__main__":
    client = MixClient.connect(sys.argv[1], patience_s=20)
    options = {"batch_size": 8, "key": 7, "mixture": "train", "stop": 32}
    for shard, workers, method in ((None, 0, None), ((0, 1), 0, None), (None, 2, "spawn"), (None, 2, "fork")):
        dataset = RemoteIterableDataset(client, shard=shard, **options)
        for _ in range(2):
            list(DataLoader(dataset, batch_size=None, num_workers=workers, multiprocessing_context=method))
"""


@pytest.mark.parametrize(("world_size", "warnings"), [("2", 3), ("1", 0), ("many", 0)])
def test_ranks_without_a_group_are_warned(address, tmp_path, world_size, warnings):
    """Once per process: here, and in the first worker of each of two passes that spawn workers."""
    script = tmp_path / "rank.py"
    script.write_text(GROUPLESS)
    environment = os.environ | {"WORLD_SIZE": world_size}
    ended = subprocess.run(
        [sys.executable, str(script), address],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=True,
        env=environment,
    )
    said = "WORLD_SIZE is 2, but torch.distributed is not initialised, so that every rank reads the same whole batches"
    assert ended.stderr.count(said) == len(ended.stderr.splitlines()) == warnings, ended.stderr


@pytest.mark.parametrize("mixture", ["train", "wide"])
def test_writes_into_tensors_reach_nothing_else(local, client, mixture):
    for source in (local, client):
        wanted = expected(source, mixture, stop=40 * SIZE)
        beside = source.batches(SIZE, KEY, mixture=mixture, stop=40 * SIZE)
        held = []
        for number, batch in enumerate(made(source, mixture, stop=40 * SIZE)):
            assert plain(batch) == wanted[number]
            for tensor in batch.values():
                tensor.fill_(number)
            held.append(batch)
            assert plain(next(beside)) == wanted[number]
        for number, batch in enumerate(held):
            assert all(bool((tensor == number).all()) for tensor in batch.values())
        assert expected(source, mixture, stop=40 * SIZE) == wanted


def test_tensors_are_the_memory_that_came(client):
    for batch in client.batches(SIZE, KEY, mixture="wide", stop=20 * SIZE):
        tensors = _tensors(batch, own=True)
        assert tensors["tokens"].data_ptr() == batch["tokens"].ctypes.data


def test_through_shared_memory_a_batch_is_not_copied(connected):
    batches = list(made(connected, "wide", stop=20 * SIZE))
    slots = re.findall(r"^([0-9a-f]+)-([0-9a-f]+) .*mixserve-slot", Path("/proc/self/maps").read_text(), re.MULTILINE)
    ranges = [range(int(first, 16), int(last, 16)) for first, last in slots]
    inside = sum(any(batch["tokens"].data_ptr() in one for one in ranges) for batch in batches)
    assert inside > len(batches) // 2  # the first ones may come before there is shared memory


def test_tensors_stay_when_all_else_is_gone(address):
    with MixClient.connect(address, patience_s=20) as client:
        wanted = expected(client, "wide", stop=60 * SIZE)
        tensors = [batch["tokens"][:, ::2] for batch in made(client, "wide", stop=60 * SIZE)]
    del client
    gc.collect()
    with MixClient.connect(address, patience_s=20) as client:
        list(made(client, "wide", stop=60 * SIZE, key=1))  # would overwrite memory that was released too early
    for tensor, (_, shape, data) in zip(tensors, (batch["tokens"] for batch in wanted), strict=True):
        np.testing.assert_array_equal(tensor.numpy(), np.frombuffer(data, np.int32).reshape(shape)[:, ::2])


QUIET = """
import sys
from torch.utils.data import DataLoader
from mixserve_client import MixClient
from mixserve_client.torch import RemoteIterableDataset

route = sys.argv[2]
client = MixClient.connect(sys.argv[1], patience_s=20, shared_memory=route == "shared memory", bulk=route == "bulk")
for mixture in ("typed", "wide"):
    for workers in (0, 2):
        dataset = RemoteIterableDataset(client, batch_size=8, key=7, mixture=mixture, stop=80)
        for batch in DataLoader(dataset, batch_size=None, num_workers=workers):
            for tensor in batch.values():
                tensor.zero_()
print(len(batch), "jax" in sys.modules, client.transport.partition(",")[0])
"""


@pytest.mark.parametrize("route", ["grpc", "bulk", "shared memory"])
def test_nothing_warns(address, route):
    assert re.fullmatch(rf"1 False {route}.*\n", run(QUIET, address, route))


def test_the_client_alone_loads_no_torch():
    assert run("import sys, mixserve_client; print('torch' in sys.modules)") == "False\n"


def test_what_to_tensors_shares_and_what_it_copies():
    writable = np.arange(12, dtype=np.int32).reshape(3, 4)
    read_only = writable.copy()
    read_only.flags.writeable = False
    record = {"a": writable, "b": (read_only, writable[::-1], writable.T), "c": [1, 2.5, np.float32(3)]}
    tensors = to_tensors(record)
    tensors["a"][0, 0] = 100
    for tensor in tensors["b"]:
        tensor.fill_(7)
    assert writable[0, 0] == 100
    assert writable[1:].tolist() == [[4, 5, 6, 7], [8, 9, 10, 11]]
    assert read_only[0].tolist() == [0, 1, 2, 3]
    assert [tensor.dtype for tensor in tensors["c"]] == [torch.int64, torch.float64, torch.float32]
    assert plain(to_tensors(np.zeros((0, 3), np.uint16))) == ("uint16", (0, 3), b"")


@pytest.mark.parametrize("wrong", [np.array("text"), np.array([1], ">i4"), np.array([None])])
def test_to_tensors_refuses_what_torch_lacks(wrong):
    with pytest.raises(InvalidRequest, match="the field 'odd' is of"):
        to_tensors({"odd": wrong})

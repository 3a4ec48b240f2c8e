"""The data set in torchdata's StatefulDataLoader: stopped and resumed anywhere, in this process and in others."""

import json
import pickle
import subprocess
import sys

import pytest
import torch
from torchdata.nodes import IterableWrapper, Loader
from torchdata.stateful_dataloader import StatefulDataLoader

from mixserve_client import FingerprintMismatch, InvalidRequest
from mixserve_client.torch import RemoteIterableDataset
from tests.frameworks.conftest import all_plain, plain
from tests.processes import DEADLINE_S

OF_TORCHDATA = "ignore:'set_vital' is deprecated, please do not call:UserWarning"  # torchdata calls it itself
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*fork:RuntimeWarning",
    "ignore:.*fork:DeprecationWarning",
    "ignore:This DataLoader will create:UserWarning",
    OF_TORCHDATA,
)

SIZE, KEY = 8, 7
STOP = 10 * SIZE + 3  # eleven batches: the workers have unequal numbers of them, and the last batch is short
PLACES = [0, 1, 2, 3, 5, 10, 11]


def loader(client, workers, options=None, **more):
    given = {"batch_size": SIZE, "key": KEY, "mixture": "train", "stop": STOP, "provenance": True} | (options or {})
    return StatefulDataLoader(RemoteIterableDataset(client, **given), batch_size=None, num_workers=workers, **more)


@pytest.fixture
def wanted(connected):
    return all_plain(connected.batches(SIZE, KEY, mixture="train", stop=STOP, provenance=True))


def taken(batches, count):
    return all_plain(next(batches) for _ in range(count))


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
@pytest.mark.parametrize("place", PLACES)
def test_a_loader_goes_on_where_another_one_stopped(connected, wanted, workers, place):
    first = loader(connected, workers)
    batches = iter(first)
    assert taken(batches, place) == wanted[:place]
    state = pickle.loads(pickle.dumps(first.state_dict()))
    assert all_plain(batches) == wanted[place:]
    second = loader(connected, workers)
    second.load_state_dict(state)
    again = iter(second)
    assert taken(again, min(1, len(wanted) - place)) == wanted[place : place + 1]
    assert second.state_dict() != state or place == len(wanted)
    assert all_plain(again) == wanted[place + 1 :]
    assert all_plain(second) == wanted  # the next epoch


@pytest.mark.parametrize("workers", [0, 2])
def test_a_state_of_the_end_begins_the_next_epoch(connected, wanted, workers):
    first = loader(connected, workers)
    assert all_plain(first) == wanted
    second = loader(connected, workers)
    second.load_state_dict(first.state_dict())
    assert all_plain(second) == wanted


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_is_resumed_again_and_again(connected, wanted, workers):
    state, read = {}, []
    while len(read) < len(wanted):
        one = loader(connected, workers, snapshot_every_n_steps=2)
        one.load_state_dict(state)
        batches = iter(one)
        read += taken(batches, min(3, len(wanted) - len(read)))
        state = one.state_dict()
    assert read == wanted


def test_workers_that_stay_begin_anew_and_go_on(connected, wanted):
    first = loader(connected, 2, persistent_workers=True)
    assert all_plain(first) == wanted
    batches = iter(first)
    assert taken(batches, 5) == wanted[:5]
    second = loader(connected, 2, persistent_workers=True)
    second.load_state_dict(first.state_dict())
    assert all_plain(second) == wanted[5:]
    assert all_plain(second) == wanted


FRESH = """
import pickle, sys
from pathlib import Path
from torchdata.stateful_dataloader import StatefulDataLoader
from mixserve_client import MixClient
from mixserve_client.torch import RemoteIterableDataset

if __name__ == "__main__":
    client = MixClient.connect(sys.argv[1], patience_s=20)
    dataset = RemoteIterableDataset(client, batch_size=8, key=1, mixture="train", stop=83, skip=[(80, 81)])
    method = sys.argv[4] if sys.argv[3] != "0" else None
    loader = StatefulDataLoader(
        dataset, batch_size=None, num_workers=int(sys.argv[3]), multiprocessing_context=method
    )
    loader.load_state_dict(pickle.loads(Path(sys.argv[2]).read_bytes()))
    print([batch["id"].tolist() for batch in loader])
"""


@pytest.mark.parametrize(("workers", "method"), [(0, "none"), (2, "fork"), (2, "spawn")])
def test_a_fresh_process_goes_on_from_a_file(address, connected, tmp_path, workers, method):
    options = {"stop": STOP, "provenance": False, "skip": [(30, 37)]}
    first = loader(connected, workers, options)
    batches = iter(first)
    taken(batches, 3)
    (tmp_path / "state").write_bytes(pickle.dumps(first.state_dict()))
    later = connected.batches(
        SIZE, KEY, mixture="train", start=3 * SIZE, stop=83, skip=[(30, 37), (80, 81)], provenance=False
    )
    script = tmp_path / "fresh.py"
    script.write_text(FRESH)
    command = [sys.executable, "-W", "error", "-W", OF_TORCHDATA, str(script), address]
    command += [str(tmp_path / "state"), str(workers), method]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert (ended.returncode, ended.stderr) == (0, ""), ended.stderr
    assert ended.stdout == f"{[batch['id'].tolist() for batch in later]}\n"


def test_without_workers_the_state_holds_that_of_a_batch_iterator(connected, wanted):
    first = loader(connected, 0)
    taken(iter(first), 4)
    state = first.state_dict()["dataset_state"]
    assert json.loads(json.dumps(state)) == state
    batches = connected.batches(SIZE, 1, mixture="train", stop=STOP, provenance=True)
    batches.set_state(state)
    assert state == batches.get_state()
    assert all_plain(batches) == wanted[4:]


def test_the_states_of_workers_are_their_own(connected):
    first = loader(connected, 2)
    taken(iter(first), 3)
    state = first.state_dict()
    workers = state["_snapshot"]["_worker_snapshots"]
    states = [workers[f"worker_{number}"]["dataset_state"] for number in range(2)]
    assert [state["worker"] for state in states] == [[0, 2], [1, 2]]
    dataset = RemoteIterableDataset(connected, batch_size=SIZE, key=KEY, mixture="train")
    dataset.load_state_dict(states[1])
    with pytest.raises(InvalidRequest, match="keep their number"):
        iter(dataset)
    workers["worker_0"], workers["worker_1"] = workers["worker_1"], workers["worker_0"]
    mixed_up = loader(connected, 2)
    mixed_up.load_state_dict(state)
    with pytest.raises(InvalidRequest, match="give every worker its own state"):
        iter(mixed_up)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loaders_state_of_another_mixture_is_refused_unless_it_may_differ(connected, workers):
    other = loader(connected, workers, {"mixture": "other"})
    taken(iter(other), 3)
    state = other.state_dict()
    strict = loader(connected, workers)
    strict.load_state_dict(state)
    with pytest.raises(FingerprintMismatch, match="strict=False"):
        next(iter(strict))
    lenient = loader(connected, workers, {"strict": False})
    lenient.load_state_dict(state)
    later = connected.batches(SIZE, KEY, mixture="train", start=3 * SIZE, stop=STOP, provenance=True)
    assert all_plain(lenient) == all_plain(later)


def test_the_nodes_of_torchdata_resume_it_too(connected, wanted):
    def chain():
        dataset = RemoteIterableDataset(
            connected, batch_size=SIZE, key=KEY, mixture="train", stop=STOP, provenance=True
        )
        return Loader(IterableWrapper(dataset))

    first = chain()
    assert taken(iter(first), 4) == wanted[:4]
    second = chain()
    second.load_state_dict(first.state_dict())
    assert all_plain(second) == wanted[4:]


def test_a_state_is_saved_beside_a_model(connected, wanted, tmp_path):
    first, model = loader(connected, 2), torch.nn.Linear(2, 2)
    taken(iter(first), 3)
    torch.save({"model": model.state_dict(), "data": first.state_dict()}, tmp_path / "checkpoint.pt")
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    second = loader(connected, 2)
    second.load_state_dict(saved["data"])
    assert plain(next(iter(second))) == wanted[3]

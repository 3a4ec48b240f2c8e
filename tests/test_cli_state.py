"""A server's state folder, and what `mixserve state` shows and does with its sessions and checkpoints."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from mixserve.build import build_nodes
from mixserve.cli.main import app
from mixserve.config import ConfigError, ServerConfig, load_config
from mixserve.sessions import TTL_S
from mixserve_client import MixClient, SessionTaken
from tests.processes import DEADLINE_S, ServerProcess, server_process, write_mixture


def invoke(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def run(*arguments: object) -> tuple[int, str]:
    result = invoke(*arguments)
    return result.exit_code, result.output


def shown(*arguments: object) -> str:
    result = invoke("state", *arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments: object) -> str:
    code, output = run("state", *arguments)
    assert code == 2, output
    assert "mixserve: " in output
    return output


def as_json(*arguments: object) -> Any:
    return json.loads(shown(*arguments, "--json"), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))


def listed(address: str) -> dict[str, Any]:
    return {session["name"]: session for session in as_json("list", address)}


def write_config(folder: Path, server: str) -> Path:
    config = write_mixture(folder)
    config.write_text(config.read_text().replace("server: {port: 0}", f"server: {server}"))
    return config


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def process(place: Path) -> Iterator[ServerProcess]:
    with server_process(write_config(place, "{port: 0, state_dir: kept/}")) as server:
        server.address()
        yield server


@pytest.fixture(scope="module")
def address(process: ServerProcess) -> str:
    return process.address()


@pytest.fixture
def client(address: str) -> Iterator[MixClient]:
    with MixClient.connect(address, patience_s=20) as made:
        yield made


def test_a_session_is_shown_saved_and_its_checkpoints_deleted_while_a_trainer_holds_it(client, address):
    with client.session("held") as session:
        iter(session)
        session.next_batch(100)
        session.process(0, 8, 3)
        assert re.search(r"│ train +│ held +│ process \d+", shown("list", address))
        assert "no checkpoints" in shown("show", address, "held")
        said = shown("save", address, "held", "step-100")
        assert re.match(r"saved the checkpoint 'step-100' of the session 'held' .*: epoch 1, index 100, .* UTC\n", said)
        session.next_batch(50)
        shown("save", address, "held", "step-150")
        entry = listed(address)["held"]
        assert re.fullmatch(r"process \d+ on .+", entry["holder"])
        assert (entry["mixture"], entry["epoch"], entry["index"]) == ("train", 1, 150)
        assert entry["checkpoints"] == ["step-100", "step-150"]
        assert entry["idle_s"] < DEADLINE_S

        output = shown("show", address, "held")
        assert re.search(r"process \d+ on .+, silent for \d+ s\n  epoch 1, index 150\n  applied_count 1, skip", output)
        assert re.search(r"│ step-100 +│ \d{4}-\d\d-\d\d \d\d:\d\d:\d\d │ +1 │ +100 │ +[\d.]+ (bytes|kB) │ \d", output)

        deleted = shown("delete", address, "held", "step-100")
        assert deleted.startswith("deleted the checkpoint 'step-100' of the session 'held' ")
        shown("save", address, "held", "a", "--keep-last", 2)
        shown("save", address, "held", "b", "--keep-last", 2)
        checkpoints = as_json("show", address, "held")["checkpoints"]
        assert [(saved["name"], saved["index"]) for saved in checkpoints] == [("a", 150), ("b", 150)]
        session.next_batch(50)
    assert listed(address)["held"] | {"idle_s": 0} == entry | {
        "idle_s": 0,
        "holder": "",
        "index": 200,
        "checkpoints": ["a", "b"],
    }
    assert re.search(r"│ held +│ free ", shown("list", address))


def test_statistics_are_abbreviated_for_people_and_whole_for_scripts(client, address):
    with client.session("measured", fresh=True) as session:
        session.set_statistics(
            {
                "long": np.arange(100_000, dtype=np.int32),
                "half": np.array([1.5, np.inf], ml_dtypes.bfloat16),
                "by source": {0: {"mean": 0.5}, 1: {"mean": float("nan")}},
                "counts": [1, (2, None)],
            }
        )
    output = shown("show", address, "measured")
    assert "long: int32[100000] [    0     1     2 ... 99997 99998 99999]" in output
    assert "half: bfloat16[2] [1.5 inf]" in output
    assert "by source.1.mean: nan" in output
    statistics = as_json("show", address, "measured")["statistics"]
    assert statistics.pop("long") == list(range(100_000))
    assert statistics == {
        "half": [1.5, "inf"],
        "by source": {"0": {"mean": 0.5}, "1": {"mean": "nan"}},
        "counts": [1, [2, None]],
    }


def test_a_session_goes_on_where_a_checkpoint_was_saved(client, address, place):
    session = client.session("run")
    iter(session)
    session.next_batch(64)
    shown("save", address, "run", "good")
    expected = session.next_batch(32)["tokens"]

    assert "On the command line: --take-over" in refused("restore", address, "run", "good")
    session.next_batch(32)
    output = shown("restore", address, "run", "good", "--take-over")
    assert "the session 'run' of the mixture 'train' stands at epoch 1, index 64\n" in output
    with pytest.raises(SessionTaken):
        session.next_batch(32)
    with client.session("run") as taken:
        assert taken.resumed
        np.testing.assert_array_equal(taken.next_batch(32)["tokens"], expected)
    output = shown("restore", address, "another", "good", "--from", "run")
    assert "the session 'another' of the mixture 'train', which is new, stands at epoch 1, index 64\n" in output
    with client.session("another") as other:
        np.testing.assert_array_equal(other.next_batch(32)["tokens"], expected)

    node = build_nodes(load_config(place / "mixture.yaml"), place / "mixture.yaml")["train"]
    iter(node)
    node.next_batch(64)
    np.testing.assert_array_equal(node.next_batch(32)["tokens"], expected)


def test_what_is_not_there_is_refused_with_what_there_is_and_begins_nothing(client, address):
    client.session("known").close()
    shown("save", address, "known", "there")
    for command in ("show", "delete", "save"):
        name = () if command == "show" else ("there",)
        assert re.search(r"no session 'unknown'; it has .*'known'", refused(command, address, "unknown", *name))
        assert "name of a session must be 1 to 128" in refused(command, address, "../known", *name)
    assert re.search(r"no session 'new'; it has .*'known'", refused("restore", address, "new", "there"))
    for arguments in (("delete", address, "known"), ("restore", address, "new", "--from", "known")):
        assert "no checkpoint 'gone'; it has 'there'" in refused(*arguments, "gone")
    for name in ("../there", "a/b", ".", "", "x" * 129, "é"):
        assert "name of a checkpoint must be 1 to 128" in refused("save", address, "known", name)
        assert "name of a checkpoint must be 1 to 128" in refused("delete", address, "known", name)
        assert "name of a checkpoint must be 1 to 128" in refused("restore", address, "new", name, "--from", "known")
    assert "name of a session must be 1 to 128" in refused("restore", address, "../new", "there", "--from", "known")
    assert "name of a session must be 1 to 128" in refused("restore", address, "new", "there", "--from", "../known")
    assert "must be one of 'train', got 'x'" in refused("list", address, "--mixture", "x")
    assert "must be one of 'train', got 'x'" in refused("show", address, "known", "--mixture", "x")
    assert run("state", "save", address, "known", "there", "--keep-last", 0)[0] == 2
    assert "new" not in listed(address)
    assert listed(address)["known"]["checkpoints"] == ["there"]
    assert "mixserve: " in refused("list", "127.0.0.1:1", "--timeout-s", 0.2)


def test_damaged_files_are_shown_as_such_and_a_damaged_session_can_be_restored(client, address, place):
    client.session("hurt").close()
    for name in ("first", "second", "third"):
        shown("save", address, "hurt", name)
    checkpoints = place / "kept" / "checkpoints" / "train" / "hurt"
    (checkpoints / "second.0000000002" / "manifest.json").write_text("{}")
    (checkpoints / "third.0000000003" / "orbax" / "_CHECKPOINT_METADATA").write_text("{}")
    output = shown("show", address, "hurt")
    assert re.search(r"│ second +│ damaged ", output)
    assert re.search(r"  second: the checkpoint's file \S*/manifest.json is damaged", output)
    assert "manifest.json is damaged" in refused("restore", address, "healed", "second", "--from", "hurt")
    assert "healed" not in listed(address)
    output = refused("restore", address, "healed", "third", "--from", "hurt")
    assert "_CHECKPOINT_METADATA is damaged" in output
    assert "the session 'healed' is new, and stays at its beginning" in output
    assert "which was damaged" in shown("delete", address, "hurt", "second")

    # A new server reads the journal from the disk; the old one would have the session in memory for a while.
    shutil.copytree(checkpoints, checkpoints.with_name("broken"))
    journals = place / "kept" / "sessions" / "train"
    data = bytearray((journals / "healed").read_bytes())
    data[-1] ^= 1
    (journals / "broken").write_bytes(data)
    assert re.search(r"│ train +│ broken +│ damaged ", shown("list", address))
    assert "broken is damaged" in listed(address)["broken"]["damaged"]
    output = shown("show", address, "broken")
    assert re.search(r"the journal \S*/broken is damaged", output)
    assert "first" in output
    assert "On the command line: --fresh" in refused("restore", address, "broken", "first")
    output = shown("restore", address, "broken", "first", "--fresh")
    assert "the session 'broken' of the mixture 'train', which was started over, stands at epoch 0, index 0\n" in output
    assert listed(address)["broken"]["damaged"] == ""


def test_a_checkpoint_moves_to_another_machine_as_a_copy_of_its_folder(client, address, place, tmp_path):
    with client.session("moving") as session:
        iter(session)
        session.next_batch(48)
        shown("save", address, "moving", "step-48")
        expected = session.next_batch(16)["tokens"]
    config = write_config(tmp_path, "{port: 0, session_ttl_s: 77}")
    train, other = config.read_text().split("server:")[0], config.read_text()
    other = other.replace("mixtures:\n", "").replace("train:", "other:").replace("0.7", "0.5")
    config.write_text(train + other)
    checkpoints = place / "kept" / "checkpoints" / "train" / "moving"
    with server_process(config, "--state-dir", str(tmp_path / "elsewhere" / "kept")) as server:
        there = server.address()
        assert shown("list", there) == f"{there} knows no session\n"
        assert "of the mixture 'other'\n" in shown("list", there, "--mixture", "other")
        assert as_json("list", there) == []
        for mixture in ("train", "other"):
            shutil.copytree(checkpoints, tmp_path / "elsewhere" / "kept" / "checkpoints" / mixture / "moving")
        assert re.search(r"│ train +│ moving +│ saved only +│ +│ +│ +│ step-48 ", shown("list", there))
        assert "only checkpoints are left" in shown("show", there, "moving", "--mixture", "train")
        assert as_json("show", there, "moving", "--mixture", "train")["operation_stats"] is None

        assert "must be one of 'other', 'train'" in refused("restore", there, "moving", "step-48")
        shown("restore", there, "moving", "step-48", "--mixture", "train")
        with MixClient.connect(there) as first, first.session("moving", mixture="train") as session:
            np.testing.assert_array_equal(session.next_batch(16)["tokens"], expected)
            with MixClient.connect(there) as second, pytest.raises(SessionTaken, match="silent for 77 s"):
                second.session("moving", mixture="train")

        to_other = ("restore", there, "moving", "step-48", "--mixture", "other")
        assert "With --ignore-fingerprint the session resumes" in refused(*to_other)
        assert [session["index"] for session in as_json("list", there, "--mixture", "other")] == [0]
        assert "which is new, stands at epoch 1, index 48\n" in shown(*to_other, "--ignore-fingerprint")


def test_a_server_that_is_killed_and_started_again_goes_on_with_a_live_session(tmp_path):
    config = write_config(tmp_path, "{port: 0, state_dir: kept}")
    node = build_nodes(load_config(config), config)["train"]
    iter(node)
    with server_process(config, "--session-ttl-s", "123") as first:
        address = first.address()
        first.wait_for_log(rf"sessions are kept in {tmp_path}/kept\n")
        with MixClient.connect(address, patience_s=DEADLINE_S) as client, client.session("live") as session:
            iter(session)
            np.testing.assert_array_equal(session.next_batch(40)["tokens"], node.next_batch(40)["tokens"])
            first.kill()
            with server_process(config, "--port", address.rpartition(":")[2], "--session-ttl-s", "123") as again:
                again.address()
                assert re.match(r"process \d+ on ", listed(address)["live"]["holder"])
                assert listed(address)["live"]["index"] == 40
                assert "silent for 123 s" in refused_after_saving(address)
                np.testing.assert_array_equal(session.next_batch(24)["tokens"], node.next_batch(24)["tokens"])
                session.close()
                assert again.terminate() == 0


def refused_after_saving(address: str) -> str:
    shown("save", address, "live", "x")
    return refused("restore", address, "live", "x")


def test_a_server_without_a_state_folder_has_sessions_and_no_checkpoints(server):
    with MixClient.connect(server.address, patience_s=20) as client, client.session("in-memory"):
        assert "no checkpoints" in shown("show", server.address, "in-memory")
        assert listed(server.address)["in-memory"]["checkpoints"] == []
        for command in ("save", "restore", "delete"):
            assert "--state-dir FOLDER" in refused(command, server.address, "in-memory", "x")


def test_a_state_folder_that_cannot_be_had_ends_a_server_with_2_and_one_message(process, place, tmp_path):
    process.address()
    (tmp_path / "file").touch()
    servers = {
        "kept cannot be used: another server (process ": ServerProcess(
            write_mixture(place, "second.yaml"), *flags(place)
        ),
        f"{tmp_path}/file/kept": ServerProcess(write_mixture(tmp_path), *flags(tmp_path / "file")),
    }
    for said, server in servers.items():
        assert server.process.wait(DEADLINE_S) == 2
        last = server.log().splitlines()[-1]
        assert last.startswith("mixserve: ")
        assert said in last
        assert "Traceback" not in server.log()


def flags(folder: Path) -> tuple[str, str]:
    return "--state-dir", str(folder / "kept")


@pytest.mark.parametrize("seconds", ["0", "-1", ".nan", ".inf", "soon", "[1]"])
def test_a_ttl_must_be_a_positive_number_of_seconds(tmp_path, seconds):
    config = write_config(tmp_path, f"{{port: 0, session_ttl_s: {seconds}}}")
    with pytest.raises(ConfigError, match=r"mixture\.yaml: server\.session_ttl_s: .*number"):
        load_config(config)
    code, output = run("serve", write_mixture(tmp_path), "--session-ttl-s", seconds.removeprefix("."))
    assert code == 2
    assert "session-ttl-s" in output


def test_the_configuration_of_sessions(tmp_path):
    assert ServerConfig().session_ttl_s == TTL_S
    assert load_config(write_config(tmp_path, "{state_dir: kept}")).server.state_dir == "kept"
    with pytest.raises(ConfigError, match=r"server\.state_dir: String should have at least 1 character"):
        load_config(write_config(tmp_path, "{state_dir: ''}"))
    with pytest.raises(
        ConfigError, match=r"server\.state_dri: unknown key; allowed here are .*state_dir, session_ttl_s"
    ):
        load_config(write_config(tmp_path, "{state_dri: kept}"))

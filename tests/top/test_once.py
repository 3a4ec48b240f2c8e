"""`mixserve top --once` and `--json` beside real servers."""

import json
import signal
import subprocess
import sys
from pathlib import Path

from mixserve import ServerTls, serve
from mixserve_client import MixClient
from tests.certificates import NEEDS_OPENSSL, Made
from tests.conftest import make_node
from tests.processes import server_process, write_mixture
from tests.tokens.files import Tokens

TOP = (sys.executable, "-m", "mixserve", "top")
DEADLINE_S = 60


def top(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([*TOP, *arguments], capture_output=True, text=True, timeout=DEADLINE_S, check=False)


def test_json_has_what_a_client_read(node):
    with serve({"train": node}) as server, MixClient.connect(server.address, patience_s=20) as client:
        rows = sum(len(batch["id"]) for batch in client.batches(7, key=3, stop=700))
        found = json.loads(top(server.address, "--once", "--json", "--every", "0.2").stdout)
    assert sum(one["records"] for one in found["sources"]) == rows == 700
    assert [one["mixture"] for one in found["mixtures"]] == ["train"]
    (told,) = found["servers"]
    assert (told["answers"], told["serving"], told["processes"], told["records_s"]) == (True, True, 1, 0)
    assert found["clients"][0]["records"] == 700


def test_several_servers_are_rows_and_a_sum(node):
    with serve({"train": node}) as one, serve({"train": make_node()}) as other:
        for server, rows in ((one, 30), (other, 12)):
            with MixClient.connect(server.address, patience_s=20) as client:
                client.get_batch_at(0, rows, key=1)
        done = top(one.address, other.address, "127.0.0.1:1", "--once", "--every", "0.2")
        found = json.loads(top(one.address, other.address, "--once", "--json", "--every", "0.2").stdout)
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert "3 servers, 1 without an answer" in lines[0]
    assert next(line for line in lines if line.startswith("all")).split()[1:4] == ["2", "of", "3"]
    assert "\x1b" not in done.stdout
    assert sum(one["records"] for one in found["sources"]) == 42


def test_without_any_server_it_fails():
    done = top("127.0.0.1:1", "--once")
    assert done.returncode == 2
    assert done.stderr.startswith("mixserve: 127.0.0.1:1: ")
    assert len(done.stderr.splitlines()) == 1
    assert not done.stdout
    assert top("nonsense:port", "--once").returncode == 2
    assert top("127.0.0.1:1", "--every", "0").returncode == 2


def test_a_token_sees_its_mixture_only(tmp_path: Path, node):
    tokens = Tokens(tmp_path / "tokens.yaml", {"r": ("reader", ["train"])})
    (tmp_path / "token").write_text(tokens["r"])
    (tmp_path / "token").chmod(0o600)
    with serve({"train": node, "other": make_node(seed=9)}, tokens=tokens.path) as server:
        found = top(server.address, "--token-file", str(tmp_path / "token"), "--once", "--json", "--every", "0.2")
        refused = top(server.address, "--once")
    figures = json.loads(found.stdout)
    assert {one["mixture"] for one in figures["sources"]} == {"train"}
    assert [one["mixture"] for one in figures["mixtures"]] == ["train"]
    (told,) = figures["servers"]
    assert (told["answers"], told["serving"], told["memory"]) == (True, None, None)
    assert refused.returncode == 2
    assert "token" in refused.stderr


def test_elsewhere_than_on_a_terminal_texts_follow_one_another(node):
    with (
        serve({"train": node}) as server,
        subprocess.Popen([*TOP, server.address, "--every", "0.2"], stdout=subprocess.PIPE, text=True) as process,
    ):
        assert process.stdout is not None
        titles = 0
        for line in process.stdout:
            assert "\x1b" not in line
            titles += line.startswith("mixserve top")
            if titles == 3:
                break
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE_S) == 0


@NEEDS_OPENSSL
def test_over_tls(tmp_path: Path, node):
    made = Made.in_folder(tmp_path)
    tls = ServerTls(certificate=made.server.certificate, key=made.server.key)
    with serve({"train": node}, tls=tls) as server:
        found = top(server.address, "--ca", str(made.authority.ca), "--once", "--json", "--every", "0.2")
        refused = top(server.address, "--ca", str(made.other.ca), "--once")
    assert json.loads(found.stdout)["servers"][0]["serving"] is True
    assert refused.returncode == 2
    assert "Test Authority" in refused.stderr


def test_the_reader_of_the_output_may_go(node):
    with serve({"train": node}) as server:
        command = [*TOP, server.address, "--every", "0.1"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.readline()
            process.stdout.close()
            assert process.wait(DEADLINE_S) == 0
            assert process.stderr.read() == ""


def test_a_server_of_several_processes(tmp_path: Path):
    config = write_mixture(tmp_path)
    with server_process(config, "--processes", "2", real=True) as server:
        address = server.address()
        with MixClient.connect(address, patience_s=20) as client:
            rows = sum(len(batch["tokens"]) for batch in client.batches(16, key=3, stop=1600))
        found = json.loads(top(address, "--once", "--json", "--every", "0.2").stdout)
    assert found["servers"][0]["processes"] == 2
    assert sum(one["records"] for one in found["sources"]) == rows == 1600

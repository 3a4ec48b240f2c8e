"""SIGHUP: what is read again, what stays, and that it never ends a server."""

import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest

from mixserve_client import MixClient, TlsOptions, Unauthenticated
from tests.certificates import NEEDS_OPENSSL, Authority
from tests.logs.servers import write_faulty
from tests.processes import DEADLINE_S, ServerProcess, server_process, write_mixture
from tests.tokens.files import Tokens, replace_file
from tests.waiting import wait_until

ONE_AND_TWO = [1, pytest.param(2, marks=pytest.mark.skipif(sys.platform != "linux", reason="needs SO_REUSEPORT"))]


def rewrite(config: Path, before: str, after: str) -> None:
    text = config.read_text()
    assert before in text
    replace_file(config, text.replace(before, after))


def reload(server: ServerProcess, pattern: str) -> None:
    """Send SIGHUP, and wait for one more line with the pattern than there was."""
    before = len(re.findall(pattern, server.log()))
    server.process.send_signal(signal.SIGHUP)
    wait_until(lambda: len(re.findall(pattern, server.log())) > before, "the line in the log")


@pytest.mark.parametrize("processes", ONE_AND_TWO)
def test_the_level_of_the_log_is_read_again_in_all_processes(tmp_path: Path, processes: int) -> None:
    config = write_faulty(tmp_path, f"port: 0, processes: {processes}, log_level: info")
    with server_process(config, real=True) as server, MixClient.connect(server.address(), bulk=False) as client:
        for level in ("debug", "info", "debug"):
            rewrite(config, re.search("log_level: .*(?=})", config.read_text())[0], f"log_level: {level}")
            reload(server, f"read {re.escape(str(config))} again: log_level is {level}")

            def refused() -> int:
                with pytest.raises(LookupError):
                    client.get_batch_at(0, 1, 0, mixture="other")
                return server.log().count("ended with UnknownMixture")

            def is_heard() -> bool:
                return refused() < refused()

            if level == "debug":
                wait_until(is_heard, "that DEBUG is heard")  # the workers do it after the supervisor's line
            else:
                wait_until(lambda: not is_heard(), "that DEBUG is no longer heard")
        assert server.terminate() == 0


@pytest.mark.parametrize("processes", ONE_AND_TWO)
def test_a_file_that_is_wrong_changes_nothing_and_has_one_line(tmp_path: Path, processes: int) -> None:
    tokens = Tokens(tmp_path / "tokens.yaml", {"one": ("reader", None)})
    config = write_faulty(tmp_path, f"port: 0, processes: {processes}, tokens: tokens.yaml, log_level: info")
    with server_process(config, real=True) as server:
        address = server.address()
        rewrite(config, "log_level: info", "log_level: loud, health_port: many")
        before = len(server.log().splitlines())
        reload(server, "nothing was reloaded, and all stays as it was: ")
        with MixClient.connect(address, token=tokens["one"]) as client:
            client.get_batch_at(0, 1, 0)
        (line,) = server.log().splitlines()[before:]
        assert "server.log_level" in line
        assert "server.health_port" in line
        assert " ERROR " in line
        config.unlink()
        reload(server, "all stays as it was: .*mixture.yaml: cannot be read")
        assert server.process.poll() is None


def test_other_changes_need_a_restart_and_a_flag_keeps_its_level(tmp_path: Path) -> None:
    config = write_faulty(tmp_path, "port: 0, log_level: info")
    with server_process(config, "--log-level", "info", real=True) as server:
        server.address()
        reload(server, r"again: --log-level stays$|again: --log-level stays\n")
        assert "need a restart" not in server.log()
        rewrite(config, "log_level: info", "log_level: debug")
        reload(server, "again: --log-level stays")
        assert "need a restart" not in server.log()
        rewrite(config, "port: 0", "port: 1")
        reload(server, "has changes that need a restart: only log_level is used by a reload")


@NEEDS_OPENSSL
def test_tokens_and_certificates_are_read_even_if_they_look_unchanged(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority")
    pair = authority.issue("server").copy_to(tmp_path)
    tokens = Tokens(tmp_path / "tokens.yaml", {"one": ("reader", None)})
    tls = f"tls: {{certificate: {pair.certificate.name}, key: {pair.key.name}}}"
    config = write_faulty(tmp_path, f"port: 0, tokens: tokens.yaml, {tls}")
    with server_process(config, real=True) as server:
        address = server.address()
        reload(server, r"read 1 tokens from \S+tokens.yaml")
        reload(server, rf"read the certificate {re.escape(str(pair.certificate))}, its key and authorities again")
        tokens.write("one")
        reload(server, r"tokens.yaml.*The tokens that were read before stay valid|read 0 tokens")
        pair.key.write_text("no key")
        reload(server, "has no private key in PEM .*the server goes on with the certificate that it had")
        with (
            MixClient.connect(address, token="x" * 40, tls=TlsOptions(ca=authority.ca), patience_s=5) as client,
            pytest.raises(Unauthenticated),
        ):
            client.mixtures()
        assert server.terminate() == 0


@pytest.mark.parametrize("processes", ONE_AND_TWO)
def test_it_never_ends_a_server_that_starts_and_is_done_when_it_serves(tmp_path: Path, processes: int) -> None:
    config = write_mixture(tmp_path)
    with server_process(config, "--processes", str(processes), real=True) as server:
        # From when its handlers are set: in its first moments Python itself starts.
        handlers = Path(f"/proc/{server.process.pid}/status")
        if handlers.exists():
            wait_until(
                lambda: int(re.search(r"SigCgt:\s+(\w+)", handlers.read_text())[1], 16) & 1 << signal.SIGHUP - 1,
                "the handler of SIGHUP",
            )
        else:
            time.sleep(2)
        while "serving on" not in server.log():
            assert server.process.poll() is None
            os.kill(server.process.pid, signal.SIGHUP)
            time.sleep(0.01)
        server.wait_for_log("read .* again: log_level is info")
        with MixClient.connect(server.address(), patience_s=DEADLINE_S) as client:
            client.get_batch_at(0, 1, 0)
        for _ in range(100):
            os.kill(server.process.pid, signal.SIGHUP)
        assert server.terminate() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has workers")
def test_a_worker_may_be_told_alone(tmp_path: Path) -> None:
    tokens = Tokens(tmp_path / "tokens.yaml", {"one": ("reader", None)})
    config = write_faulty(tmp_path, "port: 0, processes: 2, tokens: tokens.yaml")
    with server_process(config, real=True) as server:
        server.address()
        children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
        os.kill(int(children[1]), signal.SIGHUP)
        server.wait_for_log("worker 1: read 1 tokens from")
        assert "worker 0: read 1 tokens from" not in server.log()
        assert tokens["one"] not in server.log()

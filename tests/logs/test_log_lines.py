"""The log of `mixserve serve`, as text and as JSON, of a real process."""

import json
import logging
import re
import socket
import sys
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest

from mixserve.log_lines import JsonFormatter, TextFormatter
from mixserve_client import MixClient, ServerFault, StorageFailed, UnknownMixture
from mixserve_client.wire import methods
from mixserve_client.wire._generated import mix_pb2
from tests.certificates import NEEDS_OPENSSL, Authority
from tests.logs.servers import objects, write_faulty
from tests.ports import free_ports
from tests.processes import DEADLINE_S, server_process, write_mixture
from tests.tokens.calling import KEY

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


def wait_for_object(server: Any, **fields: object) -> dict[str, Any]:
    """The first line of the log with these fields."""
    first = json.dumps(fields)[1:-1].partition(", ")[0]
    server.wait_for_log(re.escape(first))
    return next(one for one in objects(server.log()) if fields.items() <= one.items())


def test_lines_of_json_have_the_fields_of_the_call_and_of_what_failed(tmp_path: Path) -> None:
    config = write_faulty(tmp_path, "port: 0, log_format: json")
    with (tmp_path / "faulty.py").open("a") as file:
        file.write("\nimport threading\nthreading.Thread(target=lambda: 1 // 0, name='of-a-source').start()\n")
    with server_process(config, "--log-level", "debug", real=True) as server:
        address = server.wait_for_log(r'"message": "serving on (\S+)"').group(1)
        with MixClient.connect(address, name="run-7", shared_memory=False, bulk=False) as client:
            client.get_batch_at(0, 4, 0)
            (tmp_path / "fails").touch()
            with pytest.raises(ServerFault) as caught:
                client.get_batch_at(10, 1, 1)
            with pytest.raises(UnknownMixture) as unknown:
                client.get_batch_at(0, 1, mixture="other", key=0)
            client.session("run", fresh=True).close()
            with pytest.raises(StorageFailed) as stored:
                client.session("run").save_checkpoint("one")
        assert server.terminate() == 0
        log = objects(server.log())  # every line is an object
    assert all(TIME.fullmatch(line["time"]) for line in log)
    assert all(abs((datetime.now(UTC) - datetime.fromisoformat(line["time"])).total_seconds()) < 600 for line in log)
    assert {line["logger"] for line in log} >= {"mixserve", "mixserve.audit"}
    assert not any("worker" in line for line in log)
    (thread,) = [line for line in log if line["level"] == "critical"]
    assert thread["message"] == "the thread of-a-source ends by an error"
    assert thread["traceback"].endswith("ZeroDivisionError: integer division or modulo by zero")
    (fault,) = [line for line in log if "traceback" in line and line is not thread]
    assert fault["level"] == "error"
    assert fault["request"] == caught.value.request_id
    assert fault["message"] == f"fault {fault['request']} in /mixserve.v1.MixService/GetBatchAt"
    assert (fault["method"], fault["mixture"], fault["source"]) == ("GetBatchAt", "train", "disk")
    assert (fault["position"], fault["error"], fault["client"], fault["who"]) == (
        10,
        "ValueError",
        "run-7",
        "everybody",
    )
    assert isinstance(fault["record"], int)
    assert fault["peer"].startswith("ipv4:127.0.0.1:")
    assert "this source\nis on fire" in fault["traceback"]
    (refused,) = [line for line in log if line.get("request") == unknown.value.request_id]
    assert (refused["level"], refused["error"]) == ("debug", "UnknownMixture")
    (full,) = [line for line in log if line["level"] == "warning"]
    assert full["message"] == str(stored.value)  # which says what to do
    assert (full["error"], full["mixture"], full["method"]) == ("StorageFailed", "train", "CallSession")
    (opened,) = [line for line in log if line.get("audit", {}).get("event") == "session-opened"][:1]
    assert opened["audit"]["session"] == "run"
    assert opened["request"] == opened["audit"]["request"]


def test_lines_of_text_have_the_call_at_their_end(tmp_path: Path) -> None:
    with server_process(write_faulty(tmp_path), real=True) as server:
        address = server.wait_for_log(r"(?m)^\S+ \S+ INFO serving on (\S+)$").group(1)
        with MixClient.connect(address, name="run 7", shared_memory=False, bulk=False) as client:
            client.get_batch_at(0, 4, 0)
            (tmp_path / "fails").touch()
            with pytest.raises(ServerFault) as caught:
                client.get_batch_at(10, 1, 1)
            client.session("run", fresh=True).close()
        server.wait_for_log("event=session-released")
        log = server.log()
    fault = caught.value.request_id
    assert (
        f" ERROR fault {fault} in /mixserve.v1.MixService/GetBatchAt [request {fault}, mixture train, client run 7"
        in log
    )
    audited = re.search(r"INFO (event=session-opened .*)$", log, re.MULTILINE)
    assert audited
    assert re.search(r" request=[0-9a-f]{8}$", audited[1])
    assert "[request" not in audited[1]


def test_the_level_hides_what_is_less_important_and_never_the_audit(tmp_path: Path) -> None:
    port = str(free_ports())
    with server_process(write_mixture(tmp_path), "--log-level", "error", "--port", port, real=True) as server:
        with MixClient.connect(f"127.0.0.1:{port}", patience_s=DEADLINE_S) as client:
            client.session("run", fresh=True).close()
        server.wait_for_log("event=session-released")
        assert "serving on" not in server.log()
        assert server.terminate() == 0


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--log-format", "xml"), r"--log-format must be one of text, json, got 'xml'"),
        (("--log-level", "loud"), r"--log-level must be one of debug, info, warning, error, got 'loud'"),
    ],
)
def test_other_flags_are_refused(tmp_path: Path, flags: tuple[str, ...], said: str) -> None:
    with server_process(write_mixture(tmp_path), *flags, real=True) as server:
        assert server.process.wait(DEADLINE_S) == 2
        assert re.search(said, server.log())


def test_an_error_that_ends_the_command_is_an_object_too(tmp_path: Path) -> None:
    flags = ("--log-format", "json", "--bulk-port", "7", "--no-bulk")
    with server_process(write_mixture(tmp_path), *flags, real=True) as server:
        assert server.process.wait(DEADLINE_S) == 2
        (line,) = objects(server.log())
    assert line["level"] == "critical"
    assert "--bulk-port 7 is for bulk channels" in line["message"]


def test_a_file_with_another_format_is_refused_by_its_key(tmp_path: Path) -> None:
    with server_process(write_faulty(tmp_path, "log_format: xml, log_level: 3")) as server:
        assert server.process.wait(DEADLINE_S) == 2
        assert "server.log_format: Input should be 'text' or 'json'" in server.log()
        assert "server.log_level: Input should be 'debug', 'info', 'warning' or 'error'" in server.log()


def record_of(message: str, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("mixserve", logging.WARNING, "", 0, message, (), None)
    made.__dict__.update(fields)
    return made


def test_what_strangers_choose_breaks_no_line() -> None:
    record = record_of("no", request="0a1b2c3d", client="evil\n2026-01-01 INFO all is well\x1b[2J", worker=7)
    text = TextFormatter(worker=3).format(record)
    assert text.endswith("worker 3: no [request 0a1b2c3d, client evil\\n2026-01-01 INFO all is well\\x1b[2J]")
    assert len(text.splitlines()) == 1
    line = JsonFormatter(worker=3).format(record)
    assert len(line.splitlines()) == 1
    assert line.isascii()
    assert json.loads(line)["client"] == record.client
    assert json.loads(line)["worker"] == 3


EVIL = "evil\n2026-01-01 00:00:00,000 INFO all is well\x1b[2J\r\u2028"


def test_what_messages_and_errors_show_breaks_no_line() -> None:
    """A client could forge a line, and change the reader's terminal, by the fingerprint of a request."""
    text = TextFormatter().format(record_of(f"GetBatchAt ended: expected {EVIL}"))
    assert len(text.splitlines()) == 1
    assert text.isprintable()
    try:
        raise ValueError(EVIL)
    except ValueError:
        failed = record_of("a source failed")
        failed.exc_info = sys.exc_info()
    text = TextFormatter().format(failed)
    assert "Traceback (most recent call last):\n" in text
    assert text.replace("\n", "").isprintable()


def test_errors_show_what_clients_sent_as_they_would_write_it(tmp_path: Path) -> None:
    with server_process(write_mixture(tmp_path), "--log-level", "debug") as server:
        with grpc.insecure_channel(server.address()) as channel:
            for field, code in (("expected_fingerprint", "FAILED_PRECONDITION"), ("schedule", "NOT_FOUND")):
                asked = mix_pb2.GetBatchAtRequest(mixture="train", key=KEY, size=1, **{field: EVIL})
                with pytest.raises(grpc.RpcError) as refused:
                    channel.unary_unary(methods.GET_BATCH_AT)(asked.SerializeToString(), timeout=DEADLINE_S)
                assert refused.value.code().name == code
                assert refused.value.details().isprintable()
        assert "\n2026-01-01" not in server.log()
        assert "\x1b" not in server.log()


@NEEDS_OPENSSL
def test_handshakes_that_are_broken_off_leave_no_lines(tmp_path: Path) -> None:
    """gRPC wrote a line of its own for each: 5,000 a second, from one stranger, and none of them JSON."""
    own = Authority(tmp_path / "authority").issue("server")
    options = f"port: 0, log_format: json, tls: {{certificate: {own.certificate}, key: {own.key}}}"
    config = write_mixture(tmp_path)
    config.write_text(config.read_text().replace("{port: 0}", f"{{{options}}}"))
    with server_process(config, real=True) as server:
        host, port = server.wait_for_log(r'"message": "serving on (\S+):(\d+)"').groups()
        for _ in range(50):
            with closing(socket.create_connection((host, int(port)), DEADLINE_S)) as stranger, suppress(OSError):
                stranger.settimeout(DEADLINE_S)
                stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
                assert not stranger.recv(1)
        assert server.terminate() == 0
        assert {line["logger"] for line in objects(server.log())} == {"mixserve"}


def test_values_that_json_does_not_have_become_texts() -> None:
    record = record_of("no", source=Path("/data"), record=0, position=None, client="", audit={"of": Path("/x")})
    found = json.loads(JsonFormatter().format(record))
    assert found.keys() == {"time", "level", "logger", "message", "source", "record", "audit"}
    assert (found["source"], found["record"], found["audit"]) == ("/data", 0, {"of": "/x"})


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has workers")
def test_the_error_of_a_session_has_the_id_under_which_the_worker_that_keeps_it_speaks_of_it(tmp_path: Path) -> None:
    config = write_mixture(tmp_path)
    with server_process(config, "--processes", "2", "--log-level", "debug", real=True) as server:
        server.address()
        own = re.search(r"worker 1: answers, and at (\S+) alone", server.log())[1]
        with MixClient.connect(own) as client, pytest.raises(StorageFailed) as caught, client.session("run") as session:
            session.save_checkpoint("one")
        said = caught.value.request_id
        assert re.search(rf"worker 0: this server has no folder for checkpoints: .* \[request {said}, ", server.log())
        assert server.terminate() == 0

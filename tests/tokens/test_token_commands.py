"""`mixserve token`: adds, lists and revokes, one process at a time, and leaves alone what it need not change."""

import fcntl
import json
import os
import re
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from mixserve.access import entries
from mixserve.access.entries import digest_of, parse_entries
from mixserve.access.identity import Role
from mixserve.access.tokens import TokenFile
from mixserve.cli import token_file
from mixserve.cli.main import app
from tests.forked import Forked
from tests.tokens.files import Tokens

MOST = 50
TOKEN = re.compile(r"mixserve_[\w-]{43}")


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(app, ["token", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def made(*arguments: object) -> str:
    """The token that `token new` prints."""
    result = run("new", *arguments)
    assert result.exit_code == 0, result.output
    assert TOKEN.fullmatch(result.stdout.removesuffix("\n")), result.stdout  # it alone
    assert not TOKEN.search(result.stderr)
    return result.stdout.strip()


def refused(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("mixserve: ")
    assert not result.stdout
    return result.stderr


@pytest.fixture
def file(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "tokens.yaml"


def test_a_new_token_is_printed_and_only_its_hash_is_kept(file):
    token = made("trainer", "--name", "run-7", "--mixture", "train", "--mixture", "Mix · 2")
    text = file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert token not in text
    assert digest_of(token).hex() in text
    found = TokenFile(file).find(token)
    assert found is not None
    assert (found.name, found.role, found.mixtures) == ("run-7", Role.TRAINER, frozenset(("train", "Mix · 2")))


def test_tokens_are_named_by_their_role_unless_they_are_named(file):
    for role in ("reader", "reader", "admin"):
        made(role)
    assert [entry.name for entry in parse_entries(file.read_text())] == ["reader-1", "reader-2", "admin-1"]
    run("revoke", "reader-1")
    made("reader")
    assert [entry.name for entry in parse_entries(file.read_text())] == ["reader-2", "admin-1", "reader-1"]


def test_names_that_yaml_reads_otherwise_stay_names(file):
    for name in ("no", "2024", "1e5", "0x10"):
        made("reader", "--name", name)
    assert [entry.name for entry in parse_entries(file.read_text())] == ["no", "2024", "1e5", "0x10"]
    assert run("revoke", "2024").exit_code == 0
    assert [entry.name for entry in parse_entries(file.read_text())] == ["no", "1e5", "0x10"]


def test_the_list_shows_names_roles_and_mixtures(file):
    token = made("reader", "--mixture", "train")
    made("admin", "--name", "ops")
    shown = run("list")
    assert shown.exit_code == 0
    assert [line.split("│")[1:4] for line in shown.stdout.splitlines() if "│ " in line] == [
        [" reader-1 ", " reader ", " train    "],
        [" ops      ", " admin  ", " all      "],
    ]
    assert json.loads(run("list", "--json").stdout) == [
        {"name": "reader-1", "role": "reader", "mixtures": ["train"]},
        {"name": "ops", "role": "admin", "mixtures": None},
    ]
    assert digest_of(token).hex() not in shown.output
    run("revoke", "ops")
    run("revoke", "reader-1")
    assert "has no tokens" in run("list").stdout


COMMENTED = """\
# Ours.
tokens:
- {name: a, role: reader, sha256: 'A'}  # of the night shift
# A comment.
- name: b
  role: admin
  sha256: 'B'
""".replace("'A'", f"'{'0' * 64}'").replace("'B'", f"'{'1' * 64}'")


def test_what_people_wrote_stays(file):
    file.write_text(COMMENTED)
    made("reader", "--name", "c")
    assert "# of the night shift\n# A comment.\n" in file.read_text()
    assert run("revoke", "b").exit_code == 0
    text = file.read_text()
    assert text.startswith("# Ours.\n")
    assert "# of the night shift" in text
    assert [entry.name for entry in parse_entries(text)] == ["a", "c"]
    assert run("revoke", "c").exit_code == 0
    assert file.read_text() == COMMENTED[: COMMENTED.index("- name: b")]


@pytest.mark.parametrize(
    "text",
    [
        "tokens: [ENTRY]",
        "{tokens: [ENTRY]}",
        "tokens:\n\n\n  - ENTRY\n\n# end",
        "tokens:\n  -\n      ENTRY",
        "'tokens':\n- ENTRY",
        "tokens:\n    - ENTRY\n...\n",
        "--- \ntokens:\n- ENTRY",
        "",
        "# nothing yet\n",
        "tokens:",
        "tokens: []\n",
        "\ufefftokens: []\r\n",
    ],
)
def test_files_of_any_form_are_changed(file, text):
    file.write_text(text.replace("ENTRY", f"{{name: first, role: admin, sha256: '{'0' * 64}'}}"))
    before = [entry.name for entry in parse_entries(file.read_text(encoding="utf-8-sig"))]
    made("reader", "--name", "x")
    made("reader", "--name", "y")
    names = [*before, "x", "y"]
    while names:
        assert [entry.name for entry in parse_entries(file.read_text())] == names
        assert run("revoke", names.pop(len(names) // 2)).exit_code == 0
    assert parse_entries(file.read_text()) == ()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("new", "king"), "role: Input should be 'reader', 'trainer' or 'admin'"),
        (("new", "reader", "--name", "a b"), "a name must be 1 to 64 ASCII letters"),
        (("new", "reader", "--name", ""), "a name must be"),
        (("new", "reader", "--name", "everybody"), "a name must be"),
        (("new", "reader", "--name", "mixserve_secret"), "must not begin with mixserve_"),
        (("new", "reader", "--name", "taken"), "there is a token 'taken' already"),
        (("new", "reader", "--mixture", ""), "mixtures: "),
        (("new", "reader", "--file", "none/tokens.yaml"), "there is no folder"),
        (("revoke", "other"), "has no token of that name; it has taken"),
        (("revoke", "taken", "--file", "none.yaml"), "cannot be read: No such file"),
        (("list", "--file", "none.yaml"), "cannot be read: No such file"),
    ],
)
def test_what_cannot_be_done_is_said_and_changes_nothing(file, arguments, said):
    made("reader", "--name", "taken")
    before = file.read_text()
    answer = refused(*arguments)
    assert said in answer
    assert "mixserve_secret" not in answer
    assert file.read_text() == before
    assert list(file.parent.iterdir()) == [file]


def test_a_file_that_is_wrong_is_left_alone(file):
    for text in ("tokens: 3", "tokens: [", "other: 1", "tokens: [{name: mixserve_secret}]"):
        file.write_text(text)
        for arguments in (("new", "reader"), ("revoke", "a"), ("list",)):
            answer = refused(*arguments)
            assert str(file.name) in answer
            assert "mixserve_secret" not in answer
        assert file.read_text() == text


def test_a_full_file_takes_no_more(file, monkeypatch):
    monkeypatch.setattr(entries, "MOST_ENTRIES", MOST)
    tokens = "".join(f"- {{name: t{n}, role: reader, sha256: '{n:064x}'}}\n" for n in range(MOST))
    file.write_text(f"tokens:\n{tokens}")
    assert "at most 50 entries" in refused("new", "reader")
    assert len(parse_entries(file.read_text())) == MOST
    assert run("revoke", "t5").exit_code == 0
    made("reader")


def test_mode_and_link_stay_and_readable_files_are_warned_of(file, tmp_path):
    real = tmp_path / "real" / "tokens.yaml"
    real.parent.mkdir()
    real.write_text("tokens: []")
    real.chmod(0o640)
    file.symlink_to(real)
    result = run("new", "reader")
    assert "others may read or write tokens.yaml: chmod 600 tokens.yaml" in result.stderr
    assert TOKEN.fullmatch(result.stdout.splitlines()[-1])
    assert file.is_symlink()
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    assert "others may" in run("list").stderr
    real.chmod(0o600)
    assert "others may" not in run("list").stderr


def test_links_in_a_circle_are_an_error(file):
    file.symlink_to(file.name)
    for arguments in (("new", "reader"), ("list",), ("revoke", "a")):
        assert "Too many levels of symbolic links" in refused(*arguments)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_the_owner_stays(file):
    made("reader")
    os.chown(file, 12345, 23456)
    made("reader")
    assert (file.stat().st_uid, file.stat().st_gid) == (12345, 23456)


def make_tokens(file: str) -> None:
    for _ in range(5):
        made("reader", "--file", file)


def test_several_at_once_lose_nothing(file, tmp_path):
    running = [Forked(make_tokens, str(file), log=tmp_path / f"log-{number}") for number in range(4)]
    for process in running:
        assert process.wait(60) == 0, process.log()
    assert len(parse_entries(file.read_text())) == 20


def test_a_lock_that_is_never_released_is_said(file, monkeypatch):
    monkeypatch.setattr(token_file, "_WAIT_S", 0.1)
    descriptor = os.open(file.parent, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        assert "another process has locked the folder" in refused("new", "reader")
    finally:
        os.close(descriptor)
    made("reader")


def test_a_running_server_file_is_replaced_whole(tmp_path):
    tokens = Tokens(tmp_path / "tokens.yaml", {"a": ("reader", None)})
    before = tokens.path.stat().st_ino
    made("reader", "--file", tokens.path)
    assert tokens.path.stat().st_ino != before
    assert list(tmp_path.iterdir()) == [tokens.path]

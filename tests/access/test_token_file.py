"""A token file: what is refused, how it is read again, and that a search tells nothing by its time."""

import logging
import threading
from pathlib import Path

import pytest

from mixserve.access import tokens
from mixserve.access.entries import MOST_ENTRIES, BadTokens, TokenEntry, digest_of, new_token, parse_entries
from mixserve.access.identity import EVERYBODY, Identity, Role
from mixserve.access.tokens import TokenFile
from mixserve_client.credentials import check_token
from tests.tokens.files import Tokens, replace_file

SHA = "ab" * 32
SECRET = "mixserve_of-somebody-who-put-it-here"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def entry(**changed: object) -> str:
    keys = {"name": "a", "role": "reader", "sha256": f"'{SHA}'"} | changed
    return "{" + ", ".join(f"{key}: {value}" for key, value in keys.items() if value is not None) + "}"


def test_entries_stand_for_identities():
    text = f"tokens:\n- {entry(mixtures='[x, y]')}\n- {entry(name='b', role='admin', sha256=repr('cd' * 32))}"
    first, second = parse_entries(text)
    assert first.identity == Identity("a", Role.READER, frozenset(("x", "y")))
    assert second.identity == Identity("b", Role.ADMIN)
    assert first.identity.may_use("x")
    assert not first.identity.may_use("z")
    assert EVERYBODY.may_use("z")


@pytest.mark.parametrize("text", ["", "# nothing", "tokens:", "tokens: []"])
def test_a_file_may_have_no_tokens(text):
    assert parse_entries(text) == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- a", "must have the form"),
        (f"token: {SECRET}", "must have the form"),
        (f"{SECRET}: reader", "must have the form"),
        (f"tokens: []\nmore: {SECRET}", "must have the form"),
        (f"tokens: {SECRET}", "must be a list"),
        (f"tokens: [{SECRET}]", "entry 1: it: "),
        (f"tokens: [{{{SECRET}: reader}}]", "entry 1"),
        (f"tokens: [{entry(**{SECRET: 1})}]", "entry 1: has an unknown key; allowed are name, role, mixtures, sha256"),
        (f"tokens: [{entry(token=SECRET)}]", "entry 1: has an unknown key"),
        (f"tokens: [{entry(name=SECRET)}]", "entry 1: name: a name must not begin with mixserve_"),
        (f"tokens: [{entry(name=None)}]", "entry 1: name: Field required"),
        (f"tokens: [{entry(name='everybody')}]", "entry 1: name: "),
        (f"tokens: [{entry(name=repr('a b'))}]", "entry 1: name: "),
        (f"tokens: [{entry(name=17)}]", "entry 1: name: "),
        (f"tokens: [{entry(role=SECRET)}]", "entry 1: role: "),
        (f"tokens: [{entry(sha256=SECRET)}]", "entry 1: sha256: "),
        (f"tokens: [{entry(sha256=repr(SHA.upper()))}]", "entry 1: sha256: "),
        (f"tokens: [{entry(mixtures='[]')}]", "entry 1: mixtures: "),
        (f"tokens: [{entry(mixtures=SECRET)}]", "entry 1: mixtures: "),
        (f"tokens: [{entry(mixtures='[1]')}]", "entry 1: mixtures: "),
        (f"tokens: [{entry()}, {entry(sha256=repr('cd' * 32))}]", "the entries 1 and 2 have the same name"),
        (f"tokens: [{entry()}, {entry(name='b')}]", "the entries 1 and 2 have the same sha256"),
        (f"tokens: [{', '.join([entry()] * (MOST_ENTRIES + 1))}]", "at most 1,000 entries"),
        (f"tokens:\n- name: !!int {SECRET}", "line 2, column 9: is not YAML"),
        (f"tokens: *{SECRET}", "is not YAML"),
        (f"tokens: [{{{SECRET}: 1, {SECRET}: 2}}]", "is not YAML"),
        ("tokens: [", "is not YAML"),
    ],
)
def test_a_wrong_file_is_refused_and_nothing_of_it_is_shown(text, said):
    with pytest.raises(BadTokens) as refused:
        parse_entries(text)
    assert said in str(refused.value)
    assert SECRET.removeprefix("mixserve_") not in f"{refused.value!r} {refused.value.__cause__!r}"
    assert len(str(refused.value)) < 400


def test_a_file_that_cannot_be_used_names_itself_at_the_start(tmp_path):
    path = tmp_path / "tokens.yaml"
    with pytest.raises(OSError, match=r"tokens\.yaml cannot be read: No such file .*mixserve token new makes one"):
        TokenFile(path)
    with pytest.raises(OSError, match=r"cannot be read: Is a directory$"):
        TokenFile(tmp_path)
    path.write_text("tokens: 3")
    with pytest.raises(BadTokens, match=r"tokens\.yaml: tokens must be a list"):
        TokenFile(path)
    path.write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(BadTokens, match=r"tokens\.yaml: may have at most 1 MiB"):
        TokenFile(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(OSError, match=r"tokens\.yaml cannot be read"):
        TokenFile(path)


def test_it_is_looked_at_once_a_second_and_whenever_a_token_is_unknown(tmp_path):
    clock = Clock()
    made = Tokens(tmp_path / "tokens.yaml", {"a": ("reader", None)})
    file = TokenFile(made.path, clock)
    found = file.find(made["a"])
    assert found == Identity("a", Role.READER)
    generation = file.generation
    made.write("a")
    assert file.generation == generation  # not yet
    assert file.find(made["a"]) == found
    newer = made.add("b", "trainer")
    made.write("a")
    assert file.find(newer) == Identity("b", Role.TRAINER)  # at once
    assert file.generation == generation + 1
    assert file.find(made["a"]) is None
    made.write()
    clock.now += 1
    assert file.generation == generation + 2
    assert file.find(made["a"]) == found


@pytest.mark.parametrize("fault", ["broken", "gone", "a folder", "a pipe"])
def test_a_fault_leaves_the_old_tokens_and_is_logged_once(tmp_path, caplog, fault):
    import os

    clock = Clock()
    made = Tokens(tmp_path / "tokens.yaml", {"a": ("reader", None)})
    file = TokenFile(made.path, clock)
    generation = file.generation
    if fault == "broken":
        replace_file(made.path, f"tokens: [{SECRET}")
    else:
        made.path.unlink()
        if fault == "a folder":
            made.path.mkdir()
        elif fault == "a pipe":
            os.mkfifo(made.path)
    caplog.set_level(logging.INFO, logger="mixserve")
    for _ in range(3):
        clock.now += 1
        assert file.find(made["a"]) is not None
        assert file.find(new_token()) is None
        assert file.generation == generation
    errors = [record.getMessage() for record in caplog.records]
    assert len(errors) == 1, errors
    assert str(made.path) in errors[0]
    assert "The tokens that were read before stay valid" in errors[0]
    assert SECRET.removeprefix("mixserve_") not in errors[0]
    if fault == "a folder":
        made.path.rmdir()
    made.add("b", "reader")
    clock.now += 1
    assert file.generation == generation + 1
    assert file.find(made["b"]) is not None


def test_a_link_that_leads_elsewhere_is_a_change(tmp_path):  # so secrets are mounted in Kubernetes
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    first, second = (Tokens(folder / "tokens.yaml", {folder.name: ("reader", None)}) for folder in folders)
    link = tmp_path / "data"
    link.symlink_to(folders[0])
    (tmp_path / "tokens.yaml").symlink_to("data/tokens.yaml")
    file = TokenFile(tmp_path / "tokens.yaml")
    assert file.find(first["first"]) is not None
    (tmp_path / "new").symlink_to(folders[1])
    (tmp_path / "new").replace(link)
    assert file.find(second["second"]) is not None
    assert file.find(first["first"]) is None


def test_every_search_compares_with_every_token(tmp_path, monkeypatch):
    made = Tokens(tmp_path / "tokens.yaml", {f"t{number}": ("reader", None) for number in range(9)})
    file = TokenFile(made.path)
    compared = list[tuple[bytes, bytes]]()

    def compare(left: bytes, right: bytes) -> bool:
        compared.append((left, right))
        return left == right

    monkeypatch.setattr(tokens, "compare_digest", compare)
    for name in ("t0", "t4", "t8"):
        compared.clear()
        assert file.find(made[name]) is not None
        assert len(compared) == 9, name
        assert {len(side) for pair in compared for side in pair} == {32}


def test_several_threads_see_a_change_once(tmp_path):
    made = Tokens(tmp_path / "tokens.yaml", {"a": ("reader", None)})
    file = TokenFile(made.path)
    newer, found = made.add("b", "reader"), list[Identity | None]()
    threads = [threading.Thread(target=lambda: found.append(file.find(newer))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [Identity("b", Role.READER)] * 8
    assert file.generation == 1


def test_tokens_have_a_prefix_and_256_bits_and_clients_accept_them():
    made = {new_token() for _ in range(100)}
    assert len(made) == 100
    for token in made:
        assert token.startswith("mixserve_")
        assert len(token) == len("mixserve_") + 43  # base64 of 32 bytes
        assert check_token(token, "token") == token
        assert len(digest_of(token)) == 32


def test_a_file_that_others_can_write_is_warned_of(tmp_path, caplog):
    made = Tokens(tmp_path / "tokens.yaml", {"a": ("reader", None)})
    TokenFile(made.path)
    assert not caplog.records
    Path(made.path).chmod(0o620)
    TokenFile(made.path)
    assert "chmod 600" in caplog.text


def test_nothing_of_a_file_shows_a_token(tmp_path):
    made = Tokens(tmp_path / "tokens.yaml", {"a": ("reader", ["x"])})
    file = TokenFile(made.path)
    shown = f"{file!r} {file.find(made['a'])!r} {parse_entries(made.path.read_text())!r}"
    assert made["a"] not in shown
    assert TokenEntry(name="a", role="reader", sha256=SHA).written() == {"name": "a", "role": "reader", "sha256": SHA}

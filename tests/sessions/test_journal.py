"""A session's journal: whole entries come back, a torn tail is cut off, damage is refused."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixserve.sessions import StateFolder
from mixserve.sessions.journal import Journal
from mixserve_client.errors import CorruptCheckpoint
from tests.profiles import examples

ENTRIES = [b"the first", b"x" * 300, b"\0", b"the last"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = StateFolder(tmp_path_factory.mktemp("state"))
    yield folder
    folder.close()


def written(folder, entries, name="journal"):
    journal = Journal(folder.path / "sessions" / name, folder)
    journal.begin(entries[0])
    for entry in entries[1:]:
        journal.append(entry)
    return journal


def read(journal):
    return Journal(journal.path, journal._folder).read()


@given(st.lists(st.binary(min_size=1, max_size=2000), min_size=1, max_size=20))
@settings(max_examples=examples(30), deadline=None)
def test_entries_come_back_in_their_order(folder, entries):
    assert read(written(folder, entries)) == entries


def test_a_journal_that_was_cut_off_anywhere_holds_its_whole_entries_and_goes_on_from_there(folder):
    journal = written(folder, ENTRIES)
    data = journal.path.read_bytes()
    ends = [len(data)]
    for entry in reversed(ENTRIES[1:]):
        ends.insert(0, ends[0] - len(entry) - 12)
    for length in range(ends[0], len(data) + 1):
        journal.path.write_bytes(data[:length])
        whole = sum(end <= length for end in ends)
        again = Journal(journal.path, folder)
        assert again.read() == ENTRIES[:whole]
        again.append(b"more")
        assert read(journal) == [*ENTRIES[:whole], b"more"]


@pytest.mark.parametrize("zeros", [1, 12, 13, 4096])
def test_zeros_where_an_entry_was_to_be_are_no_entry(folder, zeros):
    journal = written(folder, ENTRIES)
    journal.path.write_bytes(journal.path.read_bytes() + bytes(zeros))
    assert read(journal) == ENTRIES


def test_every_flipped_bit_is_noticed(folder):
    journal = written(folder, ENTRIES)
    data = journal.path.read_bytes()
    for at in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[at // 8] ^= 1 << at % 8
        journal.path.write_bytes(flipped)
        with pytest.raises(CorruptCheckpoint, match=str(journal.path)):
            read(journal)


def test_a_journal_without_a_whole_entry_is_damaged(folder):
    journal = written(folder, ENTRIES)
    for data in (b"", b"mixserve journal 1\n", b"another file"):
        journal.path.write_bytes(data)
        with pytest.raises(CorruptCheckpoint, match="damaged"):
            read(journal)


def test_a_journal_that_has_grown_long_says_so_until_it_is_begun_anew(folder):
    journal = written(folder, ENTRIES)
    while not journal.is_long:
        journal.append(bytes(10_000))
    assert journal.path.stat().st_size < 1 << 20
    assert Journal(journal.path, folder).read()[0] == ENTRIES[0]
    journal.begin(b"anew")
    assert not journal.is_long
    assert read(journal) == [b"anew"]
    assert list((folder.path / "unfinished").iterdir()) == []


def test_a_folder_is_one_servers(folder):
    with pytest.raises(OSError, match=r"cannot be used: another server \(process \d+\) has it"):
        StateFolder(folder.path)


def test_a_folder_that_cannot_be_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="Not a directory"):
        StateFolder(tmp_path / "file" / "state")

"""`on_error: skip`: the records that cannot be decoded are listed once, and every server leaves out the same ones."""

import io
import json
import os
import pickle
import re
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from mixserve import TokenSource, local_client, serve
from mixserve.build import build_nodes
from mixserve.cli.main import app
from mixserve.config import ConfigError, load_config
from mixserve.sources.skipped import SkipLists, SkippedRecords
from mixserve.sources.source import is_array_backed
from mixserve.sources.without import SourceWithout
from mixserve_client import MixClient, ServerFault
from tests.records import tfrecord, write_array_record
from tests.test_mds import write_mds
from tests.test_webdataset import tar

PAGE = Path(__file__).parent.parent / "docs/sources.md"
COUNT = 40
BAD = (0, 7, 8, 39)
GOOD = [number for number in range(COUNT) if number not in BAD]
GARBLED = b'{"x": [1, 2'


def check(file: Path, *options: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["check", str(file), *options], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    return result.output


def write(folder: Path, *sources: str) -> Path:
    file = folder / "mixture.yaml"
    lines = [f"      {source}\n" for source in sources]
    file.write_text("mixtures:\n  m:\n    sources:\n" + "".join(lines) + "server: {prepared: prepared}\n")
    return file


def values(bad: tuple[int, ...] = BAD) -> list[bytes]:
    """JSON records of a vector x of the number itself; the garbled ones are not JSON."""
    return [GARBLED if number in bad else json.dumps({"x": [number] * 3}).encode() for number in range(COUNT)]


def npy(number: int) -> bytes:
    file = io.BytesIO()
    np.save(file, np.full(3, number))
    return file.getvalue()


def write_tfrecord(folder: Path) -> str:
    (folder / "data.tfrecord").write_bytes(tfrecord(values()))
    return "{kind: tfrecord, path: data.tfrecord, record: json"


def write_damaged_tfrecord(folder: Path) -> str:
    data = bytearray(tfrecord(values(())))
    for number in BAD:
        data[data.index(f"[{number}, ".encode())] ^= 1  # the checksum of the data tells
    (folder / "data.tfrecord").write_bytes(data)
    return "{kind: tfrecord, path: data.tfrecord, record: json"


def write_arrays(folder: Path) -> str:
    # A header that NumPy's parser of old files cannot tokenize, a record that is cut, another dtype, and nothing.
    records = [npy(number) for number in range(COUNT)]
    records[0] = records[0].replace(b")", b"(", 1)
    records[7] = records[7][:-1]
    records[8] = records[8].replace(b"<i8", b"<f8")
    records[39] = b""
    write_array_record(folder / "data.array_record", records)
    return "{kind: array_record, path: data.array_record, record: npy, field: x"


def write_damaged_arrays(folder: Path) -> str:
    write_array_record(folder / "data.array_record", values(()), "group_size:1,uncompressed")
    data = bytearray((folder / "data.array_record").read_bytes())
    for number in BAD:
        data[data.index(b"[%d, " % number)] ^= 1  # the library's own checksum tells
    (folder / "data.array_record").write_bytes(data)
    return "{kind: array_record, path: data.array_record, record: json"


def write_tar(folder: Path) -> str:
    members = [
        (f"{number:03}.json", b"[1" if number in BAD else json.dumps([number] * 3).encode()) for number in range(COUNT)
    ]
    (folder / "data.tar").write_bytes(tar(members))
    return "{kind: webdataset, path: data.tar, fields: {x: json}"


def write_samples(folder: Path) -> str:
    samples = [{"x": b"[1" if number in BAD else json.dumps([number] * 3).encode()} for number in range(COUNT)]
    write_mds(folder / "data", {"x": "json"}, [samples])
    return "{kind: mds, path: data"


KINDS: dict[str, Callable[[Path], str]] = {
    function.__name__.removeprefix("write_"): function
    for function in (
        write_tfrecord,
        write_damaged_tfrecord,
        write_arrays,
        write_damaged_arrays,
        write_tar,
        write_samples,
    )
}


@pytest.fixture
def file(tmp_path) -> Path:
    return write(tmp_path, f"a: {write_tfrecord(tmp_path)}, weight: 1, on_error: skip}}")


@pytest.fixture
def listed(file) -> Path:
    check(file, "--full")
    return file


def source_of(file: Path) -> SourceWithout:
    (source,) = build_nodes(load_config(file), file)["m"].sources
    return source


def refused(file: Path) -> str:
    with pytest.raises(ConfigError) as error:
        build_nodes(load_config(file), file)
    return str(error.value)


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_decoded_is_listed_and_left_out(tmp_path, kind):
    section = KINDS[kind](tmp_path)
    file = write(tmp_path, f"a: {section}, weight: 1, on_error: skip}}")
    shown = check(file, "--full")
    assert "m: a: 4 records left out" in shown
    assert re.findall(r"\n  record (\d+): \w*Record: ", shown) == [str(number) for number in BAD]
    assert f"{file.with_name('mixture.skipped.json')} lists them" in shown
    source = source_of(file)
    assert len(source) == COUNT - len(BAD)
    assert source.take(np.arange(len(source)))["x"].tolist() == [[number] * 3 for number in GOOD]
    file.write_text(file.read_text().replace(", on_error: skip", ""))
    said = check(file, "--full", code=2)
    assert "reading the record 0 of the source 'a' failed: " in said
    assert "With on_error: skip, records of the source that cannot be decoded are left out" in said


def test_replicas_have_one_fingerprint_and_refuse_without_the_list(listed, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for name in ("mixture.yaml", "data.tfrecord"):
        (other / name).write_bytes((tmp_path / name).read_bytes())
    said = refused(other / "mixture.yaml")
    assert said.startswith(f"{other / 'mixture.yaml'}: mixtures.m.sources.a: on_error: skip needs the list")
    assert f"make it: mixserve check {other / 'mixture.yaml'} --full" in said
    assert "needs the list" in check(other / "mixture.yaml", code=2)
    (other / "mixture.skipped.json").write_bytes((tmp_path / "mixture.skipped.json").read_bytes())
    nodes = [build_nodes(load_config(file), file) for file in (listed, other / "mixture.yaml")]
    with serve(nodes[0]) as server, MixClient.connect(server.address) as client, local_client(nodes[1]) as beside:
        assert client.mixture().fingerprint == beside.mixture().fingerprint
        batch = client.get_batch_at(0, 200, 7)["x"]
        assert np.unique(batch[:, 0]).tolist() == GOOD
        np.testing.assert_array_equal(batch, beside.get_batch_at(0, 200, 7)["x"])
    check(other / "mixture.yaml", "--full")
    assert (other / "mixture.skipped.json").read_bytes() == (tmp_path / "mixture.skipped.json").read_bytes()


def test_no_bad_records_change_nothing(tmp_path):
    (tmp_path / "data.tfrecord").write_bytes(tfrecord(values(())))
    np.arange(99, dtype=np.uint16).tofile(tmp_path / "ids.bin")
    plain = write(
        tmp_path,
        "a: {kind: tfrecord, path: data.tfrecord, record: json, fields: {x: {from: x, as: uint16}}, weight: 1}",
        "b: {kind: tokens, path: ids.bin, dtype: uint16, sequence_length: 3, field: x, weight: 1}",
    )
    before = build_nodes(load_config(plain), plain)["m"].mixture.fingerprint
    plain.write_text(plain.read_text().replace("weight: 1", "weight: 1, on_error: skip"))
    assert "m: b: 0 records left out" in check(plain, "--full")
    node = build_nodes(load_config(plain), plain)["m"]
    assert node.mixture.fingerprint == before
    assert is_array_backed(node.sources[1])


def test_lists_are_part_of_the_content_also_with_an_id(file):
    file.write_text(file.read_text().replace("weight: 1", "weight: 1, content_id: mine"))
    check(file, "--full")
    found = [build_nodes(load_config(file), file)["m"].mixture.fingerprint]
    path = file.with_name("mixture.skipped.json")
    path.write_text(path.read_text().replace("[0, 7, 8, 39]", "[0, 7, 8, 9, 39]"))
    found.append(build_nodes(load_config(file), file)["m"].mixture.fingerprint)
    file.write_text(file.read_text().replace("mine", "yours"))
    found.append(build_nodes(load_config(file), file)["m"].mixture.fingerprint)
    assert len(set(found)) == 3


def test_a_list_of_other_data_is_refused(listed):
    data = listed.with_name("data.tfrecord")
    data.write_bytes(tfrecord(values((1,))))
    assert "have changed since" in refused(listed)
    assert f"make it again: mixserve check {listed} --full" in refused(listed)
    data.write_bytes(tfrecord(values()[:-1]))
    assert "40 records then, 39 now" in refused(listed)
    check(listed, "--full")
    assert len(source_of(listed)) == 36
    listed.write_text(listed.read_text().replace("record: json", "record: json, fields: {y: x}"))
    assert "the data, or how they are read, have changed" in refused(listed)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text[:-5], "is not as mixserve check writes it: "),
        (lambda _: "[" * 100_000, "is not as mixserve check writes it: "),
        (lambda _: '{"version": 2, "mixtures": {}}', "version: Input should be 1"),
        (lambda text: text.replace("39]", "39.5]"), "mixtures.m.a.skipped.3: Input should be a valid integer"),
        (lambda text: text.replace('"records": 40', '"records": "40"'), "mixtures.m.a.records: "),
        (lambda text: text.replace("39]", f"{10**30}]"), "has ids that are not in 0..39"),
        (lambda text: text.replace("[0, ", "[-1, "), "has ids that are not in 0..39"),
        (lambda text: text.replace("7, 8", "8, 7"), "has ids that do not rise"),
        (lambda text: text.replace("7, 8", "8, 8"), "has ids that do not rise"),
        (lambda text: text.replace("[0, 7, 8, 39]", str(list(range(17)))), "has 17 of 40 records, more than 16"),
        (lambda text: text.replace('"a"', '"b"'), "has none for this source"),
    ],
)
def test_a_damaged_list_is_refused_by_its_name(listed, change, said):
    path = listed.with_name("mixture.skipped.json")
    path.write_text(change(path.read_text()))
    found = refused(listed)
    assert said in found, found
    assert str(path) in found
    assert f"mixserve check {listed} --full" in found
    check(listed, "--full")
    assert len(source_of(listed)) == 36


def test_a_list_that_is_no_file_is_refused(listed):
    path = listed.with_name("mixture.skipped.json")
    path.unlink()
    os.mkfifo(path)
    assert "must be a file, got a pipe" in refused(listed)


def test_a_record_that_is_not_listed_raises_and_names_the_command(listed):
    path = listed.with_name("mixture.skipped.json")
    path.write_text(path.read_text().replace("[0, 7, 8, 39]", "[0, 39]"))
    with serve(build_nodes(load_config(listed), listed)) as server, MixClient.connect(server.address) as client:
        with pytest.raises(ServerFault) as error:
            client.get_batch_at(0, 200, 7)
        said = str(error.value)
    assert "reading the record 6 of the source 'a'" in said or "reading the record 7 of the source 'a'" in said
    assert "it is the record 7 of the data" in said or "it is the record 8 of the data" in said
    assert f"mixture.skipped.json does not list it, and this command would: mixserve check {listed} --full" in said
    assert "does not list it" in check(listed, code=2)


def test_explain_names_the_record_of_the_file(listed):
    result = CliRunner().invoke(
        app, ["explain", str(listed), "--key", "7", "--start", "0", "--size", "40", "--show"], env={"COLUMNS": "300"}
    )
    assert result.exit_code == 0, result.output
    rows = [line.split("│")[1:-1] for line in result.output.splitlines() if line.startswith("│") and "record" in line]
    assert len(rows) == 40
    for _, _, record, where in rows:
        assert f"data.tfrecord, record {GOOD[int(record)]}, byte " in where


def test_too_many_are_no_few_bad_records(tmp_path):
    (tmp_path / "data.tfrecord").write_bytes(tfrecord(values(tuple(range(0, 34, 2)))))
    file = write(tmp_path, "a: {kind: tfrecord, path: data.tfrecord, record: json, weight: 1, on_error: skip}")
    said = check(file, "--full", code=2)
    assert "17 of the first 33 records of the source 'a' cannot be decoded" in said
    assert "leaves out at most 16 of 40" in said
    assert "record 0: WrongRecord: " in said
    assert "has none for this source" in refused(file)


def test_the_source_has_what_the_whole_one_has(listed, tmp_path):
    source = source_of(listed)
    assert repr(source).endswith("length=40) without 4 records")
    assert [file.path.name for file in source.files()] == ["data.tfrecord"]
    assert source.locate(0).endswith("data.tfrecord, record 1, byte 27")
    assert source.prefetch is not None
    source.prefetch(np.arange(3))
    assert not is_array_backed(source)
    assert not hasattr(source, "too_long")
    copy = pickle.loads(pickle.dumps(source))
    assert copy.content_digest() == source.content_digest()
    assert copy.take(np.array([5]))["x"].tolist() == [[6] * 3]
    np.arange(99, dtype=np.uint16).tofile(tmp_path / "ids.bin")
    tokens = TokenSource(tmp_path / "ids.bin", sequence_length=3, dtype="uint16", vocab_size=100, name="ids")
    without = SourceWithout(tokens, np.array([4]), hint="")
    assert (without.name, without.vocab_size, without.stored_dtype) == ("ids", 100, np.uint16)
    assert without.largest_id(full=True) == 98
    with pytest.raises(AttributeError):
        _ = without.blocks


def test_the_list_is_readable_by_all_and_whole(listed):
    path = listed.with_name("mixture.skipped.json")
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    assert {entry.name for entry in path.parent.iterdir()} == {
        "data.tfrecord",
        "mixture.yaml",
        "mixture.skipped.json",
        "prepared",
    }


def test_one_mixture_may_be_listed_alone(listed):
    one, path = listed.read_text(), listed.with_name("mixture.skipped.json")
    listed.write_text(one.replace("  m:\n", "  n:\n").partition("server:")[0] + one.partition("mixtures:\n")[2])
    assert "mixtures.n.sources.a: on_error: skip needs the list" in refused(listed)
    assert "n: a: 4 records left out" in check(listed, "--full", "--mixture", "n")
    assert set(json.loads(path.read_text())["mixtures"]) == {"m", "n"}
    assert len(build_nodes(load_config(listed), listed)) == 2
    listed.write_text(one)
    check(listed, "--full")
    assert set(json.loads(path.read_text())["mixtures"]) == {"m"}


def test_the_file_of_the_page(tmp_path):
    text = PAGE.read_text().partition("### Records that cannot be decoded")[2].partition("\n#")[0]
    (yaml,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "web").mkdir()
    (tmp_path / "web/a.tar").write_bytes(
        tar([(f"{n:03}.npy", npy(n)[: -1 if n in BAD else None]) for n in range(COUNT)])
    )
    file = tmp_path / "mixture.yaml"
    file.write_text(f"{yaml}server: {{prepared: prepared}}\n")
    assert "train: web: 4 records left out" in check(file, "--full")
    check(file)


def test_a_list_that_servers_would_refuse_is_not_written(tmp_path):
    lists = SkipLists.read(tmp_path / "mixture.yaml")
    for number in range(10):
        ids = list(range(10**12, 10**12 + 500_000))
        lists.put("m", f"s{number}", SkippedRecords(content="0" * 64, records=10**13, skipped=ids))
    said = r"mixture.skipped.json would have 75,\d\d\d,\d\d\d bytes for 5,000,000 records of all sources, and may have"
    with pytest.raises(ValueError, match=said):
        lists.write()
    assert list(tmp_path.iterdir()) == []
